//! What the engine needs from outside besides parts: gateways, workers, a clock. The CLI's daemon implements them.

use async_trait::async_trait;
pub use rehome_part::traffic::{ServiceStatus, ShadowStatus, SideStatus};
use rehome_part::{Epoch, Error, Result, Side, Token};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::time::Duration;

/// A moment on one gateway's clock, opaque here; made by [`Gateways::moment`], given back in [`Gateways::freshness`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moments(pub Vec<(String, u64, u64)>);

/// All gateways of a run, as one. Every effect carries the engine's token; a stale one is refused with a permanent error.
/// A method that acts succeeds only if **every** enrolled gateway did it.
#[async_trait]
pub trait Gateways: Debug + Send + Sync {
    async fn enroll(&self, token: Token) -> Result<()>;
    async fn leave(&self, token: Token) -> Result<()>;
    async fn status(&self) -> Result<Vec<GatewayStatus>>;
    /// Sets the share of reads of every service (or one) that goes to the side which is not the owner.
    async fn weight(&self, service: Option<&str>, percent: u8, token: Token) -> Result<()>;
    /// Begins (anew) or ends the comparison of reads with the side that is not the owner, of every service.
    async fn shadow(&self, on: bool, token: Token) -> Result<()>;
    /// Every gateway's clock, now.
    async fn moment(&self) -> Result<Moments>;
    /// All writes acknowledged before `through` are applied on the other side (`None`: unknown), for services that use only
    /// parts in `parts`.
    async fn freshness(&self, service: &str, through: Option<Moments>, token: Token) -> Result<()>;
    /// Arms for the end of `epoch`, or renews the lease.
    async fn arm(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<()>;
    /// Holds writes, waits until none is in flight. On failure the error names the slow requests and writes stay held.
    async fn hold(&self, epoch: Epoch, in_flight: Duration, token: Token) -> Result<HoldProof>;
    async fn renew(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<HoldProof>;
    /// Releases to the owner of `epoch`; idempotent.
    async fn settle(&self, epoch: Epoch, owner: Side, token: Token) -> Result<()>;
    /// Takes back the grant of `epoch`; fails with kind `Unsupported` when a gateway recorded its intent already.
    async fn revoke(&self, epoch: Epoch, token: Token) -> Result<()>;
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldProof {
    pub gateways: u32,
    pub in_flight: u64,
    pub waiting: u64,
    pub oldest_ms: u64,
    /// The fullest bound of any gateway, 0..=1.
    pub fullness: f64,
}

/// What the engine's gates and views need of a gateway's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    pub name: String,
    pub epoch: Epoch,
    pub owner: Side,
    pub holding: bool,
    pub armed: bool,
    pub intent: Option<Epoch>,
    /// Upgraded and streaming connections of all its services.
    pub sessions: u64,
    /// How long the slowest write in flight has run, and what the slowest are.
    pub slowest_ms: u64,
    pub slow: Vec<String>,
    pub services: Vec<ServiceStatus>,
}

/// The background workers of the application, as one.
#[async_trait]
pub trait Workers: Debug + Send + Sync {
    /// Stops every worker on `side` and proves it with `is_stopped`.
    async fn stop(&self, side: Side) -> Result<()>;
    async fn start(&self, side: Side) -> Result<()>;
}

/// Time, so that tests can hold it.
pub trait Clock: Debug + Send + Sync {
    /// Milliseconds since the machine booted, sleep included (`CLOCK_BOOTTIME`): leases are measured with it.
    fn boot_millis(&self) -> u64;
    /// Milliseconds since 1970, for people.
    fn wall_millis(&self) -> i64;
    /// Which boot [`Clock::boot_millis`] counts from.
    fn boot_id(&self) -> String {
        rehome_journal::boot_id().to_owned()
    }
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_millis(&self) -> u64 {
        rehome_journal::boot_millis()
    }

    fn wall_millis(&self) -> i64 {
        rehome_journal::wall_millis()
    }
}

/// Starts the guard: a second process that calls [`crate::guard::watch`] on the same run. It counts as started once it has
/// registered itself in the journal; the engine waits for that before it arms.
#[async_trait]
pub trait GuardPort: Debug + Send + Sync {
    /// Starts one; called again when the one before has fallen silent.
    async fn start(&self) -> Result<()>;
}

/// Between a switch and whoever changes what stands in front of the gateways (`rehome entry`): one of them at a time.
pub trait EntryPort: Debug + Send + Sync {
    /// Ours until the value is dropped; `None` while somebody changes an entry.
    fn take(&self) -> Result<Option<EntryTaken>>;
}

/// Holds the entry as it is.
pub type EntryTaken = Box<dyn Debug + Send + Sync>;

/// Nothing stands in front of the gateways that could be changed from here.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEntry;

impl EntryPort for NoEntry {
    fn take(&self) -> Result<Option<EntryTaken>> {
        Ok(Some(Box::new(())))
    }
}

/// Where a run can be interrupted on purpose, for tests and `--sabotage`; a no-op otherwise.
#[async_trait]
pub trait Faults: Debug + Send + Sync {
    /// Called at named points (`before:fence`, `after:commit`, …). An error is the fault.
    async fn at(&self, point: &str) -> Result<(), Error>;
    /// Is this sabotage on? (`skip-fence`, `release-twice`, `release-both`, `drop-delta`, `skip-marker`)
    fn sabotage(&self, name: &str) -> bool;
}

/// No faults: for every run that is not a test.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

#[async_trait]
impl Faults for NoFaults {
    async fn at(&self, _point: &str) -> Result<(), Error> {
        Ok(())
    }

    fn sabotage(&self, _name: &str) -> bool {
        false
    }
}
