//! Moves between versions: from each to itself and to every newer one. Two pairs in an ordinary run; with `REHOME_LONG=1` all of them, and
//! the whole suite that every part passes for those where most is different.

use crate::support::*;
use crate::{contract, moved};
use rehome_databases::FenceMeans;
use rehome_databases::postgres::{VERSIONS, assess, fits};
use rehome_part::{Severity, Side};
use rehome_testkit::postgres::{Postgres, programs_of_or_skip};
use std::time::Duration;

/// Quick, and between them the oldest, the newest, and one whose programs are Debian's.
const USUAL: [(i32, i32); 2] = [(12, 15), (15, 18)];
/// The suite of all parts: across everything, across each change of what a subscription can do, and within the oldest.
const WHOLE_LIVES: [(i32, i32); 5] = [(12, 12), (12, 18), (13, 14), (15, 16), (17, 18)];

fn is_long() -> bool {
    std::env::var_os("REHOME_LONG").is_some()
}

/// From `source` to itself and every newer one.
#[allow(clippy::print_stderr, reason = "a long run says what it did")]
async fn moves_from(source: i32) {
    for target in source..=*VERSIONS.end() {
        if !is_long() && !USUAL.contains(&(source, target)) {
            continue;
        }
        let Some(versions) = Versions::of(source, target) else { continue };
        eprintln!("PostgreSQL {source} to {target}");
        moved::there_and_back(versions.clone()).await;
        if is_long() && source == target {
            moved::large(versions.clone(), target >= 14).await;
        }
        if is_long() && WHOLE_LIVES.contains(&(source, target)) {
            let lived = contract::lives(versions, FenceMeans::Writes).await;
            lived.unwrap_or_else(|why| panic!("{source} to {target}: {why}"));
        }
    }
}

macro_rules! from {
    ($($name:ident $source:literal,)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            moves_from($source).await;
        }
    )* };
}

from! {
    from_12 12,
    from_13 13,
    from_14 14,
    from_15 15,
    from_16 16,
    from_17 17,
    from_18 18,
}

/// What it writes for a server of its own time is not all for an older one.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_newer_pg_dump() {
    let Some(versions) = Versions::of(15, 15).and_then(|versions| versions.with_tools(18)) else { return };
    moved::there_and_back(versions).await;
}

/// What bounds those who follow has another name since 18, and a default of its own.
#[tokio::test]
async fn a_target_without_room_for_a_follower_is_found() {
    for (version, setting) in [(15, "max_replication_slots"), (18, "max_active_replication_origins")] {
        let Some(programs) = programs_of_or_skip(version) else { continue };
        let server = Postgres::start(&programs, &[(setting, "2")]).unwrap();
        let source = session(&server, "postgres", "postgres", Side::Source).await;
        let assessed = assess(&source, Duration::ZERO).await.unwrap();
        let target = session(&server, "postgres", "template1", Side::Target).await;
        let found = fits(&assessed, &target).await.unwrap();
        let blocker = found.iter().find(|found| found.id == "replication-origins").unwrap();
        assert_eq!(blocker.severity, Severity::Blocker);
        assert!(blocker.remedy.as_ref().unwrap().contains(setting), "{blocker:?}");
    }
}
