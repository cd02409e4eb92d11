//! What a test may have go wrong in a [`super::MemoryStore`], and when.

use bytes::Bytes;
use rehome_part::Error;
use std::sync::Arc;
use std::time::Duration;

/// The calls of [`super::Store`]; `List` once per page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Check,
    Create,
    Remove,
    List,
    Head,
    Get,
    Put,
    Delete,
    BeginUpload,
    UploadPart,
    UploadedParts,
    CompleteUpload,
    AbortUpload,
    OpenUploads,
    Policy,
    SetPolicy,
}

/// One call, before anything happened.
#[derive(Debug, Clone)]
pub struct Call {
    pub operation: Operation,
    /// The key; for `List` the key the page comes after.
    pub key: Option<String>,
    /// From 1, per operation, over all handles on the bucket.
    pub count: u64,
    /// Who calls.
    pub principal: String,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    Nothing,
    /// Nothing happens but this error.
    Fail(Error),
    /// The call has its effect, the caller gets this error: "outcome unknown".
    LoseAnswer(Error),
    /// `Get`: the body ends with an error after so many bytes.
    Truncate(u64),
    /// One byte of what is read (`Get`) or kept (`Put`, `UploadPart`) differs from what it should be.
    Corrupt,
    /// The call waits, then the other fault applies.
    Delay(Duration, Box<Fault>),
}

pub(super) type Hook = Arc<dyn Fn(&Call) -> Fault + Send + Sync>;

pub(super) fn corrupted(content: &Bytes) -> Bytes {
    let mut bytes = content.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 0x20;
    }
    bytes.into()
}
