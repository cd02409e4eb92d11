//! SHADOW: reads are compared with the other side before any user sees its answers. Begins the comparison, looks at what it found,
//! and passes or holds; the judgement is pure.

use crate::core::Core;
use crate::error::EngineError;
use crate::figures::{self, ServiceFigures, worse};
use rehome_journal::{Event, GateRecord, ShadowReport, Verdict};
use rehome_part::measure::Share;
use rehome_part::traffic::ShadowStatus;

pub(crate) const GATE: &str = "shadow";

/// Begins to compare, from nothing. False: there is nothing to compare, and the state is passed.
pub(crate) async fn begin(core: &mut Core) -> Result<bool, EngineError> {
    let token = core.token();
    let gateways = &core.world.gateways;
    let begun = match gateways.shadow(false, token).await {
        Ok(()) => gateways.shadow(true, token).await,
        failed => failed,
    };
    if let Err(error) = begun {
        core.remark(true, GATE, format!("reads cannot be compared yet: {error}")).await?;
        return Ok(true);
    }
    let wanted = match core.world.gateways.status().await {
        Ok(all) => figures::of_all(&all).iter().any(|service| service.shadow.share > 0),
        Err(_) => true,
    };
    if !wanted {
        pass(core, 0, "no shadow traffic is configured; nothing was compared".into()).await?;
    }
    Ok(wanted)
}

async fn pass(core: &mut Core, compared: u64, note: String) -> Result<(), EngineError> {
    core.record_one(Event::ShadowPassed { compared, note }).await
}

/// Looks at what was found and writes it down. Passed, the comparison ends and the state with it; `early` looks do not fail.
pub(crate) async fn judge(core: &mut Core, early: bool) -> Result<GateRecord, EngineError> {
    let status = core.world.gateways.status().await;
    let all = match &status {
        Ok(all) => figures::of_all(all),
        Err(_) => Vec::new(),
    };
    let mut gate = match &status {
        Ok(_) => gate(&all),
        Err(error) => record(Verdict::NoData, error.to_string(), "every gateway answers".into()),
    };
    gate.accepted = core.is_accepted(GATE);
    if early && !gate.is_met() {
        return Ok(gate);
    }
    let services: Vec<ShadowReport> = all
        .iter()
        .map(|service| ShadowReport { name: service.name.clone(), shadow: service.shadow.clone() })
        .collect();
    core.record(vec![Event::ShadowCompared { services }, Event::GateChecked { gate: gate.clone() }]).await?;
    if gate.is_met() {
        let compared = all.iter().map(|service| service.shadow.compared).sum();
        let note = match gate.verdict {
            Verdict::Pass => format!("reads compared: {}", gate.value),
            _ => format!("reads compared: {} (accepted by name)", gate.value),
        };
        if let Err(error) = core.world.gateways.shadow(false, core.token()).await {
            tracing::warn!(%error, "the comparison of reads goes on until the switch begins");
        }
        pass(core, compared, note).await?;
    } else if gate.verdict == Verdict::Fail {
        // What is mended is to be seen: the next look counts from nothing.
        let _again = begin(core).await?;
    }
    Ok(gate)
}

fn record(verdict: Verdict, value: String, limit: String) -> GateRecord {
    GateRecord { name: GATE.into(), verdict, value, limit, accepted: false }
}

/// Pure: the worst service decides.
fn gate(all: &[ServiceFigures]) -> GateRecord {
    let compared: Vec<&ServiceFigures> = all.iter().filter(|service| service.shadow.share > 0).collect();
    let mut verdict = Verdict::Pass;
    let mut texts = Vec::new();
    for service in &compared {
        verdict = worse(verdict, verdict_of(&service.shadow));
        texts.push(text(&service.name, &service.shadow));
    }
    let allowed = compared.iter().map(|service| service.shadow.allowed).fold(0.0, f64::max);
    record(verdict, texts.join("; "), format!("at most {:.1} % differ", allowed * 100.0))
}

/// At most the allowed share may differ, by a comparison of enough requests. A service that nobody reads has nobody to hold for.
fn verdict_of(shadow: &ShadowStatus) -> Verdict {
    if shadow.seen == 0 {
        return Verdict::Pass;
    }
    let share = Share { hits: shadow.different, of: shadow.compared };
    let (low, high) = share.interval();
    let Some(value) = share.value() else { return Verdict::NoData };
    let enough = shadow.compared >= u64::from(shadow.least);
    match value <= shadow.allowed {
        true if enough || high <= shadow.allowed => Verdict::Pass,
        true => Verdict::NoData,
        false if low > shadow.allowed || enough => Verdict::Fail,
        false => Verdict::NoData,
    }
}

fn text(name: &str, shadow: &ShadowStatus) -> String {
    if shadow.seen == 0 {
        return format!("{name}: nobody read");
    }
    let missed: u64 = shadow.missed.values().sum();
    let mut text = format!("{name}: {} of {} differ", shadow.different, shadow.compared);
    if shadow.compared < u64::from(shadow.least) {
        text += &format!(", {} are wanted", shadow.least);
    }
    if missed > 0 {
        let reasons: Vec<String> =
            shadow.missed.iter().map(|(why, count)| format!("{count} {why}")).collect();
        text += &format!(", {missed} missed ({})", reasons.join(", "));
    }
    if let Some(worst) = shadow.endpoints.first() {
        let place = worst.places.first().map(|place| format!(": {} {}", place.place, place.kind));
        text += &format!(", worst {}{}", worst.endpoint, place.unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(seen: u64, compared: u64, different: u64) -> Verdict {
        let shadow = ShadowStatus {
            share: 5,
            least: 50,
            allowed: 0.01,
            seen,
            compared,
            different,
            ..Default::default()
        };
        verdict_of(&shadow)
    }

    #[test]
    fn a_verdict_needs_enough_and_says_when_it_has_not() {
        assert_eq!(verdict(0, 0, 0), Verdict::Pass, "nobody reads");
        assert_eq!(verdict(900, 0, 0), Verdict::NoData, "somebody reads, and nothing could be compared");
        assert_eq!(verdict(900, 49, 0), Verdict::NoData);
        assert_eq!(verdict(900, 50, 0), Verdict::Pass);
        assert_eq!(verdict(900, 20, 1), Verdict::NoData, "one of twenty may be chance");
        assert_eq!(verdict(900, 20, 10), Verdict::Fail, "half of twenty is not");
        assert_eq!(verdict(900, 60, 2), Verdict::Fail);
        assert_eq!(verdict(900, 600, 2), Verdict::Pass);
    }
}
