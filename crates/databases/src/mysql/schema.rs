//! The target's tables, views, routines and accounts, made as the source shows them. What was there before stays as it is; what was
//! made is written down first, so that it can be taken back.

use super::connect::Session;
use super::quote;
use crate::facts::Facts;
use mysql_async::Row;
use rehome_part::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

const MADE: &str = "made";

/// What `prepare` made.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Made {
    schema: bool,
    tables: Vec<String>,
    /// User and host.
    accounts: Vec<(String, String)>,
}

impl Made {
    fn read(facts: &Facts) -> Result<Self, Error> {
        let Some(text) = facts.get(MADE) else { return Ok(Self::default()) };
        serde_json::from_str(&text).map_err(|error| Error::permanent(ErrorKind::Corrupt, error.to_string()))
    }

    fn write(&self, facts: &Facts) -> Result<(), Error> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
        facts.set(MADE, &text)
    }
}

/// Two sessions of its own on the two sides, for one schema.
pub(super) struct Maker<'a> {
    pub source: Session,
    pub target: Session,
    pub schema: &'a str,
    pub facts: &'a Facts,
}

const DOING: &str = "make the schema";

fn text(row: &Row, place: usize) -> String {
    row.get::<Option<Vec<u8>>, _>(place)
        .flatten()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

impl Maker<'_> {
    /// Schema, tables and views, routines, accounts. `ours`: the migration's user, who is no account of the application.
    pub async fn make(&mut self, ours: &str, applications: &[String]) -> Result<(), Error> {
        let mut made = Made::read(self.facts)?;
        if self
            .names_on_target("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?")
            .await?
            .is_empty()
        {
            let shown = self
                .source
                .shown(DOING, &format!("SHOW CREATE DATABASE {}", quote::name(self.schema)))
                .await?;
            let statement = shown.first().map(|row| text(row, 1)).unwrap_or_default();
            made.schema = true;
            made.write(self.facts)?;
            self.target.say(DOING, &statement).await?;
        }
        self.target.say(DOING, &format!("USE {}", quote::name(self.schema))).await?;
        self.target.say(DOING, "SET SESSION foreign_key_checks = 0").await?;
        self.tables(&mut made).await?;
        self.routines().await?;
        self.views().await?;
        self.accounts(&mut made, ours, applications).await
    }

    async fn names_on_target(&mut self, statement: &str) -> Result<Vec<String>, Error> {
        self.target.rows(DOING, statement, (self.schema,)).await
    }

    async fn missing(&mut self, statement: &str) -> Result<Vec<String>, Error> {
        let mut wanted: Vec<String> = self.source.rows(DOING, statement, (self.schema,)).await?;
        let there = self.names_on_target(statement).await?;
        wanted.retain(|name| !there.contains(name));
        Ok(wanted)
    }

    async fn tables(&mut self, made: &mut Made) -> Result<(), Error> {
        let missing = self
            .missing(
                "SELECT TABLE_NAME FROM information_schema.TABLES
                 WHERE TABLE_SCHEMA = ? AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY 1",
            )
            .await?;
        if missing.is_empty() {
            return Ok(());
        }
        made.tables.extend(missing.iter().cloned());
        made.write(self.facts)?;
        for table in missing {
            let statement = self.shown("TABLE", &table, 1).await?;
            self.target.say(&format!("make the table {table}"), &statement).await?;
        }
        Ok(())
    }

    async fn shown(&mut self, what: &str, name: &str, place: usize) -> Result<String, Error> {
        let statement = format!("SHOW CREATE {what} {}.{}", quote::name(self.schema), quote::name(name));
        let shown = self.source.shown(DOING, &statement).await?;
        let shown = shown.first().map(|row| text(row, place)).unwrap_or_default();
        if shown.is_empty() {
            let text = format!("the definition of {name} cannot be read");
            let error = Error::permanent(ErrorKind::Credentials, text).on(self.source.side());
            return Err(
                error.hint("grant the migration's user SELECT on mysql.* and SHOW VIEW on the schema")
            );
        }
        Ok(shown)
    }

    /// A view may stand on another: as long as one can be made, the next is tried.
    async fn views(&mut self) -> Result<(), Error> {
        let mut missing = self
            .missing("SELECT TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = ? ORDER BY 1")
            .await?;
        while !missing.is_empty() {
            let (mut left, mut last) = (Vec::new(), None);
            for view in &missing {
                let statement = self.shown("VIEW", view, 1).await?;
                if let Err(error) = self.target.say(&format!("make the view {view}"), &statement).await {
                    left.push(view.clone());
                    last = Some(error);
                }
            }
            match last {
                Some(error) if left.len() == missing.len() => return Err(error),
                _ => missing = left,
            }
        }
        Ok(())
    }

    async fn routines(&mut self) -> Result<(), Error> {
        for what in ["PROCEDURE", "FUNCTION"] {
            let statement = format!(
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = ? AND ROUTINE_TYPE = '{what}'"
            );
            for routine in self.missing(&statement).await? {
                self.make_in_its_mode(what, &routine, 2, 3).await?;
            }
        }
        Ok(())
    }

    /// Triggers and events, once the rows are there: a trigger would act on each of them. Events stay disabled as on a replica.
    pub async fn finish(&mut self) -> Result<(), Error> {
        self.target.say(DOING, &format!("USE {}", quote::name(self.schema))).await?;
        let triggers = self
            .missing("SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = ? ORDER BY ACTION_ORDER")
            .await?;
        for trigger in triggers {
            self.make_in_its_mode("TRIGGER", &trigger, 2, 3).await?;
        }
        let events =
            self.missing("SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = ?").await?;
        for event in events {
            self.make_in_its_mode("EVENT", &event, 3, 4).await?;
        }
        Ok(())
    }

    /// A body means what it meant in the mode and the character set in which it was made.
    async fn make_in_its_mode(
        &mut self,
        what: &str,
        name: &str,
        body: usize,
        charset: usize,
    ) -> Result<(), Error> {
        let statement = format!("SHOW CREATE {what} {}.{}", quote::name(self.schema), quote::name(name));
        let shown = self.source.shown(DOING, &statement).await?;
        let unreadable = || {
            let text = format!("the definition of {name} cannot be read");
            Error::permanent(ErrorKind::Credentials, text)
                .hint("grant the migration's user SELECT on mysql.* and TRIGGER and EVENT on the schema")
        };
        let row = shown.first().ok_or_else(unreadable)?;
        let (mode, body, charset, collation) =
            (text(row, 1), text(row, body), text(row, charset), text(row, charset + 1));
        if body.is_empty() {
            return Err(unreadable().on(self.source.side()));
        }
        let body = if what == "EVENT" { as_on_a_replica(&body) } else { body };
        let doing = format!("make {name}");
        // The body travels as utf8mb4 whatever it was written in: only its collation is told.
        let _ = charset;
        let settings = format!(
            "SET SESSION sql_mode = {}, SESSION collation_connection = {}",
            quote::text(&mode),
            if collation.starts_with("utf8mb4") {
                quote::text(&collation)
            } else {
                "@@collation_connection".into()
            }
        );
        self.target.say(&doing, &settings).await?;
        self.target.say(&doing, &body).await?;
        self.target.say(&doing, "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO'").await
    }

    /// Accounts that may do something in this schema, with what they may do there and their passwords as the server keeps them.
    async fn accounts(&mut self, made: &mut Made, ours: &str, applications: &[String]) -> Result<(), Error> {
        for (user, host) in accounts_of(&mut self.source, self.schema, applications).await? {
            let named = "SELECT COUNT(*) FROM mysql.user WHERE User = ? AND Host = ?";
            let (there,): (u64,) = self.target.row(DOING, named, (&*user, &*host)).await?;
            if there > 0 || user == ours || user == super::own::REPLICA {
                continue;
            }
            made.accounts.push((user.clone(), host.clone()));
            made.write(self.facts)?;
            let account = quote::account(&user, &host);
            let doing = format!("make the account {account}");
            let shown = self.source.shown(&doing, &format!("SHOW CREATE USER {account}")).await?;
            let mut statements: Vec<String> = shown.iter().map(|row| text(row, 0)).collect();
            let grants = self.source.shown(&doing, &format!("SHOW GRANTS FOR {account}")).await?;
            let escaped = self.schema.replace('_', "\\_");
            let places = [format!("{}.", quote::name(self.schema)), format!("{}.", quote::name(&escaped))];
            let grants = grants.iter().map(|row| text(row, 0));
            statements.extend(grants.filter(|grant| places.iter().any(|place| grant.contains(place))));
            for statement in statements {
                // The words of a refusal may quote the statement, and with it a password's hash.
                self.target.say(&doing, &statement).await.map_err(|error| Error {
                    text: format!("the account {account} cannot be made"),
                    hint: Some("make it by hand, or grant the migration's user CREATE USER and all on the schema WITH GRANT OPTION".into()),
                    ..error
                })?;
            }
        }
        Ok(())
    }
}

/// `CREATE … EVENT … ENABLE` as the server writes it for one that came by replication.
fn as_on_a_replica(body: &str) -> String {
    if body.contains(" DISABLE ON SLAVE ") {
        return body.to_owned();
    }
    for word in [" ENABLE ", " DISABLE "] {
        if let Some((head, tail)) = body.split_once(word) {
            return format!("{head} DISABLE ON SLAVE {tail}");
        }
    }
    body.to_owned()
}

/// Accounts with a grant on the schema, and the application's own.
async fn accounts_of(
    session: &mut Session,
    schema: &str,
    applications: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let escaped = schema.replace('_', "\\_");
    let statement = "SELECT DISTINCT User, Host FROM (
            SELECT User, Host FROM mysql.db WHERE Db IN (?, ?)
            UNION SELECT User, Host FROM mysql.tables_priv WHERE Db = ?
            UNION SELECT User, Host FROM mysql.procs_priv WHERE Db = ?) granted
        WHERE User <> '' AND Host <> ''";
    let mut accounts: Vec<(String, String)> =
        session.rows("read the accounts", statement, (schema, &*escaped, schema, schema)).await?;
    for application in applications {
        let more: Vec<(String, String)> = session
            .rows("read the accounts", "SELECT User, Host FROM mysql.user WHERE User = ?", (&**application,))
            .await?;
        accounts.extend(more);
    }
    accounts.sort();
    accounts.dedup();
    Ok(accounts)
}

/// Takes back what was made and holds no rows.
pub(super) async fn unmake(target: &mut Session, schema: &str, facts: &Facts) -> Result<(), Error> {
    let doing = "take the schema back";
    let made = Made::read(facts)?;
    let mut is_kept = false;
    target.say(doing, "SET SESSION foreign_key_checks = 0").await?;
    for table in &made.tables {
        let named = format!("{}.{}", quote::name(schema), quote::name(table));
        let there: Vec<u64> = target
            .rows(
                doing,
                "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?",
                (schema, &**table),
            )
            .await?;
        if there.is_empty() {
            continue;
        }
        let rows: Vec<u64> = target.rows(doing, &format!("SELECT 1 FROM {named} LIMIT 1"), ()).await?;
        if rows.is_empty() {
            target.say(doing, &format!("DROP TABLE {named}")).await?;
        } else {
            // What was copied is not ours to throw away unasked.
            tracing::info!(table, "a table that prepare made stays: it is not empty");
            is_kept = true;
        }
    }
    let left =
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_TYPE <> 'VIEW'";
    let left: Vec<String> = target.rows(doing, left, (schema,)).await?;
    is_kept |= !left.is_empty();
    if made.schema && !is_kept {
        target.say(doing, &format!("DROP DATABASE IF EXISTS {}", quote::name(schema))).await?;
    }
    if !is_kept || !made.schema {
        for (user, host) in &made.accounts {
            target.say(doing, &format!("DROP USER IF EXISTS {}", quote::account(user, host))).await?;
        }
    }
    facts.forget(MADE)
}
