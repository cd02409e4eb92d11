//! Closing a side: by a trigger on every table, which lets reads go on, or by shutting everybody out. Either way nobody is left who began
//! to write before it. Proved by the application's own logins, with a session from before and a write that would touch no row.
//!
//! Waking a trigger takes a lock that no writer's transaction shares, so it comes after the last of them; whoever does not end by himself is
//! ended. Shutting out is in one transaction, and then the database's own lock is taken once: a session that passed the door before
//! it was closed holds that lock until it can be seen, and is ended like the others.

use super::connect::{May, Session, connect_to};
use super::own;
use super::part::PostgresPart;
use super::quote;
use crate::end::{FenceMeans, Login};
use rehome_part::{Error, ErrorKind, Fence, Result, Side};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

/// A transaction that is open when the fence comes may end by itself for so long.
const GRACE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(4);
/// After this the fence is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// A login that gets no answer proves nothing.
const LOGIN: Duration = Duration::from_secs(5);
/// A session from before that says nothing for so long is left for a new one: its connection may be gone without anybody knowing.
const KNOWN: Duration = Duration::from_millis(500);

/// Sessions of the application's logins, kept so that the next probe is one round trip.
#[derive(Debug, Default)]
pub(super) struct Probes {
    open: Mutex<HashMap<(Side, String), Probe>>,
}

#[derive(Debug)]
struct Probe {
    session: Session,
    /// A write that touches no row; `None` where this login may not write to any table.
    write: Option<String>,
}

fn fact(side: Side) -> String {
    format!("fence:{side}")
}

/// Who may connect, before the doors were closed: role (empty: everybody) and whether he may pass it on.
#[derive(Debug, Serialize, Deserialize)]
struct Doors {
    open_to: Vec<(String, bool)>,
    /// The database's own word on read-only transactions, if it has one.
    read_only: Option<String>,
}

pub(super) async fn close(part: &PostgresPart, side: Side) -> Result<()> {
    match part.fence {
        FenceMeans::None => Ok(()),
        FenceMeans::Writes => close_to_writes(part, side).await,
        FenceMeans::Logins => close_to_logins(part, side).await,
    }
}

pub(super) async fn open(part: &PostgresPart, side: Side) -> Result<()> {
    match part.fence {
        FenceMeans::None => Ok(()),
        FenceMeans::Writes => {
            let session = match part.sessions.on(side).await {
                Ok(session) => session,
                // Never made, or gone: nothing of ours is closed there.
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            let statement = own::loop_over_tables(&own::set_trigger(false));
            session.run("open the tables", &statement).await
        }
        FenceMeans::Logins => open_to_logins(part, side).await,
    }
}

async fn close_to_writes(part: &PostgresPart, side: Side) -> Result<()> {
    let (closer, watcher) = tokio::try_join!(part.sessions.on(side), part.sessions.on(side))?;
    let body = format!("{} {}", own::make_trigger("ENABLE"), own::set_trigger(true));
    let statement = format!("SET LOCAL lock_timeout = '8s'; {}", own::loop_over_tables(&body));
    // Asked on one session, one behind the other: the first answer comes while the tables are being closed.
    let number = pid(&closer);
    let closing = closer.run("close the tables", &statement);
    let ending: std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>> = Box::pin(async {
        let number = number.await?;
        tokio::time::sleep(GRACE).await;
        loop {
            // Whoever is in the way had his time.
            let statement = format!(
                "SELECT pg_terminate_backend(p) FROM unnest(pg_blocking_pids({number})) p WHERE p <> 0"
            );
            watcher.asked("end who is in the way of the fence", &statement).await?;
            tokio::time::sleep(LOOK).await;
        }
    });
    let closed = tokio::select! {
        biased;
        ended = ending => ended,
        closed = closing => closed,
    };
    closed.map_err(|error| match error.kind {
        ErrorKind::Other if error.is_temporary() => {
            error.hint("a prepared transaction holds a table: see pg_prepared_xacts, and end it")
        }
        _ => error,
    })
}

async fn pid(session: &Session) -> Result<i32> {
    let rows = session.asked("ask for a session's number", "SELECT pg_backend_pid()").await?;
    // No session has the number 0, so nobody is in its way.
    Ok(rows.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default())
}

async fn close_to_logins(part: &PostgresPart, side: Side) -> Result<()> {
    let session = part.sessions.on(side).await?;
    refuse_prepared(&session).await?;
    let doors = doors(&session).await?;
    if part.facts.get(&fact(side)).is_none() {
        let text = serde_json::to_string(&doors).map_err(|error| {
            Error::permanent(ErrorKind::Other, format!("remember who may connect: {error}"))
        })?;
        part.facts.set(&fact(side), &text)?;
    }
    let (us, database) = us(&session).await?;
    let (us, quoted) = (quote::name(&us), quote::name(&database));
    let mut statements = format!("GRANT CONNECT ON DATABASE {quoted} TO {us};");
    for (role, _) in &doors.open_to {
        let from = if role.is_empty() { "PUBLIC".to_owned() } else { quote::name(role) };
        if from != us {
            statements.push_str(&format!("REVOKE CONNECT ON DATABASE {quoted} FROM {from} CASCADE;"));
        }
    }
    // A second line for those whom no door stops; whoever wants can undo it in his session.
    statements.push_str(&format!(
        "ALTER DATABASE {quoted} SET default_transaction_read_only = on;
         ALTER ROLE {us} IN DATABASE {quoted} SET default_transaction_read_only = off;"
    ));
    let barrier = format!("ALTER DATABASE {quoted} RENAME TO {quoted}");
    // One after the other on one session, and none waits for the other's answer.
    let (closed, passed, ended) = tokio::join!(
        session.run("shut everybody out", &statements),
        session.try_run(&barrier),
        end_sessions(&session),
    );
    closed?;
    let refused = passed.err().and_then(|error| error.code().cloned());
    match refused {
        // It has the lock before it says that this name is taken, or that one is inside, or that one may not.
        None
        | Some(
            SqlState::DUPLICATE_DATABASE | SqlState::FEATURE_NOT_SUPPORTED | SqlState::INSUFFICIENT_PRIVILEGE,
        ) => {}
        Some(code) => {
            let text = format!("the database's lock could not be had ({})", code.code());
            return Err(Error::temporary(ErrorKind::Other, text).on(side));
        }
    }
    let mut left = ended?;
    let until = Instant::now() + PATIENCE;
    while left > 0 {
        if Instant::now() > until {
            let text = format!("{left} session(s) do not end");
            return Err(Error::temporary(ErrorKind::Deadline, text).on(side).hint("see pg_stat_activity"));
        }
        tokio::time::sleep(LOOK).await;
        left = end_sessions(&session).await?;
    }
    Ok(())
}

async fn refuse_prepared(session: &Session) -> Result<()> {
    let statement = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() LIMIT 1";
    match session.rows("look for prepared transactions", statement, &[]).await?.first() {
        None => Ok(()),
        Some(row) => {
            let text =
                format!("the prepared transaction {} could commit behind the fence", row.get::<_, String>(0));
            Err(Error::permanent(ErrorKind::Other, text)
                .on(session.side())
                .hint("COMMIT PREPARED or ROLLBACK PREPARED it first"))
        }
    }
}

/// Our role and the database, as the server calls them.
async fn us(session: &Session) -> Result<(String, String)> {
    let row =
        session.row("ask who we are", "SELECT current_user::text, current_database()::text", &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn doors(session: &Session) -> Result<Doors> {
    let statement = "
        SELECT coalesce(r.rolname::text, ''), a.is_grantable
        FROM pg_database d CROSS JOIN LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE d.datname = current_database() AND a.privilege_type = 'CONNECT' ORDER BY 1";
    let rows = session.rows("read who may connect", statement, &[]).await?;
    let setting = "
        SELECT substr(c, length('default_transaction_read_only=') + 1)
        FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c
        WHERE d.datname = current_database() AND s.setrole = 0 AND c LIKE 'default\\_transaction\\_read\\_only=%'";
    let read_only = session.rows("read the database's settings", setting, &[]).await?;
    Ok(Doors {
        open_to: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        read_only: read_only.first().map(|row| row.get(0)),
    })
}

/// Ends every session in this database but ours and those that only read the log; says how many there were.
async fn end_sessions(session: &Session) -> Result<i64> {
    let statement = "
        SELECT count(pg_terminate_backend(pid))::int8 FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type IN ('client backend', 'parallel worker')
          AND NOT (usename = current_user AND application_name = 'rehome')";
    let rows = session.asked("end the sessions behind the fence", statement).await?;
    Ok(rows.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(i64::MAX))
}

async fn open_to_logins(part: &PostgresPart, side: Side) -> Result<()> {
    let Some(text) = part.facts.get(&fact(side)) else { return Ok(()) };
    let doors: Doors = serde_json::from_str(&text)
        .map_err(|error| Error::permanent(ErrorKind::Corrupt, format!("who might connect: {error}")))?;
    let session = part.sessions.on(side).await?;
    let (us, database) = us(&session).await?;
    let (us, database) = (quote::name(&us), quote::name(&database));
    let mut statements = String::new();
    let mut are_we_in = false;
    for (role, may_grant) in &doors.open_to {
        let to = if role.is_empty() { "PUBLIC".to_owned() } else { quote::name(role) };
        are_we_in |= to == us;
        let with = if *may_grant && !role.is_empty() && to != us { " WITH GRANT OPTION" } else { "" };
        statements.push_str(&format!("GRANT CONNECT ON DATABASE {database} TO {to}{with};"));
    }
    if !are_we_in {
        statements.push_str(&format!("REVOKE CONNECT ON DATABASE {database} FROM {us};"));
    }
    statements.push_str(&match &doors.read_only {
        Some(value) => {
            let value = quote::literal(value);
            format!("ALTER DATABASE {database} SET default_transaction_read_only = {value};")
        }
        None => format!("ALTER DATABASE {database} RESET default_transaction_read_only;"),
    });
    statements
        .push_str(&format!("ALTER ROLE {us} IN DATABASE {database} RESET default_transaction_read_only;"));
    session.run("let everybody in again", &statements).await?;
    part.facts.forget(&fact(side))
}

/// Is a side closed, by what its own catalog says? In both cases somebody else's session could still be there.
async fn looks_closed(part: &PostgresPart, side: Side) -> Result<bool> {
    let session = part.sessions.on(side).await?;
    let statement = match part.fence {
        FenceMeans::None => return Ok(false),
        FenceMeans::Writes => format!(
            "SELECT bool_and(coalesce(t.tgenabled IN ('O', 'A'), false)) FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'rehome_fence'
             WHERE {}",
            own::APPLICATION_TABLES
        ),
        FenceMeans::Logins => "
            SELECT NOT EXISTS (SELECT 1 FROM pg_roles r WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> current_user
                               AND has_database_privilege(r.oid, current_database(), 'CONNECT'))
               AND NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
                               AND backend_type = 'client backend' AND NOT (usename = current_user AND application_name = 'rehome'))"
            .to_owned(),
    };
    let rows = session.asked("look at the fence", &statement).await?;
    Ok(rows.first().and_then(|row| row.get(0)) == Some("t"))
}

/// Tries to write as the application does.
pub(super) async fn probe(part: &PostgresPart, side: Side) -> Result<Fence> {
    if part.fence == FenceMeans::None {
        return Ok(Fence::None);
    }
    let end = part.sessions.end(side);
    let tries = end.applications.iter().map(|login| try_login(part, side, login));
    let (looks_closed, tries) = tokio::join!(looks_closed(part, side), futures::future::try_join_all(tries));
    let (looks_closed, tries) = (looks_closed?, tries?);
    Ok(match (looks_closed, tries.is_empty()) {
        (true, true) => Fence::Closed,
        (true, false) if tries.iter().all(|refused| *refused == Some(true)) => Fence::ProvedClosed,
        (true, false) if tries.iter().all(|refused| *refused != Some(false)) => Fence::Closed,
        _ => Fence::Open,
    })
}

/// Opens what a probe will use, while there is time.
pub(super) async fn warm(part: &PostgresPart, side: Side) -> Result<()> {
    for login in &part.sessions.end(side).applications {
        try_login(part, side, login).await?;
    }
    Ok(())
}

/// Was this login refused? `None`: it may come in and may not write anywhere, so it proves nothing.
async fn try_login(part: &PostgresPart, side: Side, login: &Login) -> Result<Option<bool>> {
    let key = (side, login.user.clone());
    let known = part.probes.open.lock().await.remove(&key);
    // A session from before is the shorter way, and says the same of writes; where logins are closed, it must be dead.
    if let Some(probe) = known.filter(|probe| !probe.session.is_closed()) {
        match tokio::time::timeout(KNOWN, attempt(&probe)).await {
            Ok(Ok(refused)) => {
                part.probes.open.lock().await.insert(key, probe);
                return Ok(refused);
            }
            Ok(Err(error)) => tracing::debug!(%side, %error, "a session of a probe ended"),
            Err(_) => tracing::debug!(%side, "a session of a probe says nothing"),
        }
    }
    let address = part.sessions.end(side).address_of(login);
    let opened = connect_to(&address, login.password.as_deref(), side, May::Write);
    let session = match tokio::time::timeout(LOGIN, Box::pin(opened)).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) if error.kind == ErrorKind::Credentials => return Ok(Some(is_shut_out(&error)?)),
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            let text = format!("no answer to a login as {} within {} s", login.user, LOGIN.as_secs());
            return Err(Error::temporary(ErrorKind::Network, text).on(side));
        }
    };
    let write = harmless_write(&session).await?;
    let probe = Probe { session, write };
    let refused = attempt(&probe).await?;
    part.probes.open.lock().await.insert(key, probe);
    Ok(refused)
}

/// A wrong password proves nothing about a fence.
fn is_shut_out(error: &Error) -> Result<bool> {
    if error.text.contains(SqlState::INSUFFICIENT_PRIVILEGE.code()) {
        return Ok(true);
    }
    Err(error
        .clone()
        .hint("the application's login in the migration file is refused for its password or its name"))
}

/// A statement that this login may run and that touches no row; the fence refuses it all the same.
async fn harmless_write(session: &Session) -> Result<Option<String>> {
    let statement = format!(
        "SELECT CASE
             WHEN has_table_privilege(c.oid, 'DELETE') AND has_table_privilege(c.oid, 'SELECT')
                 THEN pg_catalog.format('DELETE FROM %I.%I WHERE false', n.nspname, c.relname)
             WHEN has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'SELECT')
                 THEN pg_catalog.format('INSERT INTO %I.%I SELECT * FROM %I.%I WHERE false', n.nspname, c.relname, n.nspname, c.relname)
             WHEN has_table_privilege(c.oid, 'TRUNCATE') THEN NULL END AS statement
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE {} AND has_schema_privilege(n.oid, 'USAGE') ORDER BY 1 NULLS LAST LIMIT 1",
        own::APPLICATION_TABLES
    );
    let rows = session.rows("find a table to try", &statement, &[]).await?;
    Ok(rows.first().and_then(|row| row.get(0)))
}

async fn attempt(probe: &Probe) -> Result<Option<bool>> {
    let Some(write) = &probe.write else {
        probe.session.run("see that a session lives", "SELECT 1").await?;
        return Ok(None);
    };
    match probe.session.try_run(&format!("BEGIN; {write}; ROLLBACK")).await {
        Ok(()) => Ok(Some(false)),
        Err(error) => {
            let code = error.code().cloned();
            if !probe.session.is_closed() {
                probe.session.run("end a try", "ROLLBACK").await?;
            }
            match code {
                Some(SqlState::READ_ONLY_SQL_TRANSACTION) => Ok(Some(true)),
                // Refused for what it is, not for when it came.
                Some(code) if !code.code().starts_with("57") => Ok(None),
                _ => Err(probe.session.error("try a write", &error)),
            }
        }
    }
}
