//! Steps that close the old owner and open the new one. A fence counts only when a refused write proved it, where that can be
//! tried; an opened side counts only when it takes a write again.

use super::{Context, Observed, Step, Trips};
use async_trait::async_trait;
use rehome_part::{Error, ErrorKind, Fence, Part, Result, Side};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Closes one side of one part, if it has a fence at all.
pub(super) async fn close(part: Arc<dyn Part>, side: Side) -> Result<()> {
    if part.capabilities().can_fence { part.fence(side).await } else { Ok(()) }
}

pub(super) async fn open(part: Arc<dyn Part>, side: Side) -> Result<()> {
    if part.capabilities().can_fence { part.unfence(side).await } else { Ok(()) }
}

/// Is `side` closed everywhere? Names the part that is not.
async fn closed(context: &Context, side: Side) -> Result<Observed> {
    let found = context.probe_all(side).await?;
    context.notes().fence_proved = found.len() == context.world.parts.len()
        && found.iter().all(|(_, fence)| *fence == Fence::ProvedClosed);
    Ok(match found.iter().any(|(_, fence)| *fence == Fence::Open) {
        true => Observed::NotApplied,
        false if found.is_empty() => Observed::Unknown,
        false => Observed::Applied,
    })
}

/// Does `side` take writes everywhere, as far as that can be tried?
async fn opened(context: &Context, side: Side) -> Result<Observed> {
    let found = context.probe_all(side).await?;
    Ok(match found.iter().any(|(_, fence)| *fence == Fence::ProvedClosed) {
        true => Observed::NotApplied,
        false if found.iter().all(|(_, fence)| *fence == Fence::Open) && !found.is_empty() => {
            Observed::Applied
        }
        false => Observed::Unknown,
    })
}

/// Closes the old owner; only after that its position may be read.
#[derive(Debug)]
pub(crate) struct FenceOwner;

#[async_trait]
impl Step for FenceOwner {
    fn name(&self) -> &'static str {
        "fence"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window(context.settings.fence_deadline)
    }

    fn side(&self, context: &Context) -> Option<Side> {
        Some(context.flow.from())
    }

    /// The fence, unfinished uploads behind it, one refused write.
    fn trips(&self) -> Trips {
        Trips { from: 3, ..Trips::default() }
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        if context.sabotage("skip-fence") || context.sabotage("release-both") {
            return Ok(json!({ "sabotage": true }));
        }
        let side = context.flow.from();
        context.each_part(|part| close(part, side)).await.map(|_| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        let side = context.flow.from();
        context.each_part(|part| open(part, side)).await?;
        match opened(context, side).await? {
            Observed::NotApplied => Err(still_closed(side)),
            _ => Ok(()),
        }
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        if context.sabotage("skip-fence") || context.sabotage("release-both") {
            return Ok(Observed::Unknown);
        }
        closed(context, context.flow.from()).await
    }
}

fn still_closed(side: Side) -> Error {
    Error::temporary(ErrorKind::Other, format!("the {side} was opened and still refuses writes"))
        .on(side)
        .hint("see who else closed it: its policy, its roles, its quota")
}

/// Opens the new owner and proves that it takes writes.
#[derive(Debug)]
pub(crate) struct OpenOwner;

#[async_trait]
impl Step for OpenOwner {
    fn name(&self) -> &'static str {
        "open"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window(Duration::from_secs(1))
    }

    fn side(&self, context: &Context) -> Option<Side> {
        Some(context.flow.to())
    }

    /// The fence taken away, one write that is taken.
    fn trips(&self) -> Trips {
        Trips { to: 2, ..Trips::default() }
    }

    /// It ends with a look of its own.
    fn proves_itself(&self) -> bool {
        true
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let side = context.flow.to();
        context.each_part(|part| open(part, side)).await?;
        match opened(context, side).await? {
            Observed::NotApplied => Err(still_closed(side)),
            _ => Ok(Value::Null),
        }
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        let side = context.flow.to();
        context.each_part(|part| close(part, side)).await?;
        match closed(context, side).await? {
            Observed::NotApplied => Err(Error::temporary(
                ErrorKind::Other,
                format!("the {side} was fenced and still takes writes"),
            )
            .on(side)),
            _ => Ok(()),
        }
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        opened(context, context.flow.to()).await
    }
}
