//! Starting the run's background processes: detached from the terminal, logging into the run's folder.

use super::client::Engine;
use super::faults::Fault;
use crate::commands::Context;
use crate::exit::{CliError, with_path};
use crate::paths::RunFolder;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Test instruments handed down to the processes; empty in every ordinary run.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    pub faults: Vec<Fault>,
    pub guard_faults: Vec<Fault>,
    pub sabotage: Vec<String>,
    /// The engine ends when this process is gone: a demo that was killed leaves nothing behind.
    pub end_with: Option<u32>,
}

impl Extras {
    fn engine_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.faults.iter().map(|fault| format!("--fault={fault}")).collect();
        arguments.extend(self.guard_faults.iter().map(|fault| format!("--guard-fault={fault}")));
        arguments.extend(self.common_arguments());
        arguments
    }

    fn common_arguments(&self) -> Vec<String> {
        let sabotage = self.sabotage.iter().map(|name| format!("--sabotage={name}"));
        sabotage.chain(self.end_with.map(|pid| format!("--end-with={pid}"))).collect()
    }

    /// What the guard gets: its own faults, and the same sabotage once it is the engine.
    pub fn guard_arguments(&self) -> Vec<String> {
        let faults = self.guard_faults.iter().map(|fault| format!("--fault={fault}"));
        faults.chain(self.common_arguments()).collect()
    }
}

const START_DEADLINE: Duration = Duration::from_secs(20);

/// The engine of this run, started if none is alive.
pub async fn ensure(context: &Context<'_>, run: &RunFolder, extras: &Extras) -> Result<Engine, CliError> {
    if let Some(engine) = Engine::connect(run).await? {
        return Ok(engine);
    }
    let mut child = start("__engine", &context.home, run, &run.log(), &extras.engine_arguments())?;
    let begun = Instant::now();
    loop {
        if let Some(engine) = Engine::connect(run).await? {
            return Ok(engine);
        }
        if let Some(status) = child.try_wait().map_err(with_path(&run.log()))? {
            // Another process may have begun at the same moment and hold the lease; then its socket answers soon.
            if let Some(engine) = Engine::connect(run).await? {
                return Ok(engine);
            }
            return Err(CliError::failed(format!(
                "the engine ended at once ({status}): {}",
                last_words(&run.log())
            ))
            .hint(format!("its log: {}", run.log().display())));
        }
        if begun.elapsed() > START_DEADLINE {
            let text = format!(
                "the engine (pid {}) does not answer after {} s",
                child.id(),
                START_DEADLINE.as_secs()
            );
            return Err(CliError::failed(text).hint(format!("its log: {}", run.log().display())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts `rehome WORD RUN` in the background. The child makes a session of its own, so that neither Ctrl-C nor the end of the
/// terminal reaches it.
pub fn start(
    word: &str,
    home: &Path,
    run: &RunFolder,
    log: &Path,
    more: &[String],
) -> Result<Child, CliError> {
    let program = std::env::current_exe().map_err(with_path(Path::new("rehome")))?;
    let errors = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .map_err(with_path(log))?;
    Command::new(&program)
        .arg("--state")
        .arg(home)
        .arg(word)
        .arg(run.name())
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(with_path(&program))
}

/// The last line a process wrote before it ended.
fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    line.chars().take(400).collect()
}
