//! Where a session is between its client and its server: what was sent and is not answered. From that follows when no transaction is
//! under way, and where a client may be made to wait. Knows the messages' kinds and order, nothing of what is in them.
//!
//! Source: PostgreSQL's documentation, "Message Flow". A `Query`, a function call and a `Sync` are each answered by one `ReadyForQuery`,
//! which says whether a transaction is open; a server that takes a COPY ignores `Sync`.

use std::collections::VecDeque;

/// What is answered by one `ReadyForQuery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// A `Query` or a function call.
    Simple,
    Sync,
}

#[derive(Debug)]
pub(super) struct Progress {
    asked: VecDeque<Unit>,
    /// Messages of the extended protocol came after the last unit.
    is_open_ended: bool,
    /// The server takes data of the client.
    copies_in: bool,
    /// A transaction is open, or has failed and waits for its end.
    is_inside: bool,
}

impl Progress {
    /// Of a session that has just begun.
    pub fn new() -> Self {
        Self { asked: VecDeque::new(), is_open_ended: false, copies_in: false, is_inside: false }
    }

    /// The client's message goes to the server.
    pub fn sent(&mut self, kind: u8) {
        match kind {
            b'Q' | b'F' => {
                self.asked.push_back(Unit::Simple);
                self.is_open_ended = false;
            }
            b'S' if self.copies_in => {}
            b'S' => {
                self.asked.push_back(Unit::Sync);
                self.is_open_ended = false;
            }
            b'P' | b'B' | b'D' | b'E' | b'C' => self.is_open_ended = true,
            // The end of what a COPY takes, good or bad.
            b'c' | b'f' => self.copies_in = false,
            _ => {}
        }
    }

    /// The server says that it is ready; `status` is its word on the transaction.
    pub fn ready(&mut self, status: u8) {
        // To a Sync that was not counted, since it came while a COPY had failed and nobody knew yet.
        if self.asked.pop_front().is_none() {
            self.is_open_ended = false;
        }
        self.is_inside = status != b'I';
    }

    /// The server begins to take a COPY: every Sync that is under way is ignored.
    pub fn copy_begins(&mut self) {
        let is_simple = self.asked.front() == Some(&Unit::Simple);
        self.asked.clear();
        if is_simple {
            self.asked.push_back(Unit::Simple);
        } else {
            self.is_open_ended = true;
        }
        self.copies_in = true;
    }

    /// The server reports an error; a COPY is over with it.
    pub fn failed(&mut self) {
        self.copies_in = false;
    }

    /// Between two transactions, with everything answered.
    pub fn is_idle(&self) -> bool {
        self.is_between() && self.asked.is_empty() && !self.is_inside
    }

    /// Between two units: here a client can wait until what it asked is answered.
    pub fn is_between(&self) -> bool {
        !self.is_open_ended && !self.copies_in
    }

    pub fn is_answered(&self) -> bool {
        self.asked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sent: &[u8]) -> Progress {
        let mut progress = Progress::new();
        sent.iter().for_each(|kind| progress.sent(*kind));
        progress
    }

    #[test]
    fn a_query_is_under_way_until_it_is_answered() {
        let mut progress = after(b"Q");
        assert!(!progress.is_idle() && progress.is_between());
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn a_transaction_is_one_until_its_end() {
        let mut progress = after(b"Q");
        progress.ready(b'T');
        assert!(!progress.is_idle() && progress.is_between() && progress.is_answered());
        progress.sent(b'Q');
        progress.ready(b'E');
        assert!(!progress.is_idle(), "failed, and not over");
        progress.sent(b'Q');
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn what_is_not_synced_is_no_end() {
        let mut progress = after(b"PBE");
        assert!(!progress.is_between() && !progress.is_idle());
        progress.sent(b'H');
        assert!(!progress.is_between());
        progress.sent(b'S');
        assert!(progress.is_between() && !progress.is_idle());
        // The next statement is on its way already.
        progress.sent(b'P');
        progress.ready(b'I');
        assert!(!progress.is_idle());
        progress.sent(b'S');
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn every_unit_of_a_pipeline_is_waited_for() {
        let mut progress = after(b"PBESPBESQ");
        for _ in 0..2 {
            progress.ready(b'I');
            assert!(!progress.is_idle());
        }
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn a_copy_by_a_query_ends_with_its_one_answer() {
        let mut progress = after(b"Q");
        progress.copy_begins();
        progress.sent(b'd');
        assert!(!progress.is_between());
        progress.sent(b'c');
        assert!(progress.is_between() && !progress.is_idle());
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn a_copy_ignores_the_sync_that_came_before_its_data() {
        // libpq sends both at once, and one more Sync after the data.
        let mut progress = after(b"PBDES");
        progress.copy_begins();
        progress.sent(b'd');
        progress.sent(b'c');
        assert!(!progress.is_between());
        progress.sent(b'S');
        progress.ready(b'I');
        assert!(progress.is_idle());
    }

    #[test]
    fn a_copy_that_fails_early_is_over_whatever_the_client_knew() {
        let mut progress = after(b"PBES");
        progress.copy_begins();
        progress.sent(b'd');
        // Sent before the error is seen: ignored by a COPY, answered after one.
        progress.sent(b'S');
        progress.failed();
        progress.ready(b'I');
        assert!(progress.is_idle());
    }
}
