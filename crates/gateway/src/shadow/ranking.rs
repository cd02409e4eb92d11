//! What was found, by endpoint, worst first. Bounded; knows places and counts, no values.

use super::compare::{Kind, Places};
use crate::control::{EndpointDifferences, PlaceCount};
use std::collections::BTreeMap;

/// Endpoints that are told apart; the rest is one.
const ENDPOINTS: usize = 500;
const REST: &str = "(all others)";
/// Places that are told apart in one endpoint.
const PLACES: usize = 64;
/// How much of it is shown.
const SHOWN: (usize, usize) = (20, 8);

/// What one pair came to.
#[derive(Debug)]
pub(super) struct Found {
    pub places: Places,
    /// Something was left out because it differs between two looks at one side.
    pub noisy: bool,
    pub id: String,
}

#[derive(Debug, Default)]
pub(super) struct Ranking {
    pub compared: u64,
    pub different: u64,
    pub noisy: u64,
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Default)]
struct Endpoint {
    compared: u64,
    different: u64,
    places: BTreeMap<(String, Kind), Seen>,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    /// The first request it was seen with; the access log has its path.
    id: String,
}

impl Ranking {
    pub fn note(&mut self, endpoint: String, found: Found) {
        let known = self.endpoints.contains_key(&endpoint) || self.endpoints.len() < ENDPOINTS;
        let entry = self.endpoints.entry(if known { endpoint } else { REST.into() }).or_default();
        self.compared += 1;
        self.noisy += u64::from(found.noisy);
        entry.compared += 1;
        if found.places.is_empty() {
            return;
        }
        self.different += 1;
        entry.different += 1;
        for place in found.places {
            if entry.places.len() < PLACES || entry.places.contains_key(&place) {
                let seen =
                    entry.places.entry(place).or_insert_with(|| Seen { count: 0, id: found.id.clone() });
                seen.count += 1;
            }
        }
    }

    /// Most differences first.
    pub fn worst(&self) -> Vec<EndpointDifferences> {
        let mut all: Vec<_> = self.endpoints.iter().filter(|(_, endpoint)| endpoint.different > 0).collect();
        all.sort_by_key(|(_, endpoint)| std::cmp::Reverse(endpoint.different));
        all.into_iter()
            .take(SHOWN.0)
            .map(|(name, endpoint)| EndpointDifferences {
                endpoint: name.clone(),
                compared: endpoint.compared,
                different: endpoint.different,
                places: endpoint.worst(),
            })
            .collect()
    }
}

impl Endpoint {
    fn worst(&self) -> Vec<PlaceCount> {
        let mut all: Vec<_> = self.places.iter().collect();
        all.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.count));
        all.into_iter()
            .take(SHOWN.1)
            .map(|((place, kind), seen)| PlaceCount {
                place: place.clone(),
                kind: kind.name().into(),
                count: seen.count,
                request: seen.id.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(places: &[&str]) -> Found {
        let places = places.iter().map(|place| ((*place).to_owned(), Kind::Value)).collect();
        Found { places, noisy: false, id: "r-1".into() }
    }

    #[test]
    fn the_worst_is_first_and_the_memory_is_bounded() {
        let mut ranking = Ranking::default();
        for n in 0..2_000 {
            ranking.note(format!("GET /{n}"), found(&[]));
        }
        for _ in 0..3 {
            ranking.note("GET /0".into(), found(&["$.a"]));
        }
        for n in 0..200 {
            ranking.note("GET /1".into(), found(&["$.b", &format!("$.c{n}")]));
        }
        assert_eq!((ranking.compared, ranking.different), (2_203, 203));
        assert_eq!(ranking.endpoints.len(), ENDPOINTS + 1);
        let worst = ranking.worst();
        assert_eq!((worst[0].endpoint.as_str(), worst[0].different, worst[0].compared), ("GET /1", 200, 201));
        assert_eq!((worst[0].places[0].place.as_str(), worst[0].places[0].count), ("$.b", 200));
        assert_eq!(worst[0].places.len(), SHOWN.1);
        assert_eq!((worst[1].endpoint.as_str(), worst.len()), ("GET /0", 2));
    }
}
