//! What this gateway may do with writes: a pure state machine over the requests of [`crate::control`]. It knows neither files
//! nor sockets nor clocks; whoever acts on a new state makes its saved part durable first.

use crate::control::{Mode, Refusal};
use rehome_part::{Epoch, Side, Token};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A lease longer than this is a mistake: a partitioned gateway would admit writes for as long.
pub(crate) const MAX_LEASE_MS: u64 = 60_000;
const MAX_ASK: usize = 16;
/// Epochs stay exact in every JSON reader, and the next one always exists.
const MAX_EPOCH: Epoch = Epoch(1 << 53);

/// A refusal and the sentence that explains it.
pub(crate) type Refused = (Refusal, String);

/// The part of the state that survives a restart, as it stands in the epoch file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    pub version: u32,
    pub run: Option<String>,
    /// The run that left last: its tokens are still compared if it comes back.
    pub past_run: Option<String>,
    pub epoch: Epoch,
    pub owner: Side,
    pub highest_token: Token,
    /// The newest epoch under which a write was (or may have been) forwarded.
    pub intent: Option<Epoch>,
    pub armed: Option<Armed>,
    /// Who knows the decision; kept after the switch, since a grant can be revoked.
    pub ask: Vec<PathBuf>,
    pub ask_secret: String,
}

/// A switch has begun and its end is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Armed {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Writes were told to wait; only a decision ends that, never a renewed lease.
    pub held: bool,
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saved")
            .field("run", &self.run)
            .field("epoch", &self.epoch)
            .field("owner", &self.owner)
            .field("highest_token", &self.highest_token)
            .field("intent", &self.intent)
            .field("armed", &self.armed)
            .field("ask", &self.ask)
            .finish_non_exhaustive()
    }
}

impl Saved {
    pub const VERSION: u32 = 1;

    /// A gateway that never met an engine: the source owns the writes.
    pub fn first() -> Self {
        Self {
            version: Self::VERSION,
            run: None,
            past_run: None,
            epoch: Epoch::FIRST,
            owner: Side::Source,
            highest_token: Token(0),
            intent: None,
            armed: None,
            ask: Vec::new(),
            ask_secret: String::new(),
        }
    }

    /// Is this a state that [`Grant`] can have reached?
    pub fn check(&self) -> Result<(), String> {
        if self.version != Self::VERSION {
            return Err(format!("format version {}, this program reads {}", self.version, Self::VERSION));
        }
        if self.epoch < Epoch::FIRST || self.epoch > MAX_EPOCH {
            return Err(format!("epoch {} does not exist", self.epoch));
        }
        if self.intent.is_some_and(|intent| intent > self.epoch) {
            return Err("it intends to write under an epoch that it was not granted".into());
        }
        match self.armed {
            Some(armed) if armed.epoch != self.epoch => {
                Err("it is armed for another epoch than its own".into())
            }
            Some(_) if self.run.is_none() => Err("it is armed without a run".into()),
            _ => Ok(()),
        }
    }
}

/// The grant and its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub saved: Saved,
    pub mode: Mode,
    /// Boot time in microseconds; meaningless while standing.
    pub lease_end: u64,
}

impl Grant {
    /// After a start: a standing grant stands; a gateway that slept through a switch holds until it knows the decision.
    pub fn wake(saved: Saved) -> Self {
        let mode = if saved.armed.is_some() { Mode::Held } else { Mode::Standing };
        Self { saved, mode, lease_end: 0 }
    }

    /// May a write be forwarded at this boot time?
    pub fn admits(&self, now: u64) -> bool {
        match self.mode {
            Mode::Standing => true,
            Mode::Armed => now < self.lease_end,
            Mode::Held => false,
        }
    }

    /// Has the time come to ask for the decision?
    pub fn must_ask(&self, now: u64) -> bool {
        self.mode != Mode::Standing && now >= self.lease_end
    }

    pub fn enroll(&self, run: &str, token: Token) -> Result<Self, Refused> {
        let mut next = self.clone();
        match &self.saved.run {
            Some(own) if own == run => return self.with_token(token),
            Some(own) => return Err((Refusal::OtherRun, format!("this gateway belongs to run `{own}`"))),
            None if self.saved.past_run.as_deref() == Some(run) => next = self.with_token(token)?,
            None => next.saved.highest_token = token,
        }
        if run.is_empty() || run.len() > 256 {
            return Err((Refusal::BadRequest, "the run's name must have 1 to 256 bytes".into()));
        }
        next.saved.run = Some(run.to_owned());
        Ok(next)
    }

    pub fn leave(&self, run: &str, token: Token) -> Result<Self, Refused> {
        match &self.saved.run {
            None => return Ok(self.clone()),
            Some(own) if own != run => {
                return Err((Refusal::OtherRun, format!("this gateway belongs to run `{own}`")));
            }
            Some(_) => {}
        }
        let mut next = self.with_token(token)?;
        if self.mode != Mode::Standing {
            return Err((Refusal::BadRequest, "a switch is under way: settle it first".into()));
        }
        next.saved.past_run = next.saved.run.take();
        next.saved.ask.clear();
        next.saved.ask_secret.clear();
        Ok(next)
    }

    pub fn arm(
        &self,
        epoch: Epoch,
        lease: Lease,
        ask: &[PathBuf],
        ask_secret: &str,
        token: Token,
    ) -> Result<Self, Refused> {
        let mut next = self.effect(token)?;
        self.must_be_at(epoch)?;
        if ask.len() > MAX_ASK {
            return Err((Refusal::BadRequest, format!("more than {MAX_ASK} sockets to ask")));
        }
        next.lease_end = lease.end()?;
        ask.clone_into(&mut next.saved.ask);
        ask_secret.clone_into(&mut next.saved.ask_secret);
        let held = self.saved.armed.is_some_and(|armed| armed.held);
        next.saved.armed = Some(Armed { epoch, held });
        next.mode = if held { Mode::Held } else { Mode::Armed };
        Ok(next)
    }

    pub fn hold(&self, epoch: Epoch, token: Token) -> Result<Self, Refused> {
        let mut next = self.effect(token)?;
        self.must_be_armed(epoch)?;
        next.saved.armed = Some(Armed { epoch, held: true });
        next.mode = Mode::Held;
        Ok(next)
    }

    /// Takes a hold back that was asked for but may not be: as it was before [`Grant::hold`].
    pub fn unhold(&self, before: &Self) -> Self {
        let mut next = self.clone();
        next.saved.armed = before.saved.armed;
        next.mode = before.mode;
        next
    }

    pub fn renew(&self, epoch: Epoch, lease: Lease, token: Token) -> Result<Self, Refused> {
        let mut next = self.effect(token)?;
        self.must_be_armed(epoch)?;
        next.lease_end = lease.end()?;
        Ok(next)
    }

    pub fn settle(&self, epoch: Epoch, owner: Side, token: Token) -> Result<Self, Refused> {
        let mut next = self.effect(token)?;
        let own = self.saved.epoch;
        if epoch < own {
            return Err((Refusal::StaleEpoch, format!("epoch {epoch} is over, this gateway is at {own}")));
        }
        if epoch > MAX_EPOCH {
            return Err((Refusal::BadRequest, format!("epoch {epoch} is no epoch")));
        }
        if epoch == own {
            return match self.saved.armed {
                Some(_) => Err((
                    Refusal::StaleEpoch,
                    format!(
                        "epoch {epoch} is ending or was revoked; the decision for {} is needed",
                        own.next()
                    ),
                )),
                None if owner == self.saved.owner => Ok(next),
                None => Err((
                    Refusal::StaleEpoch,
                    format!(
                        "epoch {epoch} already belongs to the {}; one epoch has one owner",
                        self.saved.owner
                    ),
                )),
            };
        }
        next.saved.epoch = epoch;
        next.saved.owner = owner;
        next.saved.armed = None;
        next.mode = Mode::Standing;
        Ok(next)
    }

    pub fn revoke(&self, epoch: Epoch, token: Token) -> Result<Self, Refused> {
        let mut next = self.effect(token)?;
        let own = self.saved.epoch;
        if epoch < own {
            return Err((Refusal::StaleEpoch, format!("epoch {epoch} is over, this gateway is at {own}")));
        }
        if epoch > MAX_EPOCH {
            return Err((Refusal::BadRequest, format!("epoch {epoch} is no epoch")));
        }
        if self.saved.intent == Some(epoch) {
            let text = format!("this gateway recorded its intent to write under epoch {epoch}");
            return Err((Refusal::IntentRecorded, text));
        }
        // An epoch that never arrived here is revoked too: its grant may still be under way.
        next.saved.epoch = epoch;
        next.saved.armed = Some(Armed { epoch, held: true });
        next.mode = Mode::Held;
        if epoch > own {
            next.lease_end = 0;
        }
        Ok(next)
    }

    /// Records that writes are about to be forwarded under the present epoch.
    pub fn intend(&self) -> Self {
        let mut next = self.clone();
        next.saved.intent = Some(self.saved.epoch);
        next
    }

    pub fn has_intent(&self) -> bool {
        self.saved.intent == Some(self.saved.epoch)
    }

    /// Every effect needs a run, and a token that is not below the highest seen.
    pub fn effect(&self, token: Token) -> Result<Self, Refused> {
        if self.saved.run.is_none() {
            return Err((Refusal::OtherRun, "this gateway belongs to no run: enroll it first".into()));
        }
        self.with_token(token)
    }

    fn with_token(&self, token: Token) -> Result<Self, Refused> {
        if token < self.saved.highest_token {
            let text = format!("token {} is below {}", token.0, self.saved.highest_token.0);
            return Err((Refusal::StaleToken, text));
        }
        let mut next = self.clone();
        next.saved.highest_token = token;
        Ok(next)
    }

    fn must_be_at(&self, epoch: Epoch) -> Result<(), Refused> {
        let own = self.saved.epoch;
        if epoch == own {
            return Ok(());
        }
        Err((Refusal::StaleEpoch, format!("epoch {epoch} was meant, this gateway is at {own}")))
    }

    fn must_be_armed(&self, epoch: Epoch) -> Result<(), Refused> {
        self.must_be_at(epoch)?;
        match self.saved.armed {
            Some(_) => Ok(()),
            None => Err((Refusal::NotArmed, format!("epoch {epoch} is a standing grant: arm first"))),
        }
    }
}

/// A lease that begins now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub now: u64,
    pub millis: u64,
}

impl Lease {
    fn end(self) -> Result<u64, Refused> {
        if self.millis == 0 || self.millis > MAX_LEASE_MS {
            return Err((
                Refusal::BadRequest,
                format!("a lease is 1 to {MAX_LEASE_MS} ms, not {}", self.millis),
            ));
        }
        Ok(self.now + self.millis * 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Lease = Lease { now: 1_000, millis: 2 };
    const T: Token = Token(5);

    fn enrolled() -> Grant {
        Grant::wake(Saved::first()).enroll("run", T).unwrap()
    }
    fn armed() -> Grant {
        enrolled().arm(Epoch(1), LEASE, &["/ask".into()], "s", T).unwrap()
    }
    fn why<V: fmt::Debug>(result: Result<V, Refused>) -> Refusal {
        result.unwrap_err().0
    }

    #[test]
    fn an_expired_lease_stops_admission_without_a_message() {
        let grant = armed();
        assert!(grant.admits(2_999) && !grant.admits(3_000));
        assert!(!grant.must_ask(2_999) && grant.must_ask(3_000));
        let renewed = grant.renew(Epoch(1), Lease { now: 5_000, millis: 2 }, T).unwrap();
        assert!(renewed.admits(6_999) && !renewed.admits(7_000));
    }

    #[test]
    fn only_a_decision_ends_a_hold() {
        let held = armed().hold(Epoch(1), T).unwrap();
        for grant in [
            held.renew(Epoch(1), Lease { now: 0, millis: 60_000 }, T).unwrap(),
            held.arm(Epoch(1), Lease { now: 0, millis: 60_000 }, &[], "", T).unwrap(),
            Grant::wake(held.saved.clone()),
            Grant::wake(held.saved.clone()).arm(Epoch(1), LEASE, &[], "", T).unwrap(),
        ] {
            assert!(!grant.admits(0), "{grant:?}");
        }
        assert!(held.settle(Epoch(2), Side::Target, T).unwrap().admits(0));
    }

    #[test]
    fn tokens_only_rise_and_a_new_run_begins_anew() {
        let grant = enrolled();
        assert_eq!(why(grant.settle(Epoch(2), Side::Target, Token(4))), Refusal::StaleToken);
        let higher = grant.settle(Epoch(2), Side::Target, Token(9)).unwrap();
        assert_eq!(why(higher.settle(Epoch(3), Side::Source, Token(8))), Refusal::StaleToken);
        assert_eq!(why(grant.enroll("other", T)), Refusal::OtherRun);
        let left = higher.leave("run", Token(9)).unwrap();
        assert_eq!(
            (left.saved.epoch, left.saved.owner),
            (Epoch(2), Side::Target),
            "the standing grant stays"
        );
        assert_eq!(why(left.enroll("run", Token(1))), Refusal::StaleToken);
        assert_eq!(left.enroll("other", Token(1)).unwrap().saved.highest_token, Token(1));
    }

    #[test]
    fn one_epoch_has_one_owner() {
        let settled = armed().settle(Epoch(2), Side::Target, T).unwrap();
        assert_eq!(settled.settle(Epoch(2), Side::Target, T).unwrap(), settled);
        assert_eq!(why(settled.settle(Epoch(2), Side::Source, T)), Refusal::StaleEpoch);
        assert_eq!(why(settled.settle(Epoch(1), Side::Source, T)), Refusal::StaleEpoch);
        assert_eq!(
            why(armed().settle(Epoch(1), Side::Source, T)),
            Refusal::StaleEpoch,
            "armed needs the next one"
        );
        assert_eq!(why(settled.arm(Epoch(1), LEASE, &[], "", T)), Refusal::StaleEpoch);
        assert_eq!(why(settled.hold(Epoch(2), T)), Refusal::NotArmed);
    }

    #[test]
    fn a_grant_without_an_intent_can_be_taken_back_for_good() {
        let settled = armed().settle(Epoch(2), Side::Target, T).unwrap();
        assert_eq!(why(settled.intend().revoke(Epoch(2), T)), Refusal::IntentRecorded);
        for revoked in [settled.revoke(Epoch(2), T).unwrap(), armed().revoke(Epoch(2), T).unwrap()] {
            assert!(!revoked.admits(0));
            assert_eq!(why(revoked.settle(Epoch(2), Side::Target, T)), Refusal::StaleEpoch, "a late settle");
            assert!(!Grant::wake(revoked.saved.clone()).admits(0));
            let back = revoked.settle(Epoch(3), Side::Source, T).unwrap();
            assert!(back.admits(0) && back.saved.owner == Side::Source);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arm(u64, u64),
        Hold(u64, u64),
        Renew(u64, u64),
        Settle(u64, bool, u64),
        Revoke(u64, u64),
        Intend,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (epoch, token) = (1u64..6, 1u64..4);
        prop_oneof![
            (epoch.clone(), token.clone()).prop_map(|(e, t)| Step::Arm(e, t)),
            (epoch.clone(), token.clone()).prop_map(|(e, t)| Step::Hold(e, t)),
            (epoch.clone(), token.clone()).prop_map(|(e, t)| Step::Renew(e, t)),
            (epoch.clone(), any::<bool>(), token.clone()).prop_map(|(e, s, t)| Step::Settle(e, s, t)),
            (epoch, token).prop_map(|(e, t)| Step::Revoke(e, t)),
            Just(Step::Intend),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// Whatever arrives in whatever order: epoch and token never fall, an epoch's owner never changes, the saved state is
        /// always one that loads, and a hold ends only by a decision for a later epoch.
        #[test]
        fn no_history_breaks_the_rules(steps in proptest::collection::vec(step(), 0..60)) {
            let mut grant = enrolled();
            for step in steps {
                let next = match step {
                    Step::Arm(e, t) => grant.arm(Epoch(e), LEASE, &[], "", Token(t + 4)),
                    Step::Hold(e, t) => grant.hold(Epoch(e), Token(t + 4)),
                    Step::Renew(e, t) => grant.renew(Epoch(e), LEASE, Token(t + 4)),
                    Step::Settle(e, s, t) => {
                        grant.settle(Epoch(e), if s { Side::Source } else { Side::Target }, Token(t + 4))
                    }
                    Step::Revoke(e, t) => grant.revoke(Epoch(e), Token(t + 4)),
                    Step::Intend if grant.admits(LEASE.now) => Ok(grant.intend()),
                    Step::Intend => continue,
                    Step::Restart => Ok(Grant::wake(grant.saved.clone())),
                };
                let Ok(next) = next else { continue };
                prop_assert_eq!(next.saved.check(), Ok(()));
                prop_assert!(next.saved.epoch >= grant.saved.epoch);
                prop_assert!(next.saved.highest_token >= grant.saved.highest_token);
                if next.saved.epoch == grant.saved.epoch {
                    prop_assert_eq!(next.saved.owner, grant.saved.owner);
                    let was_held = grant.saved.armed.is_some_and(|armed| armed.held);
                    prop_assert!(!was_held || !next.admits(0));
                }
                grant = next;
            }
        }
    }
}
