//! What is done to a name, each in two parts: a [`Plan`] that only looks, and [`Steps::carry_out`], which writes down what is
//! meant, changes it, and waits until every authoritative server says so. Killed anywhere, the same call goes on.

use super::authority::{Authority, Sight};
use super::state::{Lock, State, StateFile, Verb};
use super::{Clock, DnsName, Entry, Found, Kind, Zone};
use crate::EntryError;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// How often all servers are asked again.
const POLL: Duration = Duration::from_millis(500);
/// The time to live of a name that is new.
const NEW_TTL: u32 = 60;
/// A time to live that needs no lowering.
const SHORT_TTL: u32 = 60;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Seconds.
    Lower { ttl: u32 },
    /// Addresses, or one name. `replace_cname`: a CNAME that is there now is meant to go.
    Point { to: Vec<String>, replace_cname: bool },
    /// What was there before the first change, times to live included.
    Back,
    /// The former times to live for what is there now, and nothing to go back to any more.
    Finish,
}

/// What would be done; nothing was changed yet.
#[derive(Debug)]
pub struct Plan {
    pub verb: Verb,
    pub before: Entry,
    pub after: Entry,
    /// What a person has to say yes to.
    pub doubts: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    signed: bool,
    state: State,
    _lock: Lock,
}

#[derive(Debug)]
pub struct Outcome {
    /// False when it was there already.
    pub changed: bool,
    pub entry: Entry,
    pub former: Entry,
    /// When every authoritative server was first seen to answer it.
    pub seen_at: Option<Timestamp>,
    /// From then on no cache that keeps to the rules has anything older.
    pub older_gone: Timestamp,
    pub notes: Vec<String>,
}

pub struct Steps<'a> {
    pub zone: &'a dyn Zone,
    pub authority: &'a Authority,
    pub name: DnsName,
    pub file: StateFile,
    pub clock: Clock,
    /// How long all servers are waited for.
    pub patience: Duration,
    /// Told what is going on, a line at a time.
    pub say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Steps<'_> {
    /// # Errors
    /// When the wish does not fit what is there, or someone else changed it: then the text says what is there.
    pub async fn plan(&self, wish: &Wish) -> Result<Plan, EntryError> {
        if !self.name.is_within(self.zone.origin()) {
            return Err(EntryError::unfit(
                format!("{} is not in the zone {}", self.name, self.zone.origin()),
                "name the zone that it is in with `--zone ZONE`",
            ));
        }
        let lock = self.file.lock()?;
        let found = self.zone.read(&self.name).await?;
        let sights = self.authority.look(&self.name).await;
        let state = self.state_for(wish, &found)?;
        self.refuse_obstacles(wish, &found, &sights)?;
        let mut plan = Plan {
            verb: wish.verb(),
            after: found.entry.clone(),
            before: found.entry.clone(),
            doubts: Vec::new(),
            notes: Vec::new(),
            signed: sights.iter().any(|sight| sight.view.as_ref().is_ok_and(|view| view.signed)),
            state,
            _lock: lock,
        };
        self.heed_servers(&sights, &mut plan)?;
        match wish {
            Wish::Lower { ttl } => plan_lower(*ttl, &mut plan, &self.name)?,
            Wish::Point { to, replace_cname } => self.plan_point(to, *replace_cname, &found, &mut plan)?,
            Wish::Back => plan.after = plan.state.former.clone(),
            Wish::Finish => self.plan_finish(&mut plan),
        }
        if plan.signed {
            plan.notes
                .push("the zone is signed with DNSSEC: its server has to sign the change by itself".into());
        }
        Ok(plan)
    }

    fn state_for(&self, wish: &Wish, found: &Found) -> Result<State, EntryError> {
        let fresh = || {
            let (zone, provider) = (self.zone.origin().clone(), self.zone.provider());
            // Half of our own edit may look like this, and then there is a file.
            match found.uneven {
                false => Ok(State::new(self.name.clone(), zone, provider, found.entry.clone())),
                true => Err(EntryError::unfit(
                    format!("records of one kind at {} have different times to live", self.name),
                    "give them the same one first: they could not be put back as they are",
                )),
            }
        };
        let nothing = || {
            EntryError::unfit(
                format!("{} was not changed by rehome on this machine", self.name),
                "look at it with `rehome entry dns show`; another machine's state is in its own folder (`--state`)",
            )
        };
        let Some(state) = self.file.load()? else {
            return if matches!(wish, Wish::Back | Wish::Finish) { Err(nothing()) } else { fresh() };
        };
        // Put back and done with: what comes now is a new story.
        let over = state.is_settled() && state.last().is_some_and(|last| last.verb == Verb::Back);
        if over && matches!(wish, Wish::Lower { .. } | Wish::Point { .. }) {
            return fresh();
        }
        if !state.is_ours(&found.entry, !self.zone.capabilities().atomic) {
            let left = state.last().map_or(&state.former, |last| &last.entry);
            return Err(EntryError::Changed {
                what: format!("{} is now {}, rehome left {left}; it", self.name, found.entry),
            });
        }
        Ok(state)
    }

    fn refuse_obstacles(&self, wish: &Wish, found: &Found, sights: &[Sight]) -> Result<(), EntryError> {
        let seen =
            sights.iter().filter_map(|sight| sight.view.as_ref().ok()).flat_map(|view| &view.obstacles);
        match found.obstacles.iter().chain(seen).next() {
            // The way back is never barred: what was there before had the same obstacle or none.
            Some(obstacle) if *wish != Wish::Back => Err(EntryError::unfit(
                format!("{} is more than plain records: {obstacle}", self.name),
                "rehome does not flatten it: change it where it was made",
            )),
            _ => Ok(()),
        }
    }

    /// Before anything is changed all servers have to say the same, or be on the way from one of ours to another.
    fn heed_servers(&self, sights: &[Sight], plan: &mut Plan) -> Result<(), EntryError> {
        for Sight { server, address, view } in sights {
            let (whom, error) = match view {
                Ok(view) if view.entry == plan.before || plan.state.is_ours(&view.entry, true) => continue,
                Ok(view) => {
                    let what = format!(
                        "{server} ({address}) answers {} for {}, and {} has {}",
                        view.entry,
                        self.name,
                        self.zone.provider(),
                        plan.before
                    );
                    let hint = "a server that is behind catches up: try again; answers by place or weight are not for rehome";
                    (None, EntryError::unfit(what, hint))
                }
                Err(text) => {
                    let whom = format!("name server {server} ({address})");
                    (Some(text), EntryError::Unreachable { whom, text: text.clone() })
                }
            };
            if plan.verb != Verb::Back {
                return Err(error);
            }
            let text = whom.map_or_else(|| error.to_string(), |text| format!("{server} ({address}): {text}"));
            plan.notes.push(text);
        }
        Ok(())
    }

    fn plan_point(
        &self,
        to: &[String],
        replace_cname: bool,
        found: &Found,
        plan: &mut Plan,
    ) -> Result<(), EntryError> {
        let ttl = if plan.before.is_empty() { NEW_TTL } else { plan.before.longest_ttl() };
        plan.after = Entry::to(to, ttl)?;
        let was = plan.before.get(Kind::Cname);
        match plan.after.get(Kind::Cname) {
            None if was.is_some() && !replace_cname => {
                return Err(EntryError::unfit(
                    format!("{} is a CNAME: {}", self.name, plan.before),
                    "point the name at its end, or say `--replace-cname` when the CNAME is to go",
                ));
            }
            Some(_) if self.name == *self.zone.origin() => {
                return Err(EntryError::unfit(
                    format!("{} is the top of its zone, where no CNAME can be", self.name),
                    "give `--to` the addresses",
                ));
            }
            Some(_) if !found.besides.is_empty() => {
                return Err(EntryError::unfit(
                    format!(
                        "{} has {} beside its addresses, and no CNAME can be beside them",
                        self.name,
                        found.besides.join(", ")
                    ),
                    "give `--to` the addresses",
                ));
            }
            Some(set) if set.values.contains(self.name.as_str()) => {
                return Err(EntryError::unfit("a name cannot point to itself", "give another `--to`"));
            }
            _ => {}
        }
        if plan.after != plan.before {
            plan.doubts.extend(self.too_early(plan));
        }
        for kind in [Kind::A, Kind::Aaaa] {
            if plan.before.get(kind).is_some()
                && plan.after.get(kind).is_none()
                && plan.after.get(Kind::Cname).is_none()
            {
                plan.notes.push(format!("the {kind} records go, and no {kind} address comes"));
            }
        }
        Ok(())
    }

    /// Why users would keep the old answer longer than they need to.
    fn too_early(&self, plan: &Plan) -> Option<String> {
        let (state, now) = (&plan.state, (self.clock)());
        let lowered = state.intended.iter().any(|intent| intent.verb == Verb::LowerTtl);
        match state.older_gone() {
            Some(gone) if now < gone => Some(format!("answers with the former TTL live until {gone}")),
            Some(_) => None,
            None if lowered => Some("the lowered TTL was not seen at every server yet".into()),
            None if plan.before.longest_ttl() <= SHORT_TTL => None,
            None => Some(format!(
                "the TTL was not lowered ahead: caches keep the old answer for {} s",
                plan.before.longest_ttl()
            )),
        }
    }

    fn plan_finish(&self, plan: &mut Plan) {
        let former = plan.state.former.longest_ttl();
        plan.after = if former == 0 { plan.before.clone() } else { plan.before.with_ttl(former) };
        match plan.state.older_gone() {
            Some(gone) if (self.clock)() >= gone => {}
            Some(gone) => plan.doubts.push(format!("caches may have the old answer until {gone}")),
            None => plan.doubts.push("the last change was not seen at every server yet".into()),
        }
        plan.doubts.push(format!("after this `back` no longer knows {}", plan.state.former));
    }

    /// # Errors
    /// `Changed` when someone else was faster; `Unreachable` when a server does not follow in time: run it again.
    pub async fn carry_out(&self, mut plan: Plan) -> Result<Outcome, EntryError> {
        plan.state.intend(plan.verb, &plan.before, &plan.after, (self.clock)());
        self.file.save(&plan.state)?;
        let changed = plan.before != plan.after;
        if changed {
            self.zone.replace(&self.name, &plan.before, &plan.after).await?;
            (self.say)(&format!("{} has taken it: {}", self.zone.provider(), plan.after));
        }
        let sights = self.until_all_say(&plan.after).await?;
        let known =
            plan.state.is_settled() && plan.state.seen.as_ref().is_some_and(|seen| seen.entry == plan.after);
        let seen_at = (self.clock)();
        if !known {
            let views = sights.iter().filter_map(|sight| sight.view.as_ref().ok());
            let negative_ttl = views.map(|view| view.negative_ttl).max().unwrap_or(0);
            plan.state.saw(&plan.after, negative_ttl, seen_at);
            self.file.save(&plan.state)?;
        }
        let signed = sights.iter().all(|sight| sight.view.as_ref().is_ok_and(|view| view.signed));
        if plan.signed && !signed {
            let text = "the zone was signed with DNSSEC and a server answers without a signature: resolvers that check will \
                        refuse it; sign the zone again, or go `back`";
            plan.notes.push(text.into());
        }
        if plan.verb == Verb::Finish {
            self.file.remove()?;
        }
        Ok(Outcome {
            changed,
            entry: plan.after,
            former: plan.state.former.clone(),
            seen_at: plan.state.seen.as_ref().map(|seen| seen.at),
            older_gone: plan.state.older_gone().unwrap_or(seen_at),
            notes: plan.notes,
        })
    }

    /// Asks every authoritative server until all of them answer `entry`.
    async fn until_all_say(&self, entry: &Entry) -> Result<Vec<Sight>, EntryError> {
        let deadline = Instant::now() + self.patience;
        let mut told = String::new();
        loop {
            let sights = self.authority.look(&self.name).await;
            let behind: Vec<String> = sights.iter().filter_map(|sight| behind(sight, entry)).collect();
            if behind.is_empty() && !sights.is_empty() {
                (self.say)(&format!("all {} authoritative servers answer {entry}", sights.len()));
                return Ok(sights);
            }
            let text = behind.join("; ");
            if Instant::now() >= deadline {
                let text = format!(
                    "{text}; not all servers followed within {} s, run it again to go on",
                    self.patience.as_secs()
                );
                return Err(EntryError::Unreachable { whom: self.name.to_string(), text });
            }
            if text != told {
                (self.say)(&format!("waiting: {text}"));
                told = text;
            }
            tokio::time::sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}

fn behind(sight: &Sight, entry: &Entry) -> Option<String> {
    let Sight { server, address, view } = sight;
    match view {
        Ok(view) if view.entry == *entry => None,
        Ok(view) => Some(format!("{server} ({address}) answers {}", view.entry)),
        Err(text) => Some(format!("{server} ({address}): {text}")),
    }
}

fn plan_lower(ttl: u32, plan: &mut Plan, name: &DnsName) -> Result<(), EntryError> {
    if plan.before.is_empty() {
        return Err(EntryError::unfit(
            format!("{name} has no A, AAAA or CNAME record"),
            "there is nothing to lower: check the name",
        ));
    }
    let lowered =
        plan.before.sets().iter().map(|set| super::RecordSet { ttl: set.ttl.min(ttl), ..set.clone() });
    plan.after = Entry::new(lowered);
    Ok(())
}

impl Wish {
    pub fn verb(&self) -> Verb {
        match self {
            Self::Lower { .. } => Verb::LowerTtl,
            Self::Point { .. } => Verb::Point,
            Self::Back => Verb::Back,
            Self::Finish => Verb::Finish,
        }
    }
}
