//! What is next: a pure function of the state and of what the dispatcher knows about its units. No clock, no effect.

use rehome_journal::{Ending, Goal, Phase, Stage, State};
use rehome_part::Side;

/// How far the shares of reads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// This share is next.
    Next(u8),
    Watching,
    /// The time of the present share is over: judge it.
    Due,
    /// Every share was watched.
    Done,
}

/// How far the comparison of reads is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shadowing {
    /// Not begun by this engine.
    Open,
    Watching,
    /// Its time is over: judge it.
    Due,
}

/// What the dispatcher knows besides the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    pub copy_startable: bool,
    pub units_run: bool,
    pub following: bool,
    pub verifying: bool,
    pub verify_due: bool,
    pub verify_asked: bool,
    pub shadowing: Shadowing,
    pub reads: Reads,
    /// A person asked to switch (or to switch back); true: rehearse only.
    pub switch_asked: Option<bool>,
    /// Enough time passed since the last look at the gates.
    pub attempt_due: bool,
    pub soak_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    End(Phase),
    Recover,
    Cancel,
    Complete,
    BeginComplete,
    StopUnits,
    Prepare,
    StartCopies,
    FinishCopy,
    Follow,
    Verify,
    BecomeReady,
    BeginShadow,
    /// `early`: somebody waits for the switch; what is not met yet is no failure.
    JudgeShadow {
        early: bool,
    },
    ShiftReads(u8),
    JudgeReads,
    PassCanary,
    TrySwitch {
        rehearse: bool,
    },
    Wait,
}

/// The next thing to do; the first that applies.
pub(crate) fn decide(state: &State, now: &Situation) -> Decision {
    if state.stage.is_final() {
        return Decision::End(state.phase());
    }
    if state.stage.in_switch() {
        return Decision::Recover;
    }
    match state.ending {
        Some(Ending::Cancelling) => return Decision::Cancel,
        Some(Ending::Completing) => return Decision::Complete,
        None => {}
    }
    if state.paused {
        return if now.units_run { Decision::StopUnits } else { Decision::Wait };
    }
    match state.stage {
        Stage::Planned if state.goal >= Goal::Following => Decision::Prepare,
        Stage::Prepared if state.copied.len() == state.parts.len() => Decision::FinishCopy,
        Stage::Prepared if now.copy_startable => Decision::StartCopies,
        Stage::Planned | Stage::Prepared => Decision::Wait,
        _ if !now.following => Decision::Follow,
        Stage::Reversing => decide_after_switch(state, now),
        _ => decide_before_switch(state, now),
    }
}

fn decide_before_switch(state: &State, now: &Situation) -> Decision {
    let wanted = now.verify_asked || (state.goal >= Goal::Ready && !state.verified && now.verify_due);
    if wanted && !now.verifying {
        return Decision::Verify;
    }
    if state.verified {
        match state.stage {
            Stage::Streaming => return Decision::BecomeReady,
            Stage::Verified => return decide_shadow(now),
            _ => {}
        }
    }
    if let Some(rehearse) = now.switch_asked {
        return if now.attempt_due { Decision::TrySwitch { rehearse } } else { Decision::Wait };
    }
    if state.goal < Goal::Switched || !state.verified {
        return Decision::Wait;
    }
    match now.reads {
        _ if state.canary_passed && now.attempt_due => Decision::TrySwitch { rehearse: false },
        _ if state.canary_passed => Decision::Wait,
        Reads::Next(percent) => Decision::ShiftReads(percent),
        Reads::Watching => Decision::Wait,
        Reads::Due => Decision::JudgeReads,
        Reads::Done => Decision::PassCanary,
    }
}

fn decide_shadow(now: &Situation) -> Decision {
    match now.shadowing {
        Shadowing::Open => Decision::BeginShadow,
        Shadowing::Due => Decision::JudgeShadow { early: false },
        Shadowing::Watching if now.switch_asked.is_some() && now.attempt_due => {
            Decision::JudgeShadow { early: true }
        }
        Shadowing::Watching => Decision::Wait,
    }
}

fn decide_after_switch(state: &State, now: &Situation) -> Decision {
    if now.verify_asked && !now.verifying {
        return Decision::Verify;
    }
    match now.switch_asked {
        Some(rehearse) if now.attempt_due => Decision::TrySwitch { rehearse },
        Some(_) => Decision::Wait,
        None if state.owner == Side::Target && state.goal == Goal::Completed && now.soak_over => {
            Decision::BeginComplete
        }
        None => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Situation = Situation {
        copy_startable: false,
        units_run: true,
        following: true,
        verifying: false,
        verify_due: true,
        verify_asked: false,
        shadowing: Shadowing::Open,
        reads: Reads::Next(1),
        switch_asked: None,
        attempt_due: true,
        soak_over: false,
    };

    fn at(stage: Stage, goal: Goal, verified: bool) -> State {
        State { stage, goal, verified, ..State::default() }
    }

    #[test]
    fn the_goal_is_how_far_it_goes_by_itself() {
        assert_eq!(decide(&at(Stage::Planned, Goal::Stay, false), &CALM), Decision::Wait);
        assert_eq!(decide(&at(Stage::Planned, Goal::Following, false), &CALM), Decision::Prepare);
        assert_eq!(decide(&at(Stage::Streaming, Goal::Following, false), &CALM), Decision::Wait);
        assert_eq!(decide(&at(Stage::Streaming, Goal::Ready, false), &CALM), Decision::Verify);
        assert_eq!(decide(&at(Stage::Streaming, Goal::Ready, true), &CALM), Decision::BecomeReady);
        assert_eq!(decide(&at(Stage::Verified, Goal::Ready, true), &CALM), Decision::BeginShadow);
        let watching = Situation { shadowing: Shadowing::Watching, ..CALM };
        assert_eq!(decide(&at(Stage::Verified, Goal::Switched, true), &watching), Decision::Wait);
        let asked = Situation { switch_asked: Some(false), ..watching };
        let early = Decision::JudgeShadow { early: true };
        assert_eq!(decide(&at(Stage::Verified, Goal::Ready, true), &asked), early);
        assert_eq!(decide(&at(Stage::Shadow, Goal::Ready, true), &CALM), Decision::Wait);
        assert_eq!(decide(&at(Stage::Shadow, Goal::Switched, true), &CALM), Decision::ShiftReads(1));
        let watched = Situation { reads: Reads::Done, ..CALM };
        assert_eq!(decide(&at(Stage::ReadCanary, Goal::Switched, true), &watched), Decision::PassCanary);
        let passed = State { canary_passed: true, ..at(Stage::ReadCanary, Goal::Switched, true) };
        assert_eq!(decide(&passed, &CALM), Decision::TrySwitch { rehearse: false });
    }

    #[test]
    fn a_switch_under_way_is_always_brought_to_its_end_first() {
        for stage in
            [Stage::Armed, Stage::Sealed, Stage::Committed, Stage::Open, Stage::Aborting, Stage::Returned]
        {
            let state =
                State { ending: Some(Ending::Cancelling), paused: true, ..at(stage, Goal::Switched, true) };
            assert_eq!(decide(&state, &CALM), Decision::Recover);
        }
    }

    #[test]
    fn nothing_is_switched_while_following_has_stopped_or_the_run_is_paused() {
        let state = State { canary_passed: true, ..at(Stage::Shadow, Goal::Switched, true) };
        assert_eq!(decide(&state, &Situation { following: false, ..CALM }), Decision::Follow);
        let paused = State { paused: true, ..state };
        assert_eq!(decide(&paused, &CALM), Decision::StopUnits);
        assert_eq!(decide(&paused, &Situation { units_run: false, ..CALM }), Decision::Wait);
    }
}
