//! Read-your-writes: when each client's last write was acknowledged, in bounded memory. Forgetting a client raises a floor
//! that then counts for everybody unknown, so forgetting can only send reads to the owner, never to stale data.

use crate::split::ClientId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: usize = 32;
/// Clients remembered by default, all shards together.
pub(crate) const CLIENTS: usize = 1 << 17;

/// The last acknowledged write of each client, in microseconds of this process.
#[derive(Debug)]
pub(crate) struct LastWrites {
    shards: Vec<Mutex<HashMap<ClientId, u64>>>,
    per_shard: usize,
    /// Clients not found wrote at this moment, for all we know.
    floor: AtomicU64,
}

impl LastWrites {
    pub fn new(clients: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: clients.div_ceil(SHARDS).max(1),
            floor: AtomicU64::new(0),
        }
    }

    fn shard(&self, client: ClientId) -> &Mutex<HashMap<ClientId, u64>> {
        // The low bits choose the side (see `ClientId::is_within`), the high bits the shard.
        &self.shards[(client.0 >> 59) as usize % SHARDS]
    }

    /// A write of `client` is being acknowledged now. `through`: everything before can be read on both sides.
    pub fn acknowledge(&self, client: ClientId, now: u64, through: u64) {
        let mut shard = self.shard(client).lock().expect("no code panics while it holds this lock");
        if let Some(last) = shard.get_mut(&client) {
            *last = now.max(*last);
            return;
        }
        if shard.len() >= self.per_shard {
            self.forget(&mut shard, through);
        }
        shard.insert(client, now);
    }

    /// Makes room: first whoever's writes are on both sides anyway, then the older half.
    fn forget(&self, shard: &mut HashMap<ClientId, u64>, through: u64) {
        shard.retain(|_, last| *last >= through);
        if shard.len() < self.per_shard {
            return;
        }
        let mut moments: Vec<u64> = shard.values().copied().collect();
        let middle = moments.len() / 2;
        let (_, &mut median, _) = moments.select_nth_unstable(middle);
        self.floor.fetch_max(median, Ordering::SeqCst);
        shard.retain(|_, last| *last > median);
    }

    /// Can everything that `client` wrote be read on the other side, if that has all writes before `through`?
    pub fn is_readable(&self, client: ClientId, through: u64) -> bool {
        let last =
            self.shard(client).lock().expect("no code panics while it holds this lock").get(&client).copied();
        // Looked at after the map: whoever is forgotten meanwhile raised the floor before leaving it.
        last.unwrap_or_else(|| self.floor.load(Ordering::SeqCst)) < through
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_client_reads_elsewhere_once_its_write_arrived() {
        let writes = LastWrites::new(CLIENTS);
        let (alice, bob) = (ClientId(1), ClientId(2));
        writes.acknowledge(alice, 100, 0);
        assert!(!writes.is_readable(alice, 100), "only what came before `through` is there");
        assert!(writes.is_readable(alice, 101));
        assert!(writes.is_readable(bob, 1));
        writes.acknowledge(alice, 90, 0);
        assert!(!writes.is_readable(alice, 95), "an older acknowledgement does not go back");
    }

    proptest! {
        /// In however little memory: nobody is ever told that a write can be read which cannot.
        #[test]
        fn forgetting_never_shows_stale_data(
            steps in proptest::collection::vec((0u64..200, 0u64..50), 1..400),
        ) {
            let writes = LastWrites::new(64);
            let mut truth = HashMap::new();
            let mut through = 0;
            for (now, (client, behind)) in steps.into_iter().enumerate() {
                let now = now as u64 + 1;
                let client = ClientId(client << 57 | client);
                writes.acknowledge(client, now, through);
                truth.insert(client, now);
                through = through.max(now.saturating_sub(behind));
                for (client, last) in &truth {
                    prop_assert!(!writes.is_readable(*client, through) || *last < through);
                }
            }
            let held: usize = writes.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
            prop_assert!(held <= 64 + SHARDS);
        }
    }
}
