//! The part of a PostgreSQL database against the suite that every part passes, on two real servers; each case in databases of its own.

use crate::support::*;
use async_trait::async_trait;
use rehome_databases::postgres::{May, PostgresPart, connect_to};
use rehome_databases::{Address, End, Ends, FenceMeans, Login};
use rehome_part::contract::{Options, Refused, Rig, check};
use rehome_part::{Part, Side};
use rehome_testkit::postgres::Postgres;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A server waits five seconds before it begins to follow again, unless it is told to be quick.
const SETTINGS: [(&str, &str); 7] = [
    ("wal_retrieve_retry_interval", "50ms"),
    ("max_replication_slots", "80"),
    ("max_wal_senders", "80"),
    ("max_worker_processes", "80"),
    ("max_logical_replication_workers", "60"),
    ("max_sync_workers_per_subscription", "2"),
    ("max_connections", "200"),
];

#[derive(Debug)]
struct Servers {
    source: Postgres,
    target: Postgres,
    used: AtomicU32,
    fence: FenceMeans,
    versions: Versions,
}

impl Servers {
    fn start(versions: Versions, fence: FenceMeans) -> Arc<Self> {
        let (source, target) = versions.start(&SETTINGS);
        source.sql("postgres", "CREATE ROLE shop LOGIN").unwrap();
        for server in [&source, &target] {
            server.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN").unwrap();
        }
        Arc::new(Self { source, target, used: AtomicU32::new(0), fence, versions })
    }

    fn on(&self, side: Side) -> &Postgres {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

#[derive(Debug)]
struct PostgresRig {
    servers: Arc<Servers>,
    database: String,
    folder: tempfile::TempDir,
}

const TABLE: &str =
    "CREATE TABLE items (key text PRIMARY KEY, content bytea NOT NULL); ALTER TABLE items OWNER TO shop";

impl PostgresRig {
    fn new(servers: Arc<Servers>) -> Self {
        let database = format!("shop{}", servers.used.fetch_add(1, Ordering::Relaxed));
        servers.source.sql("postgres", &format!("CREATE DATABASE {database} OWNER shop")).unwrap();
        servers.source.sql(&database, TABLE).unwrap();
        Self { servers, database, folder: tempfile::tempdir().unwrap() }
    }

    fn address(&self, side: Side, user: &str) -> Address {
        address(self.servers.on(side), user, &self.database)
    }

    async fn change(
        &self,
        side: Side,
        user: &str,
        before: &str,
        key: &str,
        content: Option<&[u8]>,
    ) -> Result<(), Refused> {
        let refused = |error: rehome_part::Error| Refused(error.text);
        let session = connect_to(&self.address(side, user), None, side, May::Write).await.map_err(refused)?;
        session.run("set", before).await.map_err(refused)?;
        let statement = match content {
            Some(_) => {
                "INSERT INTO public.items VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET content = excluded.content"
            }
            None => "DELETE FROM public.items WHERE key = $1 AND $2::bytea IS NULL",
        };
        session.rows("write", statement, &[&key, &content]).await.map(drop).map_err(refused)
    }
}

#[async_trait]
impl Rig for PostgresRig {
    fn part(&self) -> Arc<dyn Part> {
        let end = |side| End {
            applications: vec![Login { user: "shop".into(), password: None }],
            ..End::new(self.address(side, "rehome"), None)
        };
        let ends = Ends { source: end(Side::Source), target: end(Side::Target) };
        let part = PostgresPart::new("items", ends, self.servers.fence, self.folder.path()).unwrap();
        self.servers.versions.part(part)
    }

    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused> {
        self.change(side, "shop", "", key, Some(content)).await
    }

    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused> {
        self.change(side, "shop", "", key, None).await
    }

    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        let session = connect_to(&self.address(side, "postgres"), None, side, May::Read).await.ok()?;
        let statement = "SELECT content FROM public.items WHERE key = $1";
        let rows = session.rows("read", statement, &[&key]).await.ok()?;
        rows.first().map(|row| row.get(0))
    }

    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>) {
        // Not this server's own write, as if it were followed: no fence and no feed sees it.
        let before = "SET session_replication_role = replica";
        self.change(side, "postgres", before, key, content).await.unwrap();
    }

    async fn write_late(&self, side: Side, key: &str, content: &[u8]) {
        let before = "SET session_replication_role = replica";
        self.change(side, "postgres", before, key, Some(content)).await.unwrap();
    }

    async fn guard(&self, side: Side) -> String {
        let server = self.servers.on(side);
        let roles =
            server.sql("postgres", "SELECT string_agg(rolname, ' ' ORDER BY 1) FROM pg_roles").unwrap();
        let database = &self.database;
        let door = format!(
            "SELECT coalesce(datacl, acldefault('d', datdba)) FROM pg_database WHERE datname = '{database}'"
        );
        let door = server.sql("postgres", &door).unwrap();
        if door.is_empty() {
            return format!("no database; roles {roles}");
        }
        let inside = server
            .sql(
                database,
                "SELECT string_agg(concat_ws(' ', c.relname, c.relreplident, t.tgname, t.tgenabled), ', ' ORDER BY c.relname)
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgenabled <> 'D'
                 WHERE n.nspname = 'public';
                 SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                 WHERE d.datname = current_database()",
            )
            .unwrap();
        format!("{door}; {inside}")
    }

    async fn make_target(&self) {
        let server = &self.servers.target;
        let _there = server.sql("postgres", "CREATE ROLE shop LOGIN");
        server.sql("postgres", &format!("CREATE DATABASE {} OWNER shop", self.database)).unwrap();
        server.sql(&self.database, TABLE).unwrap();
    }

    async fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        for side in [Side::Source, Side::Target] {
            let server = self.servers.on(side);
            let slots = format!(
                "SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = '{}'",
                self.database
            );
            found.extend(
                server.sql("postgres", &slots).unwrap().lines().map(|line| format!("{side}: {line}")),
            );
            let Ok(inside) = server.sql(
                &self.database,
                "SELECT 'table ' || relname FROM pg_class WHERE relnamespace = to_regnamespace('rehome') AND relkind = 'r'
                 UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname ~ 'rehome' AND tgenabled = 'D'
                 UNION ALL SELECT 'publication ' || pubname FROM pg_publication
                 UNION ALL SELECT 'subscription ' || subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
                           WHERE d.datname = current_database()",
            ) else {
                continue;
            };
            found.extend(inside.lines().map(|line| format!("{side}: {line}")));
        }
        found
    }
}

/// Every case of the suite between servers of these versions.
///
/// # Errors
/// The cases that failed.
pub async fn lives(versions: Versions, fence: FenceMeans) -> Result<(), String> {
    let servers = Servers::start(versions, fence);
    check(async || PostgresRig::new(servers.clone()), &Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_closed_to_writes_lives_as_every_part_does() {
    let Some(versions) = Versions::own() else { return };
    lives(versions, FenceMeans::Writes).await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_closed_to_logins_lives_as_every_part_does() {
    let Some(versions) = Versions::own() else { return };
    lives(versions, FenceMeans::Logins).await.unwrap_or_else(|why| panic!("{why}"));
}
