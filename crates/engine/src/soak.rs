//! After the switch: does the new owner do worse than the old one did? Says so; where it was asked for beforehand, goes back once, by
//! the same gates as any switch. The judgement is pure.

use crate::core::Core;
use crate::error::EngineError;
use crate::figures::{self, ServiceFigures, like, slower, weigh, weigh_failures, worse};
use crate::ports::GatewayStatus;
use crate::settings::Settings;
use rehome_journal::{Baseline, Event, GateRecord, Verdict};
use rehome_part::Side;
use tokio::time::Instant;

/// What the soak's gates are called; nobody need accept them.
const FAILURES: &str = "soak-failures";
const LATENCY: &str = "soak-latency";

/// So many broken windows in a row are no passing trouble.
pub(crate) const LASTING: u32 = 2;

/// The window that is being watched.
#[derive(Debug)]
pub(crate) struct Watch {
    pub until: Instant,
    before: Option<Vec<ServiceFigures>>,
    /// Windows in a row in which a gate was broken.
    broken: u32,
}

impl Watch {
    pub fn begin(settings: &Settings) -> Self {
        Self { until: Instant::now() + settings.soak_every, before: None, broken: 0 }
    }
}

/// What a window showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Well,
    /// A gate is broken, for so many windows in a row.
    Worse {
        windows: u32,
        text: String,
    },
}

/// How the old owner did: taken just before it is left.
pub(crate) fn baseline(gateways: &[GatewayStatus], owner: Side) -> Vec<Baseline> {
    let one = |service: &ServiceFigures| {
        let side = service.side(owner);
        Baseline { name: service.name.clone(), failed: side.failed, read_times: side.read_times.clone() }
    };
    figures::of_all(gateways).iter().map(one).collect()
}

/// Looks at the window that ends now, and begins the next. What is broken is written down each time, what is well only when
/// it was not.
pub(crate) async fn look(core: &mut Core, watch: &mut Watch) -> Result<Found, EngineError> {
    watch.until = Instant::now() + core.settings().soak_every;
    let Ok(all) = core.world.gateways.status().await else {
        return Ok(Found::Well); // gateways that do not answer are reported elsewhere; nothing is known of the new owner
    };
    let now = figures::of_all(&all);
    let Some(before) = watch.before.replace(now.clone()) else { return Ok(Found::Well) };
    let window = figures::since(&now, &before);
    let gates = judge(&window, &core.state.baseline, core.state.owner, core.settings());
    let broken: Vec<&GateRecord> = gates.iter().filter(|gate| gate.verdict == Verdict::Fail).collect();
    let text =
        broken.iter().map(|gate| format!("{} ({})", gate.value, gate.limit)).collect::<Vec<_>>().join("; ");
    let was = watch.broken;
    watch.broken = if broken.is_empty() { 0 } else { was + 1 };
    if was > 0 || watch.broken > 0 {
        core.record(gates.into_iter().map(|gate| Event::GateChecked { gate }).collect()).await?;
    }
    Ok(match watch.broken {
        0 => Found::Well,
        windows => Found::Worse { windows, text },
    })
}

/// Pure: the window of the new owner against what the old one did.
fn judge(
    window: &[ServiceFigures],
    baseline: &[Baseline],
    owner: Side,
    settings: &Settings,
) -> Vec<GateRecord> {
    let (mut failures, mut latency) = ((Verdict::Pass, Vec::new(), 0.0), (Verdict::Pass, Vec::new()));
    let limit_ms = settings.max_added_latency.as_secs_f64() * 1e3;
    for usual in baseline {
        let Some(now) = window.iter().find(|service| service.name == usual.name) else { continue };
        let now = now.side(owner);
        let limit = like(usual.failed);
        let verdict = weigh_failures(now.failed, limit);
        if verdict == Verdict::Fail {
            failures
                .1
                .push(format!("{}: {} of {} requests failed", usual.name, now.failed.hits, now.failed.of));
        }
        failures = (worse(failures.0, verdict), failures.1, f64::max(failures.2, limit));
        for share in [0.5, 0.99] {
            let (now, usual_time) = (now.read_times.quantile(share), usual.read_times.quantile(share));
            let (Some(now), Some(before)) = (now, usual_time) else { continue };
            let (surely, probably) = slower(&now, &before);
            let verdict = weigh(surely, probably, limit_ms);
            if verdict == Verdict::Fail {
                let name = &usual.name;
                latency.1.push(format!(
                    "{name}: p{:.0} {:.0} ms, before {:.0}",
                    share * 100.0,
                    now.value,
                    before.value
                ));
            }
            latency.0 = worse(latency.0, verdict);
        }
    }
    let gate = |name: &str, verdict, texts: Vec<String>, limit: String| GateRecord {
        name: name.into(),
        verdict,
        value: if texts.is_empty() { "as before".into() } else { texts.join(", ") },
        limit,
        accepted: false,
    };
    vec![
        gate(FAILURES, failures.0, failures.1, format!("at most {:.1} % fail", failures.2 * 100.0)),
        gate(LATENCY, latency.0, latency.1, format!("at most {limit_ms:.0} ms more")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{ServiceStatus, SideStatus};
    use rehome_part::Epoch;
    use rehome_part::measure::{Histogram, Share};
    use std::time::Duration;

    fn times(millis: u64, count: usize) -> Histogram {
        let mut times = Histogram::default();
        (0..count).for_each(|_| times.record(Duration::from_millis(millis)));
        times
    }

    fn window(failed: u64, of: u64, millis: u64) -> Vec<ServiceFigures> {
        let target =
            SideStatus { failed, requests: of, read_times: times(millis, 200), ..Default::default() };
        let service = ServiceStatus { name: "api".into(), target, ..Default::default() };
        figures::of_all(&[GatewayStatus {
            name: "g".into(),
            epoch: Epoch(2),
            owner: Side::Target,
            holding: false,
            armed: false,
            intent: None,
            sessions: 0,
            slowest_ms: 0,
            slow: vec![],
            services: vec![service],
        }])
    }

    fn verdicts(window: &[ServiceFigures]) -> [Verdict; 2] {
        let failed = Share { hits: 10, of: 1_000 };
        let usual = Baseline { name: "api".into(), failed, read_times: times(20, 500) };
        let gates = judge(window, &[usual], Side::Target, &Settings::default());
        [gates[0].verdict, gates[1].verdict]
    }

    #[test]
    fn worse_is_more_failures_or_more_time_than_chance_gives() {
        assert_eq!(verdicts(&window(2, 200, 25)), [Verdict::Pass, Verdict::Pass]);
        assert_eq!(verdicts(&window(30, 200, 25)), [Verdict::Fail, Verdict::Pass]);
        assert_eq!(verdicts(&window(2, 200, 900)), [Verdict::Pass, Verdict::Fail]);
        assert_eq!(verdicts(&window(1, 20, 25))[0], Verdict::NoData, "one of twenty may be chance");
        assert_eq!(verdicts(&window(0, 0, 25))[0], Verdict::NoData);
    }
}
