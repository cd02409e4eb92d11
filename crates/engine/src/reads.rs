//! Reads on the other side, step by step: which share is next, and what the gateways saw of it. The judgement is pure.

use crate::core::Core;
use crate::error::EngineError;
use crate::ports::GatewayStatus;
use rehome_journal::{Event, GateRecord, ServiceTraffic, Verdict};
use rehome_part::Side;
use tokio::time::Instant;

/// One share being watched.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub percent: u8,
    pub began: Instant,
    before: Counts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    owner: (u64, u64),
    other: (u64, u64),
}

impl Watch {
    /// The same share for another while, counted from its beginning.
    pub fn again(self) -> Self {
        Self { began: Instant::now(), ..self }
    }
}

fn count(gateways: &[GatewayStatus], owner: Side) -> Counts {
    let mut counts = Counts::default();
    for service in gateways.iter().flat_map(|gateway| &gateway.services) {
        let (own, other) = match owner {
            Side::Source => (&service.source, &service.target),
            Side::Target => (&service.target, &service.source),
        };
        counts.owner.0 += own.requests;
        counts.owner.1 += own.failed;
        counts.other.0 += other.requests;
        counts.other.1 += other.failed;
    }
    counts
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
    let owner = core.state.owner;
    let before = core.world.gateways.status().await.map(|all| count(&all, owner)).unwrap_or_default();
    Ok(Watch { percent, began: Instant::now(), before })
}

/// What became of a share after its time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judgement {
    pub gate: GateRecord,
    /// Did anybody read at all? If not, there is nobody to hold for.
    pub anybody_reads: bool,
}

/// Looks at the gateways and writes the verdict down.
pub(crate) async fn judge(core: &mut Core, watch: &Watch) -> Result<Judgement, EngineError> {
    let judgement = match core.world.gateways.status().await {
        Ok(all) => weigh(watch.before, count(&all, core.state.owner), watch.percent),
        Err(error) => Judgement {
            gate: GateRecord {
                name: "reads".into(),
                verdict: Verdict::NoData,
                value: error.to_string(),
                limit: "every gateway answers".into(),
                accepted: false,
            },
            anybody_reads: true,
        },
    };
    core.record_one(Event::GateChecked { gate: judgement.gate.clone() }).await?;
    Ok(judgement)
}

/// Pure: failures on the other side against those of the owner in the same time.
fn weigh(before: Counts, after: Counts, percent: u8) -> Judgement {
    let grown = |before: (u64, u64), after: (u64, u64)| {
        (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
    };
    let (owner, other) = (grown(before.owner, after.owner), grown(before.other, after.other));
    let ratio =
        |(requests, failed): (u64, u64)| if requests == 0 { 0.0 } else { failed as f64 / requests as f64 };
    let limit = (2.0 * ratio(owner)).max(0.01);
    let verdict = match other {
        (0, 0) => Verdict::NoData,
        counts if ratio(counts) > limit || counts.1 > counts.0 => Verdict::Fail,
        _ => Verdict::Pass,
    };
    Judgement {
        gate: GateRecord {
            name: "reads".into(),
            verdict,
            value: format!("{} of {} failed at {percent} %", other.1, other.0),
            limit: format!("{:.1} %", limit * 100.0),
            accepted: false,
        },
        anybody_reads: owner.0 + other.0 > 0,
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
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(owner: (u64, u64), other: (u64, u64)) -> Verdict {
        weigh(Counts::default(), Counts { owner, other }, 5).gate.verdict
    }

    #[test]
    fn failures_count_against_what_the_owner_shows() {
        assert_eq!(verdict((1_000, 0), (50, 0)), Verdict::Pass);
        assert_eq!(verdict((1_000, 0), (50, 1)), Verdict::Fail);
        assert_eq!(verdict((1_000, 100), (50, 5)), Verdict::Pass);
        assert_eq!(verdict((1_000, 0), (0, 0)), Verdict::NoData);
        assert!(!weigh(Counts::default(), Counts::default(), 5).anybody_reads);
    }
}
