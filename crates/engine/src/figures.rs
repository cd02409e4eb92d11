//! What all gateways together measured of each service, and how a figure is weighed against its limit. Pure.

use crate::ports::{GatewayStatus, ServiceStatus, ShadowStatus, SideStatus};
use rehome_journal::Verdict;
use rehome_part::Side;
use rehome_part::measure::{Histogram, Quantile, Share};
use rehome_part::traffic::PlaceCount;

/// Up to this share failures are the noise of the world.
const FEW: f64 = 0.01;

/// One side of a service, over all gateways.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    /// Requests of any class that failed.
    pub failed: Share,
    pub failed_reads: Share,
    /// To the head of a read's answer.
    pub read_times: Histogram,
}

impl Figures {
    fn take(&mut self, side: &SideStatus) {
        self.failed += Share { hits: side.failed, of: side.requests };
        self.failed_reads += side.reads;
        self.read_times.add(&side.read_times);
    }

    fn since(&self, before: &Self) -> Self {
        let more = |now: Share, before: Share| match now.of.checked_sub(before.of) {
            Some(of) => Share { hits: now.hits.saturating_sub(before.hits), of },
            None => now, // a gateway began anew
        };
        Self {
            failed: more(self.failed, before.failed),
            failed_reads: more(self.failed_reads, before.failed_reads),
            read_times: self.read_times.since(&before.read_times),
        }
    }
}

/// A service over all gateways.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ServiceFigures {
    pub name: String,
    source: Figures,
    target: Figures,
    pub shadow: ShadowStatus,
}

impl ServiceFigures {
    pub fn side(&self, side: Side) -> &Figures {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    fn take(&mut self, service: &ServiceStatus) {
        self.source.take(&service.source);
        self.target.take(&service.target);
        add(&mut self.shadow, &service.shadow);
    }
}

/// By service, in the order of the first gateway.
pub(crate) fn of_all(gateways: &[GatewayStatus]) -> Vec<ServiceFigures> {
    let mut all: Vec<ServiceFigures> = Vec::new();
    for service in gateways.iter().flat_map(|gateway| &gateway.services) {
        match all.iter_mut().find(|seen| seen.name == service.name) {
            Some(seen) => seen.take(service),
            None => {
                let mut first = ServiceFigures { name: service.name.clone(), ..ServiceFigures::default() };
                first.take(service);
                all.push(first);
            }
        }
    }
    all
}

/// What came since `before`; a service that was not there then counts whole.
pub(crate) fn since(now: &[ServiceFigures], before: &[ServiceFigures]) -> Vec<ServiceFigures> {
    let one = |now: &ServiceFigures| match before.iter().find(|before| before.name == now.name) {
        Some(before) => ServiceFigures {
            source: now.source.since(&before.source),
            target: now.target.since(&before.target),
            ..now.clone()
        },
        None => now.clone(),
    };
    now.iter().map(one).collect()
}

fn add(sum: &mut ShadowStatus, more: &ShadowStatus) {
    sum.on |= more.on;
    (sum.share, sum.least, sum.allowed) = (more.share, more.least, more.allowed);
    sum.seen += more.seen;
    sum.compared += more.compared;
    sum.different += more.different;
    sum.noisy += more.noisy;
    for (why, count) in &more.missed {
        *sum.missed.entry(why.clone()).or_default() += count;
    }
    sum.owner_times.add(&more.owner_times);
    sum.other_times.add(&more.other_times);
    for endpoint in &more.endpoints {
        match sum.endpoints.iter_mut().find(|seen| seen.endpoint == endpoint.endpoint) {
            Some(seen) => {
                seen.compared += endpoint.compared;
                seen.different += endpoint.different;
                endpoint.places.iter().for_each(|place| add_place(&mut seen.places, place));
                seen.places.sort_by_key(|place| std::cmp::Reverse(place.count));
            }
            None => sum.endpoints.push(endpoint.clone()),
        }
    }
    sum.endpoints.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.different));
}

/// The same place seen by two gateways is one place.
fn add_place(sum: &mut Vec<PlaceCount>, more: &PlaceCount) {
    match sum.iter_mut().find(|seen| (&seen.place, &seen.kind) == (&more.place, &more.kind)) {
        Some(seen) => seen.count += more.count,
        None => sum.push(more.clone()),
    }
}

/// Within its limit: pass. Above it by more than chance: fail. Above it and perhaps by chance: not known yet.
pub(crate) fn weigh(low: f64, value: f64, limit: f64) -> Verdict {
    match value <= limit {
        true => Verdict::Pass,
        false if low > limit => Verdict::Fail,
        false => Verdict::NoData,
    }
}

/// The share of failures that is still like that of the `usual` side: twice as many, or few.
pub(crate) fn like(usual: Share) -> f64 {
    (2.0 * usual.value().unwrap_or(0.0)).max(FEW)
}

/// How many failed, against a limit; without a trial nothing is known.
pub(crate) fn weigh_failures(failed: Share, limit: f64) -> Verdict {
    failed.value().map_or(Verdict::NoData, |value| weigh(failed.interval().0, value, limit))
}

/// How much longer one takes than the other, in milliseconds: surely at least, and probably.
pub(crate) fn slower(one: &Quantile, than: &Quantile) -> (f64, f64) {
    (one.low - than.high, one.value - than.value)
}

/// The worse of two verdicts.
pub(crate) fn worse(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Verdict::Fail, _) | (_, Verdict::Fail) => Verdict::Fail,
        (Verdict::NoData, _) | (_, Verdict::NoData) => Verdict::NoData,
        _ => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_part::traffic::EndpointDifferences;

    #[test]
    fn chance_is_no_failure_and_no_pass() {
        let weigh = |hits, of| weigh_failures(Share { hits, of }, 0.01);
        assert_eq!(weigh(0, 0), Verdict::NoData);
        assert_eq!(weigh(0, 3), Verdict::Pass);
        assert_eq!(weigh(1, 50), Verdict::NoData, "one of fifty may be chance");
        assert_eq!(weigh(5, 50), Verdict::Fail);
        assert_eq!(weigh(9, 1_000), Verdict::Pass);
        assert_eq!(weigh(30, 1_000), Verdict::Fail);
        assert!((like(Share { hits: 10, of: 100 }) - 0.2).abs() < 1e-9);
        assert!((like(Share::default()) - FEW).abs() < 1e-9);
    }

    #[test]
    fn gateways_are_added_up_and_the_past_is_taken_off() {
        let side = |requests, failed| SideStatus {
            requests,
            failed,
            reads: Share { hits: failed, of: requests },
            ..SideStatus::default()
        };
        let price =
            PlaceCount { place: "$.price".into(), kind: "missing".into(), count: 2, ..Default::default() };
        let endpoint = EndpointDifferences { places: vec![price], ..Default::default() };
        let status = |name: &str, requests| ServiceStatus {
            name: name.into(),
            source: side(requests, 1),
            shadow: ShadowStatus {
                seen: requests,
                endpoints: vec![endpoint.clone()],
                ..ShadowStatus::default()
            },
            ..ServiceStatus::default()
        };
        let gateway = |services: Vec<ServiceStatus>| GatewayStatus {
            name: "g".into(),
            epoch: rehome_part::Epoch(1),
            owner: Side::Source,
            holding: false,
            armed: false,
            intent: None,
            sessions: 0,
            slowest_ms: 0,
            slow: vec![],
            services,
        };
        let before = of_all(&[gateway(vec![status("a", 10)])]);
        let now = of_all(&[gateway(vec![status("a", 30), status("b", 5)]), gateway(vec![status("a", 7)])]);
        assert_eq!(now[0].side(Side::Source).failed, Share { hits: 2, of: 37 });
        assert_eq!(now[0].shadow.seen, 37);
        let places = &now[0].shadow.endpoints[0].places;
        assert_eq!((places.len(), places[0].count), (1, 4), "one place, seen by both");
        let since = since(&now, &before);
        assert_eq!(since[0].side(Side::Source).failed, Share { hits: 1, of: 27 });
        assert_eq!(since[1].side(Side::Source).failed_reads, Share { hits: 1, of: 5 });
    }
}
