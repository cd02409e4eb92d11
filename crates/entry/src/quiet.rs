//! The moments in which an entry may change: never between ARMED and OPEN. Whoever knows the run says so; a driver only asks,
//! and keeps what it was given until its change is done.

use crate::EntryError;
use async_trait::async_trait;
use std::any::Any;

/// As long as this lives, no switch may be armed.
pub struct Guard(
    #[expect(dead_code, reason = "it is held, never looked at")] Option<Box<dyn Any + Send + Sync>>,
);

impl Guard {
    pub fn holding(what: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(what)))
    }

    /// Nothing has to be kept from happening.
    pub fn free() -> Self {
        Self(None)
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

#[async_trait]
pub trait Quiet: std::fmt::Debug + Send + Sync {
    /// Asked right before the first file is touched. `Err` says why not now; "unknown" is an `Err` too.
    async fn may_change_now(&self) -> Result<Guard, String>;
}

/// No run is under way.
#[derive(Debug, Clone, Copy)]
pub struct NoRun;

#[async_trait]
impl Quiet for NoRun {
    async fn may_change_now(&self) -> Result<Guard, String> {
        Ok(Guard::free())
    }
}

pub(crate) async fn ask(quiet: &dyn Quiet) -> Result<Guard, EntryError> {
    quiet.may_change_now().await.map_err(|why| EntryError::NotNow { why })
}
