//! The order of changes under way: one worker per key, changes of one key joined, and the position up to which everything
//! is done. Pure: it knows no store, no clock and no task.

use std::collections::{HashMap, VecDeque};

/// A place in the order, given out by [`Window::receive`] and [`Window::block`].
pub(crate) type Slot = u64;

#[derive(Debug)]
struct Place<T> {
    position: u64,
    is_done: bool,
    /// Whatever the caller wants to know of the oldest change that is not done.
    note: T,
}

#[derive(Debug, Default)]
struct Work {
    /// Slots that the next run of this key does.
    waiting: Vec<Slot>,
    /// Somebody without a position asked for the next run.
    is_asked: bool,
    /// Slots that the present run does, when there is one.
    running: Option<Vec<Slot>>,
    /// The present run was asked for without a position.
    runs_asked: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window<T> {
    order: VecDeque<Place<T>>,
    /// The slot of the front of `order`.
    front: Slot,
    keys: HashMap<String, Work>,
    ready: VecDeque<String>,
    applied: u64,
    /// Keys asked for without a position and not done.
    asked: usize,
    /// Places in `order` that are not done.
    open: u64,
}

impl<T> Window<T> {
    /// Everything up to `applied` is done.
    pub fn new(applied: u64) -> Self {
        let (order, keys, ready) = (VecDeque::new(), HashMap::new(), VecDeque::new());
        Self { order, front: 0, keys, ready, applied, asked: 0, open: 0 }
    }

    fn push(&mut self, position: u64, is_done: bool, note: T) -> Slot {
        let slot = self.front + self.order.len() as u64;
        self.order.push_back(Place { position, is_done, note });
        self.open += u64::from(!is_done);
        slot
    }

    /// A change of `key` at `position`, which comes after all that were received before.
    pub fn receive(&mut self, position: u64, key: &str, note: T) {
        let slot = self.push(position, false, note);
        let work = self.keys.entry(key.into()).or_default();
        if work.waiting.is_empty() && !work.is_asked && work.running.is_none() {
            self.ready.push_back(key.into());
        }
        work.waiting.push(slot);
    }

    /// Nothing needs to be done up to `position`, beyond what was received before.
    pub fn pass_over(&mut self, position: u64, note: T) {
        self.push(position, true, note);
    }

    /// Holds the applied position below `position` until [`Window::release`].
    pub fn block(&mut self, position: u64, note: T) -> Slot {
        self.push(position, false, note)
    }

    pub fn release(&mut self, slot: Slot) {
        if let Some(place) = slot.checked_sub(self.front).and_then(|index| self.order.get_mut(index as usize))
        {
            self.open -= u64::from(!place.is_done);
            place.is_done = true;
        }
    }

    /// Asks for `key` without a position.
    pub fn ask(&mut self, key: &str) {
        let work = self.keys.entry(key.into()).or_default();
        if work.is_asked {
            return;
        }
        if work.waiting.is_empty() && work.running.is_none() {
            self.ready.push_back(key.into());
        }
        work.is_asked = true;
        self.asked += 1;
    }

    /// The next key to work on; it is running until [`Window::finish`]. What the worker reads now includes every change
    /// received so far.
    pub fn start(&mut self) -> Option<String> {
        let key = self.ready.pop_front()?;
        let work = self.keys.get_mut(&key).expect("a ready key has work");
        work.running = Some(std::mem::take(&mut work.waiting));
        work.runs_asked = std::mem::take(&mut work.is_asked);
        Some(key)
    }

    /// The run of `key` is done, and every change that came before its start with it. Gives their number.
    pub fn finish(&mut self, key: &str) -> u64 {
        let Some(work) = self.keys.get_mut(key) else { return 0 };
        let done = work.running.take().unwrap_or_default();
        if std::mem::take(&mut work.runs_asked) {
            self.asked -= 1;
        }
        if work.waiting.is_empty() && !work.is_asked {
            self.keys.remove(key);
        } else {
            self.ready.push_back(key.into());
        }
        for slot in &done {
            self.release(*slot);
        }
        done.len() as u64
    }

    /// The position up to which everything is done.
    pub fn applied(&mut self) -> u64 {
        while self.order.front().is_some_and(|place| place.is_done) {
            let place = self.order.pop_front().expect("there is a front");
            self.front += 1;
            self.applied = place.position;
        }
        self.applied
    }

    /// Changes received and not known to be applied.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Changes received and not done.
    pub fn backlog(&self) -> u64 {
        self.open
    }

    /// Keys asked for without a position and not done.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// The note of the oldest change that is not done; call [`Window::applied`] first.
    pub fn oldest(&self) -> Option<&T> {
        self.order.front().map(|place| &place.note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn changes_of_a_running_key_wait_for_the_next_run() {
        let mut window = Window::new(10);
        window.receive(11, "a", ());
        assert_eq!(window.start().as_deref(), Some("a"));
        window.receive(12, "a", ());
        window.receive(14, "a", ());
        assert_eq!(window.start(), None, "no two workers on one key");
        window.finish("a");
        assert_eq!(window.applied(), 11);
        assert_eq!(window.start().as_deref(), Some("a"));
        assert_eq!(window.finish("a"), 2, "joined");
        assert_eq!(window.applied(), 14);
    }

    #[test]
    fn a_block_holds_the_position_and_nothing_else() {
        let mut window = Window::new(0);
        let slot = window.block(5, ());
        window.receive(6, "a", ());
        window.start();
        window.finish("a");
        assert_eq!(window.applied(), 0);
        window.release(slot);
        assert_eq!(window.applied(), 6);
    }

    #[test]
    fn asked_keys_are_counted_until_done() {
        let mut window: Window<()> = Window::new(0);
        window.ask("a");
        window.ask("a");
        assert_eq!((window.asked(), window.len()), (1, 0));
        assert_eq!(window.start().as_deref(), Some("a"));
        window.ask("a");
        assert_eq!(window.asked(), 2);
        window.finish("a");
        assert_eq!(window.start().as_deref(), Some("a"));
        window.finish("a");
        assert_eq!(window.asked(), 0);
        assert_eq!(window.start(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Receive(u8),
        Ask(u8),
        Start,
        Finish(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8).prop_map(Step::Receive),
            (0..6u8).prop_map(Step::Ask),
            Just(Step::Start),
            (0..6u8).prop_map(Step::Finish)
        ]
    }

    proptest! {
        #[test]
        fn applied_never_passes_a_change_that_no_later_run_saw(steps in proptest::collection::vec(step(), 0..200)) {
            let mut window = Window::new(0);
            let mut next = 0;
            let mut running: HashSet<String> = HashSet::new();
            // position -> not yet covered by a run that began after it
            let mut open: Vec<(u64, String, bool)> = Vec::new();
            let mut before = 0;
            for step in steps {
                match step {
                    Step::Receive(n) => {
                        next += 1;
                        window.receive(next, &n.to_string(), ());
                        open.push((next, n.to_string(), false));
                    }
                    Step::Ask(n) => window.ask(&n.to_string()),
                    Step::Start => if let Some(key) = window.start() {
                        prop_assert!(running.insert(key.clone()), "two workers on {}", key);
                        for (_, k, seen) in &mut open { if *k == key { *seen = true; } }
                    },
                    Step::Finish(n) => {
                        let key = n.to_string();
                        if running.remove(&key) {
                            window.finish(&key);
                            open.retain(|(_, k, seen)| !(*k == key && *seen));
                        }
                    }
                }
                let applied = window.applied();
                prop_assert!(applied >= before);
                before = applied;
                let expected = open.first().map_or(next, |(position, ..)| position - 1);
                prop_assert_eq!(applied, expected);
            }
        }
    }
}
