//! What must exist on the target before rows come: the database, the roles, the tables. Everything made here is remembered, so that
//! only that is taken back. A schema that somebody else made is used if it has the same tables.

use super::connect::Session;
use super::dump::{self, Tools};
use super::keys;
use super::quote;
use super::sessions::Sessions;
use super::tables;
use crate::address::Address;
use crate::end::End;
use crate::facts::Facts;
use crate::verify::Table;
use rehome_part::{Error, ErrorKind, Result, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CREATED: &str = "created-database";
const ROLES: &str = "created-roles";
const BEFORE: &str = "objects-before";
/// In our table of what is done: what is built after the rows is built.
const LATE: &str = "late-schema";

/// A schema's way from one server to another.
#[derive(Debug)]
pub(super) struct Schema<'a> {
    pub sessions: &'a Sessions,
    pub facts: &'a Facts,
    pub tools: Option<&'a Path>,
    /// Where the dump lies between the two steps.
    pub folder: &'a Path,
}

impl Schema<'_> {
    fn file(&self) -> PathBuf {
        self.folder.join("schema.dump")
    }

    async fn tools(&self) -> Result<Tools> {
        let (source, target) =
            tokio::try_join!(self.sessions.on(Side::Source), self.sessions.on(Side::Target))?;
        let (source, target) = tokio::try_join!(major(&source), major(&target))?;
        Tools::find(self.tools, source, target).await
    }

    /// Makes the database where there is none.
    pub async fn make_database(&self) -> Result<()> {
        match self.sessions.on(Side::Target).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let source = self.sessions.on(Side::Source).await?;
        let of = "SELECT pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text
                  FROM pg_database WHERE datname = current_database()";
        let row = source.row("read how the database was made", of, &[]).await?;
        let (encoding, collate, ctype): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let end = self.sessions.end(Side::Target);
        let server = maintenance(end).await?;
        // Before the act: a kill in between leaves a database that we know is ours.
        self.facts.set(CREATED, "true")?;
        let statement = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            quote::name(&end.address.database),
            quote::literal(&encoding),
            quote::literal(&collate),
            quote::literal(&ctype),
        );
        server.run("make the database", &statement).await.map_err(|error| {
            error.hint("make it on the target yourself, with the locale that is wanted there")
        })
    }

    /// Makes the roles that own something or are allowed something, with their passwords where they may be read.
    pub async fn make_roles(&self) -> Result<()> {
        let (source, target) =
            tokio::try_join!(self.sessions.on(Side::Source), self.sessions.on(Side::Target))?;
        let may_see = "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
        let may_see: bool = source.row("read the roles", may_see, &[]).await?.get(0);
        let wanted = roles(&source, may_see).await?;
        let names: Vec<&str> = wanted.iter().map(|role| role.name.as_str()).collect();
        let there = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY($1)";
        let rows = target.rows("read the roles", there, &[&names]).await?;
        let there: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let missing: Vec<&Role> = wanted.iter().filter(|role| !there.contains(&role.name)).collect();
        if let Some(role) = missing.iter().find(|role| role.is_superuser) {
            let text = format!(
                "{} owns something on the source and is a superuser; superusers are not made here",
                role.name
            );
            return Err(Error::permanent(ErrorKind::Unsupported, text)
                .on(Side::Target)
                .hint("make it on the target, or give what it owns to another role"));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut made: Vec<String> =
            self.facts.get(ROLES).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        made.extend(missing.iter().map(|role| role.name.clone()));
        self.facts.set(ROLES, &serde_json::Value::from(made).to_string())?;
        let target = self.sessions.fresh(Side::Target).await?;
        quiet(&target).await;
        for role in &missing {
            target.run(&format!("make role {}", role.name), &role.statement()).await?;
        }
        let made: BTreeSet<&str> = missing.iter().map(|role| role.name.as_str()).collect();
        for (group, member) in memberships(&source).await? {
            if made.contains(member.as_str()) && (made.contains(group.as_str()) || there.contains(&group)) {
                let statement = format!("GRANT {} TO {}", quote::name(&group), quote::name(&member));
                target.run(&format!("make {member} a member of {group}"), &statement).await?;
            }
        }
        Ok(())
    }

    /// Makes the tables as far as rows need them: everything but indexes, foreign keys and triggers.
    pub async fn make_tables(&self) -> Result<()> {
        let (source, target) =
            tokio::try_join!(self.sessions.on(Side::Source), self.sessions.on(Side::Target))?;
        let theirs = tables::read(&target).await?;
        if !theirs.is_empty() {
            drop((source, target));
            return self.compare().await.and_then(|differences| match differences.first() {
                None => Ok(()),
                Some(first) => Err(unlike(first, differences.len())),
            });
        }
        if self.facts.get(BEFORE).is_none() {
            let before = serde_json::Value::from(objects(&target).await?);
            self.facts.set(BEFORE, &before.to_string())?;
        }
        let tools = self.tools().await?;
        tools.dump(self.sessions.end(Side::Source), &self.file()).await?;
        let identities = dump::identities(&source).await?;
        let mut entries = tools.list(&self.file(), "pre-data").await?;
        let late = tools.list(&self.file(), "post-data").await?;
        entries.extend(late.into_iter().filter(|entry| dump::is_wanted_early(entry, &identities)));
        let entries = keys::put_off((&source, &target), self.facts, (&tools, &self.file()), entries).await?;
        let statements = tools.statements(&self.file(), &entries).await?;
        drop(target);
        // A session of its own: the script sets things as it likes them.
        let target = self.sessions.fresh(Side::Target).await?;
        target.run("make the tables", &statements).await
    }

    /// Makes the rest, when the rows are there; all or nothing.
    pub async fn make_late(&self) -> Result<()> {
        let target = self.sessions.fresh(Side::Target).await?;
        let known = "SELECT EXISTS (SELECT 1 FROM rehome.done WHERE step = $1)";
        let is_done: bool = target.row("read what is done", known, &[&LATE]).await?.get(0);
        // Without a dump the tables were here before us, with whatever they have.
        if is_done || !self.file().exists() {
            return Ok(());
        }
        let tools = self.tools().await?;
        let identities = {
            let source = self.sessions.on(Side::Source).await?;
            dump::identities(&source).await?
        };
        let mut entries = tools.list(&self.file(), "post-data").await?;
        entries.retain(|entry| !dump::is_wanted_early(entry, &identities));
        let mut statements = match entries.is_empty() {
            true => String::new(),
            false => tools.statements(&self.file(), &entries).await?,
        };
        statements.push_str("\nINSERT INTO rehome.done VALUES ('late-schema');\n");
        target.run("make indexes, foreign keys and triggers", &statements).await
    }

    /// What is not alike in the tables of both sides.
    pub async fn compare(&self) -> Result<Vec<String>> {
        let (source, target) =
            tokio::try_join!(self.sessions.on(Side::Source), self.sessions.on(Side::Target))?;
        let (ours, theirs) = tokio::try_join!(tables::read(&source), tables::read(&target))?;
        Ok(differences(&ours, &theirs))
    }

    /// Takes back what was made, and only that, as long as no row is in it.
    pub async fn take_back(&self) -> Result<()> {
        if let Ok(target) = self.sessions.on(Side::Target).await {
            if first_with_rows(&target).await?.is_some() {
                tracing::info!("what was made on the target stays: there are rows in it");
                return Ok(());
            }
            if let Some(before) = self.facts.get(BEFORE).and_then(|text| serde_json::from_str(&text).ok()) {
                drop_new(&target, before).await?;
            }
        }
        self.facts.forget(BEFORE)?;
        keys::forget(self.facts)?;
        if self.facts.get(CREATED).is_some() {
            self.sessions.forget(Side::Target);
            let end = self.sessions.end(Side::Target);
            let statement = format!("DROP DATABASE IF EXISTS {}", quote::name(&end.address.database));
            let server = maintenance(end).await?;
            end_others(&server, &end.address.database).await?;
            server.run("drop the database that was made", &statement).await?;
            self.facts.forget(CREATED)?;
        }
        self.drop_roles().await?;
        let _gone = std::fs::remove_file(self.file());
        Ok(())
    }

    async fn drop_roles(&self) -> Result<()> {
        let made: Vec<String> =
            self.facts.get(ROLES).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        if made.is_empty() {
            return Ok(());
        }
        let server = maintenance(self.sessions.end(Side::Target)).await?;
        for role in made.iter().rev() {
            let statement = format!("DROP ROLE IF EXISTS {}", quote::name(role));
            if let Err(error) = server.run(&format!("drop role {role}"), &statement).await {
                tracing::info!(role, %error, "a role that was made stays");
            }
        }
        self.facts.forget(ROLES)
    }
}

pub(super) fn unlike(first: &str, all: usize) -> Error {
    let more = if all > 1 { format!(" (and {} more)", all - 1) } else { String::new() };
    Error::permanent(
        ErrorKind::Unsupported,
        format!("the tables of the two sides are not alike: {first}{more}"),
    )
    .on(Side::Target)
    .hint("make the same change on the other side; changes of tables are not replicated")
}

pub(super) fn differences(ours: &[Table], theirs: &[Table]) -> Vec<String> {
    let by_name = |all: &[Table]| -> BTreeMap<String, Table> {
        all.iter().map(|table| (table.shown(), table.clone())).collect()
    };
    let (ours, theirs) = (by_name(ours), by_name(theirs));
    let mut found = Vec::new();
    for (name, table) in &ours {
        let Some(other) = theirs.get(name) else {
            found.push(format!("{name} is not on the target"));
            continue;
        };
        let columns = |table: &Table| -> BTreeMap<String, String> {
            table.columns.iter().map(|column| (column.name.clone(), column.kind.clone())).collect()
        };
        let (here, there) = (columns(table), columns(other));
        for (column, kind) in &here {
            match there.get(column) {
                None => found.push(format!("{name}.{column} is not on the target")),
                Some(other) if other != kind => {
                    found.push(format!("{name}.{column} is {kind} on the source and {other} on the target"));
                }
                Some(_) => {}
            }
        }
        let more = there.keys().filter(|column| !here.contains_key(*column));
        found.extend(more.map(|column| format!("{name}.{column} is not on the source")));
    }
    found.extend(
        theirs
            .keys()
            .filter(|name| !ours.contains_key(*name))
            .map(|name| format!("{name} is not on the source")),
    );
    found
}

pub(super) async fn major(session: &Session) -> Result<i32> {
    let row = session
        .row("read the version", "SELECT current_setting('server_version_num')::int4 / 10000", &[])
        .await?;
    Ok(row.get(0))
}

/// A session on the server's own database, for what cannot be done from inside another.
async fn maintenance(end: &End) -> Result<Session> {
    let address = Address { database: "postgres".into(), ..end.address.clone() };
    let password = end.password.as_deref();
    Box::pin(super::connect::connect_to(&address, password, Side::Target, super::connect::May::Write)).await
}

/// What follows holds secrets: as far as we may say so, the server's log is to leave it out.
pub(super) async fn quiet(session: &Session) {
    for setting in [
        "SET log_statement = 'none'",
        "SET log_min_duration_statement = -1",
        "SET log_min_error_statement = 'panic'",
        "SET pg_stat_statements.track_utility = off",
        "SET pgaudit.log = 'none'",
    ] {
        if session.try_run(setting).await.is_err() {
            tracing::debug!(setting, "this may not be set here");
        }
    }
}

#[derive(Debug)]
struct Role {
    name: String,
    is_superuser: bool,
    /// Words of `CREATE ROLE`.
    attributes: String,
    password: Option<String>,
    until: Option<String>,
}

impl Role {
    fn statement(&self) -> String {
        let mut statement = format!("CREATE ROLE {} WITH {}", quote::name(&self.name), self.attributes);
        if let Some(password) = &self.password {
            statement.push_str(" PASSWORD ");
            statement.push_str(&quote::literal(password));
        }
        if let Some(until) = &self.until {
            statement.push_str(" VALID UNTIL ");
            statement.push_str(&quote::literal(until));
        }
        statement
    }
}

/// Roles that own or may something in this database, who is a member of them, and what they are members of.
async fn roles(session: &Session, with_passwords: bool) -> Result<Vec<Role>> {
    let (from, password) = match with_passwords {
        true => ("pg_catalog.pg_authid", "r.rolpassword"),
        false => ("pg_catalog.pg_roles", "NULL::text"),
    };
    let statement = format!(
        "WITH RECURSIVE named AS (
            SELECT DISTINCT d.refobjid AS id FROM pg_catalog.pg_shdepend d
            WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND (
                d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                OR d.classid = 'pg_catalog.pg_database'::regclass
                   AND d.objid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
         ), under AS (
            SELECT id FROM named UNION SELECT m.member FROM pg_catalog.pg_auth_members m JOIN under u ON m.roleid = u.id
         ), above AS (
            SELECT id FROM under UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN above a ON m.member = a.id
         )
         SELECT r.rolname::text, r.rolsuper,
                concat_ws(' ', CASE WHEN r.rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,
                    CASE WHEN r.rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END,
                    CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                    CASE WHEN r.rolconnlimit >= 0 THEN 'CONNECTION LIMIT ' || r.rolconnlimit END),
                {password}, CASE WHEN r.rolvaliduntil < 'infinity' THEN r.rolvaliduntil::text END
         FROM {from} r WHERE r.oid IN (SELECT id FROM above) AND r.rolname !~ '^pg_' AND r.rolname <> current_user
         ORDER BY 1"
    );
    let rows = session.rows("read the roles", &statement, &[]).await?;
    let role = |row: &tokio_postgres::Row| Role {
        name: row.get(0),
        is_superuser: row.get(1),
        attributes: row.get(2),
        password: row.get(3),
        until: row.get(4),
    };
    Ok(rows.iter().map(role).collect())
}

async fn memberships(session: &Session) -> Result<Vec<(String, String)>> {
    let statement = "SELECT g.rolname::text, m.rolname::text FROM pg_auth_members a
                     JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1, 2";
    let rows = session.rows("read who is a member of what", statement, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Everything that people can make in a database, by number of catalog and object.
const OBJECTS: &str = "
SELECT o.class::text || ':' || o.id, (pg_catalog.pg_identify_object(o.class, o.id, 0)).type,
       (pg_catalog.pg_identify_object(o.class, o.id, 0)).identity
FROM (
    SELECT 'pg_catalog.pg_namespace'::regclass::oid AS class, oid AS id, 0 AS rank, nspname AS schema FROM pg_catalog.pg_namespace
    UNION ALL SELECT 'pg_catalog.pg_class'::regclass, c.oid, 1, n.nspname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, p.oid, 2, n.nspname FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    UNION ALL SELECT 'pg_catalog.pg_type'::regclass, t.oid, 3, n.nspname FROM pg_catalog.pg_type t
        JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
        WHERE t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND EXISTS (
            SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')
    UNION ALL SELECT 'pg_catalog.pg_extension'::regclass, oid, 4, '' FROM pg_catalog.pg_extension
) o
WHERE o.schema !~ '^pg_' AND o.schema NOT IN ('information_schema', 'rehome')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = o.class AND d.objid = o.id AND d.deptype IN ('e', 'i'))
ORDER BY o.rank, o.id DESC";

async fn objects(session: &Session) -> Result<Vec<String>> {
    let rows = session.rows("read what is there", OBJECTS, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Drops what was not there before.
async fn drop_new(session: &Session, before: BTreeSet<String>) -> Result<()> {
    loop {
        // Read again after each: one may take others with it.
        let rows = session.rows("read what is there", OBJECTS, &[]).await?;
        let Some(row) = rows.iter().find(|row| !before.contains(row.get::<_, &str>(0))) else {
            return Ok(());
        };
        let (kind, identity): (String, String) = (row.get(1), row.get(2));
        let statement = format!("DROP {kind} {identity} CASCADE");
        session.run(&format!("drop {kind} {identity}"), &statement).await?;
    }
}

/// The first table that has a row in it.
pub(super) async fn first_with_rows(session: &Session) -> Result<Option<Table>> {
    for table in tables::read(session).await? {
        let statement = format!("SELECT EXISTS (SELECT 1 FROM {})", tables::from(&table));
        if session.row(&format!("look into {}", table.shown()), &statement, &[]).await?.get(0) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

async fn end_others(server: &Session, database: &str) -> Result<()> {
    let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()";
    server.rows("end the sessions in a database that goes", statement, &[&database]).await.map(drop)
}
