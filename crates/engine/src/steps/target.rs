//! Steps at both ends of a run: making the target, closing it to everybody but us, and retiring the old owner.

use super::{Context, Observed, Step};
use crate::ports::Gateways;
use async_trait::async_trait;
use rehome_part::{Error, ErrorKind, Fence, Result, Side};
use serde_json::Value;
use std::time::Duration;

/// What may take long but not for ever: making buckets, schemas, roles.
const LONG: Duration = Duration::from_secs(600);

/// Makes what must exist on the target.
#[derive(Debug)]
pub(crate) struct PrepareTarget;

#[async_trait]
impl Step for PrepareTarget {
    fn name(&self) -> &'static str {
        "prepare"
    }

    fn deadline(&self, _: &Context) -> Duration {
        LONG
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        context.each_part(|part| async move { part.prepare().await }).await.map(|_| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        context.each_part(|part| async move { part.unprepare().await }).await.map(drop)
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}

/// Closes the target to every writer but the replicator.
#[derive(Debug)]
pub(crate) struct CloseTarget;

#[async_trait]
impl Step for CloseTarget {
    fn name(&self) -> &'static str {
        "close-target"
    }

    fn deadline(&self, _: &Context) -> Duration {
        LONG
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        context.each_part(|part| super::fences::close(part, Side::Target)).await.map(|_| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        context.each_part(|part| super::fences::open(part, Side::Target)).await.map(drop)
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        let found = context.probe_all(Side::Target).await?;
        Ok(match found.iter().find(|(_, fence)| *fence == Fence::Open) {
            Some(_) => Observed::NotApplied,
            None if found.is_empty() => Observed::Unknown,
            None => Observed::Applied,
        })
    }
}

/// Removes what the migration left; the old owner stays fenced. Cannot be taken back.
#[derive(Debug)]
pub(crate) struct Retire;

#[async_trait]
impl Step for Retire {
    fn name(&self) -> &'static str {
        "retire"
    }

    fn deadline(&self, _: &Context) -> Duration {
        LONG
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let owner = context.decided.1;
        context.each_part(|part| async move { part.retire(owner).await }).await?;
        let gateways: &dyn Gateways = context.world.gateways.as_ref();
        gateways.leave(context.token).await.map(|()| Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Err(Error::permanent(ErrorKind::Unsupported, "what was retired does not come back"))
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}
