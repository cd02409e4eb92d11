//! What moves besides rows: roles with passwords and rights, keys, foreign keys, triggers, views, sequences, tables that nothing names.

use crate::support::*;
use rehome_databases::postgres::PostgresPart;
use rehome_databases::{End, Ends, FenceMeans, Login};
use rehome_part::{CopySummary, Epoch, Flow, FollowState, Marker, Part, Scope, Side};
use rehome_testkit::postgres::Postgres;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SCHEMA: &str = "
    SET ROLE shop;
    CREATE TYPE state AS ENUM ('new', 'paid');
    CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
    CREATE TABLE orders (id bigserial PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, state state NOT NULL DEFAULT 'new');
    CREATE TABLE log (at int, text text);
    CREATE VIEW paid AS SELECT * FROM orders WHERE state = 'paid';
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO log VALUES (NEW.id::int, 'order'); RETURN NULL; END $$;
    CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note();
    GRANT SELECT ON orders TO reports;
    INSERT INTO customers (name) VALUES ('a'), ('b');
    INSERT INTO orders (customer) SELECT 1 FROM generate_series(1, 50);";

struct Two {
    source: Postgres,
    target: Postgres,
    folder: tempfile::TempDir,
}

impl Two {
    fn start() -> Option<Self> {
        let settings = [("wal_retrieve_retry_interval", "50ms")];
        let (source, target) = (server(&settings)?, server(&settings)?);
        for server in [&source, &target] {
            server.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN").unwrap();
        }
        let roles = "CREATE ROLE shop LOGIN PASSWORD 'spring'; CREATE ROLE readers NOLOGIN; CREATE ROLE reports LOGIN IN ROLE readers";
        source.sql("postgres", roles).unwrap();
        source.sql("postgres", "CREATE DATABASE shop OWNER shop").unwrap();
        source.sql("shop", SCHEMA).unwrap();
        Some(Self { source, target, folder: tempfile::tempdir().unwrap() })
    }

    fn part(&self) -> Arc<dyn Part> {
        let end = |server: &Postgres| End {
            applications: vec![Login { user: "shop".into(), password: None }],
            ..End::new(address(server, "rehome", "shop"), None)
        };
        let ends = Ends { source: end(&self.source), target: end(&self.target) };
        Arc::new(PostgresPart::new("shop", ends, FenceMeans::Writes, self.folder.path()).unwrap())
    }

    async fn copied(&self) -> CopySummary {
        let part = self.part();
        part.prepare().await.unwrap();
        part.fence(Side::Target).await.unwrap();
        part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap()
    }

    /// On both sides.
    fn same(&self, statement: &str) -> String {
        let (here, there) =
            (self.source.sql("shop", statement).unwrap(), self.target.sql("shop", statement).unwrap());
        assert_eq!(here, there, "{statement}");
        here
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_rows_moves_too() {
    let Some(two) = Two::start() else { return };
    assert_eq!(two.copied().await.objects, 2 + 50 + 50);
    let part = two.part();
    let (report, _state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (part, stop) = (two.part(), stop.clone());
        async move { part.follow(Flow::Forward, report, stop).await }
    });
    // Nothing names a row of the log, and it is changed all the same.
    two.source
        .sql("shop", "INSERT INTO orders (customer) SELECT 2 FROM generate_series(1, 20); UPDATE log SET text = 'seen' WHERE at = 60;
                      DELETE FROM log WHERE at = 61; UPDATE orders SET state = 'paid' WHERE id = 3")
        .unwrap();
    part.fence(Side::Source).await.unwrap();
    assert!(two.source.sql("shop", "SET ROLE shop; INSERT INTO customers (name) VALUES ('late')").is_err());
    let position = part.head(Flow::Forward).await.unwrap();
    let marker = Marker { epoch: Epoch::FIRST, nonce: "moved".into() };
    part.mark(Flow::Forward, &marker).await.unwrap();
    let drained = part.drain(Flow::Forward, &position, &marker, CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(30), drained).await.unwrap().unwrap();
    stop.cancel();
    following.await.unwrap().unwrap();
    let compared =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert!(compared.is_equal(), "{compared:?}");
    part.seal(Flow::Forward).await.unwrap();
    part.unfence(Side::Target).await.unwrap();

    assert_eq!(two.same("SELECT count(*), max(id) FROM orders"), "70|70");
    assert_eq!(two.same("SELECT count(*) FROM log WHERE text = 'seen' OR at = 61"), "1");
    assert_eq!(two.same("SELECT id FROM paid"), "3");
    two.same(
        "SELECT conname, contype FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1",
    );
    two.same("SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'rehome_fence'");
    two.same("SELECT relacl FROM pg_class WHERE relname = 'orders'");
    two.same("SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname IN ('shop', 'readers', 'reports') ORDER BY 1");
    two.same("SELECT pg_has_role('reports', 'readers', 'MEMBER')");
    // The application writes on the new owner: numbers go on behind the old ones, and its trigger fires once.
    let next = "SET ROLE shop; INSERT INTO orders (customer) VALUES (1) RETURNING id > 70, id < 200";
    assert_eq!(two.target.sql("shop", next).unwrap(), "t|t");
    let customer = "SET ROLE shop; INSERT INTO customers (name) VALUES ('c') RETURNING id > 2";
    assert_eq!(two.target.sql("shop", customer).unwrap(), "t");
    assert_eq!(two.target.sql("shop", "SELECT count(*) FROM log WHERE at > 70").unwrap(), "1");

    part.retire(Side::Target).await.unwrap();
    assert_eq!(two.same("SELECT relreplident FROM pg_class WHERE relname = 'log'"), "d");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changed_on_one_side_is_named() {
    let Some(two) = Two::start() else { return };
    two.copied().await;
    two.source.sql("shop", "ALTER TABLE orders ADD COLUMN note text").unwrap();
    let (report, _state) = watch::channel(FollowState::default());
    let part = two.part();
    let followed = part.follow(Flow::Forward, report, CancellationToken::new());
    let error = tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap().unwrap_err();
    assert!(error.text.contains("public.orders.note is not on the target"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_said() {
    let Some(two) = Two::start() else { return };
    two.copied().await;
    let name = two.target.sql("shop", "SELECT subname FROM pg_subscription").unwrap();
    two.target.sql("shop", &format!("ALTER SUBSCRIPTION {name} DISABLE")).unwrap();
    // Its reader leaves in a moment.
    let mut tries = 0;
    while two.source.sql("shop", &format!("SELECT pg_drop_replication_slot('{name}')")).is_err() {
        tries += 1;
        assert!(tries < 500, "the slot is never free");
    }
    let (report, _state) = watch::channel(FollowState::default());
    let part = two.part();
    let followed = part.follow(Flow::Forward, report, CancellationToken::new());
    let error = tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap().unwrap_err();
    assert!(error.text.contains("is gone") && error.hint.is_some(), "{error:?}");
}
