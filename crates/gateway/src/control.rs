//! The words between an engine (or its guard) and a gateway, as JSON lines over a unix socket.
//!
//! Engine to gateway: the first line is [`Hello`], answered with [`Response::Done`] or a refusal; then one [`Request`] per
//! line, one [`Response`] each, in order. Gateway to engine ("they ask"): the gateway connects to each socket of
//! [`Request::Arm`]'s `ask`, writes two lines, [`Hello`] (with `ask_secret`) and [`Question`], and reads one line, the
//! [`Answer`]. Every effect carries the engine's [`Token`]; a lower one than the highest seen is
//! refused with [`Refusal::StaleToken`]. Unknown fields are ignored, an unknown major version is refused.

pub use rehome_part::traffic::{
    EndpointDifferences, PlaceCount, ServiceStatus, ShadowStatus, SideStatus, UpstreamStatus,
};
use rehome_part::{Epoch, Side, Token};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub const VERSION: u32 = 1;
/// A line longer than this is refused and the connection closed.
pub const MAX_LINE: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// The shared secret of this gateway; compared in constant time.
    pub secret: String,
    /// Who speaks, for the logs: `engine pid 123`, `guard pid 124`, `gateway edge-1`.
    pub who: String,
}

/// A moment on the gateway's own monotonic clock, in microseconds since its process started, with an id of that process: moments
/// of two processes cannot be compared, so freshness from before a restart is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub process: u64,
    pub micros: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// The gateway belongs to this run from now on; refused when it belongs to another that is not finished. Every other
    /// effect is refused before. Tokens are compared within a run: the first one of another run begins anew. Epoch and
    /// owner stay what they are, so an engine takes its first epoch from [`Status`].
    Enroll {
        run: String,
        token: Token,
    },
    /// Share of reads that go to the side which is not the owner, 0..=100. Takes effect before the answer. Not kept
    /// over a restart, and back to 0 whenever a later epoch is settled.
    Weight {
        service: String,
        percent: u8,
        token: Token,
    },
    /// Every write that this gateway acknowledged before `through` can be read on the other side. `None`: unknown, and so
    /// is a moment of another process.
    Freshness {
        service: String,
        through: Option<Moment>,
        token: Token,
    },
    /// Begins (anew) or ends the comparison of reads with the side that is not the owner; the share and what is left out are the
    /// service's own. Ends by itself when a switch begins, and with the process.
    Shadow {
        service: String,
        on: bool,
        token: Token,
    },
    /// A switch begins: from now on the standing grant is void, writes are admitted under the lease only, and when
    /// the lease ends without a [`Request::Settle`] writes are held. Sent again, it renews the lease, also one that ended; it never ends
    /// a hold that was asked for. `lease_ms` is at most a minute.
    Arm {
        epoch: Epoch,
        lease_ms: u64,
        ask: Vec<PathBuf>,
        ask_secret: String,
        token: Token,
    },
    /// Stop forwarding writes. Answers when none is in flight any more, or with [`Refusal::InFlight`] at the deadline
    /// (writes stay held then, until `Settle`), or with [`Refusal::Sessions`]: under [`SessionRule::Refuse`] at once, with
    /// writes going on as before, otherwise at the deadline with writes held.
    Hold {
        epoch: Epoch,
        in_flight_ms: u64,
        sessions: SessionRule,
        token: Token,
    },
    /// Renews the lease while held; answers with how full the hold is.
    Renew {
        epoch: Epoch,
        lease_ms: u64,
        token: Token,
    },
    /// The decision for the epoch after the armed one is `owner`, and that side takes writes: release to it. The grant is
    /// a standing one again. Idempotent; also heals a gateway that missed everything. Freshness is unknown afterwards.
    Settle {
        epoch: Epoch,
        owner: Side,
        token: Token,
    },
    /// Takes back a grant under which this gateway has not yet recorded an intent to write: hold again. Refused with
    /// [`Refusal::IntentRecorded`] otherwise. An epoch that has not arrived here is revoked too: a late `Settle` for it is
    /// refused, only a later epoch releases.
    Revoke {
        epoch: Epoch,
        token: Token,
    },
    /// A planned hand-over of the address that clients come by is near. Sent again, the last one holds; without another it
    /// ends by itself. Needs neither a run nor a token, since it changes nothing about who owns what.
    Shed {
        shedding: Shedding,
    },
    /// The migration is over: forget the run (standing grant stays). Refused during a switch.
    Leave {
        run: String,
        token: Token,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionRule {
    Wait,
    Close,
    Refuse,
}

/// How far clients are asked to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shedding {
    /// Connections are kept, as ever.
    Off,
    /// An HTTP/1.1 connection ends with its next answer.
    Answers,
    /// And those that are open now end as soon as no request is under way on them (HTTP/2: GOAWAY).
    Idle,
    /// And the first packets of new ones are dropped, for a moment before the address moves: their clients send them again
    /// after a second, and whoever has the address then answers. Opens by itself after five seconds.
    Shut,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    Done,
    Status(Box<Status>),
    Held(Held),
    Refused { why: Refusal, text: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    BadSecret,
    BadVersion,
    BadRequest,
    StaleToken,
    StaleEpoch,
    OtherRun,
    InFlight,
    Sessions,
    HoldFull,
    NotArmed,
    IntentRecorded,
    UnknownService,
    Failed,
}

/// Proof of a hold, or how far it is from one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Writes forwarded and not yet answered.
    pub in_flight: u64,
    /// How long the slowest of them has run, and what they are (`PUT /orders/…`, at most ten).
    pub slowest_ms: u64,
    pub slow: Vec<String>,
    pub sessions: u64,
    pub waiting: u64,
    pub waiting_bytes: u64,
    pub oldest_ms: u64,
    pub connections: u64,
    /// The fullest bound, 0..=1; at 0.7 the engine gives the switch up.
    pub fullness: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Outside a switch: (epoch, owner) is a standing grant.
    Standing,
    /// Between ARMED and HELD, under a lease.
    Armed,
    /// Writes wait: asked to, or the lease ended, or just started and the decision is not known yet.
    Held,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    pub pid: u32,
    pub now: Moment,
    pub run: Option<String>,
    pub epoch: Epoch,
    pub owner: Side,
    pub mode: Mode,
    pub highest_token: Token,
    /// The newest epoch under which this gateway recorded the intent to write.
    pub intent: Option<Epoch>,
    pub held: Held,
    pub services: Vec<ServiceStatus>,
}

/// A gateway that lost its lease, woke up or started anew asks who owns the epoch after the armed one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    Decision { run: String, epoch: Epoch },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Answer {
    /// Not decided, or the owner does not take writes yet: keep holding.
    Undecided,
    /// Same meaning as [`Request::Settle`].
    Settled {
        epoch: Epoch,
        owner: Side,
        token: Token,
    },
    Refused {
        why: Refusal,
        text: String,
    },
}
