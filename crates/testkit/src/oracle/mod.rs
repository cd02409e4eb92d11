//! The checker. It believes what clients were told and what the owner's bucket holds when asked with its own small client;
//! it does not ask the mover, the gateway or the journal of the run. Every finding names the write or the key.

mod evidence;
mod judge;
mod records;
mod sides;

pub use evidence::{Evidence, Media, gather};
pub use judge::judge;
pub use records::gather_records;

use serde::{Deserialize, Serialize};

/// What kind of promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breach {
    /// An acknowledged write is not there.
    Lost,
    /// A write was carried out twice.
    Doubled,
    /// A write that was refused has been carried out.
    RefusedButDone,
    /// Something is there that nobody wrote.
    Foreign,
    /// An object from before the move is missing or changed.
    Changed,
    /// Two sides took writes of the application in the same epoch.
    TwoSides,
    /// A client was shown less than it had been promised.
    ReadYourWrites,
    /// A picture was shown with wrong content, or the record itself is damaged.
    Shown,
}

/// One finding, with the write or key it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub breach: Breach,
    /// `write 17 of demo-w3 (update order 9f…)`, or a key.
    pub what: String,
    pub text: String,
}

/// The judgement. `violations` holds all findings; the counts are of writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub writes_acknowledged: u64,
    pub writes_lost: u64,
    pub writes_doubled: u64,
    /// Writes whose client never learned what became of them; 0 or 1 effects of each are right.
    pub writes_unknown: u64,
    pub writes_refused: u64,
    pub read_your_writes_violations: u64,
    /// Objects of the manifest that were compared byte by byte.
    pub objects_compared: u64,
    pub violations: Vec<Violation>,
    pub ok: bool,
}
