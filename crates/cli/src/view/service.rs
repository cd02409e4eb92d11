//! What the gateways measured, as sentences: the two sides' times beside each other, and what comparing reads has found.

use crate::printer::count;
use rehome_journal::{RunView, ServiceView, ShadowReport};

/// `answers in 3.1 ms on the source, 34.0 on the target (+30.9 per request, connecting 31.2); the gateway adds 0.05 ms`.
pub fn latency(service: &ServiceView) -> Option<String> {
    let ms = |value: f64| if value < 1.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    let times = match (service.source_p50_ms, service.target_p50_ms) {
        (Some(source), Some(target)) => {
            let sign = if target >= source { "+" } else { "-" };
            let connect = service.target_connect_ms.map(|connect| format!(", connecting {}", ms(connect)));
            format!(
                "answers in {} ms on the source, {} on the target ({sign}{} per request{})",
                ms(source),
                ms(target),
                ms((target - source).abs()),
                connect.unwrap_or_default()
            )
        }
        (Some(source), None) => format!("answers in {} ms on the source", ms(source)),
        (None, Some(target)) => format!("answers in {} ms on the target", ms(target)),
        (None, None) => return None,
    };
    let added = service.added_ms.map(|added| format!("; the gateway adds {} ms", ms(added)));
    Some(format!("{times}{}", added.unwrap_or_default()))
}

/// How the service did before the switch, beside now.
pub fn before(view: &RunView, name: &str) -> Option<String> {
    let baseline = view.baseline.iter().find(|baseline| baseline.name == name)?;
    let (p50, p99) = (baseline.read_times.quantile(0.5)?, baseline.read_times.quantile(0.99)?);
    let failed = baseline.failed.value().unwrap_or(0.0) * 100.0;
    Some(format!(
        "before the switch reads took p50 {:.1} ms, p99 {:.1} ms, and {failed:.2} % of {} requests failed",
        p50.value,
        p99.value,
        count(baseline.failed.of)
    ))
}

/// `api: 3 of 812 reads differ (0.1 to 1.1 %), 12 missed`, then a line for each endpoint that differs.
pub fn shadow(report: &ShadowReport) -> Vec<String> {
    let shadow = &report.shadow;
    let share = rehome_part::measure::Share { hits: shadow.different, of: shadow.compared };
    let (low, high) = share.interval();
    let sure = if shadow.compared == 0 {
        String::new()
    } else {
        format!(" ({:.1} to {:.1} %)", low * 100.0, high * 100.0)
    };
    let missed: u64 = shadow.missed.values().sum();
    let missed = if missed == 0 { String::new() } else { format!(", {} missed", count(missed)) };
    let mut lines = vec![format!(
        "{}: {} of {} reads differ{sure}{missed}, of {} that were seen",
        report.name,
        count(shadow.different),
        count(shadow.compared),
        count(shadow.seen)
    )];
    for endpoint in &shadow.endpoints {
        lines.push(format!(
            "  {}  {} of {}",
            endpoint.endpoint,
            count(endpoint.different),
            count(endpoint.compared)
        ));
        lines.extend(endpoint.places.iter().map(|place| {
            format!(
                "    {}: {}, {} times, first in request {}",
                place.place,
                place.kind,
                count(place.count),
                place.request
            )
        }));
    }
    lines
}
