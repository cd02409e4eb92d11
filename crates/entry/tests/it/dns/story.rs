//! A name lowered, pointed, put back and finished, with a real primary and a real secondary; killed anywhere, changed by
//! others, servers behind and servers down.

use super::bind::{Bind, NAME, Secondary, ZONE, all_answer};
use super::{entry, name};
use async_trait::async_trait;
use rehome_entry::EntryError;
use rehome_entry::dns::authority::Authority;
use rehome_entry::dns::state::{StateFile, Verb};
use rehome_entry::dns::steps::{Outcome, Plan, Steps, Wish};
use rehome_entry::dns::{Capabilities, Clock, DnsName, Entry, Found, Zone, system_clock};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

fn there() -> Entry {
    entry(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 300)
}

fn new() -> Entry {
    entry(&["192.0.2.9", "2001:db8::9"], 60)
}

fn point() -> Wish {
    Wish::Point { to: vec!["192.0.2.9".into(), "2001:db8::9".into()], replace_cname: false }
}

/// The steps on a folder, with what they said.
struct Desk<'a> {
    zone: &'a dyn Zone,
    authority: &'a Authority,
    folder: &'a Path,
    name: DnsName,
    clock: Clock,
    patience: Duration,
    said: Mutex<Vec<String>>,
}

impl<'a> Desk<'a> {
    fn new(zone: &'a dyn Zone, authority: &'a Authority, folder: &'a Path) -> Self {
        let (clock, patience) = (system_clock(), Duration::from_secs(20));
        Self { zone, authority, folder, name: name(NAME), clock, patience, said: Mutex::default() }
    }

    fn file(&self) -> StateFile {
        StateFile::new(self.folder, &self.name)
    }

    async fn with<R>(&self, work: impl AsyncFnOnce(&Steps<'_>) -> R) -> R {
        let say = |line: &str| self.said.lock().unwrap().push(line.to_owned());
        work(&Steps {
            zone: self.zone,
            authority: self.authority,
            name: self.name.clone(),
            file: self.file(),
            clock: self.clock.clone(),
            patience: self.patience,
            say: &say,
        })
        .await
    }

    async fn plan(&self, wish: &Wish) -> Result<Plan, EntryError> {
        self.with(async |steps| steps.plan(wish).await).await
    }

    async fn run(&self, wish: &Wish) -> Result<Outcome, EntryError> {
        self.with(async |steps| steps.carry_out(steps.plan(wish).await?).await).await
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

/// What every authoritative server answers.
async fn everywhere(authority: &Authority) -> Vec<Entry> {
    authority.look(&name(NAME)).await.into_iter().map(|sight| sight.view.unwrap().entry).collect()
}

#[tokio::test]
async fn a_name_is_lowered_pointed_and_put_back() {
    let Some(bind) = Bind::start(Secondary::Notified) else { return };
    let (zone, authority) = (bind.zone(), bind.authority().await);
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(Mutex::new(jiff::Timestamp::now()));
    let mut desk = Desk::new(&zone, &authority, folder.path());
    let held = time.clone();
    desk.clock = Arc::new(move || *held.lock().unwrap());
    assert_eq!(everywhere(&authority).await, [there(), there()]);

    let lowered = desk.run(&Wish::Lower { ttl: 60 }).await.unwrap();
    assert_eq!((lowered.changed, &lowered.entry, &lowered.former), (true, &there().with_ttl(60), &there()));
    assert_eq!(everywhere(&authority).await, [there().with_ttl(60), there().with_ttl(60)]);
    let lives = lowered.older_gone.as_second() - time.lock().unwrap().as_second();
    assert!((300..=301).contains(&lives), "the old TTL from now on: {lives}");

    // Again: nothing changes, and the clock of the old answer does not begin anew.
    *time.lock().unwrap() += jiff::SignedDuration::from_secs(100);
    let again = desk.run(&Wish::Lower { ttl: 60 }).await.unwrap();
    assert_eq!((again.changed, again.older_gone), (false, lowered.older_gone));

    // Too early is said, with the time.
    let early = desk.plan(&point()).await.unwrap();
    assert!(early.doubts[0].contains(&lowered.older_gone.to_string()), "{:?}", early.doubts);
    drop(early);
    *time.lock().unwrap() += jiff::SignedDuration::from_secs(300);
    let plan = desk.plan(&point()).await.unwrap();
    assert_eq!((&plan.before, &plan.after, plan.doubts.len()), (&there().with_ttl(60), &new(), 0));
    let pointed = desk.with(async |steps| steps.carry_out(plan).await).await.unwrap();
    assert_eq!(everywhere(&authority).await, [new(), new()]);
    let lives = pointed.older_gone.as_second() - time.lock().unwrap().as_second();
    assert!((60..=61).contains(&lives), "only the lowered TTL: {lives}");

    let back = desk.run(&Wish::Back).await.unwrap();
    assert_eq!((back.changed, &back.entry), (true, &there()), "TTL and all");
    assert_eq!(everywhere(&authority).await, [there(), there()]);
    assert!(!desk.run(&Wish::Back).await.unwrap().changed);
    // A new story begins where the other ended.
    assert_eq!(desk.run(&Wish::Lower { ttl: 30 }).await.unwrap().former, there());
}

#[tokio::test]
async fn finishing_gives_the_new_entry_the_former_ttl_and_forgets() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&zone, &authority, folder.path());
    desk.run(&Wish::Lower { ttl: 60 }).await.unwrap();
    desk.run(&point()).await.unwrap();
    let plan = desk.plan(&Wish::Finish).await.unwrap();
    assert!(plan.doubts.iter().any(|doubt| doubt.contains("192.0.2.1")), "{:?}", plan.doubts);
    desk.with(async |steps| steps.carry_out(plan).await).await.unwrap();
    assert_eq!(everywhere(&authority).await, [new().with_ttl(300)]);
    assert!(!desk.file().path().exists());
    let error = desk.run(&Wish::Back).await.unwrap_err();
    assert!(error.to_string().contains("was not changed by rehome"), "{error}");
}

#[tokio::test]
async fn a_secondary_that_is_behind_is_waited_for() {
    let Some(bind) = Bind::start(Secondary::Late) else { return };
    let (zone, authority) = (bind.zone(), bind.authority().await);
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&zone, &authority, folder.path());
    desk.run(&Wish::Lower { ttl: 60 }).await.unwrap();
    assert_eq!(everywhere(&authority).await, [there().with_ttl(60), there().with_ttl(60)]);
    let said = desk.said();
    assert!(said.contains("waiting: ns2.example.test ([::1]"), "{said}");
    assert!(said.contains("all 2 authoritative servers answer"), "{said}");
}

#[tokio::test]
async fn a_server_that_does_not_follow_is_named_and_the_same_call_goes_on() {
    let Some(mut bind) = Bind::start(Secondary::Notified) else { return };
    let (zone, authority) = (bind.zone(), bind.authority().await);
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(&zone, &authority, folder.path());
    desk.patience = Duration::from_millis(100);
    // Before: nothing is changed while a server cannot be asked.
    bind.secondary.as_mut().unwrap().stop();
    let error = desk.run(&Wish::Lower { ttl: 60 }).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("ns2.example.test"), "{error}");
    assert_eq!(zone.read(&name(NAME)).await.unwrap().entry, there());
    // Between: it is changed, not seen everywhere, and no time is promised.
    bind.secondary.as_mut().unwrap().start_again();
    all_answer(&authority).await;
    let plan = desk.plan(&Wish::Lower { ttl: 60 }).await.unwrap();
    bind.secondary.as_mut().unwrap().stop();
    let error = desk.with(async |steps| steps.carry_out(plan).await).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("run it again"), "{error}");
    let state = desk.file().load().unwrap().unwrap();
    assert_eq!((state.older_gone(), state.last().unwrap().verb), (None, Verb::LowerTtl));
    // The way back is open even so.
    let plan = desk.plan(&Wish::Back).await.unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("ns2.example.test")), "{:?}", plan.notes);
    drop(plan);
    bind.secondary.as_mut().unwrap().start_again();
    all_answer(&authority).await;
    desk.patience = Duration::from_secs(20);
    let outcome = desk.run(&Wish::Lower { ttl: 60 }).await.unwrap();
    assert!(!outcome.changed && desk.file().load().unwrap().unwrap().is_settled());
}

#[tokio::test]
async fn a_zone_that_its_server_signs_stays_signed() {
    let Some(bind) = Bind::start(Secondary::NoneSigned) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&zone, &authority, folder.path());
    let signed = async || authority.look(&name(NAME)).await[0].view.as_ref().is_ok_and(|view| view.signed);
    for _ in 0..400 {
        if signed().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let plan = desk.plan(&point()).await.unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("DNSSEC")), "{:?}", plan.notes);
    let outcome = desk.with(async |steps| steps.carry_out(plan).await).await.unwrap();
    assert!(!outcome.notes.iter().any(|note| note.contains("without a signature")), "{:?}", outcome.notes);
    assert!(signed().await);
    desk.run(&Wish::Back).await.unwrap();
    assert_eq!(everywhere(&authority).await, [there()]);
}

#[tokio::test]
async fn servers_that_do_not_agree_are_left_alone() {
    let (Some(one), Some(two)) = (Bind::start(Secondary::None), Bind::start(Secondary::None)) else { return };
    two.zone().replace(&name(NAME), &there(), &entry(&["198.51.100.1"], 300)).await.unwrap();
    let zone = one.zone();
    let authority = Authority::given(name(ZONE), &[one.address(), two.address()], system_clock());
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&zone, &authority, folder.path());
    let error = desk.run(&point()).await.unwrap_err();
    assert!(error.to_string().contains("answers A 198.51.100.1"), "{error}");
    assert!(!desk.file().path().exists());
    assert_eq!(zone.read(&name(NAME)).await.unwrap().entry, there());
}

#[tokio::test]
async fn what_someone_else_changed_is_left_to_them() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&zone, &authority, folder.path());
    desk.run(&point()).await.unwrap();
    let now = zone.read(&name(NAME)).await.unwrap().entry;
    let theirs = entry(&["203.0.113.5"], 60);
    zone.replace(&name(NAME), &now, &theirs).await.unwrap();
    for wish in [Wish::Back, point(), Wish::Finish, Wish::Lower { ttl: 30 }] {
        let error = desk.run(&wish).await.unwrap_err();
        assert!(matches!(error, EntryError::Changed { .. }), "{error:?}");
        assert!(error.to_string().contains("is now A 203.0.113.5"), "{error}");
    }
    assert_eq!(zone.read(&name(NAME)).await.unwrap().entry, theirs);
}

#[tokio::test]
async fn a_name_that_was_new_goes_away_again() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(&zone, &authority, folder.path());
    desk.name = name("fresh.example.test");
    let outcome = desk.run(&point()).await.unwrap();
    let lives = outcome.older_gone.as_second() - outcome.seen_at.unwrap().as_second();
    assert_eq!(lives, 30, "that it was not there is kept for as long as the SOA says");
    desk.run(&Wish::Back).await.unwrap();
    assert_eq!(zone.read(&desk.name).await.unwrap().entry, Entry::default());
}

#[tokio::test]
async fn what_is_no_plain_entry_is_refused() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    let folder = tempfile::tempdir().unwrap();
    let to = |to: &[&str], replace_cname| Wish::Point {
        to: to.iter().map(|&text| text.to_owned()).collect(),
        replace_cname,
    };
    for (at, wish, words) in [
        ("www.example.test", to(&["192.0.2.9"], false), "is a CNAME"),
        ("example.test", to(&["lb.example.net"], false), "the top of its zone"),
        ("mail.example.test", to(&["lb.example.net"], false), "has MX beside"),
        ("hinted.example.test", to(&["192.0.2.9"], false), "ipv4hint"),
        ("host.gone.example.test", to(&["192.0.2.9"], false), "DNAME"),
        ("none.example.test", Wish::Lower { ttl: 60 }, "no A, AAAA or CNAME"),
        ("shop.example.test", to(&["shop.example.test"], false), "point to itself"),
        ("shop.example.com", to(&["192.0.2.9"], false), "not in the zone"),
    ] {
        let mut desk = Desk::new(&zone, &authority, folder.path());
        desk.name = name(at);
        let error = desk.run(&wish).await.unwrap_err();
        assert!(matches!(error, EntryError::Unfit { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // With a yes to it the CNAME goes, and comes back.
    let mut desk = Desk::new(&zone, &authority, folder.path());
    desk.name = name("www.example.test");
    desk.run(&to(&["192.0.2.9"], true)).await.unwrap();
    assert_eq!(zone.read(&desk.name).await.unwrap().entry, entry(&["192.0.2.9"], 300));
    desk.run(&Wish::Back).await.unwrap();
    assert_eq!(zone.read(&desk.name).await.unwrap().entry, entry(&[NAME], 300));
}

/// A zone in whose hands we die: before it was asked, or after it has done it.
#[derive(Debug)]
struct Deadly<'a> {
    zone: &'a dyn Zone,
    after: bool,
    died: Notify,
}

impl<'a> Deadly<'a> {
    fn new(zone: &'a dyn Zone, after: bool) -> Self {
        Self { zone, after, died: Notify::new() }
    }

    /// Runs until it dies.
    async fn kill(&self, authority: &Authority, folder: &Path, wish: &Wish) {
        let desk = Desk::new(self, authority, folder);
        tokio::select! {
            ended = desk.run(wish) => panic!("it ended: {ended:?}"),
            () = self.died.notified() => {}
        }
    }
}

#[async_trait]
impl Zone for Deadly<'_> {
    fn provider(&self) -> String {
        self.zone.provider()
    }
    fn origin(&self) -> &DnsName {
        self.zone.origin()
    }
    fn capabilities(&self) -> Capabilities {
        self.zone.capabilities()
    }
    async fn read(&self, name: &DnsName) -> Result<Found, EntryError> {
        self.zone.read(name).await
    }
    async fn replace(&self, name: &DnsName, before: &Entry, after: &Entry) -> Result<(), EntryError> {
        if self.after {
            self.zone.replace(name, before, after).await?;
        }
        self.died.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn killed_before_or_after_the_update_the_same_call_goes_on() {
    let Some(bind) = Bind::start(Secondary::Notified) else { return };
    let (zone, authority) = (bind.zone(), bind.authority().await);
    for after in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let deadly = Deadly::new(&zone, after);
        let desk = Desk::new(&zone, &authority, folder.path());
        for wish in [Wish::Lower { ttl: 60 }, point(), Wish::Back] {
            let before = zone.read(&name(NAME)).await.unwrap().entry;
            deadly.kill(&authority, folder.path(), &wish).await;
            let state = desk.file().load().unwrap().unwrap();
            assert_eq!(state.last().unwrap().verb, wish.verb(), "what was meant is written down");
            assert_eq!(state.older_gone(), None);
            let now = zone.read(&name(NAME)).await.unwrap().entry;
            assert_eq!(now == before, !after);
            let outcome = desk.run(&wish).await.unwrap();
            assert_eq!(outcome.changed, !after);
            assert_eq!(outcome.former, there());
            assert_eq!(everywhere(&authority).await, [outcome.entry.clone(), outcome.entry]);
        }
        assert_eq!(everywhere(&authority).await, [there(), there()]);
    }
}

#[tokio::test]
async fn killed_while_pointing_the_way_back_is_known() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, authority) = (bind.zone(), bind.alone());
    for after in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let deadly = Deadly::new(&zone, after);
        deadly.kill(&authority, folder.path(), &point()).await;
        let desk = Desk::new(&zone, &authority, folder.path());
        assert_eq!(desk.run(&Wish::Back).await.unwrap().changed, after);
        assert_eq!(everywhere(&authority).await, [there()]);
    }
}
