//! A command's line to the engine of a run.

use super::wire::{Order, Reply, Verb};
use crate::audit;
use crate::exit::{CliError, Exit};
use crate::paths::{RunFolder, reachable_socket};
use rehome_engine::{Command, CommandOutcome};
use rehome_gateway::control::{self, Hello};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

#[derive(Debug)]
pub struct Engine {
    stream: BufReader<UnixStream>,
}

impl Engine {
    /// Connects and says hello; `None` when no engine is alive.
    pub async fn connect(run: &RunFolder) -> Result<Option<Self>, CliError> {
        for socket in [run.socket(), run.guard_socket()] {
            let Ok((path, _folder)) = reachable_socket(&socket) else { continue };
            let Ok(stream) = UnixStream::connect(&path).await else { continue };
            let secret = run.read_secret()?;
            let hello = Hello { version: control::VERSION, secret, who: audit::actor() };
            let mut engine = Self { stream: BufReader::new(stream) };
            if engine.send(&hello).await.is_err() {
                continue;
            }
            // A guard that only watches refuses orders; an engine answers.
            match tokio::time::timeout(Duration::from_secs(5), engine.order(Verb::Ping)).await {
                Ok(Ok(Reply::Done { .. })) => return Ok(Some(engine)),
                _ => continue,
            }
        }
        Ok(None)
    }

    async fn send(&mut self, line: &impl serde::Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes()).await
    }

    /// Gives an order and waits for the reply, however long the engine takes.
    pub async fn order(&mut self, verb: Verb) -> Result<Reply, CliError> {
        let arguments = std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
        let order = Order { verb, actor: audit::actor(), arguments };
        let gone = |error: std::io::Error| {
            CliError::failed(format!("the engine went away: {error}"))
                .hint("see `rehome status`; `rehome apply` goes on")
        };
        self.send(&order).await.map_err(gone)?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await.map_err(gone)?;
        if read == 0 {
            return Err(gone(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        }
        serde_json::from_str(&line)
            .map_err(|error| CliError::failed(format!("the engine's answer is unreadable: {error}")))
    }

    /// Gives a command whose refusal is an error.
    pub async fn give(&mut self, command: Command) -> Result<CommandOutcome, CliError> {
        match self.order(Verb::Give { command }).await? {
            Reply::Done { outcome } => Ok(outcome),
            Reply::Refused { exit_code, text, hints } => {
                Err(CliError { exit: of_code(exit_code), text, hints, rendered: false })
            }
        }
    }
}

fn of_code(code: u8) -> Exit {
    let all = [
        Exit::Usage,
        Exit::Confirmation,
        Exit::NotFound,
        Exit::Network,
        Exit::Credentials,
        Exit::Differences,
        Exit::GateNotMet,
        Exit::Reversed,
        Exit::Stuck,
    ];
    all.into_iter().find(|exit| exit.code() == code).unwrap_or(Exit::Failed)
}
