//! The answer to a gateway's question: who owns the epoch after the armed one, and does that side take writes?
//! Reads the record only; any process may ask.

use crate::EngineError;
use rehome_journal::Reader;
use rehome_part::{Epoch, Side, Token};
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecisionAnswer {
    /// A switch is under way and its owner is not decided, or does not take writes yet: keep holding.
    Undecided,
    /// This is the newest epoch, and its owner takes writes. Never answered between ARMED and that moment, whatever epoch
    /// was asked for; a gateway must ignore an epoch that is not newer than the one it was armed for.
    Settled { epoch: Epoch, owner: Side, token: Token },
}

/// Answers for the run in `folder`. `epoch` is what the gateway asks about; while no switch is under way the newest settled
/// epoch is told also to one that asks for a later one (it restarted outside a switch: its standing grant stands).
/// Blocks for a file read.
pub fn decision(folder: &Path, epoch: Epoch) -> Result<DecisionAnswer, EngineError> {
    let mut reader = Reader::open(folder)?;
    reader.refresh()?;
    let state = reader.state();
    tracing::debug!(asked = %epoch, newest = %state.epoch, stage = %state.stage, "a gateway asked for the decision");
    if state.stage.is_undecided() {
        return Ok(DecisionAnswer::Undecided);
    }
    Ok(DecisionAnswer::Settled { epoch: state.epoch, owner: state.owner, token: state.token })
}
