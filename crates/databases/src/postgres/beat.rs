//! The beat: a row of ours on the giving side that carries the place in its log from just before it. Seen on the taking side, all that
//! was committed before that place is there too. The server's own word on how far a reader is comes up to half a second later.

use super::connect::Session;
use super::lsn::Lsn;
use super::own::word;
use rehome_part::{Flow, Marker, Result};

/// Writes a beat, and says what is on it.
pub(super) async fn write(from: &Session, flow: Flow) -> Result<Lsn> {
    let statement = "
        INSERT INTO rehome.beat AS b VALUES ($1, 1, pg_current_wal_insert_lsn())
        ON CONFLICT (flow) DO UPDATE SET number = b.number + 1, place = excluded.place
        RETURNING place::text";
    let row = from.row("write a beat", statement, &[&word(flow)]).await?;
    row.get::<_, String>(0).parse()
}

/// What the taking side has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    /// Everything up to here, if a beat was seen and no table is still being copied.
    pub place: Option<Lsn>,
    /// Somebody applies what comes.
    pub is_applied: bool,
    /// Tables whose first copy is not through.
    pub copying: i64,
    pub is_marked: bool,
}

/// Looks at the taking side of `stream`.
pub(super) async fn read(to: &Session, flow: Flow, stream: &str, marker: Option<&Marker>) -> Result<Arrived> {
    let statement = "
        SELECT (SELECT place::text FROM rehome.beat WHERE flow = $1),
               EXISTS (SELECT 1 FROM pg_stat_subscription WHERE subname = $2 AND relid IS NULL AND pid IS NOT NULL),
               (SELECT count(*) FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
                WHERE s.subname = $2 AND r.srsubstate <> 'r')::int8,
               EXISTS (SELECT 1 FROM rehome.marker WHERE flow = $1 AND epoch = $3 AND nonce = $4)";
    let (epoch, nonce) =
        marker.map_or((0, ""), |marker| (marker.epoch.0.cast_signed(), marker.nonce.as_str()));
    let row = to.row("look for the beat", statement, &[&word(flow), &stream, &epoch, &nonce]).await?;
    let copying: i64 = row.get(2);
    let place = row.get::<_, Option<String>>(0).filter(|_| copying == 0);
    Ok(Arrived {
        place: place.map(|text| text.parse()).transpose()?,
        is_applied: row.get(1),
        copying,
        is_marked: row.get(3),
    })
}

/// Writes the marker on the giving side.
pub(super) async fn mark(from: &Session, flow: Flow, marker: &Marker) -> Result<()> {
    let statement = "INSERT INTO rehome.marker VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    let epoch = marker.epoch.0.cast_signed();
    from.rows("write the marker", statement, &[&word(flow), &epoch, &marker.nonce]).await.map(drop)
}

/// Where the log of a server ends: every commit that was acknowledged before is before it.
pub(super) async fn end_of_log(session: &Session) -> Result<Lsn> {
    let row = session.row("read where the log ends", "SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    row.get::<_, String>(0).parse()
}
