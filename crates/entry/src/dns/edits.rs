//! Providers that change one record at a time (Aliyun DNS, DNSPod): what has to be edited, in an order in which the name never
//! stops answering, and a [`Zone`] made of that. Whatever it is killed after, reading again and going on ends the same.

use super::{Capabilities, DnsName, Entry, Found, Kind, Zone};
use crate::EntryError;
use async_trait::async_trait;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::Instant;

/// How long a provider's own list may lag behind its changes.
const LIST_LAG: Duration = Duration::from_secs(60);

/// A record as the provider has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub id: String,
    pub kind: Kind,
    pub value: String,
    pub ttl: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    Update { id: String, kind: Kind, value: String, ttl: u32 },
    Add { kind: Kind, value: String, ttl: u32 },
    Delete { id: String },
}

/// The edits that make `after` of what is held. At no moment between is there nothing, and never a CNAME beside an address.
pub fn edits(held: &[Held], after: &Entry) -> Vec<Edit> {
    let mut wanted: Vec<(Kind, String, u32)> = after
        .sets()
        .iter()
        .flat_map(|set| set.values.iter().map(|value| (set.kind, value.clone(), set.ttl)))
        .collect();
    let (mut updates, mut leftover) = (Vec::new(), Vec::new());
    for record in held {
        match wanted.iter().position(|(kind, value, _)| *kind == record.kind && *value == record.value) {
            Some(place) => {
                let (kind, value, ttl) = wanted.remove(place);
                if ttl != record.ttl {
                    updates.push(Edit::Update { id: record.id.clone(), kind, value, ttl });
                }
            }
            None => leftover.push(record),
        }
    }
    let from_name = held.iter().any(|record| record.kind == Kind::Cname);
    let crosses = !held.is_empty() && !after.is_empty() && from_name != after.get(Kind::Cname).is_some();
    let mut deletes = Vec::new();
    for (number, record) in leftover.into_iter().enumerate() {
        let place = match crosses {
            true => (number == 0).then_some(0),
            false => wanted.iter().position(|(kind, ..)| *kind == record.kind),
        };
        let id = record.id.clone();
        match place {
            Some(place) => {
                let (kind, value, ttl) = wanted.remove(place);
                updates.push(Edit::Update { id, kind, value, ttl });
            }
            None => deletes.push(Edit::Delete { id }),
        }
    }
    let adds = wanted.into_iter().map(|(kind, value, ttl)| Edit::Add { kind, value, ttl });
    // A CNAME stands alone: the others go first, and the last one turns into it (or it into the first).
    let (first, last) = if crosses { (deletes, Vec::new()) } else { (Vec::new(), deletes) };
    first.into_iter().chain(updates).chain(adds).chain(last).collect()
}

/// What a provider lists for a name.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    pub held: Vec<Held>,
    pub besides: Vec<String>,
    pub obstacles: Vec<String>,
}

impl Listing {
    /// An address record, or the obstacle that its value is none.
    pub(super) fn hold(&mut self, id: String, kind: Kind, value: &str, ttl: u32) {
        match kind.canonical(value) {
            Some(value) => self.held.push(Held { id, kind, value, ttl }),
            None => self.obstacles.push(format!("an {kind} record holds `{}`", value.escape_debug())),
        }
    }

    /// Only some of those who ask get this record.
    pub(super) fn is_for_line(&mut self, kind: Kind, line: &str) {
        self.obstacles.push(format!("an {kind} record is for the line `{}` only", line.escape_debug()));
    }
}

/// A provider whose records are listed and edited one at a time.
#[async_trait]
pub trait Records: Debug + Send + Sync {
    fn provider(&self) -> String;
    fn origin(&self) -> &DnsName;
    async fn list(&self, name: &DnsName) -> Result<Listing, EntryError>;
    /// That it is done already is no error.
    async fn edit(&self, name: &DnsName, edit: &Edit) -> Result<(), EntryError>;
    /// How often the list is asked whether it shows a change.
    fn poll(&self) -> Duration;
}

/// The [`Zone`] of such a provider.
#[derive(Debug)]
pub struct Piecewise<R>(pub R);

fn entry_of(held: &[Held]) -> Entry {
    let mut entry = Entry::default();
    for kind in Kind::ALL {
        let of_kind = || held.iter().filter(|record| record.kind == kind);
        // Half of an edit may be done: a cache may have kept any of them, so the longest counts.
        let ttl = of_kind().map(|record| record.ttl).max().unwrap_or(0);
        of_kind().for_each(|record| entry.add(kind, ttl, record.value.clone()));
    }
    entry
}

fn is_uneven(held: &[Held]) -> bool {
    held.iter().any(|one| held.iter().any(|other| one.kind == other.kind && one.ttl != other.ttl))
}

#[async_trait]
impl<R: Records> Zone for Piecewise<R> {
    fn provider(&self) -> String {
        self.0.provider()
    }

    fn origin(&self) -> &DnsName {
        self.0.origin()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic: false, compares: false, tested: false }
    }

    async fn read(&self, name: &DnsName) -> Result<Found, EntryError> {
        let Listing { held, besides, obstacles } = self.0.list(name).await?;
        Ok(Found { entry: entry_of(&held), uneven: is_uneven(&held), besides, obstacles })
    }

    async fn replace(&self, name: &DnsName, before: &Entry, after: &Entry) -> Result<(), EntryError> {
        let Listing { held, .. } = self.0.list(name).await?;
        let done = |held: &[Held]| entry_of(held) == *after && !is_uneven(held);
        if done(&held) {
            return Ok(());
        }
        if entry_of(&held) != *before {
            return Err(EntryError::Changed { what: name.to_string() });
        }
        for edit in edits(&held, after) {
            self.0.edit(name, &edit).await?;
        }
        let deadline = Instant::now() + LIST_LAG;
        loop {
            if done(&self.0.list(name).await?.held) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "it took the change, and its list does not show it after {} s",
                    LIST_LAG.as_secs()
                );
                return Err(EntryError::Unreachable { whom: self.0.provider(), text });
            }
            tokio::time::sleep(self.0.poll()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(held: &mut Vec<Held>, edit: &Edit, next: &mut u32) {
        match edit.clone() {
            Edit::Update { id, kind, value, ttl } => {
                let place = held.iter().position(|record| record.id == id).unwrap();
                held[place] = Held { id, kind, value, ttl };
            }
            Edit::Add { kind, value, ttl } => {
                *next += 1;
                held.push(Held { id: format!("n{next}"), kind, value, ttl });
            }
            Edit::Delete { id } => held.retain(|record| record.id != id),
        }
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let address = (prop_oneof![
            (1u8..6).prop_map(|n| format!("192.0.2.{n}")),
            (1u8..4).prop_map(|n| format!("2001:db8::{n}"))
        ],);
        let addresses = prop::collection::vec(address.prop_map(|(text,)| text), 1..6);
        let name = (1u8..4).prop_map(|n| vec![format!("lb{n}.example.net")]);
        (prop_oneof![3 => addresses, 1 => name], prop_oneof![Just(60u32), Just(600)])
            .prop_map(|(targets, ttl)| Entry::to(&targets, ttl).unwrap())
    }

    fn held_of(entry: &Entry) -> Vec<Held> {
        let sets = entry.sets().iter();
        let records = sets.flat_map(|set| set.values.iter().map(|value| (set.kind, value.clone(), set.ttl)));
        records
            .enumerate()
            .map(|(n, (kind, value, ttl))| Held { id: n.to_string(), kind, value, ttl })
            .collect()
    }

    proptest! {
        /// Whatever it was and wherever it is broken off: the name always answers, a CNAME is alone, and going on ends right.
        #[test]
        fn edits_lead_there_without_a_gap(before in any_entry(), after in any_entry(), cut in 0usize..12) {
            let (mut held, mut next) = (held_of(&before), 0);
            for edit in edits(&held.clone(), &after).into_iter().take(cut) {
                apply(&mut held, &edit, &mut next);
                prop_assert!(!held.is_empty());
                let names = held.iter().filter(|record| record.kind == Kind::Cname).count();
                prop_assert!(names == 0 || held.len() == 1, "{held:?}");
            }
            for edit in edits(&held.clone(), &after) {
                apply(&mut held, &edit, &mut next);
            }
            prop_assert_eq!(entry_of(&held), after.clone());
            prop_assert!(edits(&held, &after).is_empty());
        }
    }

    #[test]
    fn the_first_and_the_last_record() {
        let some = Entry::to(&["192.0.2.1".into()], 60).unwrap();
        assert_eq!(edits(&[], &some), [Edit::Add { kind: Kind::A, value: "192.0.2.1".into(), ttl: 60 }]);
        assert_eq!(edits(&held_of(&some), &Entry::default()), [Edit::Delete { id: "0".into() }]);
    }
}
