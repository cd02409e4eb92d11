//! Reads on the other side, step by step: which share is next, and what the gateways saw of it. The judgement is pure.

use crate::core::Core;
use crate::error::EngineError;
use crate::figures::{self, ServiceFigures, like, slower, weigh_failures, worse};
use crate::ports::GatewayStatus;
use rehome_journal::{Event, GateRecord, ServiceTraffic, Verdict};
use rehome_part::Side;
use std::time::Duration;
use tokio::time::Instant;

const FAILURES: &str = "reads";
const LATENCY: &str = "read-latency";

/// One share being watched.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub percent: u8,
    pub began: Instant,
    before: Vec<ServiceFigures>,
}

impl Watch {
    /// The same share for another while, counted from its beginning.
    pub fn again(self) -> Self {
        Self { began: Instant::now(), ..self }
    }
}

/// Sets a share and writes it down: the intent first, since a share that is not set is harmless.
pub(crate) async fn shift(core: &mut Core, percent: u8, service: Option<&str>) -> Result<Watch, EngineError> {
    core.hold_lease().await?;
    core.record_one(Event::ReadsShifted { percent, service: service.map(ToOwned::to_owned) }).await?;
    let outcome = core.world.gateways.weight(service, percent, core.token()).await;
    if let Err(error) = outcome {
        core.remark(true, "reads", format!("the share of reads could not be set to {percent} %: {error}"))
            .await?;
    }
    let before = core.world.gateways.status().await.map(|all| figures::of_all(&all)).unwrap_or_default();
    Ok(Watch { percent, began: Instant::now(), before })
}

/// What became of a share after its time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judgement {
    pub gates: Vec<GateRecord>,
    /// Did anybody read at all? If not, there is nobody to hold for.
    pub anybody_reads: bool,
    /// Somebody read, and nobody on the other side.
    pub nobody_there: bool,
}

impl Judgement {
    /// The worst of what was not accepted by name.
    pub fn verdict(&self) -> Verdict {
        let open = self.gates.iter().filter(|gate| !gate.accepted).map(|gate| gate.verdict);
        open.fold(Verdict::Pass, worse)
    }

    /// What speaks against the other side.
    pub fn why(&self) -> String {
        let failed = self.gates.iter().filter(|gate| gate.verdict == Verdict::Fail && !gate.accepted);
        failed.map(|gate| format!("{} (limit {})", gate.value, gate.limit)).collect::<Vec<_>>().join("; ")
    }
}

/// Looks at the gateways and writes the verdicts down.
pub(crate) async fn judge(core: &mut Core, watch: &Watch) -> Result<Judgement, EngineError> {
    let mut judgement = match core.world.gateways.status().await {
        Ok(all) => {
            let window = figures::since(&figures::of_all(&all), &watch.before);
            weigh(&window, core.state.owner, watch.percent, core.settings().max_added_latency)
        }
        Err(error) => Judgement {
            gates: vec![gate(FAILURES, Verdict::NoData, error.to_string(), "every gateway answers".into())],
            anybody_reads: true,
            nobody_there: false,
        },
    };
    for gate in &mut judgement.gates {
        gate.accepted = core.is_accepted(&gate.name);
    }
    core.record(judgement.gates.iter().map(|gate| Event::GateChecked { gate: gate.clone() }).collect())
        .await?;
    Ok(judgement)
}

fn gate(name: &str, verdict: Verdict, value: String, limit: String) -> GateRecord {
    GateRecord { name: name.into(), verdict, value, limit, accepted: false }
}

/// Pure: failures and times of reads on the other side against those of the owner in the same while. The worst service decides.
fn weigh(window: &[ServiceFigures], owner: Side, percent: u8, max_added: Duration) -> Judgement {
    let (mut failures, mut latency) = (Verdict::Pass, Verdict::Pass);
    let (mut counts, mut times) = (Vec::new(), Vec::new());
    let (mut limit, mut anybody_reads, mut nobody_there) = (0.0, false, true);
    let max_added_ms = max_added.as_secs_f64() * 1e3;
    for service in window {
        let (own, other) = (service.side(owner), service.side(owner.other()));
        if own.failed_reads.of + other.failed_reads.of == 0 {
            continue;
        }
        anybody_reads = true;
        nobody_there &= other.failed_reads.of == 0;
        let allowed = like(own.failed_reads);
        limit = f64::max(limit, allowed);
        failures = worse(failures, weigh_failures(other.failed_reads, allowed));
        let (hits, of) = (other.failed_reads.hits, other.failed_reads.of);
        counts.push(format!("{}: {hits} of {of} failed at {percent} %", service.name));
        for share in [0.5, 0.99] {
            let (mine, theirs) = (own.read_times.quantile(share), other.read_times.quantile(share));
            let (Some(mine), Some(theirs)) = (mine, theirs) else { continue };
            let (surely, probably) = slower(&theirs, &mine);
            latency = worse(latency, figures::weigh(surely, probably, max_added_ms));
            times.push(format!(
                "{}: p{:.0} {:.1} ms ({:.1} to {:.1}), on the owner {:.1}",
                service.name,
                share * 100.0,
                theirs.value,
                theirs.low,
                theirs.high,
                mine.value
            ));
        }
    }
    if !anybody_reads {
        failures = Verdict::NoData;
    }
    let text = |texts: Vec<String>| if texts.is_empty() { "nobody read".into() } else { texts.join("; ") };
    Judgement {
        gates: vec![
            gate(FAILURES, failures, text(counts), format!("{:.1} %", limit * 100.0)),
            gate(LATENCY, latency, text(times), format!("at most {max_added_ms:.0} ms more")),
        ],
        anybody_reads,
        nobody_there,
    }
}

/// What the gateways saw, added up by service.
pub(crate) fn traffic(gateways: &[GatewayStatus]) -> Vec<ServiceTraffic> {
    let mut services: Vec<ServiceTraffic> = Vec::new();
    for service in gateways.iter().flat_map(|gateway| &gateway.services) {
        let at = services.iter().position(|seen| seen.name == service.name).unwrap_or_else(|| {
            services.push(ServiceTraffic { name: service.name.clone(), ..ServiceTraffic::default() });
            services.len() - 1
        });
        let sum = &mut services[at];
        sum.weight_wanted = sum.weight_wanted.max(service.weight_wanted);
        sum.weight_actual = sum.weight_actual.max(service.weight_actual);
        sum.lag_ms = sum.lag_ms.max(service.lag_ms);
        sum.source_requests += service.source.requests;
        sum.source_failed += service.source.failed;
        sum.target_requests += service.target.requests;
        sum.target_failed += service.target.failed;
        sum.refused += service.refused;
        sum.writes += service.writes_total;
        sum.writes_unknown += service.writes_unknown;
        sum.write_p999_ms = match (sum.write_p999_ms, service.write_p999_ms) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let more = |sum: &mut Option<f64>, one: Option<f64>| {
            *sum = sum.iter().chain(&one).copied().reduce(f64::max);
        };
        more(&mut sum.source_p50_ms, service.source.p50_ms);
        more(&mut sum.target_p50_ms, service.target.p50_ms);
        more(&mut sum.source_connect_ms, service.source.connect_ms);
        more(&mut sum.target_connect_ms, service.target.connect_ms);
        more(&mut sum.added_ms, service.added_ms);
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{ServiceStatus, SideStatus};
    use rehome_part::Epoch;
    use rehome_part::measure::{Histogram, Share};

    fn side((of, hits): (u64, u64), millis: u64) -> SideStatus {
        let mut read_times = Histogram::default();
        (0..of).for_each(|_| read_times.record(Duration::from_millis(millis)));
        SideStatus { reads: Share { hits, of }, read_times, ..SideStatus::default() }
    }

    fn judged(source: SideStatus, target: SideStatus) -> Judgement {
        let service = ServiceStatus { name: "api".into(), source, target, ..ServiceStatus::default() };
        let gateway = GatewayStatus {
            name: "g".into(),
            epoch: Epoch(1),
            owner: Side::Source,
            holding: false,
            armed: false,
            intent: None,
            sessions: 0,
            slowest_ms: 0,
            slow: vec![],
            services: vec![service],
        };
        weigh(&figures::of_all(&[gateway]), Side::Source, 5, Duration::from_millis(100))
    }

    fn verdicts(owner: (u64, u64), other: (u64, u64), millis: u64) -> [Verdict; 2] {
        let gates = judged(side(owner, 10), side(other, millis)).gates;
        [gates[0].verdict, gates[1].verdict]
    }

    #[test]
    fn failures_count_against_what_the_owner_shows() {
        let of = |owner, other| verdicts(owner, other, 10)[0];
        assert_eq!(of((1_000, 0), (50, 0)), Verdict::Pass);
        assert_eq!(of((1_000, 0), (50, 1)), Verdict::NoData, "one of fifty may be chance");
        assert_eq!(of((1_000, 0), (50, 6)), Verdict::Fail);
        assert_eq!(of((1_000, 100), (50, 5)), Verdict::Pass);
        assert_eq!(of((1_000, 0), (0, 0)), Verdict::NoData);
        assert!(!judged(side((0, 0), 1), side((0, 0), 1)).anybody_reads);
    }

    #[test]
    fn times_count_against_the_owners_and_chance_is_told_from_slowness() {
        let of = |count, millis| verdicts((1_000, 0), (count, 0), millis)[1];
        assert_eq!(of(50, 60), Verdict::Pass);
        assert_eq!(of(50, 400), Verdict::Fail);
        // Most are quick, a few are not: whether these are one of a hundred is not known from thirty.
        let mut few = side((29, 0), 10);
        few.read_times.record(Duration::from_millis(400));
        assert_eq!(judged(side((1_000, 0), 10), few).verdict(), Verdict::NoData);
    }
}
