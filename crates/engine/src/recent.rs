//! The last comparison before a switch: what changed since everything was compared, in rounds, so that little is left to compare
//! while writes wait. It moves the position up to which everything is known to be equal; it decides nothing.

use crate::core::Core;
use crate::steps::each_part;
use crate::units::{Unseen, add};
use rehome_part::{Error as PartError, ErrorKind, Flow, Position, Result, Scope, Verification};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A round that compared no more than this leaves little enough.
const FEW: u64 = 16;
const ROUNDS: u32 = 3;
/// More than can be compared in this time is compared in the background, as a full comparison.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Positions = BTreeMap<String, Position>;

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) enum Recent {
    /// Nothing stands that could be added to: a full comparison is needed first.
    Unknown,
    Failed(PartError),
    Different(Verification),
    /// All that was written before these positions is equal on both sides.
    Equal {
        since: Positions,
        compared: u64,
    },
}

/// Compares what changed since the last comparison. Afterwards `core.compared` is as new as it can be, or `None`.
pub(crate) async fn compare(core: &mut Core) -> Recent {
    let flow = core.state.flow();
    let Some((_, mut since)) = core.compared.take().filter(|(of, _)| *of == flow) else {
        return Recent::Unknown;
    };
    let mut compared = 0;
    for _ in 0..ROUNDS {
        let round = match tokio::time::timeout(PATIENCE, round(core, flow, &since)).await {
            Ok(Ok(round)) => round,
            Ok(Err(error)) => {
                core.compared = Some((flow, since));
                return Recent::Failed(error);
            }
            Err(_) => {
                let text = format!("more changed than can be compared in {} s", PATIENCE.as_secs());
                return Recent::Failed(PartError::temporary(ErrorKind::Deadline, text));
            }
        };
        let (heads, found) = round;
        tracing::debug!(compared = found.compared, in_motion = found.in_motion, "compared what changed");
        compared += found.compared;
        if !found.is_equal() {
            return Recent::Different(found);
        }
        // what moved under our eyes is left to the comparison that nothing moves under
        if found.in_motion == 0 {
            since = heads;
        }
        if found.compared + found.in_motion <= FEW {
            break;
        }
    }
    core.compared = Some((flow, since.clone()));
    Recent::Equal { since, compared }
}

/// One round: the positions before it, and what it found. The parts get ready for the window meanwhile.
async fn round(core: &Core, flow: Flow, since: &Positions) -> Result<(Positions, Verification)> {
    let found = each_part(&core.world.parts, |part| async move {
        let name = part.name().to_owned();
        let head = part.head(flow).await?;
        let scope = since.get(&name).cloned().map_or(Scope::Full, Scope::Since);
        let compared = part.verify(flow, scope, Arc::new(Unseen), core.stop.child_token());
        let (found, warm) = tokio::join!(compared, part.warm(flow));
        if let Err(error) = warm {
            // it says so again when it is needed in earnest
            tracing::debug!(part = name, %error, "not everything could be prepared");
        }
        Ok((name, head, found?))
    })
    .await?;
    let (mut heads, mut sum) = (Positions::new(), Verification::default());
    for (name, head, result) in found {
        heads.insert(name, head);
        add(&mut sum, result);
    }
    Ok((heads, sum))
}
