//! An order as it is stored. It remembers every request that was applied to it, so that one applied twice shows.

use super::Wish;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Chosen by the shop anew for every request that creates one.
    pub id: String,
    pub client: String,
    /// The client's number of the request that created it.
    pub number: u64,
    pub amount: u64,
    /// The client's number of the newest request applied.
    pub version: u64,
    /// The numbers of all updates applied, in order.
    pub history: Vec<u64>,
}

impl Order {
    pub(super) fn new(wish: &Wish) -> Self {
        Self {
            id: format!("{:032x}", fastrand::u128(..)),
            client: wish.client.clone(),
            number: wish.number,
            amount: wish.amount,
            version: wish.number,
            history: Vec::new(),
        }
    }

    pub(super) fn apply(&mut self, wish: &Wish) {
        self.amount = wish.amount;
        self.version = wish.number;
        self.history.push(wish.number);
    }
}
