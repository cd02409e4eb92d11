//! The mover: carries objects from one store to another, whole or in parts, and remembers what it carried.
//! It never speaks a vendor's dialect and never decides what a migration does next.

mod decide;
pub(crate) mod digest;
mod multipart;
mod pass;
mod retry;
pub(crate) mod state;
mod transfer;

pub(crate) use decide::{Action, Deletes, both_md5, decide, is_marker};
pub(crate) use pass::{PassOptions, PassResult, pass};
pub use retry::RetryPolicy;
pub(crate) use transfer::{Carried, known_checksums};

use crate::follow::WriterCounts;
use crate::listing::{Lister, Merge};
use crate::store::Store;
use bytes::{Bytes, BytesMut};
use rehome_part::{Flow, Result, Side};
use state::State;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MIB: u64 = 1 << 20;

/// How the mover works; every field has a default that suits two clouds and one small machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Objects under way at once.
    pub concurrency: usize,
    /// Content held in memory at once, over all objects.
    pub memory_bytes: u64,
    pub retry: RetryPolicy,
    /// Objects up to this size are read and written whole.
    pub whole_bytes: u64,
    /// The size of a part; grows where the object would need more parts than the store takes.
    pub part_bytes: u64,
    /// Listing entries held in memory while an unordered listing is sorted.
    pub sort_memory_bytes: usize,
    /// Copies are started in random order within this many keys: neighbours in key order are neighbours on disk.
    pub shuffle_keys: usize,
    /// How often a follower with a feed lists both sides anyway.
    pub relist_every: Duration,
    /// Rest between two passes of a follower that can only list.
    pub listing_rest: Duration,
    /// How long one question to a change feed may wait for news.
    pub feed_wait: Duration,
    /// How long a fence command or hook may take.
    pub fence_limit: Duration,
    /// How long a difference may take to settle while changes are under way, before it is called one.
    pub settle_limit: Duration,
    /// Test instruments. `drop-delta`: the follower loses the changes of one key in a hundred and says nothing.
    pub sabotage: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 32,
            memory_bytes: 64 * MIB,
            retry: RetryPolicy::default(),
            whole_bytes: 8 * MIB,
            part_bytes: 8 * MIB,
            sort_memory_bytes: 32 << 20,
            shuffle_keys: 4_096,
            relist_every: Duration::from_secs(3_600),
            listing_rest: Duration::from_secs(1),
            feed_wait: Duration::from_secs(1),
            fence_limit: Duration::from_secs(30),
            settle_limit: Duration::from_secs(20),
            sabotage: Vec::new(),
        }
    }
}

/// Two stores and what is known about them.
#[derive(Debug)]
pub(crate) struct Mover {
    pub source: Arc<dyn Store>,
    pub target: Arc<dyn Store>,
    pub state: Arc<State>,
    pub settings: Settings,
    memory: Arc<Semaphore>,
    /// Buffers of parts that were written, for the next parts: memory given back and taken again costs time and holes.
    spare: Mutex<Vec<BytesMut>>,
    disordered: [Arc<AtomicBool>; 2],
    writers: [WriterCounts; 2],
    folder: PathBuf,
    /// Objects written since this was made for which the target reported no checksum to compare.
    pub unproved: AtomicU64,
    /// Parts that were written of objects still under way, for progress.
    pub(super) bytes_of_parts: AtomicU64,
}

/// Memory is counted in these units, since a semaphore takes 32 bits.
const MEMORY_UNIT: u64 = 1 << 10;

impl Mover {
    /// Opens (or makes) `file` in `folder` as its memory.
    pub fn new(
        source: Arc<dyn Store>,
        target: Arc<dyn Store>,
        settings: Settings,
        folder: &Path,
        file: &str,
    ) -> Result<Self> {
        let state = Arc::new(State::open(&folder.join(file))?);
        let units = usize::try_from(settings.memory_bytes.div_ceil(MEMORY_UNIT))
            .unwrap_or(usize::MAX)
            .clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Ok(Self {
            source,
            target,
            state,
            settings,
            memory: Arc::new(Semaphore::new(units)),
            spare: Mutex::default(),
            disordered: Default::default(),
            writers: Default::default(),
            folder: folder.to_owned(),
            unproved: AtomicU64::new(0),
            bytes_of_parts: AtomicU64::new(0),
        })
    }

    pub fn store(&self, side: Side) -> &Arc<dyn Store> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Who writes to the side that `flow` leaves.
    pub fn writers(&self, flow: Flow) -> &WriterCounts {
        &self.writers[usize::from(flow == Flow::Reverse)]
    }

    pub fn lister(&self, side: Side) -> Lister {
        Lister {
            store: Arc::clone(self.store(side)),
            disordered: Arc::clone(&self.disordered[usize::from(side == Side::Target)]),
            retry: self.settings.retry,
            folder: self.folder.clone(),
            sort_memory: self.settings.sort_memory_bytes,
            missing_is_empty: false,
            state: Arc::clone(&self.state),
        }
    }

    /// Both sides listed anew and walked together.
    pub fn merge(&self, flow: Flow) -> Merge {
        Merge::new(flow.from(), self.lister(flow.from()).list(), self.lister(flow.to()).list())
    }

    /// The same where the side written to need not exist yet.
    pub fn merge_before(&self, flow: Flow) -> Merge {
        let to = Lister { missing_is_empty: true, ..self.lister(flow.to()) };
        Merge::new(flow.from(), self.lister(flow.from()).list(), to.list())
    }

    fn spare(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer, with room when one is left over.
    fn spare_buffer(&self) -> BytesMut {
        self.spare().pop().unwrap_or_default()
    }

    /// Takes the buffer back when nobody else holds it. What is left over never exceeds a quarter of the budget.
    fn keep_buffer(&self, content: Bytes) {
        let Ok(mut buffer) = content.try_into_mut() else { return };
        buffer.clear();
        let mut spare = self.spare();
        let kept: usize = spare.iter().map(BytesMut::capacity).sum();
        if (kept + buffer.capacity()) as u64 <= self.settings.memory_bytes / 4 {
            spare.push(buffer);
        }
    }

    fn drop_buffers(&self) {
        self.spare().clear();
    }

    /// Waits until `bytes` of content may be held. More than there is at all takes everything there is.
    async fn reserve(&self, bytes: u64) -> OwnedSemaphorePermit {
        let all = self.settings.memory_bytes.div_ceil(MEMORY_UNIT).max(1);
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT).min(all)).unwrap_or(u32::MAX);
        Arc::clone(&self.memory).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }
}
