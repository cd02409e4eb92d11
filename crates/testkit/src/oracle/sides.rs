//! One writable side at a time, read from the clouds' own mutation journals on the host's one clock.

use super::{Breach, Violation};
use crate::cloud::{Mutation, Operation, Principal};
use crate::shop::{MEDIA, ORDERS, RECEIPTS};

/// The application's mutations of all clouds in the order of time must follow `owners`: all of the first owner's, then all of
/// the second's, and so on, as far as the shop's own keys go. Whatever comes from a cloud whose turn is over, or has not come, is a second writable side.
pub(super) fn overlaps(journals: &[(String, Vec<Mutation>)], owners: &[String]) -> Vec<Violation> {
    let mut all: Vec<(&str, &Mutation)> = journals
        .iter()
        .flat_map(|(cloud, mutations)| mutations.iter().map(move |mutation| (cloud.as_str(), mutation)))
        .filter(|(_, mutation)| mutation.principal == Principal::Application && is_the_shops(&mutation.key))
        .collect();
    all.sort_by_key(|(_, mutation)| mutation.nanos);
    let mut turn = 0;
    let mut began: Option<(&str, u64)> = None;
    let mut found = Vec::new();
    for (cloud, mutation) in all {
        let next = owners.iter().enumerate().skip(turn).find(|(_, owner)| *owner == cloud);
        match next {
            Some((index, _)) => {
                if index != turn || began.is_none() {
                    began = Some((cloud, mutation.nanos));
                }
                turn = index;
            }
            None => found.push(violation(cloud, mutation, began)),
        }
    }
    found
}

/// A probe under the application's credentials outside of the shop's keys is not the application.
fn is_the_shops(key: &str) -> bool {
    [MEDIA, ORDERS, RECEIPTS].iter().any(|prefix| key.starts_with(prefix))
}

fn violation(cloud: &str, mutation: &Mutation, owner: Option<(&str, u64)>) -> Violation {
    let verb = match mutation.operation {
        Operation::Put => "wrote",
        Operation::Delete => "removed",
    };
    let text = match owner {
        Some((owner, since)) => format!(
            "the application {verb} it on {cloud} {:.3} ms after its first write on {owner}",
            mutation.nanos.saturating_sub(since) as f64 / 1e6
        ),
        None => format!("the application {verb} it on {cloud}, which never was an owner"),
    };
    Violation { breach: Breach::TwoSides, what: mutation.key.clone(), text }
}
