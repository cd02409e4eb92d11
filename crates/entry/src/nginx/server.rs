//! The nginx that runs: testing a configuration aside and in place, one reload, and requests through it. It knows a process by
//! its pid file and its own name only, and signals nobody else.

use super::survey::time;
use super::tree::Tree;
use crate::EntryError;
use crate::change::{Seen, Served, TakenUp};
use crate::files::{self, FileChange};
use crate::probe::{self, Question};
use crate::process::{self, Pid};
use crate::program;
use async_trait::async_trait;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TEST_PATIENCE: Duration = Duration::from_secs(30);
const RELOAD_PATIENCE: Duration = Duration::from_secs(20);
const MASTER: &str = "nginx: master process";
const WORKER: &str = "nginx: worker process";
const RETIRING: &str = "is shutting down";

/// Where an nginx is, and how it is told to read its files again.
#[derive(Debug, Clone)]
pub struct Nginx {
    pub program: PathBuf,
    pub config: PathBuf,
    /// `-p`, when nginx was started with one.
    pub prefix: Option<PathBuf>,
    /// The pid file, when it does not follow from the configuration.
    pub pid_file: Option<PathBuf>,
    /// A program with arguments instead of the signal.
    pub reload: Option<Vec<String>>,
    /// Where records of changes are kept.
    pub state: PathBuf,
}

/// One change at work.
#[derive(Debug)]
pub(super) struct Running<'a> {
    pub nginx: &'a Nginx,
    pub questions: &'a [Question],
}

#[async_trait]
impl Served for Running<'_> {
    async fn would_take(&self, changes: &[FileChange]) -> Result<(), EntryError> {
        self.nginx.test(&self.nginx.config).await.map_err(|error| {
            EntryError::unfit(
                format!("the configuration as it stands is refused by nginx itself: {error}"),
                "mend it first; nothing was changed",
            )
        })?;
        let tree = Tree::read_with(&self.nginx.config, changes)?;
        // Beside the real one: every relative path in it leads where it led.
        let aside = (|| {
            let mut aside = tempfile::Builder::new().prefix(".rehome-test-").tempfile_in(&tree.folder)?;
            aside.write_all(&tree.flat())?;
            aside.flush()?;
            Ok(aside)
        })()
        .map_err(files::failed(&tree.folder))?;
        self.nginx.test(aside.path()).await.map_err(|error| match error {
            EntryError::Program { program, text } => {
                let name = aside.path().display().to_string();
                EntryError::Program {
                    program,
                    text: format!(
                        "nothing was changed, nginx would refuse it (all files in one, hence the lines): {}",
                        text.replace(&name, "the proposal")
                    ),
                }
            }
            other => other,
        })
    }

    async fn takes(&self) -> Result<(), EntryError> {
        self.nginx.test(&self.nginx.config).await
    }

    async fn take_up(&self, _: &[FileChange]) -> Result<TakenUp, EntryError> {
        let tree = Tree::read(&self.nginx.config)?;
        let master = self.nginx.master(&tree).await?;
        let workers = master.map(workers).unwrap_or_default();
        let open_connections =
            master.and_then(|master| process::clients_of(&[&workers[..], &[master]].concat()));
        let begun = Instant::now();
        self.nginx.signal_reload(master).await?;
        if let Some(master) = master {
            taken_up(master, &workers).await?;
        }
        let still_finishing = workers.iter().filter(|pid| is_worker(**pid)).count();
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let notes = notes(&tree, open_connections, still_finishing, master.is_some());
        Ok(TakenUp { by: "reload", milliseconds, open_connections, still_finishing, notes })
    }

    async fn look(&self) -> Vec<Seen> {
        let mut asked = tokio::task::JoinSet::new();
        for (number, question) in self.questions.iter().cloned().enumerate() {
            asked.spawn(async move { (number, probe::ask(&question).await) });
        }
        let mut seen = asked.join_all().await;
        seen.sort_by_key(|(number, _)| *number);
        seen.into_iter().map(|(_, seen)| seen).collect()
    }
}

impl Nginx {
    /// `nginx -t`.
    pub(super) async fn test(&self, config: &Path) -> Result<(), EntryError> {
        let mut arguments: Vec<OsString> = vec!["-t".into(), "-q".into(), "-c".into(), config.into()];
        if let Some(prefix) = &self.prefix {
            arguments.extend(["-p".into(), prefix.into()]);
        }
        program::run_well(&self.program, &arguments, TEST_PATIENCE).await.map(|_| ())
    }

    /// The running master. `None` only where somebody else's command reloads it.
    async fn master(&self, tree: &Tree) -> Result<Option<Pid>, EntryError> {
        let path = self.pid_path(tree).await?;
        match process::named_by(&path, MASTER) {
            Some(master) => Ok(Some(master)),
            None if self.reload.is_some() => Ok(None),
            None => Err(EntryError::unfit(
                format!("{} names no nginx that runs", path.display()),
                "start nginx, name its pid file with --pid, or say how it is reloaded with --reload",
            )),
        }
    }

    pub(super) async fn can_reload(&self, tree: &Tree) -> bool {
        self.reload.is_some() || self.master(tree).await.is_ok()
    }

    async fn pid_path(&self, tree: &Tree) -> Result<PathBuf, EntryError> {
        if let Some(path) = &self.pid_file {
            return Ok(path.clone());
        }
        let set = tree.expanded(tree.main()).into_iter().find(|found| found.name() == "pid");
        let set = set.map(|found| PathBuf::from(found.value()));
        if let Some(path) = set.as_ref().filter(|path| path.is_absolute()) {
            return Ok(path.clone());
        }
        let built = program::run_well(&self.program, &["-V"], TEST_PATIENCE).await?;
        let option = |name: &str| {
            let words = built.stderr.split_whitespace();
            words.filter_map(|word| word.strip_prefix(name)).next_back().map(PathBuf::from)
        };
        let prefix = self.prefix.clone().or_else(|| option("--prefix=")).unwrap_or_else(|| "/".into());
        let path = set.or_else(|| option("--pid-path=")).unwrap_or_else(|| "logs/nginx.pid".into());
        Ok(prefix.join(path))
    }

    async fn signal_reload(&self, master: Option<Pid>) -> Result<(), EntryError> {
        if let Some((program, arguments)) = self.reload.as_ref().and_then(|words| words.split_first()) {
            return program::run_well(Path::new(program), arguments, RELOAD_PATIENCE).await.map(|_| ());
        }
        let failed = |text: String| EntryError::Program { program: "nginx".into(), text };
        let master = master.ok_or_else(|| failed("no master to signal".into()))?;
        process::signal(master, rustix::process::Signal::HUP).map_err(|error| failed(error.to_string()))
    }
}

fn is_worker(pid: Pid) -> bool {
    process::command_line(pid).is_some_and(|line| line.starts_with(WORKER))
}

fn is_retiring(pid: Pid) -> bool {
    process::command_line(pid).is_none_or(|line| line.contains(RETIRING))
}

fn workers(master: Pid) -> Vec<Pid> {
    process::children(master).into_iter().filter(|pid| is_worker(*pid)).collect()
}

/// Waits until new workers are there and the old ones take no more connections.
async fn taken_up(master: Pid, before: &[Pid]) -> Result<(), EntryError> {
    let begun = Instant::now();
    loop {
        let now = workers(master);
        let has_new = now.iter().any(|pid| !before.contains(pid) && !is_retiring(*pid));
        if has_new && before.iter().all(|pid| is_retiring(*pid)) {
            return Ok(());
        }
        if begun.elapsed() > RELOAD_PATIENCE {
            let text = format!(
                "no new workers within {RELOAD_PATIENCE:?}: the reload was refused; its error log says why"
            );
            return Err(EntryError::Program { program: "nginx".into(), text });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn notes(tree: &Tree, open: Option<u64>, finishing: usize, is_seen: bool) -> Vec<String> {
    let mut notes = vec![match open {
        Some(open) => format!(
            "{open} connections of clients were open: nginx closes idle ones, so each may lose at most the one request \
             that its client sends in just that moment"
        ),
        None => "how many connections of clients were open could not be seen: each may lose at most the one request that \
                 its client sends in just the moment of the reload"
            .to_owned(),
    }];
    if !is_seen {
        notes.push("the workers could not be seen: somebody else's command reloads them".into());
    }
    if finishing > 0 {
        let top = tree.expanded(tree.main());
        let limit = top.iter().find(|found| found.name() == "worker_shutdown_timeout");
        let until = match limit.and_then(|found| time(found.value())) {
            Some(limit) => format!("for at most {} s", limit.as_secs_f64()),
            None => "without a limit (there is no worker_shutdown_timeout)".into(),
        };
        notes.push(format!(
            "{finishing} old workers finish what they had begun, {until}; until then those requests and WebSockets go the \
             former way: arm no switch before they are gone"
        ));
    }
    notes
}
