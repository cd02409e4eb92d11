//! The gates before ARMED. First a look at the world, then a pure judgement; what is not known is never a pass. Every gate
//! goes into the journal with its value and its limit.

use crate::core::{Core, blocking, now_of};
use crate::error::EngineError;
use crate::ports::GatewayStatus;
use crate::settings::{SessionRule, Settings};
use crate::switch::{WINDOW_APPENDS, is_closed, round_trips};
use rehome_journal::{Event, GateRecord, Prediction, State, Verdict};
use rehome_part::{Error as PartError, Fence, FollowState, Position};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between the two looks that give the rate of writes.
const APART: Duration = Duration::from_millis(250);
/// A part or gateway that does not answer in this time counts as not answering.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Debug, Clone)]
struct Seen {
    gateways: Result<Vec<GatewayStatus>, PartError>,
    writes_per_second: Option<f64>,
    follows: BTreeMap<String, FollowState>,
    /// Fences of the side that is to become the owner.
    fences: Result<Vec<(String, Fence)>, PartError>,
    positions: Result<BTreeMap<String, Position>, PartError>,
    rtt_ms: Option<f64>,
    append_ms: f64,
    guard_alive: bool,
    ways_back: Vec<(String, bool)>,
}

/// The gates, and what the switch needs to know if they are met.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub gates: Vec<GateRecord>,
    pub prediction: Prediction,
    pub positions: BTreeMap<String, Position>,
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

async fn see(core: &Core) -> Result<Seen, EngineError> {
    let before = patiently(core.world.gateways.status()).await;
    let at = Instant::now();
    tokio::time::sleep(APART).await;
    let gateways = patiently(core.world.gateways.status()).await;
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
    let (fences, positions, rtt_ms) = measure(core).await;
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
        rtt_ms,
        append_ms: append.as_secs_f64() * 1e3,
        guard_alive: guard_alive(core).await?,
        ways_back: parts
            .iter()
            .map(|part| (part.name().to_owned(), part.capabilities().can_reverse))
            .collect(),
    })
}

fn writes(gateways: &[GatewayStatus]) -> u64 {
    gateways.iter().flat_map(|gateway| &gateway.services).map(|service| service.writes_total).sum()
}

type Measured =
    (Result<Vec<(String, Fence)>, PartError>, Result<BTreeMap<String, Position>, PartError>, Option<f64>);

/// Positions of the owner and fences of the other side; the slower side's quickest answer of three is the round trip.
async fn measure(core: &Core) -> Measured {
    let flow = core.state.flow();
    let (mut fences, mut positions) = (Vec::new(), BTreeMap::new());
    let mut slowest: Option<Duration> = None;
    for part in &core.world.parts {
        let (mut near, mut far) = (Duration::MAX, Duration::MAX);
        for _ in 0..3 {
            let began = Instant::now();
            match patiently(part.head(flow)).await {
                Ok(position) => positions.insert(part.name().to_owned(), position),
                Err(error) => return (Ok(fences), Err(error), None),
            };
            near = near.min(began.elapsed());
            let began = Instant::now();
            match patiently(part.probe(flow.to())).await {
                Ok(fence) => fences.push((part.name().to_owned(), fence)),
                Err(error) => return (Err(error), Ok(positions), None),
            }
            far = far.min(began.elapsed());
        }
        // an owner that is found by listing answers slowly without being far away
        let listed = part.capabilities().follows == rehome_part::Follows::Listing;
        let round = if listed { far } else { near.max(far) };
        slowest = Some(slowest.map_or(round, |slowest| slowest.max(round)));
    }
    (Ok(fences), Ok(positions), slowest.map(|slowest| slowest.as_secs_f64() * 1e3))
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
    judge_parts(&mut judge, seen);
    let prediction = judge_pause(&mut judge, seen);
    judge_gateways(&mut judge, seen, &prediction);
    let guard = if seen.guard_alive { "alive" } else { "silent" };
    judge.yes("guard", Some(seen.guard_alive), guard, "alive");
    Look { gates: judge.gates, prediction, positions: seen.positions.clone().unwrap_or_default() }
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
    let rtt = if seen.follows.is_empty() { Some(0.0) } else { seen.rtt_ms };
    let seal_ms = seen.append_ms * f64::from(WINDOW_APPENDS);
    let n = round_trips();
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
            for name in ["gateways", "target-health", "sessions", "hold-capacity"] {
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

    let sessions: u64 =
        gateways.iter().flat_map(|gateway| &gateway.services).map(|service| service.sessions).sum();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{ServiceStatus, SideStatus};
    use rehome_part::{Epoch, Side};

    fn service() -> ServiceStatus {
        let side = SideStatus { healthy: Some(true), ..SideStatus::default() };
        ServiceStatus {
            name: "api".into(),
            uses: vec!["media".into()],
            weight_wanted: 0,
            weight_actual: 0,
            lag_ms: Some(10),
            source: side.clone(),
            target: side,
            refused: 0,
            writes_total: 1_000,
            writes_unknown: 0,
            write_p999_ms: Some(40.0),
            sessions: 2,
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
            services: vec![service()],
        };
        Seen {
            gateways: Ok(vec![gateway]),
            writes_per_second: Some(100.0),
            follows: [("media".to_owned(), follow)].into(),
            fences: Ok(vec![("media".into(), Fence::ProvedClosed)]),
            positions: Ok([("media".to_owned(), Position("7".into()))].into()),
            rtt_ms: Some(20.0),
            append_ms: 1.0,
            guard_alive: true,
            ways_back: vec![("media".into(), true)],
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
        let n = f64::from(round_trips());
        let expected = 40.0 + 100.0 + n * 20.0 + f64::from(WINDOW_APPENDS);
        assert!((look.prediction.total_ms - expected).abs() < 0.01, "{:?}", look.prediction);
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
        let down = || PartError::temporary(rehome_part::ErrorKind::Network, "down");
        assert_eq!(unmet(|seen, _| seen.fences = Err(down())), no("write-path"));
        assert_eq!(unmet(|seen, _| seen.gateways = Err(down())).len(), 5);
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
        assert_eq!(unmet(|seen, _| seen.guard_alive = false), fails("guard"));
        assert_eq!(unmet(|seen, _| seen.ways_back[0].1 = false), fails("way-back"));
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
