//! Rebuilding a run whose journal is lost: from the copy that `journal_copy` keeps, held against what gateways and both sides
//! say. Where they disagree nothing is restored, and each one's word is shown.

use super::{gateways, process, world};
use crate::commands::recover::RecoverArgs;
use crate::commands::{self, Context};
use crate::exit::{CliError, Exit, with_path};
use crate::paths::{self, RunFolder};
use crate::view::follow::journal_error;
use rehome_gateway::control::{Mode, Status};
use rehome_journal::{DECISION_FILE, JOURNAL_FILE, Register, RunView};
use rehome_part::{Epoch, Fence, Side};
use rehome_spec::Migration;
use std::path::{Path, PathBuf};

/// What one witness says of who owns the application.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    witness: String,
    epoch: Option<Epoch>,
    owner: Option<Side>,
    text: String,
}

pub async fn run(context: &Context<'_>, args: &RecoverArgs) -> Result<Exit, CliError> {
    let (path, migration) = context.migration()?;
    let name = context.global.run.clone().unwrap_or_else(|| migration.migration.name.clone());
    let run = RunFolder::new(&context.home, &name);
    if run.exists() && RunView::load(&run.path).is_ok() {
        return Err(CliError::failed(format!(
            "run {name} has a readable journal; there is nothing to recover"
        ))
        .hint("go on with `rehome apply`"));
    }
    let Some(copy) = copy_folder(args, &migration, &run)? else {
        return from_the_world(context, args, &path, &run).await;
    };
    let kept = RunView::load(&copy)
        .map_err(|error| journal_error(&error).within(&format!("the copy {}", copy.display())))?;
    let words = witnesses(context, &migration, &copy, &kept).await?;
    for word in &words {
        context.printer.talk(&format!("  {:<28} {}", word.witness, word.text));
    }
    agree(&words)?;
    let question = format!("Restore run {name} at epoch {}, owner {}?", kept.epoch, kept.owner);
    context.printer.confirm(&question, args.yes)?;
    restore(&path, &copy, &run)?;
    context
        .printer
        .line(&format!("run {name} is restored: {}, epoch {}, owner {}", kept.phase, kept.epoch, kept.owner));
    context.printer.hint(&format!("go on with `rehome apply --run {name}`"));
    Ok(Exit::Done)
}

fn copy_folder(
    args: &RecoverArgs,
    migration: &Migration,
    run: &RunFolder,
) -> Result<Option<PathBuf>, CliError> {
    if let Some(named) = &args.copy {
        return if named.join(JOURNAL_FILE).exists() {
            Ok(Some(named.clone()))
        } else {
            Err(CliError::not_found(format!("{} holds no copy of a journal", named.display())))
        };
    }
    let kept = migration.migration.journal_copy.as_ref().map(|folder| folder.join(run.name()));
    Ok(kept.filter(|folder| folder.join(JOURNAL_FILE).exists()))
}

/// Without a copy: the gateways say who owns which epoch, both sides are tried, and the engine begins the journal again from
/// there, or refuses.
async fn from_the_world(
    context: &Context<'_>,
    args: &RecoverArgs,
    path: &Path,
    run: &RunFolder,
) -> Result<Exit, CliError> {
    context.printer.talk("there is no copy of the journal; asking the gateways and both sides");
    let question = format!("Begin the journal of run {} again from what they say?", run.name());
    context.printer.confirm(&question, args.yes)?;
    run.create(&std::fs::read_to_string(path).map_err(with_path(path))?)?;
    put_aside(run)?;
    let (epoch, owner) = process::recover(context, run).await?;
    context.printer.line(&format!("run {} begins again at epoch {epoch}, owner {owner}", run.name()));
    context
        .printer
        .hint(&format!("go on with `rehome apply --run {}`: what is equal already is kept", run.name()));
    Ok(Exit::Done)
}

/// The copy, its register, every gateway, and a harmless write on both sides of every part.
async fn witnesses(
    context: &Context<'_>,
    migration: &Migration,
    copy: &Path,
    kept: &RunView,
) -> Result<Vec<Word>, CliError> {
    let mut words = vec![Word {
        witness: "journal copy".into(),
        epoch: Some(kept.epoch),
        owner: Some(kept.owner),
        text: format!("{} at epoch {}, owner {}", kept.state, kept.epoch, kept.owner),
    }];
    words.extend(register(copy, kept)?);
    if migration.needs_gateways() {
        for gateway in migration.gateways_or_default(&context.home) {
            words.push(gateway_word(&gateway.name, gateways::status(&gateway).await));
        }
    }
    let scratch = tempfile::tempdir().map_err(with_path(Path::new("a temporary folder")))?;
    for part in world::parts(migration, scratch.path(), &commands::resolve, &[])? {
        for side in [Side::Source, Side::Target] {
            let found = part.probe(side).await;
            words.push(part_word(part.name(), side, kept, found));
        }
    }
    Ok(words)
}

/// The register may be ahead of the journal by the one decision that was made last; then it is the truth.
fn register(copy: &Path, kept: &RunView) -> Result<Option<Word>, CliError> {
    if !copy.join(DECISION_FILE).exists() {
        return Ok(None);
    }
    let newest =
        Register::open(copy).and_then(|register| register.newest()).map_err(|error| journal_error(&error))?;
    Ok(newest.map(|decision| Word {
        witness: "register copy".into(),
        epoch: Some(decision.epoch).filter(|epoch| !kept.stage.in_switch() || *epoch <= kept.epoch),
        owner: Some(decision.owner).filter(|_| !kept.stage.in_switch()),
        text: format!("epoch {} belongs to the {}", decision.epoch, decision.owner),
    }))
}

fn gateway_word(name: &str, status: Result<Status, String>) -> Word {
    let witness = format!("gateway {name}");
    match status {
        Ok(status) => Word {
            witness,
            // An armed gateway still names the epoch that was to end: it is no witness of the one after.
            epoch: Some(status.epoch).filter(|_| status.mode == Mode::Standing),
            owner: Some(status.owner).filter(|_| status.mode == Mode::Standing),
            text: format!("epoch {}, owner {}, {:?}", status.epoch, status.owner, status.mode).to_lowercase(),
        },
        Err(error) => Word { witness, epoch: None, owner: None, text: format!("silent: {error}") },
    }
}

/// A side that takes the application's writes says "I am the owner"; a closed one says that the other is.
fn part_word(name: &str, side: Side, kept: &RunView, found: rehome_part::Result<Fence>) -> Word {
    let witness = format!("{name} on the {side}");
    let (owner, text) = match found {
        Ok(Fence::Open) => (Some(side), "takes the application's writes".to_owned()),
        Ok(Fence::ProvedClosed) => (Some(side.other()), "refuses the application's writes".to_owned()),
        Ok(Fence::Closed | Fence::None) => (None, "cannot be tried".to_owned()),
        Err(error) => (None, format!("cannot be asked: {error}")),
    };
    // In a switch both sides may be closed for a moment, so neither is a witness.
    Word { witness, epoch: None, owner: owner.filter(|_| !kept.stage.in_switch()), text }
}

fn agree(words: &[Word]) -> Result<(), CliError> {
    let silent: Vec<&str> = words
        .iter()
        .filter(|word| word.witness.starts_with("gateway") && word.text.starts_with("silent"))
        .map(|word| word.witness.as_str())
        .collect();
    if !silent.is_empty() {
        return Err(CliError::failed(format!("{} does not answer; nothing was restored", silent.join(", ")))
            .hint("start it with `rehome gateway`; it knows its owner from its own file"));
    }
    let first = &words[0];
    let other = words.iter().find(|word| {
        word.epoch.is_some_and(|epoch| Some(epoch) != first.epoch)
            || word.owner.is_some_and(|owner| Some(owner) != first.owner)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(CliError::failed(format!(
            "they disagree, nothing was restored: the {} says {}, {} says {}",
            first.witness, first.text, other.witness, other.text
        ))
        .hint("see docs/runbook/register-unreadable.md: find out which is right before anything writes")),
    }
}

fn restore(migration: &Path, copy: &Path, run: &RunFolder) -> Result<(), CliError> {
    let text = std::fs::read_to_string(migration).map_err(with_path(migration))?;
    run.create(&text)?;
    put_aside(run)?;
    for name in [DECISION_FILE, JOURNAL_FILE] {
        let from = copy.join(name);
        if from.exists() {
            paths::write_private(&run.path.join(name), &std::fs::read(&from).map_err(with_path(&from))?)?;
        }
    }
    Ok(())
}

/// What is left of the lost journal is put aside, never removed.
fn put_aside(run: &RunFolder) -> Result<(), CliError> {
    for name in [JOURNAL_FILE, DECISION_FILE] {
        for file in [name.to_owned(), format!("{name}-wal"), format!("{name}-shm")] {
            let old = run.path.join(&file);
            if old.exists() {
                let aside = run.path.join(format!("{file}.lost-{}", std::process::id()));
                std::fs::rename(&old, aside).map_err(with_path(&old))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(witness: &str, epoch: Option<u64>, owner: Option<Side>) -> Word {
        Word { witness: witness.into(), epoch: epoch.map(Epoch), owner, text: String::new() }
    }

    #[test]
    fn a_gateway_that_is_ahead_of_the_copy_stops_the_recovery() {
        let copy = word("journal copy", Some(1), Some(Side::Source));
        assert!(agree(&[copy.clone(), word("gateway g", Some(1), Some(Side::Source))]).is_ok());
        assert!(agree(&[copy.clone(), word("gateway g", Some(2), Some(Side::Target))]).is_err());
        assert!(agree(&[copy.clone(), word("media on the target", None, Some(Side::Target))]).is_err());
        assert!(agree(&[copy, word("media on the source", None, None)]).is_ok());
    }

    #[test]
    fn a_silent_gateway_is_no_agreement() {
        let mut silent = word("gateway g", None, None);
        silent.text = "silent: nobody listens".into();
        assert!(agree(&[word("journal copy", Some(1), Some(Side::Source)), silent]).is_err());
    }
}
