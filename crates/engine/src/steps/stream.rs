//! Steps on the stream of changes while writes wait: the fence position, the drain to it and to the marker, the comparison of
//! what changed since ARMED, and the seal.

use super::{Context, Observed, Step, Trips, past_deadline};
use crate::units::Unseen;
use async_trait::async_trait;
use rehome_part::{Error, ErrorKind, Part, Position, Result, Scope};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

async fn heads(context: &Context) -> Result<BTreeMap<String, Position>> {
    let flow = context.flow;
    let all =
        context.each_part(|part| async move { Ok((part.name().to_owned(), part.head(flow).await?)) }).await?;
    Ok(all.into_iter().collect())
}

/// Reads the position after which the old owner took no write, and writes the marker behind that last write: both come
/// after the fence and neither needs the other.
#[derive(Debug)]
pub(crate) struct ReadPosition;

#[async_trait]
impl Step for ReadPosition {
    fn name(&self) -> &'static str {
        "position"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window(context.settings.fence_deadline) + context.drain
    }

    fn trips(&self) -> Trips {
        Trips { from: 1, ..Trips::default() }
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        if context.sabotage("drop-delta") {
            let armed = context.notes().armed.clone();
            context.notes().fence = armed;
            return Ok(json!({ "sabotage": true }));
        }
        let (flow, marker) = (context.flow, &context.marker());
        let marks = async {
            if context.sabotage("skip-marker") {
                return Ok(Vec::new());
            }
            context.each_part(|part| async move { part.mark(flow, marker).await }).await
        };
        let (found, marked) = tokio::join!(heads(context), marks);
        marked?;
        context.notes().fence = found?;
        Ok(Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        context.notes().fence.clear();
        Ok(())
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}

/// Waits until the last write and the marker behind it have arrived on the other side.
#[derive(Debug)]
pub(crate) struct Drain;

impl Drain {
    async fn one(&self, context: &Context, part: Arc<dyn Part>) -> Result<(u64, bool)> {
        let (flow, marker) = (context.flow, context.marker());
        let fence = context.notes().fence.get(part.name()).cloned();
        let fence =
            fence.ok_or_else(|| Error::permanent(ErrorKind::Other, "its fence position was not read"))?;
        if context.sabotage("drop-delta") || context.sabotage("skip-marker") {
            return Ok((0, false));
        }
        let drained = part.drain(flow, &fence, &marker, context.stop.clone()).await?;
        if !drained.marker_seen || !part.covers(&drained.applied, &fence) {
            return Err(Error::permanent(
                ErrorKind::Other,
                "it says drained without marker or fence position",
            ));
        }
        Ok((drained.changes, true))
    }
}

#[async_trait]
impl Step for Drain {
    fn name(&self) -> &'static str {
        "drain"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window((context.drain * 2).max(context.settings.drain_floor))
    }

    /// The follower reads the marker (it was told of it together with the marker's own answer) and writes it. Looking for it
    /// on the other side goes on all the while and ends with that write's own answer.
    fn trips(&self) -> Trips {
        Trips { from: 1, to: 1, ..Trips::default() }
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let all = context.each_part(|part| self.one(context, part)).await?;
        let mut notes = context.notes();
        notes.changes = all.iter().map(|(changes, _)| changes).sum();
        notes.marker_seen = all.iter().all(|(_, seen)| *seen);
        Ok(json!({ "changes": notes.changes, "marker_seen": notes.marker_seen }))
    }

    /// The marker stays in the stream; it names its attempt and harms nobody.
    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}

/// Compares what changed since ARMED, without asking the follower.
#[derive(Debug)]
pub(crate) struct CompareHot;

#[async_trait]
impl Step for CompareHot {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window((context.drain * 2).max(context.settings.drain_floor))
    }

    /// What changed, then a look at all of it at once, on both sides.
    fn trips(&self) -> Trips {
        Trips { from: 2, to: 1, ..Trips::default() }
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        if context.sabotage("drop-delta") {
            return Ok(json!({ "sabotage": true }));
        }
        let flow = context.flow;
        let results = context
            .each_part(|part| async move {
                let since = context.notes().armed.get(part.name()).cloned();
                let scope = since.map_or(Scope::Full, Scope::Since);
                let result = part.verify(flow, scope, Arc::new(Unseen), context.stop.clone()).await?;
                match result.differences.first() {
                    Some(first) => {
                        Err(Error::permanent(ErrorKind::Corrupt, first.text.clone()).on(flow.to()))
                    }
                    // nothing moves any more: what is explained by motion here is a difference
                    None if result.differences_total > 0 || result.in_motion > 0 => {
                        Err(Error::permanent(ErrorKind::Corrupt, "the sides differ although nothing moves")
                            .on(flow.to()))
                    }
                    None => Ok(result.compared),
                }
            })
            .await?;
        Ok(json!({ "compared": results.iter().sum::<u64>() }))
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}

/// Sets what must be set on the new owner and captures where the way back begins.
#[derive(Debug)]
pub(crate) struct SealParts;

#[async_trait]
impl Step for SealParts {
    fn name(&self) -> &'static str {
        "seal"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window(context.settings.seal_deadline)
    }

    fn trips(&self) -> Trips {
        Trips { to: 1, ..Trips::default() }
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let flow = context.flow;
        let starts = context
            .each_part(
                |part| async move { Ok((part.name().to_owned(), part.seal(flow).await?.reverse_start)) },
            )
            .await?;
        context.notes().reverse_starts = starts.into_iter().collect();
        if context.stop.is_cancelled() { Err(past_deadline("the seal")) } else { Ok(Value::Null) }
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        let flow = context.flow;
        context.each_part(|part| async move { part.unseal(flow).await }).await.map(drop)
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}
