//! What moves besides rows: roles with passwords and rights, keys, foreign keys, triggers, views, sequences, tables that nothing names.

use crate::support::*;
use rehome_databases::postgres::PostgresPart;
use rehome_databases::{End, Ends, FenceMeans, Login};
use rehome_part::{CopySummary, Epoch, Flow, FollowState, Marker, Part, Scope, Side};
use rehome_testkit::postgres::Postgres;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
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

/// Writes until the fence ends it: new rows, changed rows, and rows that nothing names.
const WRITES: &str = "DO $$ BEGIN LOOP
        INSERT INTO public.orders (customer) VALUES (2);
        UPDATE public.orders SET state = 'paid' WHERE id = 10 + (random() * 40)::bigint;
        UPDATE public.log SET text = text || '.' WHERE at = 20 + (random() * 20)::int;
        COMMIT; PERFORM pg_sleep(0.01);
    END LOOP; END $$";

struct Two {
    source: Arc<Postgres>,
    target: Arc<Postgres>,
    folder: tempfile::TempDir,
    versions: Versions,
}

impl Two {
    fn start(versions: Versions) -> Self {
        let (source, target) = versions.start(&[("wal_retrieve_retry_interval", "50ms")]);
        for server in [&source, &target] {
            server.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN").unwrap();
        }
        let roles = "CREATE ROLE shop LOGIN PASSWORD 'spring'; CREATE ROLE readers NOLOGIN; CREATE ROLE reports LOGIN IN ROLE readers";
        source.sql("postgres", roles).unwrap();
        source.sql("postgres", "CREATE DATABASE shop OWNER shop").unwrap();
        source.sql("shop", SCHEMA).unwrap();
        Self { source: source.into(), target: target.into(), folder: tempfile::tempdir().unwrap(), versions }
    }

    fn on(&self, side: Side) -> &Arc<Postgres> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    fn part(&self) -> Arc<dyn Part> {
        let end = |server: &Postgres| End {
            applications: vec![Login { user: "shop".into(), password: None }],
            ..End::new(address(server, "rehome", "shop"), None)
        };
        let ends = Ends { source: end(&self.source), target: end(&self.target) };
        let part = PostgresPart::new("shop", ends, FenceMeans::Writes, self.folder.path()).unwrap();
        self.versions.part(part)
    }

    async fn copied(&self) -> CopySummary {
        let part = self.part();
        part.prepare().await.unwrap();
        part.fence(Side::Target).await.unwrap();
        part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap()
    }

    /// Follows while the giving side is written to, and switches to the other side; nobody says when the last write is.
    async fn switched(&self, flow: Flow, writes: &'static str) {
        let part = self.part();
        let (report, mut state) = watch::channel(FollowState::default());
        let stop = CancellationToken::new();
        let following = tokio::spawn({
            let (part, stop) = (self.part(), stop.clone());
            async move { part.follow(flow, report, stop).await }
        });
        let writer = tokio::task::spawn_blocking({
            let from = Arc::clone(self.on(flow.from()));
            move || from.sql("shop", writes)
        });
        let followed = state.wait_for(|state| state.changes_applied > 100);
        tokio::time::timeout(Duration::from_secs(30), followed).await.unwrap().unwrap();
        // Nothing names a row of the log, and it is changed all the same.
        let changes = "INSERT INTO orders (customer) SELECT 2 FROM generate_series(1, 20); UPDATE log SET text = 'seen' WHERE at = 50;
                       DELETE FROM log WHERE at = 49; UPDATE orders SET state = 'paid' WHERE id = 3";
        self.on(flow.from()).sql("shop", changes).unwrap();
        part.warm(flow).await.unwrap();
        part.fence(flow.from()).await.unwrap();
        assert!(writer.await.unwrap().is_err(), "the writer passed the fence");
        let late = "SET ROLE shop; INSERT INTO customers (name) VALUES ('late')";
        assert!(self.on(flow.from()).sql("shop", late).is_err());
        let position = part.head(flow).await.unwrap();
        let marker = Marker { epoch: Epoch::FIRST, nonce: format!("moved {flow}") };
        part.mark(flow, &marker).await.unwrap();
        let drained = part.drain(flow, &position, &marker, CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(30), drained).await.unwrap().unwrap();
        stop.cancel();
        following.await.unwrap().unwrap();
        let compared =
            part.verify(flow, Scope::Full, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
        assert!(compared.is_equal(), "{compared:?}");
        part.seal(flow).await.unwrap();
        part.unfence(flow.to()).await.unwrap();
    }

    /// On both sides.
    fn same(&self, statement: &str) -> String {
        let (here, there) =
            (self.source.sql("shop", statement).unwrap(), self.target.sql("shop", statement).unwrap());
        assert_eq!(here, there, "{statement}");
        here
    }

    fn same_besides_rows(&self) {
        // Since version 18 a column that may not be null has a constraint of its own.
        self.same(
            "SELECT conname, contype FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1",
        );
        self.same(
            "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'rehome_fence'",
        );
        // What an owner may is more from version to version.
        self.same(
            "SELECT a.grantee::regrole, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
             WHERE c.relname = 'orders' AND a.grantee <> c.relowner",
        );
        self.same("SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname IN ('shop', 'readers', 'reports') ORDER BY 1");
        self.same("SELECT pg_has_role('reports', 'readers', 'MEMBER')");
    }
}

/// There under writes, and back under writes.
pub async fn there_and_back(versions: Versions) {
    let two = Two::start(versions);
    assert_eq!(two.copied().await.objects, 2 + 50 + 50);
    two.switched(Flow::Forward, WRITES).await;

    assert_eq!(two.same("SELECT count(*) > 70, max(id) > 70 FROM orders"), "t|t");
    two.same("SELECT count(*), max(id) FROM orders");
    assert_eq!(two.same("SELECT count(*) FROM log WHERE text = 'seen' OR at = 49"), "1");
    assert_eq!(two.same("SELECT id FROM paid WHERE id < 10"), "3");
    two.same_besides_rows();
    // The application writes on the new owner: numbers go on behind the old ones, and its trigger fires once.
    let next = "SET ROLE shop; INSERT INTO orders (customer) VALUES (1) RETURNING id - (SELECT max(id) FROM orders) BETWEEN 1 AND 200";
    assert_eq!(two.target.sql("shop", next).unwrap(), "t");
    let customer = "SET ROLE shop; INSERT INTO customers (name) VALUES ('c') RETURNING id > 2";
    assert_eq!(two.target.sql("shop", customer).unwrap(), "t");
    let noted = "SELECT count(*) FROM log WHERE at = (SELECT max(id) FROM orders)";
    assert_eq!(two.target.sql("shop", noted).unwrap(), "1");

    two.switched(Flow::Reverse, WRITES).await;
    two.same("SELECT count(*), max(id) FROM orders");
    assert_eq!(two.same("SELECT count(*) FROM customers"), "3");
    two.same_besides_rows();
    assert_eq!(two.source.sql("shop", next).unwrap(), "t");

    two.part().retire(Side::Source).await.unwrap();
    assert_eq!(two.same("SELECT relreplident FROM pg_class WHERE relname = 'log'"), "d");
}

/// Large enough that its keys come after its rows, where the target's version lets them.
const LARGE: &str = "SET ROLE shop;
    CREATE TABLE large (id bigint PRIMARY KEY, code text NOT NULL UNIQUE, changed int NOT NULL DEFAULT 0, filler text NOT NULL);
    INSERT INTO large SELECT n, 'code ' || n, 0, repeat('x', 700) FROM generate_series(1, 60000) n;
    ANALYZE large";
const LARGE_WRITES: &str = "DO $$ DECLARE one bigint; other bigint; BEGIN LOOP
        one := 3 + (random() * 59990)::bigint; other := 3 + (random() * 59990)::bigint;
        UPDATE public.large SET changed = changed + 1 WHERE id IN (1, 2, one);
        DELETE FROM public.large WHERE id = other;
        COMMIT; PERFORM pg_sleep(0.002);
    END LOOP; END $$";

/// And whoever writes to it until a fence ends that.
fn with_a_large_table(versions: Versions) -> (Two, JoinHandle<std::io::Result<String>>) {
    let two = Two::start(versions);
    two.source.sql("shop", LARGE).unwrap();
    let writer = tokio::task::spawn_blocking({
        let source = Arc::clone(&two.source);
        move || source.sql("shop", LARGE_WRITES)
    });
    (two, writer)
}

/// A large table that changes all the while it is copied.
pub async fn large(versions: Versions, keys_after_rows: bool) {
    let (two, writer) = with_a_large_table(versions);
    let part = two.part();
    part.prepare().await.unwrap();
    let keys = "SELECT count(*) FROM pg_index WHERE indrelid = 'large'::regclass";
    assert_eq!(two.target.sql("shop", keys).unwrap(), if keys_after_rows { "0" } else { "2" });
    part.fence(Side::Target).await.unwrap();
    let copied = part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(100), copied).await.unwrap().unwrap();
    assert_eq!(two.same(keys), "2");
    assert_eq!(two.same("SELECT relreplident FROM pg_class WHERE relname = 'large'"), "d");
    two.switched(Flow::Forward, LARGE_WRITES).await;
    assert!(writer.await.unwrap().is_err(), "the writer passed the fence");
    assert_eq!(two.same("SELECT count(*) < 60000, min(changed), max(changed) > 20 FROM large"), "t|0|t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_gets_its_keys_after_its_rows() {
    let Some(versions) = Versions::own() else { return };
    large(versions, true).await;
}

/// Nobody is there to make the keys when the rows are: the changes that want them fail, and come when the keys do.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_nobody_made_are_made_by_whoever_comes_next() {
    let Some(versions) = Versions::own() else { return };
    let (two, writer) = with_a_large_table(versions);
    let part = two.part();
    part.prepare().await.unwrap();
    part.fence(Side::Target).await.unwrap();
    // Killed as soon as the server copies by itself.
    let killed = part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new());
    let subscribed = async {
        while two.target.sql("shop", "SELECT count(*) FROM pg_subscription").unwrap() == "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        biased;
        () = subscribed => {}
        ended = killed => panic!("too quick to be killed: {ended:?}"),
    }
    let state = "SELECT count(*) FROM pg_subscription_rel WHERE srrelid = 'large'::regclass AND srsubstate NOT IN ('i', 'd')";
    while two.target.sql("shop", state).unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let keys = "SELECT count(*) FROM pg_index WHERE indrelid = 'large'::regclass";
    assert_eq!(two.target.sql("shop", keys).unwrap(), "0");
    let copied = two.part();
    let copied = copied.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(100), copied).await.unwrap().unwrap();
    assert_eq!(two.same(keys), "2");
    two.switched(Flow::Forward, LARGE_WRITES).await;
    assert!(writer.await.unwrap().is_err(), "the writer passed the fence");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_rows_moves_too() {
    let Some(versions) = Versions::own() else { return };
    there_and_back(versions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changed_on_one_side_is_named() {
    let Some(versions) = Versions::own() else { return };
    let two = Two::start(versions);
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
    let Some(versions) = Versions::own() else { return };
    let two = Two::start(versions);
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

/// What extensions, partitions and collations make of tables. Keys in an order that is not that of their bytes.
const RICH: &str = "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION pg_trgm;
    SET ROLE shop;
    CREATE DOMAIN amount AS numeric CHECK (VALUE >= 0);
    CREATE COLLATION counted (provider = icu, locale = 'de-u-kn-true');
    CREATE TABLE people (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, mail citext UNIQUE, more hstore, name text COLLATE counted,
        loud text GENERATED ALWAYS AS (upper(name)) STORED);
    CREATE INDEX ON people USING gin (name gin_trgm_ops);
    CREATE TABLE words (word text COLLATE counted PRIMARY KEY, n int NOT NULL);
    CREATE TABLE days (day date, n int, sum amount NOT NULL, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
    CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2026-07-01') TO ('2027-01-01') PARTITION BY HASH (n);
    CREATE TABLE days_2_even PARTITION OF days_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE days_2_odd PARTITION OF days_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE days_other PARTITION OF days DEFAULT;
    CREATE MATERIALIZED VIEW per_day AS SELECT day, sum(sum) AS sum FROM days GROUP BY day;
    INSERT INTO people (mail, more, name) SELECT 'Shop' || n || '@Example.com', hstore('n', n::text), 'name ' || n FROM generate_series(1, 100) n;
    INSERT INTO words SELECT prefix || n, n FROM generate_series(1, 40) n, unnest(ARRAY['a', 'A', 'ä', 'z ']) prefix;
    INSERT INTO days SELECT date '2025-12-01' + n, n, n FROM generate_series(1, 400) n;
    REFRESH MATERIALIZED VIEW per_day";
const RICH_WRITES: &str = "DO $$ BEGIN LOOP
        INSERT INTO public.orders (customer) VALUES (2);
        UPDATE public.people SET more = more || hstore('at', now()::text), name = name || '.' WHERE mail = 'shop7@example.com';
        UPDATE public.days SET sum = sum + 1, day = day + 1 WHERE n = 1 + (random() * 390)::int;
        UPDATE public.words SET n = n + 1 WHERE word LIKE 'ä%';
        DELETE FROM public.words WHERE word = 'z ' || (random() * 40)::int;
        COMMIT; PERFORM pg_sleep(0.01);
    END LOOP; END $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extensions_partitions_and_collations_move_too() {
    let Some(versions) = Versions::own() else { return };
    let two = Two::start(versions);
    two.source.sql("shop", RICH).unwrap();
    two.copied().await;
    two.switched(Flow::Forward, RICH_WRITES).await;
    let same = [
        "SELECT extname, extversion FROM pg_extension ORDER BY 1",
        "SELECT string_agg(word, ' ' ORDER BY word) FROM words",
        "SELECT tableoid::regclass, count(*), sum(sum), max(day) FROM days GROUP BY 1 ORDER BY 1",
        "SELECT count(DISTINCT day) FROM per_day",
        "SELECT more -> 'n', loud, mail = 'SHOP7@example.com' FROM people WHERE mail = 'SHOP7@EXAMPLE.COM'",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
        "SELECT relname, relispartition, pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname LIKE 'days%' AND relkind IN ('r', 'p') ORDER BY 1",
    ];
    for statement in same {
        assert!(!two.same(statement).is_empty(), "{statement}");
    }
    let refused =
        two.target.sql("shop", "SET ROLE shop; INSERT INTO days VALUES ('2026-02-01', 7, -1)").unwrap_err();
    assert!(refused.to_string().contains("amount_check"), "{refused}");
    let next = "SET ROLE shop; INSERT INTO people (mail) VALUES ('new@example.com') RETURNING id > 100";
    assert_eq!(two.target.sql("shop", next).unwrap(), "t");
    two.switched(Flow::Reverse, RICH_WRITES).await;
    for statement in same {
        two.same(statement);
    }
}
