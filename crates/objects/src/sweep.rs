//! The straggler sweep: writes that reached the old owner after its fence. A version that we wrote ourselves (the way back)
//! is not one. A late write is copied only where the new owner's copy is what the switch left; everything is reported.

use crate::follow::{Feed, Place};
use crate::listing::is_reserved;
use crate::mover::state::{Mark, Seen};
use crate::mover::{Carried, Mover};
use crate::store::{Condition, Entry, Meta};
use crate::verify::{changed_since, look};
use rehome_part::{ErrorKind, Finding, Flow, Position, Result, Severity, Side};
use std::sync::Arc;
use std::time::Duration;

/// Findings told one by one.
const TOLD: usize = 100;
/// The way back may be between its write and its note of it: look so often before calling a version foreign.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

fn is_seen(seen: &Seen, key: &str, meta: &Meta) -> bool {
    let entry = Entry { key: key.into(), size: meta.size, etag: meta.etag.clone(), modified: meta.modified };
    seen.is(&entry) == Some(true)
}

pub(crate) async fn sweep(
    mover: &Arc<Mover>,
    flow: Flow,
    since: &Position,
    feed: Option<Arc<dyn Feed>>,
) -> Result<Vec<Finding>> {
    let mut findings = Findings::default();
    let changed = match (Place::parse(since), feed) {
        (Some(Place::Feed(after)), Some(feed)) => {
            changed_since(mover, feed.as_ref(), after).await.map_err(|e| e.on(flow.from()))?
        }
        _ => None,
    };
    match changed {
        Some(keys) => {
            let mut keys: Vec<String> = keys.into_iter().collect();
            keys.sort_unstable();
            for key in keys {
                one(mover, flow, &key, &mut findings).await?;
            }
        }
        None => everything(mover, flow, &mut findings).await?,
    }
    mover.state.settle()?;
    findings.all.extend(mover.state.notices()?);
    Ok(findings.finish())
}

/// Without a feed: every key whose version on the old owner is not the one we know.
async fn everything(mover: &Arc<Mover>, flow: Flow, findings: &mut Findings) -> Result<()> {
    let mut merge = mover.merge(flow);
    while let Some(pair) = merge.next().await? {
        if is_reserved(&pair.key) {
            continue;
        }
        let mark = mover.state.mark_of(&pair.key)?.filter(|mark| mark.done);
        let is_known = match (&pair.from, &mark) {
            (Some(entry), Some(mark)) => mark.of(flow.from()).is(entry) == Some(true),
            (None, None) => true,
            _ => false,
        };
        if !is_known {
            one(mover, flow, &pair.key, findings).await?;
        }
    }
    Ok(())
}

async fn one(mover: &Arc<Mover>, flow: Flow, key: &str, findings: &mut Findings) -> Result<()> {
    for attempt in 1..=LOOKS {
        let mark = mover.state.mark_of(key)?.filter(|mark| mark.done);
        let now = look(mover, flow, key).await?;
        let known = |side: Side, meta: &Meta| {
            mark.as_ref().is_some_and(|mark: &Mark| is_seen(mark.of(side), key, meta))
        };
        if now.is_equal {
            return Ok(());
        }
        match (&now.from, &now.to) {
            // What is on the old owner is what we know of it: the new owner went on, that is all.
            (Some(from), _) if known(flow.from(), from) => return Ok(()),
            (None, _) if mark.is_none() => return Ok(()),
            _ if attempt < LOOKS => {
                // Writes of the way back pass through here.
                if mover.state.is_followed(flow.back())? {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
            }
            // Late, and the new owner's copy is what the switch left (or nothing, where there was nothing).
            (Some(_), Some(to)) if known(flow.to(), to) && to.etag.is_some() => {
                let untouched = Condition::Matches(to.etag.clone().unwrap_or_default());
                return carry(mover, flow, key, untouched, findings).await;
            }
            (Some(_), None) if mark.is_none() => {
                return carry(mover, flow, key, Condition::Absent, findings).await;
            }
            (from, _) => {
                let what = if from.is_some() { "written" } else { "deleted" };
                findings.add(Finding {
                    id: "late-write-conflict".into(),
                    severity: Severity::Warning,
                    side: Some(flow.from()),
                    text: format!("{key}: {what} on the old owner after its fence; the new owner changed it too and keeps its own"),
                    remedy: Some("compare both and keep the right one by hand".into()),
                });
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Copies a late write on the condition that the new owner's key is still untouched when it lands.
async fn carry(
    mover: &Arc<Mover>,
    flow: Flow,
    key: &str,
    untouched: Condition,
    findings: &mut Findings,
) -> Result<()> {
    let (id, what) = match mover.carry_if(flow, key, untouched).await {
        Ok(Carried::Copied(_)) => {
            ("late-write-copied", "was written on the old owner after its fence, and copied".into())
        }
        Ok(_) => return Ok(()),
        Err(error) if matches!(error.kind, ErrorKind::Changed | ErrorKind::Unsupported) => (
            "late-write-conflict",
            format!("was written on the old owner after its fence, and not copied: {error}"),
        ),
        Err(error) => return Err(error),
    };
    findings.add(Finding {
        id: id.into(),
        severity: Severity::Warning,
        side: Some(flow.from()),
        text: format!("{key} {what}"),
        remedy: Some("find the writer that the fence did not stop".into()),
    });
    Ok(())
}

#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    total: u64,
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        self.total += 1;
        if self.all.len() < TOLD {
            self.all.push(finding);
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        let rest = self.total.saturating_sub(TOLD as u64);
        if rest > 0 {
            self.all.push(Finding {
                id: "late-writes-more".into(),
                severity: Severity::Warning,
                side: None,
                text: format!("{rest} more late writes"),
                remedy: None,
            });
        }
        self.all
    }
}
