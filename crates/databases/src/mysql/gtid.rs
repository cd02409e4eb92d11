//! Positions in a binary log, as MariaDB counts them: per domain, the server that wrote last and its number. Positions of one side are
//! compared with positions of the same side only, so the number decides.

use rehome_part::Position;
use std::collections::BTreeMap;

/// The newest transaction of each domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gtids(BTreeMap<u32, (u32, u64)>);

impl Gtids {
    /// `None`: that is no position.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = BTreeMap::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let mut numbers = one.split('-');
            let (domain, server, sequence) = (numbers.next()?, numbers.next()?, numbers.next()?);
            if numbers.next().is_some() {
                return None;
            }
            all.insert(domain.parse().ok()?, (server.parse().ok()?, sequence.parse().ok()?));
        }
        Some(Self(all))
    }

    /// Is everything of `wanted` at or before this?
    pub fn covers(&self, wanted: &Self) -> bool {
        wanted
            .0
            .iter()
            .all(|(domain, (_, sequence))| self.0.get(domain).is_some_and(|(_, reached)| reached >= sequence))
    }

    /// Transactions behind `earlier`, up to here.
    pub fn since(&self, earlier: &Self) -> u64 {
        let before = |domain| earlier.0.get(domain).map_or(0, |(_, sequence)| *sequence);
        self.0.iter().map(|(domain, (_, sequence))| sequence.saturating_sub(before(domain))).sum()
    }
}

pub(super) fn covers(applied: &Position, wanted: &Position) -> bool {
    match (Gtids::parse(&applied.0), Gtids::parse(&wanted.0)) {
        (Some(applied), Some(wanted)) => applied.covers(&wanted),
        _ => false,
    }
}

pub(super) fn since(later: &Position, earlier: Option<&Position>) -> u64 {
    let earlier = earlier.and_then(|earlier| Gtids::parse(&earlier.0)).unwrap_or_default();
    Gtids::parse(&later.0).map_or(0, |later| later.since(&earlier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_domain_counts() {
        let position = |text: &str| Position(text.into());
        assert!(covers(&position("0-1-10,5-1-2"), &position("0-2-10")));
        assert!(!covers(&position("0-1-10"), &position("0-1-9,5-1-2")));
        assert!(!covers(&position("0-1-9"), &position("0-1-10")));
        assert!(covers(&position(""), &position("")) && !covers(&position(""), &position("0-1-1")));
        assert!(!covers(&position("0-1-9"), &position("nonsense")));
        assert_eq!(since(&position("0-1-10,5-1-2"), Some(&position("0-1-7"))), 5);
    }
}
