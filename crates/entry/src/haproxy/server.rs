//! The HAProxy that runs: testing a configuration aside and in place, taking it up by the runtime API or by one reload, and
//! requests through it.

use super::config::{Config, all_files};
use super::plan::{Stands, address_of, stands};
use super::runtime::Runtime;
use super::swap::{self, Move};
use crate::EntryError;
use crate::address::{HostPort, Names};
use crate::change::{Seen, Served, TakenUp};
use crate::files::{self, FileChange};
use crate::probe::{self, Question};
use crate::process::{self, Pid};
use crate::program;
use crate::service::Service;
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TEST_PATIENCE: Duration = Duration::from_secs(30);
const RELOAD_PATIENCE: Duration = Duration::from_secs(20);

/// Where an HAProxy is, and how it is told.
#[derive(Debug, Clone)]
pub struct Haproxy {
    pub program: PathBuf,
    /// Files, or folders of `*.cfg`, in the order of its `-f`.
    pub configs: Vec<PathBuf>,
    /// Its stats socket.
    pub runtime: Option<Runtime>,
    /// The pid file of a master (`-W`, `-Ws`).
    pub pid_file: Option<PathBuf>,
    /// A program with arguments instead of the signal.
    pub reload: Option<Vec<String>>,
    /// Where records of changes are kept.
    pub state: PathBuf,
}

/// One change at work.
#[derive(Debug)]
pub(super) struct Running<'a> {
    pub haproxy: &'a Haproxy,
    pub services: &'a [Service],
    pub questions: &'a [Question],
    /// By the runtime API, without a reload.
    pub by_runtime: bool,
}

#[async_trait]
impl Served for Running<'_> {
    async fn would_take(&self, changes: &[FileChange]) -> Result<(), EntryError> {
        self.haproxy.test(&all_files(&self.haproxy.configs)?).await.map_err(|error| {
            EntryError::unfit(
                format!("the configuration as it stands is refused by haproxy itself: {error}"),
                "mend it first; nothing was changed",
            )
        })?;
        let mut aside = Vec::new();
        let mut names = HashMap::new();
        let mut paths = Vec::new();
        for path in all_files(&self.haproxy.configs)? {
            let real = std::fs::canonicalize(&path).map_err(files::failed(&path))?;
            let Some(change) = changes.iter().find(|change| change.path == real) else {
                paths.push(path);
                continue;
            };
            // Beside the real one, for paths that are read from there.
            let folder = path.parent().unwrap_or(Path::new("."));
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let copy = (|| {
                let mut copy = tempfile::Builder::new().prefix(".rehome-test-").tempfile_in(folder)?;
                copy.write_all(&change.after)?;
                copy.flush()?;
                Ok(copy)
            })()
            .map_err(files::failed(folder))?;
            names.insert(copy.path().display().to_string(), path.display().to_string());
            paths.push(copy.path().to_owned());
            aside.push(copy);
        }
        self.haproxy.test(&paths).await.map_err(|error| {
            let text = names.iter().fold(error.to_string(), |text, (copy, path)| text.replace(copy, path));
            EntryError::unfit(format!("haproxy would refuse it: {text}"), "nothing was changed")
        })
    }

    async fn takes(&self) -> Result<(), EntryError> {
        self.haproxy.test(&all_files(&self.haproxy.configs)?).await
    }

    async fn take_up(&self, _: &[FileChange]) -> Result<TakenUp, EntryError> {
        match &self.haproxy.runtime {
            Some(runtime) if self.by_runtime => match self.move_servers(runtime).await {
                // A static algorithm takes no further server: then it is a reload.
                Err(EntryError::Unfit { what, .. }) if self.haproxy.master().is_ok() => {
                    let mut taken_up = self.haproxy.reload().await?;
                    taken_up.notes.push(format!("not at runtime: {what}"));
                    Ok(taken_up)
                }
                moved => moved,
            },
            Some(runtime) => {
                let mut taken_up = self.haproxy.reload().await?;
                // A state file may have given them the addresses of before.
                let moved = self.move_servers(runtime).await?;
                if moved.by == "runtime" {
                    taken_up.notes.extend(moved.notes);
                }
                Ok(taken_up)
            }
            None => self.haproxy.reload().await,
        }
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

impl Running<'_> {
    /// Gives running servers the addresses that the files in place have, where one of our services is concerned.
    async fn move_servers(&self, runtime: &Runtime) -> Result<TakenUp, EntryError> {
        let begun = Instant::now();
        let config = Config::read(&self.haproxy.configs, &[])?;
        let mut wanted = Vec::new();
        for section in config.sections.iter().filter(|section| section.has_servers()) {
            for line in section.servers() {
                if let Some(at) = address_of(line.word(2)) {
                    wanted.push((section.name().to_owned(), line.word(1).to_owned(), at));
                }
            }
        }
        let hosts = wanted.iter().map(|(_, _, at)| at.host.clone());
        let names = Names::look_up(hosts.chain(self.services.iter().flat_map(Service::hosts))).await;
        let running = runtime.servers().await?;
        let is_ours = |at: &HostPort| stands(at, self.services, &names) != Stands::Elsewhere;
        let mut moves: BTreeMap<String, Vec<Move>> = BTreeMap::new();
        for (backend, server, at) in wanted.iter().filter(|(_, _, at)| is_ours(at)) {
            let found = running.iter().find(|one| one.backend == *backend && one.server == *server);
            let Some(now) = found.and_then(|one| address_of(&one.address)) else { continue };
            // A spare server is what a killed move leaves: its servers may be drained yet.
            let is_half_moved =
                running.iter().any(|one| one.backend == *backend && one.server == swap::SPARE);
            if names.is_same(&now, at) && !is_half_moved || !is_ours(&now) {
                continue;
            }
            let resolved = |at: &HostPort| names.first(&at.host).map(|ip| SocketAddr::new(ip, at.port));
            let to = resolved(at).ok_or_else(|| {
                EntryError::unfit(format!("nobody knows the name {}", at.host), "write its address")
            })?;
            let from = resolved(&now).filter(|from| *from != to);
            let found = Move { server: server.clone(), from, to };
            moves.entry(backend.clone()).or_default().push(found);
        }
        let by = if moves.is_empty() { "none" } else { "runtime" };
        let mut notes = Vec::new();
        for (backend, moves) in &moves {
            notes.extend(swap::swap(runtime, backend, moves).await?);
        }
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(TakenUp { by, milliseconds, open_connections: Some(0), still_finishing: 0, notes })
    }
}

impl Haproxy {
    /// `haproxy -c`.
    pub(super) async fn test(&self, paths: &[PathBuf]) -> Result<(), EntryError> {
        let mut arguments: Vec<OsString> = vec!["-c".into()];
        for path in paths {
            arguments.extend(["-f".into(), path.into()]);
        }
        program::run_well(&self.program, &arguments, TEST_PATIENCE).await.map(|_| ())
    }

    /// The master of the running HAProxy.
    fn master(&self) -> Result<Option<Pid>, EntryError> {
        if self.reload.is_some() && self.pid_file.is_none() {
            return Ok(None);
        }
        let set = Config::read(&self.configs, &[])?.global(&["pidfile"]).map(|line| line.word(1).into());
        let path = self.pid_file.clone().or(set).unwrap_or_else(|| PathBuf::from("/run/haproxy.pid"));
        let found = process::named_by(&path, "haproxy");
        let is_master = |pid: &Pid| {
            let children = process::children(*pid);
            children
                .iter()
                .any(|child| process::command_line(*child).is_some_and(|line| line.contains("haproxy")))
        };
        match found.filter(is_master) {
            Some(master) => Ok(Some(master)),
            None if self.reload.is_some() => Ok(None),
            None => Err(EntryError::unfit(
                format!("{} names no master of HAProxy that runs", path.display()),
                "run it with -W or -Ws, name its pid file with --pid, or say how it is reloaded with --reload",
            )),
        }
    }

    async fn reload(&self) -> Result<TakenUp, EntryError> {
        let master = self.master()?;
        let before = master.map(process::children).unwrap_or_default();
        let open_connections = match &self.runtime {
            Some(runtime) => runtime.info().await.ok().and_then(|info| info.current_connections),
            None => process::clients_of(&before),
        };
        let begun = Instant::now();
        if let Some((program, arguments)) = self.reload.as_ref().and_then(|words| words.split_first()) {
            program::run_well(Path::new(program), arguments, RELOAD_PATIENCE).await?;
        } else if let Some(master) = master {
            process::signal(master, rustix::process::Signal::USR2).map_err(|error| EntryError::Program {
                program: "haproxy".into(),
                text: error.to_string(),
            })?;
        }
        if let Some(master) = master {
            self.taken_up(master, &before).await?;
        }
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let still_finishing = before.iter().filter(|pid| process::command_line(**pid).is_some()).count();
        let notes = self.notes(open_connections, still_finishing);
        Ok(TakenUp { by: "reload", milliseconds, open_connections, still_finishing, notes })
    }

    /// Waits until a new worker is there, and answers at the socket where there is one.
    async fn taken_up(&self, master: Pid, before: &[Pid]) -> Result<(), EntryError> {
        let begun = Instant::now();
        loop {
            let new: Vec<Pid> =
                process::children(master).into_iter().filter(|pid| !before.contains(pid)).collect();
            let answers = match &self.runtime {
                Some(runtime) => {
                    runtime.info().await.is_ok_and(|info| info.pid.is_some_and(|pid| !before.contains(&pid)))
                }
                None => true,
            };
            if !new.is_empty() && answers {
                return Ok(());
            }
            if begun.elapsed() > RELOAD_PATIENCE {
                let text = format!(
                    "no new worker within {RELOAD_PATIENCE:?}: the reload was refused; its log says why"
                );
                return Err(EntryError::Program { program: "haproxy".into(), text });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn notes(&self, open: Option<u64>, finishing: usize) -> Vec<String> {
        let mut notes = vec![match open {
            Some(open) => format!(
                "{open} connections were open: the old worker closes idle ones, so each may lose at most the one request that \
                 its client sends in just that moment"
            ),
            None => "how many connections were open could not be seen: each may lose at most one request"
                .to_owned(),
        }];
        notes.push("what was set at runtime (weights, drain, addresses) is gone, unless a server-state file brought it back".into());
        if finishing > 0 {
            notes.push(format!(
                "{finishing} old workers finish what they had begun; until then those requests go the former way: arm no \
                 switch before they are gone (`hard-stop-after` bounds it)"
            ));
        }
        notes
    }
}
