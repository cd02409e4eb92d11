//! Faults on purpose, for tests and `--sabotage`: what happens at a named point. Nothing here is reachable without hidden
//! options.

use async_trait::async_trait;
use rehome_engine::ports::Faults;
use rehome_part::{Error, ErrorKind};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// `kill@POINT`, `stop@POINT` or `fail@POINT`; happens once per process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub act: Act,
    pub point: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// SIGKILL to ourselves: no destructor runs, nothing is flushed.
    Kill,
    /// SIGSTOP to ourselves; whoever tests sends SIGCONT.
    Stop,
    Fail,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (act, point) = text.split_once('@').ok_or("write it as kill@POINT, stop@POINT or fail@POINT")?;
        let act = match act {
            "kill" => Act::Kill,
            "stop" => Act::Stop,
            "fail" => Act::Fail,
            _ => return Err(format!("`{act}` is none of kill, stop, fail")),
        };
        Ok(Self { act, point: point.to_owned() })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let act = match self.act {
            Act::Kill => "kill",
            Act::Stop => "stop",
            Act::Fail => "fail",
        };
        write!(f, "{act}@{}", self.point)
    }
}

#[derive(Debug, Default)]
pub struct Planned {
    faults: Vec<(Fault, AtomicBool)>,
    sabotage: BTreeSet<String>,
}

impl Planned {
    pub fn new(faults: &[Fault], sabotage: &[String]) -> Self {
        Self {
            faults: faults.iter().cloned().map(|fault| (fault, AtomicBool::new(false))).collect(),
            sabotage: sabotage.iter().cloned().collect(),
        }
    }
}

#[async_trait]
impl Faults for Planned {
    async fn at(&self, point: &str) -> Result<(), Error> {
        for (fault, happened) in &self.faults {
            if fault.point != point || happened.swap(true, Ordering::Relaxed) {
                continue;
            }
            tracing::warn!("fault on purpose: {fault}");
            let signal = match fault.act {
                Act::Kill => rustix::process::Signal::KILL,
                Act::Stop => rustix::process::Signal::STOP,
                Act::Fail => {
                    return Err(Error::permanent(ErrorKind::Other, format!("fault on purpose at {point}")));
                }
            };
            rustix::process::kill_process(rustix::process::getpid(), signal)
                .map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
        }
        Ok(())
    }

    fn sabotage(&self, name: &str) -> bool {
        self.sabotage.contains(name)
    }
}
