//! The gates before ARMED. First a look at the world, then a pure judgement; what is not known is never a pass. Every gate
//! goes into the journal with its value and its limit.

use crate::core::{Core, blocking, now_of};
use crate::error::EngineError;
use crate::ports::GatewayStatus;
use crate::recent::{self, Recent};
use crate::settings::{SessionRule, Settings};
use crate::soak;
use crate::steps::{Trips, each_part};
use crate::switch::{WINDOW_APPENDS, is_closed, trips};
use rehome_journal::{Baseline, Event, GateRecord, Prediction, State, Verdict};
use rehome_part::{
    Error as PartError, Fence, Flow, FollowState, Follows, Part, Position, Side, Verification, Writers,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between the two looks that give the rate of writes.
const APART: Duration = Duration::from_millis(250);
/// Silence is a sign only after this many seconds.
const WATCHED_AT_LEAST: u64 = 10;
/// A part or gateway that does not answer in this time counts as not answering.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at each side to learn how far away it is.
const LOOKS: u32 = 5;
/// A side that many times nearer than the other is beside us.
const NEAR: f64 = 4.0;

/// What was seen.
#[derive(Debug, Clone)]
struct Seen {
    gateways: Result<Vec<GatewayStatus>, PartError>,
    writes_per_second: Option<f64>,
    follows: BTreeMap<String, FollowState>,
    /// Fences of the side that is to become the owner.
    fences: Result<Vec<(String, Fence)>, PartError>,
    positions: Result<BTreeMap<String, Position>, PartError>,
    distances: Option<Distances>,
    /// One message to every gateway and their answers.
    entry_ms: f64,
    append_ms: f64,
    recent: Recent,
    guard_alive: bool,
    ways_back: Vec<(String, bool)>,
    /// Of each part; `None`: it cannot tell.
    writers: Vec<(String, Option<Writers>)>,
}

/// The gates, and what the switch needs to know if they are met.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub gates: Vec<GateRecord>,
    pub prediction: Prediction,
    /// Everything written before these is known to be equal; the window compares the rest.
    pub positions: BTreeMap<String, Position>,
    /// What the last comparison found.
    pub differences: Option<Verification>,
    /// How the present owner does.
    pub baseline: Vec<Baseline>,
}

impl Look {
    pub fn unmet(&self) -> Vec<GateRecord> {
        self.gates.iter().filter(|gate| !gate.is_met()).cloned().collect()
    }
}

/// Looks at everything, judges, and writes the gates down.
pub(crate) async fn check(core: &mut Core) -> Result<Look, EngineError> {
    wake_guard(core).await?;
    let seen = see(core).await?;
    let look = judge(&seen, core.settings(), &core.state);
    let gates = look.gates.iter().map(|gate| Event::GateChecked { gate: gate.clone() }).collect();
    core.record(gates).await?;
    Ok(look)
}

async fn guard_alive(core: &Core) -> Result<bool, EngineError> {
    let journal = Arc::clone(&core.journal);
    let beat = blocking(move || journal.guard()).await?;
    Ok(beat.is_some_and(|beat| beat.is_alive(&now_of(&core.world), core.settings().lease)))
}

/// Starts a guard when none is alive, and waits a moment for its first beat.
async fn wake_guard(core: &mut Core) -> Result<(), EngineError> {
    if guard_alive(core).await? {
        return Ok(());
    }
    if let Err(error) = core.world.guard.start().await {
        return core.remark(true, "guard", format!("the guard could not be started: {error}")).await;
    }
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && !guard_alive(core).await? {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn patiently<T>(work: impl Future<Output = Result<T, PartError>>) -> Result<T, PartError> {
    let late = || PartError::temporary(rehome_part::ErrorKind::Deadline, "no answer in 5 s");
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}

async fn see(core: &mut Core) -> Result<Seen, EngineError> {
    let before = patiently(core.world.gateways.status()).await;
    let at = Instant::now();
    tokio::time::sleep(APART).await;
    let asked = Instant::now();
    let gateways = patiently(core.world.gateways.status()).await;
    let entry_ms = asked.elapsed().as_secs_f64() * 1e3;
    let rate = match (&before, &gateways) {
        (Ok(before), Ok(after)) => {
            let more = writes(after).saturating_sub(writes(before));
            Some(more as f64 / at.elapsed().as_secs_f64().max(1e-3))
        }
        _ => None,
    };
    let (journal, began) = (Arc::clone(&core.journal), core.actor.token);
    let (now, lease) = (now_of(&core.world), core.settings().lease);
    let append = blocking(move || {
        let clock = std::time::Instant::now();
        journal.renew(began, &now, lease)?;
        Ok(clock.elapsed())
    })
    .await?;
    let (fences, positions, distances) = measure(core).await;
    let writers = writers(core).await;
    // last, so that little changes and no connection grows cold between this and the window
    let recent = match not_comparable(core, fences.as_ref().err().or(positions.as_ref().err())) {
        Some(error) => Recent::Failed(error),
        None => recent::compare(core).await,
    };
    let parts = &core.world.parts;
    Ok(Seen {
        gateways,
        writes_per_second: rate,
        follows: parts
            .iter()
            .map(|part| (part.name().to_owned(), core.units.follow_state(part.name())))
            .collect(),
        fences,
        positions,
        distances,
        entry_ms,
        recent,
        append_ms: append.as_secs_f64() * 1e3,
        guard_alive: guard_alive(core).await?,
        ways_back: parts
            .iter()
            .map(|part| (part.name().to_owned(), part.capabilities().can_reverse))
            .collect(),
        writers,
    })
}

/// Why nothing is compared: a side does not answer, and whoever asked should hear of it soon; or nobody knows how far the other side is,
/// and what is only not there yet would be taken for a difference.
fn not_comparable(core: &Core, silent: Option<&PartError>) -> Option<PartError> {
    let is_unknown = |part: &Arc<dyn Part>| {
        !core.is_accepted("lag") && core.units.follow_state(part.name()).lag_seconds.is_none()
    };
    let unknown = || {
        core.world.parts.iter().any(is_unknown).then(|| {
            PartError::temporary(rehome_part::ErrorKind::Other, "not compared while the lag is unknown")
        })
    };
    silent.cloned().or_else(unknown)
}

/// Who wrote to the owner lately, as far as each part can tell.
async fn writers(core: &Core) -> Vec<(String, Option<Writers>)> {
    let flow = core.state.flow();
    let one = |part: &Arc<dyn Part>| {
        let part = Arc::clone(part);
        async move { (part.name().to_owned(), patiently(part.writers(flow)).await.ok().flatten()) }
    };
    futures::future::join_all(core.world.parts.iter().map(one)).await
}

fn writes(gateways: &[GatewayStatus]) -> u64 {
    gateways.iter().flat_map(|gateway| &gateway.services).map(|service| service.writes_total).sum()
}

/// How far away each side is: the quickest of several cheap answers, since anything above it is not the way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Distances {
    from_ms: f64,
    to_ms: f64,
}

impl Distances {
    fn far_ms(self) -> f64 {
        self.from_ms.max(self.to_ms)
    }

    /// Round trips that count between the sides, and what those to a side beside us cost in all.
    fn weigh(self, trips: Trips) -> (u32, f64) {
        let far = self.far_ms();
        let count = |trips: u32, ms: f64| {
            if ms >= far / NEAR { (trips, 0.0) } else { (0, f64::from(trips) * ms) }
        };
        let (from, to) = (count(trips.from, self.from_ms), count(trips.to, self.to_ms));
        (from.0 + to.0, from.1 + to.1)
    }
}

type Measured = (
    Result<Vec<(String, Fence)>, PartError>,
    Result<BTreeMap<String, Position>, PartError>,
    Option<Distances>,
);

/// Positions of the owner, fences of the other side, and the way to both.
async fn measure(core: &Core) -> Measured {
    let flow = core.state.flow();
    let all = each_part(&core.world.parts, |part| async move {
        let (position, fence) = tokio::join!(patiently(part.head(flow)), patiently(part.probe(flow.to())));
        let (from, to) = match (&position, &fence) {
            (Ok(_), Ok(_)) => tokio::join!(distance(&part, flow.from()), distance(&part, flow.to())),
            _ => (None, None),
        };
        Ok((part.name().to_owned(), position, fence, from, to))
    });
    let (mut fences, mut positions) = (Ok(Vec::new()), Ok(BTreeMap::new()));
    let mut distances = Some(Distances::default());
    for (name, position, fence, from, to) in all.await.unwrap_or_default() {
        match (position, &mut positions) {
            (Ok(position), Ok(all)) => drop(all.insert(name.clone(), position)),
            (Err(error), all @ Ok(_)) => *all = Err(error),
            _ => {}
        }
        match (fence, &mut fences) {
            (Ok(fence), Ok(all)) => all.push((name, fence)),
            (Err(error), all @ Ok(_)) => *all = Err(error),
            _ => {}
        }
        distances = distances
            .zip(from.zip(to))
            .map(|(all, (from, to))| Distances { from_ms: all.from_ms.max(from), to_ms: all.to_ms.max(to) });
    }
    (fences, positions, distances)
}

/// Milliseconds; `None` when the side does not answer.
async fn distance(part: &Arc<dyn Part>, side: Side) -> Option<f64> {
    let flow = Flow::leaving(side);
    // where changes are found by listing, asking for the position goes nowhere
    let has_feed = part.capabilities().follows == Follows::Feed;
    let mut least = Duration::MAX;
    for _ in 0..LOOKS {
        let began = Instant::now();
        patiently(part.probe(side)).await.ok()?;
        least = least.min(began.elapsed());
        if has_feed {
            let began = Instant::now();
            patiently(part.head(flow)).await.ok()?;
            least = least.min(began.elapsed());
        }
    }
    Some(least.as_secs_f64() * 1e3)
}

struct Judge<'a> {
    gates: Vec<GateRecord>,
    state: &'a State,
    settings: &'a Settings,
}

impl Judge<'_> {
    fn gate(&mut self, name: &str, verdict: Verdict, value: impl Into<String>, limit: impl Into<String>) {
        let accepted = self.state.accepted.contains(name)
            || self.settings.accepted_gates.iter().any(|gate| gate == name);
        self.gates.push(GateRecord {
            name: name.into(),
            verdict,
            value: value.into(),
            limit: limit.into(),
            accepted,
        });
    }

    /// A figure against its upper limit; unknown is no data.
    fn at_most(&mut self, name: &str, value: Option<f64>, limit: f64, unit: &str) {
        let (verdict, text) = match value {
            None => (Verdict::NoData, "unknown".to_owned()),
            Some(value) => {
                (if value <= limit { Verdict::Pass } else { Verdict::Fail }, format!("{value:.1} {unit}"))
            }
        };
        self.gate(name, verdict, text, format!("{limit:.1} {unit}"));
    }

    fn yes(&mut self, name: &str, yes: Option<bool>, value: impl Into<String>, limit: &str) {
        let verdict = match yes {
            None => Verdict::NoData,
            Some(true) => Verdict::Pass,
            Some(false) => Verdict::Fail,
        };
        self.gate(name, verdict, value, limit);
    }
}

/// Pure: from what was seen to the gates and the prediction.
fn judge(seen: &Seen, settings: &Settings, state: &State) -> Look {
    let mut judge = Judge { gates: Vec::new(), state, settings };
    judge.yes(
        "verified",
        Some(state.verified),
        if state.verified { "equal" } else { "not compared" },
        "equal",
    );
    // before the comparison, which is not even made where a side does not answer
    judge_parts(&mut judge, seen);
    judge_recent(&mut judge, &seen.recent);
    let prediction = judge_pause(&mut judge, seen);
    judge_gateways(&mut judge, seen, &prediction);
    let guard = if seen.guard_alive { "alive" } else { "silent" };
    judge.yes("guard", Some(seen.guard_alive), guard, "alive");
    let (positions, differences) = match &seen.recent {
        Recent::Equal { since, .. } => (since.clone(), None),
        Recent::Different(found) => (BTreeMap::new(), Some(found.clone())),
        _ => (BTreeMap::new(), None),
    };
    let baseline = seen.gateways.as_ref().map(|all| soak::baseline(all, state.owner)).unwrap_or_default();
    Look { gates: judge.gates, prediction, positions, differences, baseline }
}

fn judge_recent(judge: &mut Judge<'_>, recent: &Recent) {
    let (verdict, value) = match recent {
        Recent::Unknown => (None, "no comparison of this engine stands; comparing again".to_owned()),
        Recent::Failed(error) => (None, error.to_string()),
        Recent::Different(found) => {
            let first = found.differences.first().map_or("", |finding| finding.text.as_str());
            (Some(false), format!("{} differ: {first}", found.differences_total))
        }
        Recent::Equal { compared, .. } => (Some(true), format!("{compared} equal")),
    };
    judge.yes("recent-changes-equal", verdict, value, "equal");
}

fn judge_parts(judge: &mut Judge<'_>, seen: &Seen) {
    let lags: Option<Vec<f64>> =
        seen.follows.values().map(|follow| follow.applied.as_ref().and(follow.lag_seconds)).collect();
    let lag = lags.map(|lags| lags.into_iter().fold(0.0, f64::max));
    judge.at_most("lag", lag, judge.settings.max_lag.as_secs_f64(), "s");
    match &seen.positions {
        Ok(_) => judge.yes("owner-position", Some(true), "known", "known"),
        Err(error) => judge.yes("owner-position", None, error.to_string(), "known"),
    }
    match &seen.fences {
        Err(error) => judge.yes("write-path", None, error.to_string(), "reached and closed"),
        Ok(fences) => {
            let open = fences.iter().find(|(_, fence)| *fence == Fence::Open);
            let text = open
                .map_or_else(|| "reached and closed".to_owned(), |(part, _)| format!("{part} takes writes"));
            judge.yes("write-path", Some(is_closed(fences)), text, "reached and closed");
        }
    }
    let without = seen.ways_back.iter().find(|(_, can)| !can);
    let text = without.map_or_else(|| "possible".to_owned(), |(part, _)| format!("{part} cannot go back"));
    judge.yes("way-back", Some(without.is_none()), text, "possible");
    judge_writers(judge, seen);
}

/// What comes past the gateways is not held: the fence refuses it, and its writer sees an error.
fn judge_writers(judge: &mut Judge<'_>, seen: &Seen) {
    let has_gateways = !seen.gateways.as_ref().is_ok_and(Vec::is_empty);
    if !has_gateways || seen.writers.is_empty() {
        return; // nothing that could be passed by, or nothing that is written to
    }
    let unknown = seen.writers.iter().find(|(_, writers)| writers.is_none());
    let known: Vec<Writers> = seen.writers.iter().filter_map(|(_, writers)| *writers).collect();
    let sum = |of: fn(&Writers) -> u64| known.iter().map(of).sum::<u64>();
    let (writes, past) = (sum(|writers| writers.writes), sum(|writers| writers.past_gateways));
    let watched = known.iter().map(|writers| writers.watched_seconds).min().unwrap_or(0);
    let (verdict, value) = match unknown {
        _ if past > 0 => {
            (Some(false), format!("{past} of {writes} writes in {watched} s came past the gateways"))
        }
        Some((part, _)) => (None, format!("nothing tells who writes to {part}")),
        None if writes == 0 && watched < WATCHED_AT_LEAST => (None, format!("no write in {watched} s")),
        None => (Some(true), format!("all {writes} writes in {watched} s came through the gateways")),
    };
    judge.yes("no-bypass", verdict, value, "none past the gateways");
}

/// In flight, drain, round trips, local work. No figure, no prediction.
fn judge_pause(judge: &mut Judge<'_>, seen: &Seen) -> Prediction {
    let idle = seen.writes_per_second == Some(0.0);
    let in_flight = seen.gateways.as_ref().ok().and_then(|gateways| {
        let slowest = gateways.iter().flat_map(|gateway| &gateway.services).map(|service| {
            // nothing was written lately: nothing is in flight
            service.write_p999_ms.or((idle || service.writes_total == 0).then_some(0.0))
        });
        slowest.collect::<Option<Vec<f64>>>().map(|all| all.into_iter().fold(0.0, f64::max))
    });
    let drains: Option<Vec<f64>> = seen.follows.values().map(|follow| follow.drain_seconds).collect();
    let drain = drains.map(|drains| drains.into_iter().fold(0.0, f64::max) * 1e3);
    let distances = if seen.follows.is_empty() { Some(Distances::default()) } else { seen.distances };
    let rtt = distances.map(Distances::far_ms);
    let trips = trips();
    let (n, near_ms) = distances.map_or((trips.from + trips.to, 0.0), |distances| distances.weigh(trips));
    let seal_ms =
        seen.append_ms * f64::from(WINDOW_APPENDS) + f64::from(trips.entry) * seen.entry_ms + near_ms;
    // the way of one change, which the marker goes too, is among the round trips
    let drain = drain.zip(rtt).map(|(drain, rtt)| (drain - rtt).max(0.0)).or(drain);
    let total = match (in_flight, drain, rtt) {
        (Some(in_flight), Some(drain), Some(rtt)) => Some(in_flight + drain + f64::from(n) * rtt + seal_ms),
        _ => None,
    };
    let limit_ms = judge.settings.max_pause.as_secs_f64() * 1e3;
    judge.at_most("predicted-pause", total, limit_ms, "ms");
    if let Some(gate) = judge.gates.last_mut() {
        let known =
            |value: Option<f64>| value.map_or_else(|| "unknown".into(), |value| format!("{value:.1}"));
        gate.value = format!(
            "{} ms = in flight {} + drain {} + {n} round trips x {} + local {seal_ms:.1}",
            known(total),
            known(in_flight),
            known(drain),
            known(rtt)
        );
    }
    Prediction {
        in_flight_ms: in_flight.unwrap_or(0.0),
        drain_ms: drain.unwrap_or(0.0),
        round_trips: n,
        rtt_ms: rtt.unwrap_or(0.0),
        seal_ms,
        total_ms: total.unwrap_or(0.0),
    }
}

fn judge_gateways(judge: &mut Judge<'_>, seen: &Seen, prediction: &Prediction) {
    let gateways = match &seen.gateways {
        Ok(gateways) => gateways,
        Err(error) => {
            for name in ["gateways", "target-health", "in-flight", "sessions", "hold-capacity"] {
                judge.yes(name, None, error.to_string(), "every gateway answers");
            }
            return;
        }
    };
    let (epoch, owner) = (judge.state.epoch, judge.state.owner);
    let odd =
        gateways.iter().find(|gateway| (gateway.epoch, gateway.owner) != (epoch, owner) || gateway.holding);
    let text = odd.map_or_else(
        || format!("{} at epoch {epoch}", gateways.len()),
        |gateway| format!("{} is at epoch {} with the {}", gateway.name, gateway.epoch, gateway.owner),
    );
    let limit = format!("all at epoch {epoch} with the {owner}");
    judge.yes("gateways", Some(odd.is_none()), text, &limit);

    let to = judge.state.flow().to();
    let mut healthy = Some(true);
    let mut text = "healthy".to_owned();
    for service in gateways.iter().flat_map(|gateway| &gateway.services) {
        let side = if to == rehome_part::Side::Target { &service.target } else { &service.source };
        if side.healthy != Some(true) && healthy != Some(false) {
            healthy = side.healthy;
            let word = if side.healthy.is_none() { "unknown" } else { "not healthy" };
            text = format!("{} is {word} on the {to}", service.name);
        }
    }
    judge.yes("target-health", healthy, text, "healthy");
    judge_slow(judge, gateways);

    let sessions: u64 = gateways.iter().map(|gateway| gateway.sessions).sum();
    match judge.settings.sessions {
        SessionRule::Refuse => judge.at_most("sessions", Some(sessions as f64), 0.0, "open"),
        rule => {
            judge.yes("sessions", Some(true), format!("{sessions} open"), &format!("{rule:?}").to_lowercase())
        }
    }
    let expected = seen.writes_per_second.map(|rate| rate * prediction.total_ms / 1e3);
    judge.at_most(
        "hold-capacity",
        expected,
        crate::keeper::FULL * f64::from(judge.settings.hold_requests),
        "requests",
    );
}

/// What is in flight for longer than a hold would wait for it: seen before, nobody has to wait for nothing.
fn judge_slow(judge: &mut Judge<'_>, gateways: &[GatewayStatus]) {
    let limit = judge.settings.in_flight_deadline.as_millis() as u64;
    let slow = gateways.iter().max_by_key(|gateway| gateway.slowest_ms);
    let slow = slow.filter(|gateway| gateway.slowest_ms > limit);
    let text = slow.map_or_else(
        || "nothing slow".to_owned(),
        |gateway| {
            let named = gateway.slow.first().map_or("a write", |label| label);
            format!("{named} for {:.1} s", gateway.slowest_ms as f64 / 1e3)
        },
    );
    judge.yes("in-flight", Some(slow.is_none()), text, &format!("no write longer than {limit} ms"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{ServiceStatus, SideStatus};
    use rehome_part::Epoch;

    fn service() -> ServiceStatus {
        let side = SideStatus { healthy: Some(true), ..SideStatus::default() };
        ServiceStatus {
            name: "api".into(),
            lag_ms: Some(10),
            source: side.clone(),
            target: side,
            writes_total: 1_000,
            write_p999_ms: Some(40.0),
            ..ServiceStatus::default()
        }
    }

    fn seen() -> Seen {
        let follow = FollowState {
            applied: Some(Position("7".into())),
            lag_seconds: Some(0.2),
            drain_seconds: Some(0.1),
            ..FollowState::default()
        };
        let gateway = GatewayStatus {
            name: "edge".into(),
            epoch: Epoch::FIRST,
            owner: Side::Source,
            holding: false,
            armed: false,
            intent: None,
            sessions: 2,
            slowest_ms: 0,
            slow: vec![],
            services: vec![service()],
        };
        Seen {
            gateways: Ok(vec![gateway]),
            writes_per_second: Some(100.0),
            follows: [("media".to_owned(), follow)].into(),
            fences: Ok(vec![("media".into(), Fence::ProvedClosed)]),
            positions: Ok([("media".to_owned(), Position("7".into()))].into()),
            distances: Some(Distances { from_ms: 1.0, to_ms: 20.0 }),
            entry_ms: 1.0,
            recent: Recent::Equal { since: [("media".to_owned(), Position("6".into()))].into(), compared: 3 },
            append_ms: 1.0,
            guard_alive: true,
            ways_back: vec![("media".into(), true)],
            writers: vec![(
                "media".into(),
                Some(Writers { writes: 90, past_gateways: 0, watched_seconds: 60 }),
            )],
        }
    }

    fn unmet(change: impl FnOnce(&mut Seen, &mut Settings)) -> Vec<(String, Verdict)> {
        let (mut seen, mut settings) = (seen(), Settings::default());
        change(&mut seen, &mut settings);
        let state = State { verified: true, ..State::default() };
        judge(&seen, &settings, &state).unmet().into_iter().map(|gate| (gate.name, gate.verdict)).collect()
    }

    fn service_of(seen: &mut Seen) -> &mut ServiceStatus {
        &mut seen.gateways.as_mut().unwrap()[0].services[0]
    }

    #[test]
    fn a_healthy_world_meets_every_gate_and_the_prediction_adds_up() {
        assert_eq!(unmet(|_, _| {}), []);
        let look = judge(&seen(), &Settings::default(), &State { verified: true, ..State::default() });
        let trips = trips();
        assert_eq!(look.prediction.round_trips, trips.to, "the near side is not counted");
        let near = f64::from(trips.entry + trips.from + WINDOW_APPENDS);
        let expected = 40.0 + (100.0 - 20.0) + f64::from(trips.to) * 20.0 + near;
        assert!((look.prediction.total_ms - expected).abs() < 0.01, "{:?}", look.prediction);
    }

    #[test]
    fn a_side_counts_unless_it_is_beside_us() {
        let trips = Trips { entry: 0, from: 7, to: 5 };
        let weigh = |from_ms, to_ms| Distances { from_ms, to_ms }.weigh(trips);
        assert_eq!(weigh(1.0, 80.0), (5, 7.0));
        assert_eq!(weigh(80.0, 1.0), (7, 5.0));
        assert_eq!(weigh(40.0, 80.0), (12, 0.0));
        assert_eq!(weigh(0.0, 0.0), (12, 0.0));
    }

    #[test]
    fn what_is_not_known_is_never_a_pass() {
        let no = |name: &str| vec![(name.to_owned(), Verdict::NoData)];
        let pause = || ("predicted-pause".to_owned(), Verdict::NoData);
        assert_eq!(unmet(|seen, _| seen.follows.get_mut("media").unwrap().lag_seconds = None), no("lag"));
        assert_eq!(unmet(|seen, _| seen.follows.get_mut("media").unwrap().drain_seconds = None), [pause()]);
        assert_eq!(unmet(|seen, _| service_of(seen).write_p999_ms = None), [pause()]);
        assert_eq!(unmet(|seen, _| service_of(seen).target.healthy = None), no("target-health"));
        assert_eq!(unmet(|seen, _| seen.writes_per_second = None), no("hold-capacity"));
        assert_eq!(unmet(|seen, _| seen.recent = Recent::Unknown), no("recent-changes-equal"));
        assert_eq!(
            unmet(|seen, _| seen.recent = Recent::Failed(PartError::cancelled())),
            no("recent-changes-equal")
        );
        let down = || PartError::temporary(rehome_part::ErrorKind::Network, "down");
        assert_eq!(unmet(|seen, _| seen.fences = Err(down())), no("write-path"));
        assert_eq!(unmet(|seen, _| seen.gateways = Err(down())).len(), 6);
        assert_eq!(unmet(|seen, _| seen.writers[0].1 = None), no("no-bypass"));
        let silence = Writers { watched_seconds: 3, ..Writers::default() };
        assert_eq!(unmet(|seen, _| seen.writers[0].1 = Some(silence)), no("no-bypass"));
        let quiet = Writers { watched_seconds: 30, ..Writers::default() };
        assert_eq!(unmet(|seen, _| seen.writers[0].1 = Some(quiet)), []);
        assert_eq!(
            unmet(|seen, _| {
                seen.writers[0].1 = None;
                seen.gateways = Ok(Vec::new());
            }),
            [],
            "without gateways nothing can be passed by"
        );
    }

    #[test]
    fn what_is_above_its_limit_fails() {
        let fails = |name: &str| vec![(name.to_owned(), Verdict::Fail)];
        assert_eq!(
            unmet(|_, settings| settings.max_pause = Duration::from_millis(10)),
            fails("predicted-pause")
        );
        assert_eq!(unmet(|_, settings| settings.max_lag = Duration::from_millis(100)), fails("lag"));
        assert_eq!(unmet(|_, settings| settings.sessions = SessionRule::Refuse), fails("sessions"));
        assert_eq!(unmet(|_, settings| settings.hold_requests = 10), fails("hold-capacity"));
        let report = |seen: &mut Seen| seen.gateways.as_mut().unwrap()[0].slowest_ms = 2_001;
        assert_eq!(unmet(|seen, _| report(seen)), fails("in-flight"));
        assert_eq!(unmet(|seen, _| seen.guard_alive = false), fails("guard"));
        let lost = Verification { compared: 3, differences_total: 1, ..Verification::default() };
        assert_eq!(unmet(|seen, _| seen.recent = Recent::Different(lost)), fails("recent-changes-equal"));
        assert_eq!(unmet(|seen, _| seen.ways_back[0].1 = false), fails("way-back"));
        let past = Writers { writes: 90, past_gateways: 1, watched_seconds: 60 };
        assert_eq!(unmet(|seen, _| seen.writers[0].1 = Some(past)), fails("no-bypass"));
        assert_eq!(
            unmet(|seen, _| seen.fences = Ok(vec![("media".into(), Fence::Open)])),
            fails("write-path")
        );
        assert_eq!(unmet(|seen, _| service_of(seen).target.healthy = Some(false)), fails("target-health"));
        assert_eq!(unmet(|seen, _| seen.gateways.as_mut().unwrap()[0].epoch = Epoch(2)), fails("gateways"));
    }

    #[test]
    fn a_yes_by_name_meets_a_gate() {
        let accepted = unmet(|seen, settings| {
            seen.ways_back[0].1 = false;
            settings.accepted_gates = vec!["way-back".into()];
        });
        assert_eq!(accepted, []);
    }

    #[test]
    fn an_idle_service_has_nothing_in_flight() {
        let idle = unmet(|seen, _| {
            service_of(seen).write_p999_ms = None;
            seen.writes_per_second = Some(0.0);
        });
        assert_eq!(idle, []);
    }
}
