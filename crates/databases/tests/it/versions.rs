//! Moves between versions: from each to itself and to every newer one. Two pairs in an ordinary run; with `REHOME_LONG=1` all of them, and
//! the whole suite that every part passes for those where most is different.

use crate::support::Versions;
use crate::{contract, moved};
use rehome_databases::FenceMeans;
use rehome_databases::postgres::VERSIONS;

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
