//! One update to a real BIND: made, refused and why, raced, its answer lost or cut.

use super::between::Between;
use super::bind::{Bind, NAME, SECRET, Secondary, ZONE};
use super::{entry, name};
use rehome_entry::EntryError;
use rehome_entry::dns::authority::Resolver;
use rehome_entry::dns::rfc2136::Rfc2136;
use rehome_entry::dns::tsig::Key;
use rehome_entry::dns::{Entry, Kind, Zone, system_clock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn there() -> Entry {
    entry(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 300)
}

#[tokio::test]
async fn an_update_changes_what_it_says_and_nothing_else() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, shop) = (bind.zone(), name(NAME));
    let found = zone.read(&shop).await.unwrap();
    assert_eq!((found.entry, found.besides, found.obstacles), (there(), vec![], vec![]));
    let new = entry(&["192.0.2.9", "2001:db8::1"], 300);
    zone.replace(&shop, &there(), &new).await.unwrap();
    assert_eq!(zone.read(&shop).await.unwrap().entry, new);
    // It is there already: no error, and no second change.
    zone.replace(&shop, &there(), &new).await.unwrap();
    // To a name, and back to addresses.
    let cname = entry(&["lb.example.net"], 60);
    zone.replace(&shop, &new, &cname).await.unwrap();
    assert_eq!(zone.read(&shop).await.unwrap().entry, cname);
    zone.replace(&shop, &cname, &there()).await.unwrap();
    assert_eq!(zone.read(&shop).await.unwrap().entry, there());
    // Only the time to live.
    zone.replace(&shop, &there(), &there().with_ttl(30)).await.unwrap();
    assert_eq!(zone.read(&shop).await.unwrap().entry, there().with_ttl(30));
    // What was never there, and away again.
    let fresh = name("fresh.example.test");
    assert_eq!(zone.read(&fresh).await.unwrap().entry, Entry::default());
    zone.replace(&fresh, &Entry::default(), &new).await.unwrap();
    zone.replace(&fresh, &new, &Entry::default()).await.unwrap();
    assert_eq!(zone.read(&fresh).await.unwrap().entry, Entry::default());
    // The zone's own top.
    let top = name(ZONE);
    let found = zone.read(&top).await.unwrap();
    assert_eq!(found.entry, entry(&["192.0.2.80"], 300));
    assert!(found.besides.contains(&"SOA".to_owned()) && found.besides.contains(&"NS".to_owned()));
    zone.replace(&top, &found.entry, &entry(&["192.0.2.81"], 300)).await.unwrap();
}

#[tokio::test]
async fn what_is_stale_is_refused() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, shop) = (bind.zone(), name(NAME));
    for stale in [entry(&["192.0.2.1"], 300), there().with_ttl(299), Entry::default()] {
        let error = zone.replace(&shop, &stale, &entry(&["192.0.2.9"], 60)).await.unwrap_err();
        assert!(matches!(error, EntryError::Changed { .. }), "{error}");
    }
    assert_eq!(zone.read(&shop).await.unwrap().entry, there());
}

/// What another hand does to the zone before our n-th update: to whom, from what, to what.
type Theirs = Box<dyn Fn(u32) -> (&'static str, Entry, Entry) + Send>;

/// At the worst moment: after we looked, before our update arrives.
async fn raced(bind: &Bind, theirs: Theirs) -> (Result<(), EntryError>, u32) {
    let other = Arc::new(bind.zone());
    let updates = Arc::new(AtomicU32::new(0));
    let count = updates.clone();
    let before = Box::new(move || {
        let (whom, from, to) = theirs(count.fetch_add(1, Ordering::SeqCst));
        let other = other.clone();
        Box::pin(async move { other.replace(&name(whom), &from, &to).await.unwrap() }) as _
    });
    let between = Between::start(bind.address(), before, false).await;
    let zone = bind.zone_at(between.address, SECRET, system_clock());
    let result = zone.replace(&name(NAME), &there(), &entry(&["192.0.2.9"], 60)).await;
    (result, updates.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_change_made_meanwhile_is_never_written_over() {
    for theirs in [entry(&["192.0.2.7"], 300), there().with_ttl(120), entry(&["other.example.net"], 300)] {
        let Some(bind) = Bind::start(Secondary::None) else { return };
        let to = theirs.clone();
        let (result, updates) = raced(&bind, Box::new(move |_| (NAME, there(), to.clone()))).await;
        assert!(matches!(result, Err(EntryError::Changed { .. })), "{result:?}");
        assert_eq!(updates, 1, "looked at again, not sent again");
        assert_eq!(bind.zone().read(&name(NAME)).await.unwrap().entry, theirs, "theirs stays, to the second");
    }
}

/// The n-th state of a name that somebody changes all the time.
fn busy(n: u32) -> Entry {
    if n == 0 { Entry::default() } else { entry(&["192.0.2.50"], n) }
}

#[tokio::test]
async fn a_change_elsewhere_in_the_zone_is_only_looked_past() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let theirs = |n: u32| ("busy.example.test", busy(n.min(2)), busy((n + 1).min(2)));
    let (result, updates) = raced(&bind, Box::new(theirs)).await;
    result.unwrap();
    assert_eq!(updates, 3);
    assert_eq!(bind.zone().read(&name(NAME)).await.unwrap().entry, entry(&["192.0.2.9"], 60));
}

#[tokio::test]
async fn a_zone_that_never_holds_still_is_tried_again_later() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let theirs = |n: u32| ("busy.example.test", busy(n), busy(n + 1));
    let (result, updates) = raced(&bind, Box::new(theirs)).await;
    let error = result.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("changed 6 times"), "{error}");
    assert_eq!(updates, 6);
    assert_eq!(bind.zone().read(&name(NAME)).await.unwrap().entry, there());
}

#[tokio::test]
async fn an_update_whose_answer_is_lost_is_found_to_be_made() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let between = Between::start(bind.address(), Box::new(|| Box::pin(async {})), true).await;
    let zone = bind.zone_at(between.address, SECRET, system_clock());
    zone.replace(&name(NAME), &there(), &entry(&["192.0.2.9"], 60)).await.unwrap();
    assert_eq!(bind.zone().read(&name(NAME)).await.unwrap().entry, entry(&["192.0.2.9"], 60));
}

fn said(error: EntryError) -> String {
    assert!(matches!(error, EntryError::Refused { .. }), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn a_refused_signature_says_why() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let key = |key: &str, algorithm: &str, secret: &str| {
        let key = Key::new(key, algorithm, secret).unwrap();
        Rfc2136::new(bind.address(), name(ZONE), key, system_clock())
    };
    let shop = name(NAME);
    let text = said(key("nobody", "hmac-sha256", SECRET).read(&shop).await.unwrap_err());
    assert!(text.contains("no key `nobody`") && text.contains("BADKEY"), "{text}");
    let text = said(key("move", "hmac-sha512", SECRET).read(&shop).await.unwrap_err());
    assert!(text.contains("BADKEY"), "{text}");
    let text = said(key("move", "hmac-sha256", "aHVudGVyMg==").read(&shop).await.unwrap_err());
    assert!(text.contains("BADSIG") && !text.contains("aHVudGVyMg"), "{text}");
    // This machine's clock an hour off, each way.
    for (hours, word) in [(1, "ahead of"), (-1, "behind")] {
        let clock = Arc::new(move || jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours));
        let text = said(bind.zone_at(bind.address(), SECRET, clock).read(&shop).await.unwrap_err());
        assert!(text.contains(word) && text.contains("BADTIME"), "{text}");
        assert!(text.contains("3600 s") || text.contains("3599 s"), "{text}");
    }
}

#[tokio::test]
async fn a_refused_name_says_why() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let locked = name("locked.example.test");
    let was = bind.zone().read(&locked).await.unwrap().entry;
    let text = said(bind.zone().replace(&locked, &was, &entry(&["192.0.2.9"], 60)).await.unwrap_err());
    assert!(text.contains("key `move` may not") && text.contains("REFUSED"), "{text}");
    let key = Key::new("move", "hmac-sha256", SECRET).unwrap();
    let elsewhere = Rfc2136::new(bind.address(), name("example.org"), key, system_clock());
    let text = said(elsewhere.read(&name("www.example.org")).await.unwrap_err());
    assert!(text.contains("REFUSED"), "{text}");
    let text = said(bind.zone().read(&name("host.cut.example.test")).await.unwrap_err());
    assert!(text.contains("not authoritative"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_down_may_be_tried_again() {
    let Some(mut bind) = Bind::start(Secondary::None) else { return };
    bind.primary.stop();
    let error = bind.zone().read(&name(NAME)).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    bind.primary.start_again();
    assert_eq!(bind.zone().read(&name(NAME)).await.unwrap().entry, there());
}

#[tokio::test]
async fn what_is_too_long_for_a_datagram_goes_over_tcp() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let (zone, big) = (bind.zone(), name("big.example.test"));
    let was = zone.read(&big).await.unwrap().entry;
    assert_eq!(was.get(Kind::A).unwrap().values.len(), 90, "the answer");
    let many: Vec<String> = (1..=95).map(|host| format!("198.51.100.{host}")).collect();
    let many = Entry::to(&many, 60).unwrap();
    zone.replace(&big, &was, &many).await.unwrap();
    assert_eq!(zone.read(&big).await.unwrap().entry, many, "the update");
}

#[tokio::test]
async fn what_answers_from_something_else_is_not_flattened() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let zone = bind.zone();
    let wild = name("any.wild.example.test");
    let was = zone.read(&wild).await.unwrap().entry;
    assert_eq!(was, entry(&["192.0.2.99"], 300), "a wildcard answers like a record of its own");
    let error = zone.replace(&wild, &was, &entry(&["192.0.2.9"], 60)).await.unwrap_err();
    assert!(matches!(&error, EntryError::Unfit { hint, .. } if hint.contains("wildcard")), "{error:?}");
    let found = zone.read(&name("hinted.example.test")).await.unwrap();
    assert!(found.obstacles[0].contains("ipv4hint"), "{found:?}");
    let found = zone.read(&name("host.gone.example.test")).await.unwrap();
    assert!(found.obstacles[0].contains("DNAME at gone.example.test"), "{found:?}");
    let found = zone.read(&name("mail.example.test")).await.unwrap();
    assert_eq!(found.besides, ["MX"]);
    // BIND would take the addresses away and pass over the CNAME in silence.
    let error = zone.replace(&name("mail.example.test"), &found.entry, &entry(&["a.example.net"], 60)).await;
    assert!(matches!(error, Err(EntryError::Unfit { .. })), "{error:?}");
    assert_eq!(zone.read(&name("mail.example.test")).await.unwrap().entry, found.entry);
}

#[tokio::test]
async fn what_a_resolver_says_is_shown_as_it_is() {
    let Some(bind) = Bind::start(Secondary::None) else { return };
    let resolver = Resolver::new(bind.address(), system_clock());
    assert_eq!(resolver.entry(&name(NAME)).await.unwrap(), there());
    assert_eq!(resolver.entry(&name("www.example.test")).await.unwrap(), entry(&[NAME], 300));
}
