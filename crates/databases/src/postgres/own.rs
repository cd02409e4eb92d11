//! What the migration keeps inside a database while it lasts, and how it is called: a schema with the beat and the markers, a
//! trigger on every table (asleep until the fence wakes it), what names rows where nothing did, a publication of all tables.

use super::connect::Session;
use super::keys;
use super::quote;
use crate::end::Ends;
use crate::facts::Facts;
use rehome_part::{Error, ErrorKind, Flow, Result, Side};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// The longest a table's lock is waited for at once: behind whoever waits for it, the application waits too.
const LOCK: &str = "SET LOCAL lock_timeout = '500ms'";
/// How long a lock that others hold is asked for again.
const PATIENCE: Duration = Duration::from_secs(60);
const TRIGGER: &str = "rehome_fence";

/// The names of what this part makes on both servers. Slots and subscriptions are seen by all databases of a server, so the names
/// hold what tells one migration from another.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// The publication of either side.
    pub publication: String,
    forward: String,
    reverse: String,
}

impl Names {
    pub fn new(part: &str, ends: &Ends) -> Self {
        let of = format!("{part} {} {}", ends.source.address, ends.target.address);
        let id = blake3::hash(of.as_bytes()).to_hex();
        let part: String = part
            .chars()
            .map(
                |character| {
                    if character.is_ascii_alphanumeric() { character.to_ascii_lowercase() } else { '_' }
                },
            )
            .take(30)
            .collect();
        let publication = format!("rehome_{part}_{}", id.get(..8).unwrap_or_default());
        Self { forward: format!("{publication}_f"), reverse: format!("{publication}_r"), publication }
    }

    /// The subscription of a flow on its receiving side, and its slot on the other.
    pub fn stream(&self, flow: Flow) -> &str {
        match flow {
            Flow::Forward => &self.forward,
            Flow::Reverse => &self.reverse,
        }
    }
}

/// In the tables of ours.
pub(super) fn word(flow: Flow) -> &'static str {
    match flow {
        Flow::Forward => "forward",
        Flow::Reverse => "reverse",
    }
}

/// Makes the schema of ours where it is not there.
pub(super) async fn make(session: &Session) -> Result<()> {
    let statements = "
        CREATE SCHEMA IF NOT EXISTS rehome;
        CREATE TABLE IF NOT EXISTS rehome.beat (flow text PRIMARY KEY, number bigint NOT NULL, place pg_lsn NOT NULL);
        CREATE TABLE IF NOT EXISTS rehome.marker (
            flow text NOT NULL, epoch bigint NOT NULL, nonce text NOT NULL, PRIMARY KEY (flow, epoch, nonce));
        CREATE TABLE IF NOT EXISTS rehome.done (step text PRIMARY KEY);
        CREATE OR REPLACE FUNCTION rehome.refuse() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            RAISE EXCEPTION 'this database is closed to writes while it moves'
                USING ERRCODE = 'read_only_sql_transaction', HINT = 'see: rehome status';
        END $body$;";
    session.run("make the migration's own schema", statements).await
}

/// Takes all of ours out of a database; slots and subscriptions are another's business.
pub(super) async fn remove(session: &Session, names: &Names) -> Result<()> {
    let publication = quote::name(&names.publication);
    session.run("drop the publication", &format!("DROP PUBLICATION IF EXISTS {publication}")).await?;
    on_each_table(
        session,
        "take the fence away",
        &format!("IF has_trigger THEN EXECUTE format('DROP TRIGGER {TRIGGER} ON %s', name); END IF;"),
    )
    .await?;
    session.run("drop the migration's own schema", "DROP SCHEMA IF EXISTS rehome CASCADE").await
}

/// Takes out of a database all of ours but the fence, if it is closed: that stays for whoever comes late.
pub(super) async fn leave_fence(session: &Session, names: &Names) -> Result<()> {
    let awake = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger WHERE tgname = $1 AND tgenabled <> 'D')";
    let is_awake: bool = session.row("look at the fence", awake, &[&TRIGGER]).await?.get(0);
    if !is_awake {
        return remove(session, names).await;
    }
    let statements = format!(
        "DROP PUBLICATION IF EXISTS {}; DROP TABLE IF EXISTS rehome.beat, rehome.marker, rehome.done;",
        quote::name(&names.publication)
    );
    session.run("take out what is not the fence", &statements).await
}

/// The loop of a `DO` statement over the application's tables; `body` finds `name`, `has_trigger` and `is_awake`.
pub(super) fn loop_over_tables(body: &str) -> String {
    format!(
        "DO $loop$
        DECLARE name text; has_trigger bool; is_awake bool;
        BEGIN
            FOR name, has_trigger, is_awake IN
                SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), t.oid IS NOT NULL, coalesce(t.tgenabled <> 'D', false)
                FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND t.tgname = '{TRIGGER}'
                WHERE {APPLICATION_TABLES}
                ORDER BY 1
            LOOP {body} END LOOP;
        END $loop$"
    )
}

/// Tables that hold rows of the application, partitioned ones and their partitions.
pub(super) const APPLICATION_TABLES: &str = "
    c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rehome')
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Puts the fence's trigger, asleep, on every table that has none.
pub(super) async fn guard_tables(session: &Session) -> Result<()> {
    on_each_table(session, "put the fence on", &make_trigger("DISABLE")).await
}

/// In a loop over tables: a trigger where there is none, and then `state` ENABLE or DISABLE.
pub(super) fn make_trigger(state: &str) -> String {
    format!(
        "IF NOT has_trigger THEN
            EXECUTE format('CREATE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s
                            FOR EACH STATEMENT EXECUTE FUNCTION rehome.refuse()', name);
            EXECUTE format('ALTER TABLE %s {state} TRIGGER {TRIGGER}', name);
         END IF;"
    )
}

/// In a loop over tables: wakes the trigger or puts it to sleep where it is otherwise.
pub(super) fn set_trigger(is_awake: bool) -> String {
    let (condition, state) = if is_awake { ("NOT is_awake", "ENABLE") } else { ("is_awake", "DISABLE") };
    format!(
        "IF has_trigger AND {condition} THEN EXECUTE format('ALTER TABLE %s {state} TRIGGER {TRIGGER}', name); END IF;"
    )
}

/// One table after the other, each in a transaction of its own, so that no table is locked while another's lock is waited for.
async fn on_each_table(session: &Session, doing: &str, body: &str) -> Result<()> {
    let statement = loop_over_tables(&format!("{LOCK}; {body} COMMIT;"));
    insist(session, doing, &statement).await
}

/// Again while others hold a lock.
async fn insist(session: &Session, doing: &str, statement: &str) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match session.run(doing, statement).await {
            Err(error)
                if error.is_temporary() && error.kind == ErrorKind::Other && Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) if error.is_temporary() && error.kind == ErrorKind::Other => {
                return Err(
                    error.hint("end the transaction that holds the table: see pg_locks and pg_stat_activity")
                );
            }
            ended => return ended,
        }
    }
}

/// How a table named its rows before the move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Quoted.
    table: String,
    /// As `ALTER TABLE … REPLICA IDENTITY` wants it.
    before: String,
}

fn identity_fact(side: Side) -> String {
    format!("identity:{side}")
}

/// Tables without anything that names a row, with the unique index that could, as SQL names it.
fn nameless() -> String {
    format!(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
                CASE c.relreplident WHEN 'n' THEN 'NOTHING' ELSE 'DEFAULT' END,
                (SELECT pg_catalog.format('USING INDEX %I', x.relname)
                 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                 WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
                   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                                   WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[]) AND NOT a.attnotnull)
                 ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE {APPLICATION_TABLES} AND c.relkind = 'r' AND c.relpersistence = 'p'
           AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
                SELECT 1 FROM pg_catalog.pg_index i
                WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid))
         ORDER BY 1"
    )
}

/// Gives every table something that names its rows, before a publication would refuse its updates for want of it. What was
/// there is remembered first.
pub(super) async fn name_rows(session: &Session, facts: &Facts) -> Result<()> {
    let mut rows = session.rows("read how tables name their rows", &nameless(), &[]).await?;
    if session.side() == Side::Target {
        let awaited = keys::awaited(facts)?;
        rows.retain(|row| !awaited.contains(&row.get(0)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let fact = identity_fact(session.side());
    let mut known = remembered(facts, &fact)?;
    for row in &rows {
        let (table, before): (String, String) = (row.get(0), row.get(1));
        if known.iter().all(|identity| identity.table != table) {
            known.push(Identity { table, before });
        }
    }
    let text = serde_json::to_string(&known).map_err(|error| {
        Error::permanent(ErrorKind::Other, format!("remember how tables name their rows: {error}"))
    })?;
    facts.set(&fact, &text)?;
    for row in &rows {
        let (table, index): (String, Option<String>) = (row.get(0), row.get(2));
        let by = index.unwrap_or_else(|| "FULL".to_owned());
        let doing = format!("let {table} name its rows");
        insist(session, &doing, &format!("{LOCK}; ALTER TABLE {table} REPLICA IDENTITY {by}")).await?;
    }
    Ok(())
}

/// As it was before; a table that is gone is passed over.
pub(super) async fn unname_rows(session: &Session, facts: &Facts) -> Result<()> {
    let fact = identity_fact(session.side());
    for Identity { table, before } in remembered(facts, &fact)? {
        let doing = format!("let {table} name its rows as before");
        let statement = format!("{LOCK}; ALTER TABLE IF EXISTS {table} REPLICA IDENTITY {before}");
        insist(session, &doing, &statement).await?;
    }
    facts.forget(&fact)
}

fn remembered(facts: &Facts, fact: &str) -> Result<Vec<Identity>> {
    let Some(text) = facts.get(fact) else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|error| {
        Error::permanent(ErrorKind::Corrupt, format!("what is remembered as {fact}: {error}"))
    })
}

/// Publishes every table, those that came since the last time too. Tables are named one by one: a publication of "all tables"
/// would refuse the updates of a table without identity that is made tomorrow.
pub(super) async fn publish(session: &Session, names: &Names) -> Result<bool> {
    let statement = "
        SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND (n.nspname <> 'rehome' OR c.relname IN ('beat', 'marker'))
          AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                          WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
          AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_publication_tables p
                          WHERE p.pubname = $1 AND p.schemaname = n.nspname AND p.tablename = c.relname)
        ORDER BY 1";
    let rows = session.rows("read what is published", statement, &[&names.publication]).await?;
    let known = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1)";
    let exists: bool = session.row("read the publications", known, &[&names.publication]).await?.get(0);
    let new: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if new.is_empty() && exists {
        return Ok(false);
    }
    let (publication, tables) = (quote::name(&names.publication), new.join(", "));
    let statement = match exists {
        true => format!("{LOCK}; ALTER PUBLICATION {publication} ADD TABLE {tables}"),
        false => format!("{LOCK}; CREATE PUBLICATION {publication} FOR TABLE {tables}"),
    };
    insist(session, "publish the tables", &statement).await?;
    Ok(true)
}
