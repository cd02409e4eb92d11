//! Mischief from outside: kills or stops the run's processes when its journal enters a state. The processes are found by the
//! ids that the journal names, and are checked to be ours before a signal is sent.

use super::gateway::GatewayProcess;
use crate::daemon::client::Engine;
use crate::daemon::wire::Verb;
use crate::paths::RunFolder;
use rehome_journal::{Reader, RunView};
use rehome_testkit::monotonic_nanos;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mischief {
    victim: Victim,
    /// The state's name, `HELD`.
    state: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Engine,
    Guard,
    Both,
    Gateway,
    /// SIGSTOP past its lease, then SIGCONT.
    EngineStopped,
}

impl FromStr for Mischief {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (victim, state) = text.split_once('@').ok_or("write it as WHO-ACT@STATE")?;
        let victim = match victim {
            "engine-kill" => Victim::Engine,
            "guard-kill" => Victim::Guard,
            "both-kill" => Victim::Both,
            "gateway-kill" => Victim::Gateway,
            "engine-stop" => Victim::EngineStopped,
            other => {
                return Err(format!(
                    "`{other}` is none of engine-kill, guard-kill, both-kill, gateway-kill, engine-stop"
                ));
            }
        };
        Ok(Self { victim, state: state.to_uppercase() })
    }
}

/// A gateway's death: from just before the signal until the process was gone, by the clock of the load.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    began_nanos: u64,
    gone_nanos: u64,
}

impl Outage {
    /// Was a request open on the gateway when it died? Every client has one request under way at most.
    pub fn hit(&self, started_nanos: u64, ended_nanos: u64) -> bool {
        started_nanos <= self.gone_nanos && ended_nanos >= self.began_nanos
    }
}

const LOOK: Duration = Duration::from_millis(2);
/// Longer than the lease and the guard's patience together.
const STOPPED_FOR: Duration = Duration::from_secs(5);

/// Waits for the state, then does it, once.
pub fn watch(
    mischief: Mischief,
    run: RunFolder,
    gateway: Arc<GatewayProcess>,
    home: PathBuf,
) -> JoinHandle<Option<Outage>> {
    tokio::spawn(async move {
        let view = state_entered(&run, &mischief.state).await;
        let (engine, guard) = (engine_pid(&view), guard_pid(&view));
        tracing::info!("mischief: {mischief:?}");
        let signal = |pid: Option<u32>, signal| send(&home, pid, signal);
        match mischief.victim {
            Victim::Engine => signal(engine, Signal::KILL),
            Victim::Guard => signal(guard, Signal::KILL),
            Victim::Both => {
                signal(guard, Signal::KILL);
                signal(engine, Signal::KILL);
            }
            Victim::Gateway => {
                let began_nanos = monotonic_nanos();
                let killed = gateway.kill().await;
                let outage = Outage { began_nanos, gone_nanos: monotonic_nanos() };
                let again = match killed {
                    Ok(()) => gateway.launch().await,
                    failed => failed,
                };
                if let Err(error) = again {
                    tracing::error!("{}", error.text);
                }
                return Some(outage);
            }
            Victim::EngineStopped => {
                signal(engine, Signal::STOP);
                tokio::time::sleep(STOPPED_FOR).await;
                signal(engine, Signal::CONT);
            }
        }
        None
    })
}

async fn state_entered(run: &RunFolder, state: &str) -> RunView {
    loop {
        if let Ok(mut reader) = Reader::open(&run.path) {
            while let Ok(view) = reader.refresh() {
                if view.state == state {
                    return view.clone();
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn pid_in(holder: &str) -> Option<u32> {
    holder.rsplit_once("pid ").and_then(|(_, pid)| pid.trim().parse().ok())
}

fn engine_pid(view: &RunView) -> Option<u32> {
    view.lease.as_ref().and_then(|lease| pid_in(&lease.holder))
}

fn guard_pid(view: &RunView) -> Option<u32> {
    view.guard.as_ref().and_then(|guard| pid_in(&guard.holder))
}

/// Only a process of this very run is signalled: its command line names our state folder.
fn send(home: &Path, pid: Option<u32>, signal: Signal) {
    let Some(pid) = pid else { return };
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = line.split(|byte| *byte == 0).any(|word| word == home.as_os_str().as_encoded_bytes());
    if let Some(pid) = Pid::from_raw(pid.cast_signed()).filter(|_| ours) {
        let _ = kill_process(pid, signal);
    }
}

/// Ends whatever engine and guard the demo's run still has: asked first, killed if deaf.
pub async fn end_engines(run: &RunFolder, home: &Path) {
    if let Ok(Some(mut engine)) = Engine::connect(run).await {
        let _ = tokio::time::timeout(Duration::from_secs(3), engine.order(Verb::Stop)).await;
    }
    let Ok(view) = RunView::load(&run.path) else { return };
    for pid in [engine_pid(&view), guard_pid(&view)].into_iter().flatten() {
        for _ in 0..100 {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        send(home, Some(pid), Signal::KILL);
    }
}
