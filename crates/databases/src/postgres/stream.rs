//! The stream of one flow: a slot on the side that gives, a subscription on the side that takes. Both are made, looked at and removed
//! apart from each other, so that each step can be made again after a kill. Never more than one flow is switched on.

use super::connect::Session;
use super::lsn::Lsn;
use super::own::Names;
use super::quote;
use super::schema;
use super::sessions::Sessions;
use crate::address::{Address, Tls};
use crate::end::End;
use rehome_part::{Error, ErrorKind, Flow, Result};
use std::time::Duration;
use tokio::time::Instant;

/// How long a reader of a slot may take to leave it.
const LEAVE: Duration = Duration::from_secs(10);

/// The stream of `flow` of one part.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    pub sessions: &'a Sessions,
    pub names: &'a Names,
    pub flow: Flow,
}

/// With what a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// With a slot of its own and the rows that are there.
    Copy,
    /// At a slot that is there, and switched off.
    AtSlot,
}

impl Stream<'_> {
    fn name(&self) -> &str {
        self.names.stream(self.flow)
    }

    /// Makes the subscription where there is none.
    ///
    /// # Errors
    /// The receiving server cannot reach the other, or may not.
    pub async fn subscribe(&self, begin: Begin) -> Result<()> {
        let to = self.sessions.fresh(self.flow.to()).await?;
        if self.state(&to).await?.is_some() {
            return Ok(());
        }
        quiet_and_long(&to).await?;
        let with = match begin {
            Begin::Copy => "copy_data = true",
            Begin::AtSlot => "copy_data = false, create_slot = false, enabled = false",
        };
        let (name, from) = (self.name(), self.sessions.end(self.flow.from()));
        let statement = format!(
            "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (slot_name = {}, {with})",
            quote::name(name),
            quote::literal(&connection(from)),
            quote::name(&self.names.publication),
            quote::literal(name),
        );
        // What the server says of it may repeat the connection, password and all.
        to.try_run(&statement).await.map_err(|error| self.trouble(&to, &error, from))
    }

    fn trouble(&self, to: &Session, error: &tokio_postgres::Error, from: &End) -> Error {
        let mut trouble = to.error("subscribe", error);
        if let Some(password) = from.password.as_deref().filter(|password| !password.is_empty()) {
            trouble.text = trouble.text.replace(password, "…");
        }
        trouble.hint(format!(
            "the {}'s server must reach {}; name the address it has from there as `seen_by_other`",
            self.flow.to(),
            from.as_seen_by_other()
        ))
    }

    /// Is there a subscription, and is it switched on?
    pub async fn state(&self, to: &Session) -> Result<Option<bool>> {
        let statement = "SELECT subenabled FROM pg_catalog.pg_subscription
                         WHERE subname = $1 AND subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";
        let rows = to.rows("read the subscriptions", statement, &[&self.name()]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    pub async fn enable(&self) -> Result<()> {
        let to = self.sessions.on(self.flow.to()).await?;
        to.run(
            "switch the subscription on",
            &format!("ALTER SUBSCRIPTION {} ENABLE", quote::name(self.name())),
        )
        .await
    }

    /// The statement that switches it off where it is on; its worker ends by itself in a moment.
    pub fn disabling(&self) -> String {
        // There is no `IF EXISTS` for it, and no parameters in a block.
        format!(
            "DO $off$ BEGIN IF EXISTS (SELECT 1 FROM pg_catalog.pg_subscription WHERE subenabled AND subname = {})
             THEN ALTER SUBSCRIPTION {} DISABLE; END IF; END $off$;",
            quote::literal(self.name()),
            quote::name(self.name())
        )
    }

    /// Takes tables up that were published since, with their rows.
    pub async fn take_up_new_tables(&self) -> Result<()> {
        let to = self.sessions.fresh(self.flow.to()).await?;
        quiet_and_long(&to).await?;
        let statement = format!("ALTER SUBSCRIPTION {} REFRESH PUBLICATION", quote::name(self.name()));
        to.run("take up new tables", &statement).await
    }

    /// Removes the subscription; its slot stays, unless it only served a first copy that was not through.
    pub async fn unsubscribe(&self) -> Result<()> {
        let to = self.sessions.on(self.flow.to()).await?;
        let Some(is_on) = self.state(&to).await? else { return Ok(()) };
        let name = quote::name(self.name());
        if is_on {
            to.run("switch the subscription off", &format!("ALTER SUBSCRIPTION {name} DISABLE")).await?;
        }
        // Cut off from its slot first: then it can go although the other side may not be there.
        to.run("leave the slot", &format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await?;
        to.run("drop the subscription", &format!("DROP SUBSCRIPTION {name}")).await
    }

    /// Makes the slot where there is none, and gives the place it begins at.
    pub async fn make_slot(&self) -> Result<Lsn> {
        let from = self.sessions.on(self.flow.from()).await?;
        if let Some(slot) = self.slot(&from).await? {
            return Ok(slot.confirmed);
        }
        let statement = format!(
            "SELECT lsn::text FROM pg_create_logical_replication_slot({}, 'pgoutput')",
            quote::literal(self.name())
        );
        let rows = from.done("make a replication slot", &statement).await?;
        rows.first().and_then(|row| row.get(0)).unwrap_or_default().parse()
    }

    /// Ends what `writer` brings to this side and moves the slot to where the log ends then; makes it if need be. What was written
    /// before is not sent any more.
    ///
    /// A follower commits without waiting for the disk, and a slot does not move past what is on it: its last rows would be sent
    /// back to where they came from. So a commit of ours that waits comes first, on the same session and without waiting for its answer.
    pub async fn slot_from_now(&self, writer: &Self) -> Result<Lsn> {
        let flush = format!(
            "{} INSERT INTO rehome.done VALUES ('sealed') ON CONFLICT (step) DO UPDATE SET step = excluded.step",
            writer.disabling()
        );
        let moving = format!(
            "SELECT end_lsn::text FROM pg_replication_slots s,
                 LATERAL pg_replication_slot_advance(s.slot_name, pg_current_wal_flush_lsn()) WHERE s.slot_name = {}",
            quote::literal(self.name())
        );
        for _ in 0..2 {
            let from = self.sessions.on(self.flow.from()).await?;
            let (flushed, moved) = tokio::join!(
                from.run("bring everything to the disk", &flush),
                from.done("move the slot", &moving)
            );
            flushed?;
            match moved {
                Ok(rows) => match rows.first().and_then(|row| row.get(0)) {
                    Some(place) => return place.parse(),
                    None => break,
                },
                // Whoever read it until a moment ago may not have left.
                Err(error) if error.is_temporary() => {
                    drop(from);
                    self.free_slot().await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.make_slot().await
    }

    /// Ends both ends of a stream through which nothing comes although something was written; the servers begin it again. After a network
    /// has forgotten their connection each of them waits for the other, for a minute by default, and nobody else may read the slot.
    /// Both must be waiting for the network: whoever decodes or applies much is busy and not dead.
    pub async fn wake(&self, silent: Duration) -> Result<()> {
        let name = quote::literal(self.name());
        let (from, to) =
            tokio::try_join!(self.sessions.on(self.flow.from()), self.sessions.on(self.flow.to()))?;
        let reader = format!(
            "FROM pg_stat_subscription s JOIN pg_stat_activity a USING (pid) WHERE s.subname = {name} AND s.relid IS NULL
             AND a.wait_event = 'LogicalApplyMain' AND s.last_msg_receipt_time < now() - interval '{} s'",
            silent.as_secs()
        );
        if to.asked("look at the follower", &format!("SELECT s.pid {reader}")).await?.is_empty() {
            return Ok(());
        }
        let statement = format!(
            "SELECT CASE WHEN a.wait_event_type IN ('Client', 'Activity') THEN pg_terminate_backend(a.pid) ELSE false END
             FROM pg_replication_slots r JOIN pg_stat_activity a ON a.pid = r.active_pid WHERE r.slot_name = {name}"
        );
        let ended = from.asked("end a stream that is silent", &statement).await?;
        if ended.first().and_then(|row| row.get(0)) == Some("f") {
            return Ok(());
        }
        tracing::warn!(flow = %self.flow, "nothing comes through the stream; it is begun again");
        to.asked("end a stream that is silent", &format!("SELECT pg_terminate_backend(s.pid) {reader}"))
            .await
            .map(drop)
    }

    pub async fn drop_slot(&self) -> Result<()> {
        self.free_slot().await?;
        let from = self.sessions.on(self.flow.from()).await?;
        let statement = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
            quote::literal(self.name())
        );
        from.done("drop the replication slot", &statement).await.map(drop)
    }

    /// Ends whoever reads the slot, and waits until he is gone.
    async fn free_slot(&self) -> Result<()> {
        let from = self.sessions.on(self.flow.from()).await?;
        let until = Instant::now() + LEAVE;
        let statement = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                         WHERE slot_name = $1 AND active_pid IS NOT NULL";
        while !from.rows("free the replication slot", statement, &[&self.name()]).await?.is_empty() {
            if Instant::now() > until {
                let text =
                    format!("the replication slot {} is read by somebody who does not leave", self.name());
                return Err(Error::temporary(ErrorKind::Other, text).on(self.flow.from()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub async fn slot(&self, from: &Session) -> Result<Option<Slot>> {
        // `wal_status` is there since 13; a row as JSON has it or not.
        let statement = "
            SELECT coalesce(confirmed_flush_lsn, restart_lsn)::text, active_pid,
                   to_jsonb(s) ->> 'wal_status'
            FROM pg_replication_slots s WHERE slot_name = $1";
        let rows = from.rows("read the replication slot", statement, &[&self.name()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let confirmed = row.get::<_, Option<String>>(0).map_or(Ok(Lsn::default()), |text| text.parse())?;
        Ok(Some(Slot {
            confirmed,
            reader: row.get(1),
            is_lost: row.get::<_, Option<&str>>(2) == Some("lost"),
        }))
    }
}

/// A slot as its server tells of it.
#[derive(Debug)]
pub(super) struct Slot {
    /// Everything up to here was taken.
    pub confirmed: Lsn,
    pub reader: Option<i32>,
    /// The server threw away what it still had to give.
    pub is_lost: bool,
}

async fn quiet_and_long(session: &Session) -> Result<()> {
    schema::quiet(session).await;
    // Making a slot waits for every transaction that is open on the other side.
    session.run("wait as long as it takes", "SET statement_timeout = '10min'").await
}

/// As `libpq` on the receiving server wants it.
fn connection(from: &End) -> String {
    let Address { host, port, user, database, tls, .. } = from.as_seen_by_other();
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        let space = if text.is_empty() { "" } else { " " };
        text = format!("{text}{space}{name}='{escaped}'");
    };
    add("host", host.trim_start_matches('[').trim_end_matches(']'));
    add("port", &port.to_string());
    add("user", user);
    add("dbname", database);
    if let Some(password) = &from.password {
        add("password", password);
    }
    match tls {
        Tls::Off => add("sslmode", "disable"),
        Tls::Verified { authorities } => {
            add("sslmode", "verify-full");
            // A file on the receiving server; without one, its own user's `~/.postgresql/root.crt`.
            if let Some(path) = authorities {
                add("sslrootcert", &path.display().to_string());
            }
        }
    }
    add("keepalives_idle", "10");
    add("keepalives_interval", "5");
    add("keepalives_count", "3");
    add("connect_timeout", "10");
    // The receiving server confirms what it has every few seconds; a network that takes none of it is gone.
    add("tcp_user_timeout", "15000");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_end_its_quotes() {
        let address = Address::parse("postgres://m%27o@db.example/shop?sslrootcert=/etc/ca.pem").unwrap();
        let end = End::new(address, Some(r"it's\".to_owned()));
        let text = connection(&end);
        assert!(
            text.starts_with(r"host='db.example' port='5432' user='m\'o' dbname='shop' password='it\'s\\' "),
            "{text}"
        );
        assert!(text.contains("sslmode='verify-full' sslrootcert='/etc/ca.pem'"), "{text}");
    }
}
