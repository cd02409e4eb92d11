//! The gateway of the demo: `rehome gateway` as a process of its own, started again when it was killed.

use crate::exit::{CliError, with_path};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

#[derive(Debug)]
pub struct GatewayProcess {
    home: PathBuf,
    migration_file: PathBuf,
    sabotage: Vec<String>,
    keep: bool,
    child: Mutex<Option<Child>>,
}

const READY: Duration = Duration::from_secs(30);

impl GatewayProcess {
    pub async fn start(
        home: PathBuf,
        migration_file: PathBuf,
        sabotage: &[String],
        keep: bool,
    ) -> Result<Self, CliError> {
        // The others are the engine's or the parts'.
        let its_own = |name: &&String| name.starts_with("release-");
        let sabotage = sabotage.iter().filter(its_own).cloned().collect();
        let gateway = Self { home, migration_file, sabotage, keep, child: Mutex::new(None) };
        gateway.launch().await?;
        Ok(gateway)
    }

    /// Starts it and waits until it listens.
    pub async fn launch(&self) -> Result<(), CliError> {
        let rehome = std::env::current_exe().map_err(with_path(Path::new("rehome")))?;
        let folder = self.migration_file.parent().unwrap_or(Path::new("."));
        let (ready, log) = (folder.join("gateway.ready"), folder.join("gateway.log"));
        let _ = std::fs::remove_file(&ready);
        let errors =
            std::fs::File::options().create(true).append(true).open(&log).map_err(with_path(&log))?;
        let mut child = Command::new(&rehome)
            .arg("--state")
            .arg(&self.home)
            .arg("--file")
            .arg(&self.migration_file)
            .arg("gateway")
            .arg("--ready")
            .arg(&ready)
            .arg("--access-log")
            .arg(folder.join("access.jsonl"))
            .args(self.sabotage.iter().map(|name| format!("--sabotage={name}")))
            .args((!self.keep).then_some("--end-with-stdin"))
            // The end of this pipe is its sign that the demo is gone, however it ended.
            .stdin(if self.keep { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::null())
            .stderr(errors)
            .process_group(0) // Ctrl-C is for the demo; it ends its gateway itself
            .kill_on_drop(!self.keep)
            .spawn()
            .map_err(with_path(&rehome))?;
        let begun = Instant::now();
        while !ready.exists() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(CliError::failed(format!(
                    "the gateway ended at once ({status}); see {}",
                    log.display()
                )));
            }
            if begun.elapsed() > READY {
                return Err(CliError::failed(format!(
                    "the gateway is not ready after {} s",
                    READY.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        *self.lock() = Some(child);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().and_then(Child::id)
    }

    /// SIGKILL; the process is gone when this returns. A service manager would start a new one then.
    pub async fn kill(&self) -> Result<(), CliError> {
        let child = self.lock().take();
        if let Some(mut child) = child {
            child.kill().await.map_err(with_path(&self.home))?;
        }
        Ok(())
    }

    /// SIGTERM, and its own graceful end.
    pub async fn end(&self) {
        let child = self.lock().take();
        let Some(mut child) = child else { return };
        if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}
