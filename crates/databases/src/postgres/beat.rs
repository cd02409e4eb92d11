//! The beat: a row of ours on the giving side that carries the place in its log from just before it. Seen on the taking side, all that
//! was committed before that place is there too. The server's own word on how far a reader is comes up to half a second later.

use super::connect::Session;
use super::lsn::Lsn;
use super::own::word;
use super::quote;
use rehome_part::{Flow, Marker, Result};

/// Writes a beat, and says what is on it.
pub(super) async fn write(from: &Session, flow: Flow) -> Result<Lsn> {
    let statement = format!(
        "INSERT INTO rehome.beat AS b VALUES ({}, 1, pg_current_wal_insert_lsn())
         ON CONFLICT (flow) DO UPDATE SET number = b.number + 1, place = excluded.place
         RETURNING place::text",
        quote::literal(word(flow))
    );
    place_in(from, "write a beat", &statement).await
}

async fn place_in(session: &Session, doing: &str, statement: &str) -> Result<Lsn> {
    let rows = session.asked(doing, statement).await?;
    rows.first().and_then(|row| row.get(0)).unwrap_or_default().parse()
}

/// What the taking side has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    /// Everything up to here, if a beat was seen and no table is still being copied.
    pub place: Option<Lsn>,
    /// Somebody applies what comes.
    pub is_applied: bool,
    /// Tables whose first copy is not through.
    pub copying: u64,
    pub is_marked: bool,
    /// The subscription is there and switched on: if nobody applies at this moment, somebody will.
    pub is_on: bool,
}

/// Looks at the taking side of `stream`.
pub(super) async fn read(to: &Session, flow: Flow, stream: &str, marker: Option<&Marker>) -> Result<Arrived> {
    let (epoch, nonce) = marker.map_or((0, ""), |marker| (marker.epoch.0, marker.nonce.as_str()));
    let (flow, stream, nonce) = (quote::literal(word(flow)), quote::literal(stream), quote::literal(nonce));
    let statement = format!(
        "SELECT (SELECT place::text FROM rehome.beat WHERE flow = {flow}),
                EXISTS (SELECT 1 FROM pg_stat_subscription WHERE subname = {stream} AND relid IS NULL AND pid IS NOT NULL),
                (SELECT count(*) FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
                 WHERE s.subname = {stream} AND r.srsubstate <> 'r'),
                EXISTS (SELECT 1 FROM rehome.marker WHERE flow = {flow} AND epoch = {epoch} AND nonce = {nonce}),
                EXISTS (SELECT 1 FROM pg_subscription WHERE subname = {stream} AND subenabled)"
    );
    let rows = to.asked("look for the beat", &statement).await?;
    let column = |place: usize| rows.first().and_then(|row| row.get(place));
    let copying = column(2).and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    Ok(Arrived {
        place: column(0).filter(|_| copying == 0).map(str::parse).transpose()?,
        is_applied: column(1) == Some("t"),
        copying,
        is_marked: column(3) == Some("t"),
        is_on: column(4) == Some("t"),
    })
}

/// Writes the marker on the giving side.
pub(super) async fn mark(from: &Session, flow: Flow, marker: &Marker) -> Result<()> {
    let statement = format!(
        "INSERT INTO rehome.marker VALUES ({}, {}, {}) ON CONFLICT DO NOTHING",
        quote::literal(word(flow)),
        marker.epoch.0,
        quote::literal(&marker.nonce)
    );
    from.run("write the marker", &statement).await
}

/// Where the log of a server ends: every commit that was acknowledged before is before it.
pub(super) async fn end_of_log(session: &Session) -> Result<Lsn> {
    place_in(session, "read where the log ends", "SELECT pg_current_wal_insert_lsn()::text").await
}
