//! Watching a run until something is reached: a tree on a terminal, lines elsewhere, the JSON stream with `--json`. It reads the
//! journal only, so it shows the same whether the engine lives, dies, or is replaced.

use super::screen::Screen;
use super::{lines, tree};
use crate::daemon::client::Engine;
use crate::exit::{CliError, Exit};
use crate::paths::RunFolder;
use crate::printer::Printer;
use rehome_journal::{Now, Phase, Reader, RunView};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Why watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Reached,
    Stuck,
    /// Ctrl-C: the run goes on without us.
    Detached,
    /// No engine and no guard is left.
    EngineGone,
}

const LOOK: Duration = Duration::from_millis(100);
/// Longer than a guard needs to take over.
const GONE_AFTER: Duration = Duration::from_secs(6);

pub fn journal_error(error: &rehome_journal::Error) -> CliError {
    let exit =
        if matches!(error, rehome_journal::Error::NotFound(_)) { Exit::NotFound } else { Exit::Failed };
    CliError::new(exit, error.to_string())
}

/// Shows the run until `reached` says so. `from` is the journal's sequence number after which events are told.
pub async fn until(
    printer: &Printer,
    run: &RunFolder,
    from: u64,
    mut reached: impl FnMut(&RunView) -> bool,
) -> Result<Ended, CliError> {
    let mut reader = Reader::open(&run.path).map_err(|error| journal_error(&error))?;
    let mut interrupted =
        signal(SignalKind::interrupt()).map_err(|error| CliError::failed(error.to_string()))?;
    let mut screen = Screen::default();
    let (mut told, mut silent) = (from, Duration::ZERO);
    if printer.json {
        printer.json(&serde_json::json!({ "type": "version", "ui": "1.0" }));
    }
    let ended = loop {
        reader.refresh().map_err(|error| journal_error(&error))?;
        told = tell(printer, &reader, told)?;
        let view = reader.view();
        if printer.live {
            screen.draw(&tree::draw(view, now_ms(), "Ctrl-C leaves; the run goes on"));
        }
        if reached(view) {
            break Ended::Reached;
        }
        if view.phase == Phase::Stuck {
            break Ended::Stuck;
        }
        let alive = view.lease.as_ref().is_some_and(|lease| lease.is_alive(&Now::read()));
        silent = if alive { Duration::ZERO } else { silent + LOOK };
        if silent > GONE_AFTER && Engine::connect(run).await?.is_none() {
            break Ended::EngineGone;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupted.recv() => break Ended::Detached,
        }
    };
    screen.keep();
    Ok(ended)
}

/// Prints what came after `told`; answers how far it got.
fn tell(printer: &Printer, reader: &Reader, told: u64) -> Result<u64, CliError> {
    if printer.live {
        return Ok(told);
    }
    let mut told = told;
    loop {
        let records = reader.events_since(told, 500).map_err(|error| journal_error(&error))?;
        let Some(last) = records.last() else { return Ok(told) };
        told = last.seq;
        for record in &records {
            if printer.json {
                let mut value =
                    serde_json::to_value(record).map_err(|error| CliError::failed(error.to_string()))?;
                if let Some(fields) = value.as_object_mut() {
                    fields.insert("type".into(), "event".into());
                    fields.insert("message".into(), lines::message(&record.event).into());
                }
                printer.json(&value);
            } else if let Some(line) = lines::line(record) {
                printer.line(&line);
            }
        }
    }
}

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
