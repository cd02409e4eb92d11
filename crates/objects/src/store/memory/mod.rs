//! A store in memory, for tests of whatever sits on top of [`Store`]: it keeps the whole contract (conditions, ranges,
//! multipart, policies that really keep others out) and lets a test bend it.
//! Never used for a migration: nothing survives the process. The faults live in [`fault`].

pub mod fault;
mod state;

pub use fault::{Call, Fault, Operation};

use super::{
    Attributes, Body, Capabilities, Condition, Entry, Meta, PartLimits, Store, Upload, UploadedPart, Written,
    policy,
};
use async_trait::async_trait;
use bytes::Bytes;
use fault::Hook;
use futures::stream::{self, BoxStream, StreamExt};
use rehome_part::{Error, ErrorKind, Result, Side};
use state::{Object, State};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE_ENTRIES: usize = 1000;
const CHUNK_BYTES: usize = 256 << 10;
/// The principal of handles that never named one.
const OWNER: &str = "owner";

/// One bucket in memory. Clones and handles made with [`MemoryStore::acting_as`] share it.
#[derive(Clone)]
pub struct MemoryStore {
    address: String,
    principal: String,
    side: Option<Side>,
    capabilities: Capabilities,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
    calls: Mutex<BTreeMap<Operation, u64>>,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MemoryStore").field("address", &self.address).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An existing, empty bucket `memory://NAME` with the capabilities of a good S3 server.
    pub fn new(name: &str) -> Self {
        let state = State { exists: true, ..State::default() };
        Self {
            address: format!("memory://{name}"),
            principal: OWNER.into(),
            side: None,
            capabilities: Capabilities {
                sorted_listing: true,
                etag_is_md5: true,
                user_metadata: true,
                content_headers: true,
                conditional_put: true,
                conditional_get: true,
                multipart: Some(PartLimits { smallest: 5 << 20, largest: 5 << 30, count: 10_000 }),
                max_put: 5 << 30,
                max_object: 50 << 40,
                policy: true,
                free_keys: true,
                met_vendor: true,
            },
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                hook: Mutex::new(None),
                calls: Mutex::default(),
                in_flight: AtomicU64::new(0),
                most_in_flight: AtomicU64::new(0),
            }),
        }
    }

    /// The side that errors of this handle name.
    #[must_use]
    pub fn on(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    /// Changes what this handle says it can do, and does: an unsorted listing is unsorted, a store without conditions
    /// ignores them, parts below the smallest size are refused.
    #[must_use]
    pub fn with_capabilities(mut self, change: impl FnOnce(&mut Capabilities)) -> Self {
        change(&mut self.capabilities);
        self
    }

    /// A handle on the same bucket with another principal's rights: a fence that exempts somebody else keeps it out.
    #[must_use]
    pub fn acting_as(&self, principal: &str) -> Self {
        Self { principal: principal.into(), ..self.clone() }
    }

    /// Asks `hook` before every call of every handle what is to go wrong; replaces an earlier hook.
    pub fn on_call(&self, hook: impl Fn(&Call) -> Fault + Send + Sync + 'static) {
        *lock(&self.shared.hook) = Some(Arc::new(hook));
    }

    /// Everything works again.
    pub fn heal(&self) {
        *lock(&self.shared.hook) = None;
    }

    /// Content beyond this many bytes is refused as `Full`.
    pub fn set_room(&self, room_bytes: Option<u64>) {
        self.state().room_bytes = room_bytes;
    }

    /// Puts an object there without any call, as if it had always been there.
    pub fn seed(&self, key: &str, content: impl Into<Bytes>) {
        self.seed_with(key, content, Attributes::default());
    }

    pub fn seed_with(&self, key: &str, content: impl Into<Bytes>, attributes: Attributes) {
        self.state().objects.insert(key.into(), Object::new(content.into(), attributes));
    }

    /// The content of an object, without any call.
    pub fn content(&self, key: &str) -> Option<Bytes> {
        self.state().objects.get(key).map(|object| object.content.clone())
    }

    pub fn attributes(&self, key: &str) -> Option<Attributes> {
        self.state().objects.get(key).map(|object| object.attributes.clone())
    }

    /// All keys in byte order, without any call.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Takes an object away without any call.
    pub fn forget(&self, key: &str) {
        self.state().objects.remove(key);
    }

    /// How often an operation was called, failed calls included.
    pub fn calls(&self, operation: Operation) -> u64 {
        lock(&self.shared.calls).get(&operation).copied().unwrap_or(0)
    }

    /// The most calls that were ever under way at once (bodies of `get` not counted).
    pub fn most_in_flight(&self) -> u64 {
        self.shared.most_in_flight.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    fn error(&self, kind: ErrorKind, text: impl Into<String>) -> Error {
        let error = Error::permanent(kind, text);
        match self.side {
            Some(side) => error.on(side),
            None => error,
        }
    }

    /// Counts the call and does what the hook wants done before it.
    async fn enter(&self, operation: Operation, key: Option<&str>) -> Result<Entered> {
        let count = {
            let mut calls = lock(&self.shared.calls);
            let count = calls.entry(operation).or_default();
            *count += 1;
            *count
        };
        let now = self.shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.most_in_flight.fetch_max(now, Ordering::Relaxed);
        let mut entered = Entered { shared: Arc::clone(&self.shared), fault: Fault::Nothing };
        let hook = lock(&self.shared.hook).clone();
        if let Some(hook) = hook {
            let call =
                Call { operation, key: key.map(String::from), count, principal: self.principal.clone() };
            let mut fault = hook(&call);
            if let Fault::Delay(time, then) = fault {
                tokio::time::sleep(time).await;
                fault = *then;
            }
            match fault {
                Fault::Fail(error) => return Err(self.at_side(error)),
                other => entered.fault = other,
            }
        }
        if !self.state().exists && operation != Operation::Create {
            return Err(self.error(ErrorKind::NotFound, format!("{} does not exist", self.address)));
        }
        Ok(entered)
    }

    fn at_side(&self, error: Error) -> Error {
        match (error.side, self.side) {
            (None, Some(side)) => error.on(side),
            _ => error,
        }
    }

    fn may_write(&self, state: &State) -> Result<()> {
        match state.policy.as_deref().and_then(policy::fenced_for) {
            Some(principal) if principal != self.principal => Err(self
                .error(ErrorKind::Credentials, format!("access denied by the policy of {}", self.address))
                .hint("the bucket is fenced: only the migration may write")),
            _ => Ok(()),
        }
    }

    fn may_hold(&self, state: &State, key: &str, size: u64) -> Result<()> {
        let Some(room) = state.room_bytes else { return Ok(()) };
        let used: u64 = state.objects.iter().filter(|(other, _)| *other != key).map(|(_, o)| o.size()).sum();
        if used + size > room {
            return Err(self.error(ErrorKind::Full, format!("{} is full", self.address)));
        }
        Ok(())
    }

    fn check_condition(&self, state: &State, key: &str, condition: &Condition) -> Result<()> {
        if !self.capabilities.conditional_put {
            return Ok(());
        }
        let held = match (condition, state.objects.get(key)) {
            (Condition::Always, _) | (Condition::Absent, None) => true,
            (Condition::Absent, Some(_)) | (Condition::Matches(_), None) => false,
            (Condition::Matches(tag), Some(object)) => *tag == object.etag,
        };
        if held {
            return Ok(());
        }
        Err(self.error(ErrorKind::Changed, format!("{key}: what is there is not what was expected")))
    }

    fn kept(&self, attributes: &Attributes) -> Attributes {
        let mut kept = attributes.clone();
        kept.not_carried.clear();
        if !self.capabilities.user_metadata {
            kept.user.clear();
        }
        if !self.capabilities.content_headers {
            kept = Attributes { user: kept.user, ..Attributes::default() };
        }
        kept
    }

    fn meta(&self, object: &Object) -> Meta {
        Meta {
            size: object.size(),
            etag: Some(object.etag.clone()),
            modified: Some(object.modified),
            attributes: object.attributes.clone(),
            checksums: object.checksums(self.capabilities.etag_is_md5),
        }
    }

    fn write(&self, key: &str, object: Object) -> Result<Written> {
        let mut state = self.state();
        self.may_hold(&state, key, object.size())?;
        let written = Written {
            etag: Some(object.etag.clone()),
            checksums: object.checksums(self.capabilities.etag_is_md5),
        };
        state.objects.insert(key.into(), object);
        Ok(written)
    }

    fn page(&self, prefix: &str, after: Option<&str>) -> Vec<Entry> {
        let state = self.state();
        let sorted = self.capabilities.sorted_listing;
        let fits = |key: &str| {
            key.starts_with(prefix)
                && after.is_none_or(|after| if sorted { key > after } else { key < after })
        };
        let lowest = after.filter(|_| sorted).unwrap_or("").max(prefix).to_owned();
        let all = state.objects.range(lowest..).filter(|(key, _)| fits(key));
        let entry = |(key, object): (&String, &Object)| Entry {
            key: key.clone(),
            size: object.size(),
            etag: Some(object.etag.clone()),
            modified: Some(object.modified),
        };
        if sorted {
            all.take_while(|(key, _)| key.starts_with(prefix)).take(PAGE_ENTRIES).map(entry).collect()
        } else {
            all.rev().take(PAGE_ENTRIES).map(entry).collect()
        }
    }

    fn body(object: &Object, range: Range<u64>, fault: &Fault) -> Body {
        let start = usize::try_from(range.start).unwrap_or(usize::MAX);
        let end = usize::try_from(range.end).unwrap_or(usize::MAX);
        let mut content =
            object.content.slice(start.min(object.content.len())..end.min(object.content.len()));
        let mut ending = None;
        match fault {
            Fault::Truncate(bytes) => {
                content.truncate(usize::try_from(*bytes).unwrap_or(usize::MAX));
                ending = Some(Err(Error::temporary(ErrorKind::Network, "the connection ended in mid-body")));
            }
            Fault::Corrupt => content = fault::corrupted(&content),
            _ => {}
        }
        let chunks: Vec<Result<Bytes>> = (0..content.len())
            .step_by(CHUNK_BYTES)
            .map(|at| Ok(content.slice(at..(at + CHUNK_BYTES).min(content.len()))))
            .chain(ending)
            .collect();
        stream::iter(chunks).boxed()
    }
}

/// A call under way; what is to go wrong after its effect is decided here.
struct Entered {
    shared: Arc<Shared>,
    fault: Fault,
}

impl Entered {
    /// The answer of a call whose effect is done.
    fn answer<T>(&self, answer: T) -> Result<T> {
        match &self.fault {
            Fault::LoseAnswer(error) => Err(error.clone()),
            _ => Ok(answer),
        }
    }

    fn content(&self, content: Bytes) -> Bytes {
        if matches!(self.fault, Fault::Corrupt) { fault::corrupted(&content) } else { content }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Store for MemoryStore {
    fn address(&self) -> &str {
        &self.address
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn check(&self) -> Result<()> {
        self.enter(Operation::Check, None).await?.answer(())
    }

    async fn create(&self) -> Result<bool> {
        let entered = self.enter(Operation::Create, None).await?;
        let was_there = std::mem::replace(&mut self.state().exists, true);
        entered.answer(!was_there)
    }

    async fn remove(&self) -> Result<()> {
        let entered = self.enter(Operation::Remove, None).await?;
        {
            let mut state = self.state();
            if !state.objects.is_empty() {
                return Err(self.error(ErrorKind::Other, format!("{} is not empty", self.address)));
            }
            *state = State { room_bytes: state.room_bytes, ..State::default() };
        }
        entered.answer(())
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>> {
        let start = Some(after.map(String::from));
        let prefix = prefix.to_owned();
        stream::unfold(start, move |position| {
            let prefix = prefix.clone();
            async move {
                let after = position?;
                let entered = match self.enter(Operation::List, after.as_deref()).await {
                    Ok(entered) => entered,
                    Err(error) => return Some((vec![Err(error)], None)),
                };
                let page = self.page(&prefix, after.as_deref());
                let next = page.last().map(|entry| entry.key.clone()).filter(|_| page.len() == PAGE_ENTRIES);
                match entered.answer(page) {
                    Ok(page) => Some((page.into_iter().map(Ok).collect(), next.map(Some))),
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        })
        .flat_map(stream::iter)
        .boxed()
    }

    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let entered = self.enter(Operation::Head, Some(key)).await?;
        let meta = self.state().objects.get(key).map(|object| self.meta(object));
        entered.answer(meta)
    }

    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let entered = self.enter(Operation::Get, Some(key)).await?;
        let Some(object) = self.state().objects.get(key).cloned() else { return entered.answer(None) };
        if self.capabilities.conditional_get && if_match.is_some_and(|tag| tag != object.etag) {
            return Err(self.error(ErrorKind::Changed, format!("{key} is another object now")));
        }
        let range = range.unwrap_or(0..object.size());
        if range.start > 0 && range.start >= object.size() {
            return Err(self.error(ErrorKind::Changed, format!("{key} ends before byte {}", range.start)));
        }
        let body = Self::body(&object, range, &entered.fault);
        entered.answer(Some((self.meta(&object), body)))
    }

    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: Bytes,
        condition: Condition,
    ) -> Result<Written> {
        let entered = self.enter(Operation::Put, Some(key)).await?;
        {
            let state = self.state();
            self.may_write(&state)?;
            self.check_condition(&state, key, &condition)?;
        }
        if content.len() as u64 > self.capabilities.max_put {
            return Err(self.error(ErrorKind::Unsupported, format!("{key} is too large for one put")));
        }
        if !self.capabilities.free_keys && key.ends_with('/') {
            return Err(self.error(ErrorKind::Unsupported, format!("{key}: a key cannot end with `/` here")));
        }
        let object = Object::new(entered.content(content), self.kept(attributes));
        let written = self.write(key, object)?;
        entered.answer(written)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let entered = self.enter(Operation::Delete, Some(key)).await?;
        {
            let mut state = self.state();
            self.may_write(&state)?;
            state.objects.remove(key);
        }
        entered.answer(())
    }

    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String> {
        let entered = self.enter(Operation::BeginUpload, Some(key)).await?;
        self.part_limits()?;
        let id = {
            let mut state = self.state();
            self.may_write(&state)?;
            state.begin_upload(key, self.kept(attributes))
        };
        entered.answer(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        content: Bytes,
    ) -> Result<UploadedPart> {
        let entered = self.enter(Operation::UploadPart, Some(key)).await?;
        let limits = self.part_limits()?;
        if number == 0 || number > limits.count || content.len() as u64 > limits.largest {
            return Err(self.error(ErrorKind::Unsupported, format!("{key}: part {number} is out of bounds")));
        }
        let content = entered.content(content);
        let part = {
            let mut state = self.state();
            self.may_write(&state)?;
            let kept: u64 = state.upload_bytes();
            self.may_hold(&state, "", kept + content.len() as u64)?;
            state
                .upload(key, upload)
                .map_err(|text| self.error(ErrorKind::NotFound, text))?
                .add(number, content)
        };
        entered.answer(part)
    }

    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>> {
        let entered = self.enter(Operation::UploadedParts, Some(key)).await?;
        self.part_limits()?;
        let parts = {
            let mut state = self.state();
            state.upload(key, upload).map_err(|text| self.error(ErrorKind::NotFound, text))?.parts()
        };
        entered.answer(parts)
    }

    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written> {
        let entered = self.enter(Operation::CompleteUpload, Some(key)).await?;
        let limits = self.part_limits()?;
        let object = {
            let mut state = self.state();
            self.may_write(&state)?;
            let pending = state.upload(key, upload).map_err(|text| self.error(ErrorKind::NotFound, text))?;
            pending.assemble(parts, limits.smallest).map_err(|text| self.error(ErrorKind::Other, text))?
        };
        let written = self.write(key, object)?;
        self.state().uploads.remove(upload);
        entered.answer(written)
    }

    async fn abort_upload(&self, _key: &str, upload: &str) -> Result<()> {
        let entered = self.enter(Operation::AbortUpload, None).await?;
        self.part_limits()?;
        self.state().uploads.remove(upload);
        entered.answer(())
    }

    async fn open_uploads(&self) -> Result<Vec<Upload>> {
        let entered = self.enter(Operation::OpenUploads, None).await?;
        self.part_limits()?;
        let uploads = self.state().open_uploads();
        entered.answer(uploads)
    }

    async fn policy(&self) -> Result<Option<String>> {
        let entered = self.enter(Operation::Policy, None).await?;
        self.policies()?;
        let policy = self.state().policy.clone();
        entered.answer(policy)
    }

    async fn set_policy(&self, policy: Option<&str>) -> Result<()> {
        let entered = self.enter(Operation::SetPolicy, None).await?;
        self.policies()?;
        self.state().policy = policy.map(String::from);
        entered.answer(())
    }

    fn fence_policy(&self, existing: Option<&str>, principal: &str) -> Result<String> {
        self.policies()?;
        policy::fence(policy::Grammar::Aws, &self.bucket(), "", existing, principal)
    }

    fn unfence_policy(&self, existing: &str) -> Result<Option<String>> {
        self.policies()?;
        policy::unfence(existing, "")
    }
}

impl MemoryStore {
    fn bucket(&self) -> String {
        self.address.trim_start_matches("memory://").to_owned()
    }

    fn part_limits(&self) -> Result<PartLimits> {
        self.capabilities.multipart.ok_or_else(|| {
            self.error(ErrorKind::Unsupported, format!("{} takes no multipart uploads", self.address))
        })
    }

    fn policies(&self) -> Result<()> {
        if self.capabilities.policy {
            return Ok(());
        }
        Err(self.error(ErrorKind::Unsupported, format!("{} has no policies", self.address)))
    }
}
