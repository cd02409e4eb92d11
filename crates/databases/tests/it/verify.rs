//! Comparisons on a real server: what is the same, what differs and by which row, what is only late, and going on after an end.

use crate::support::*;
use rehome_databases::verify::{Compared, Found, Options, Pair, Progress, Row, What, verify};
use rehome_part::{Error, Side};
use rehome_testkit::postgres::Postgres;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Every kind of key, and values whose text depends on settings.
const SHOP: &str = r#"
    CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz, amount numeric(12,2), ratio float8, note text, data jsonb, raw bytea,
        tags text[], took interval);
    INSERT INTO orders SELECT n, timestamptz '2026-03-29 01:30Z' + n * interval '1 minute', n / 7.0, n / 3.0::float8,
        CASE WHEN n % 5 = 0 THEN NULL ELSE 'note ' || n END, jsonb_build_object('n', n), decode(lpad(to_hex(n), 8, '0'), 'hex'),
        ARRAY['a', n::text], n * interval '1 hour' FROM generate_series(1, 5000) n;
    CREATE TABLE items (order_id bigint, line smallint, what text, PRIMARY KEY (order_id, line));
    INSERT INTO items SELECT n / 3, n % 3, 'item ' || n FROM generate_series(1, 3000) n;
    CREATE TABLE customers (email text PRIMARY KEY, "Na""me" text);
    INSERT INTO customers SELECT 'Kunde' || n || '@example.com', 'Zoë ' || n FROM generate_series(1, 2000) n;
    CREATE TABLE clicks (page text, at timestamp);
    INSERT INTO clicks SELECT 'page ' || n % 10, NULL FROM generate_series(1, 1000) n;
    CREATE TABLE days (day date, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
    CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    INSERT INTO days SELECT date '2026-01-01' + n % 365, n FROM generate_series(0, 1999) n;
    CREATE TABLE "nothing here" ();
    CREATE TABLE empty (id uuid PRIMARY KEY);
    ANALYZE;"#;

struct Shop {
    server: Postgres,
    marks: tempfile::TempDir,
}

impl Shop {
    fn start() -> Option<Self> {
        let server = server(&[])?;
        for database in ["one", "two"] {
            server.sql("postgres", &format!("CREATE DATABASE {database}")).unwrap();
            server.sql(database, SHOP).unwrap();
        }
        // Another default there must not look like another value.
        server
            .sql("postgres", "ALTER DATABASE two SET timezone = 'Asia/Shanghai'; ALTER DATABASE two SET datestyle = 'German'")
            .unwrap();
        Some(Self { server, marks: tempfile::tempdir().unwrap() })
    }

    fn pair(&self) -> Pair {
        let end = |database| (address(&self.server, "postgres", database), None);
        Pair { source: end("one"), target: end("two") }
    }

    async fn compare(&self, options: &Options) -> Result<Vec<Compared>, Error> {
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        verify(&self.pair(), options, self.marks.path(), progress, stop).await
    }
}

fn at_once() -> Options {
    Options { chunk_rows: 700, patience: Duration::ZERO, ..Options::default() }
}

fn of<'a>(compared: &'a [Compared], table: &str) -> &'a Compared {
    compared.iter().find(|one| one.table == table).unwrap()
}

fn row(key: &[&str], what: What) -> Row {
    Row { key: key.iter().map(|value| (*value).to_owned()).collect(), what }
}

#[tokio::test]
async fn the_same_rows_are_the_same_whatever_the_settings() {
    let Some(shop) = Shop::start() else { return };
    let compared = shop.compare(&at_once()).await.unwrap();
    let found: Vec<(&str, u64, u64)> =
        compared.iter().map(|one| (&*one.table, one.source_rows, one.target_rows)).collect();
    assert_eq!(
        found,
        [
            ("public.clicks", 1000, 1000),
            ("public.customers", 2000, 2000),
            ("public.days", 2000, 2000),
            ("public.empty", 0, 0),
            ("public.items", 3000, 3000),
            ("public.nothing here", 0, 0),
            ("public.orders", 5000, 5000),
        ]
    );
    assert!(compared.iter().all(|one| one.found == Found::Same && one.looked_again == 0), "{compared:?}");
    assert_eq!(std::fs::read_dir(shop.marks.path()).unwrap().count(), 0, "the marks are gone at the end");
}

#[tokio::test]
async fn each_difference_has_a_name() {
    let Some(shop) = Shop::start() else { return };
    shop.server
        .sql(
            "two",
            r#"DELETE FROM orders WHERE id IN (1, 4242);
               UPDATE orders SET ratio = ratio + 1e-12 WHERE id = 700;
               UPDATE orders SET note = '' WHERE id = 5;
               INSERT INTO orders (id) VALUES (-1), (9999);
               DELETE FROM items WHERE order_id = 7 AND line = 2;
               UPDATE customers SET "Na""me" = 'Zoe 3' WHERE email = 'Kunde3@example.com';
               DELETE FROM clicks WHERE ctid = (SELECT ctid FROM clicks WHERE page = 'page 3' LIMIT 1);
               UPDATE days SET n = 5000 WHERE n = 1999;"#,
        )
        .unwrap();
    let compared = shop.compare(&at_once()).await.unwrap();
    let orders = of(&compared, "public.orders");
    assert_eq!(orders.found, Found::Differs);
    assert_eq!((orders.source_rows, orders.target_rows, orders.differing), (5000, 5000, 6));
    let mut rows = orders.rows.clone();
    rows.sort();
    assert_eq!(
        rows,
        [
            row(&["-1"], What::OnlyOnTarget),
            row(&["1"], What::OnlyOnSource),
            row(&["4242"], What::OnlyOnSource),
            row(&["5"], What::Differs),
            row(&["700"], What::Differs),
            row(&["9999"], What::OnlyOnTarget),
        ]
    );
    assert_eq!(of(&compared, "public.items").rows, [row(&["7", "2"], What::OnlyOnSource)]);
    assert_eq!(of(&compared, "public.customers").rows, [row(&["Kunde3@example.com"], What::Differs)]);
    let clicks = of(&compared, "public.clicks");
    assert_eq!((clicks.differing, clicks.rows[0].what), (1, What::Differs), "one of equal rows is gone");
    let days = of(&compared, "public.days");
    assert_eq!(
        days.rows,
        [row(&["2026-06-24", "1999"], What::OnlyOnSource), row(&["2026-06-24", "5000"], What::OnlyOnTarget)]
    );
    assert!(of(&compared, "public.empty").is_same());
}

#[tokio::test]
async fn a_large_table_is_cut_for_several_workers_and_nothing_falls_between() {
    let Some(shop) = Shop::start() else { return };
    shop.server
        .sql("two", "DELETE FROM orders WHERE id % 50 = 0; INSERT INTO orders (id) VALUES (-7), (12345)")
        .unwrap();
    shop.server.sql("two", "DELETE FROM items WHERE line = 1 AND order_id % 100 = 0").unwrap();
    for (chunk_rows, jobs) in [(100, 4), (33, 7), (1000, 2), (5000, 1)] {
        let options = Options { chunk_rows, jobs, most_named: 200, ..at_once() };
        let compared = shop.compare(&options).await.unwrap();
        let (orders, items) = (of(&compared, "public.orders"), of(&compared, "public.items"));
        assert_eq!((orders.source_rows, orders.target_rows), (5000, 4902), "{chunk_rows} {jobs}");
        assert_eq!(
            (orders.differing, orders.rows.len(), items.differing),
            (102, 102, 10),
            "{chunk_rows} {jobs}"
        );
    }
}

#[tokio::test]
async fn a_change_on_its_way_is_no_difference_and_one_that_never_comes_is() {
    let Some(shop) = Shop::start() else { return };
    let change = "UPDATE orders SET note = 'changed' WHERE id BETWEEN 100 AND 110";
    shop.server.sql("one", change).unwrap();
    // Applied on the source, skipped on the target.
    shop.server.sql("one", "UPDATE items SET what = 'lost' WHERE order_id = 50 AND line = 1").unwrap();
    let tables = vec!["public.orders".to_owned(), "public.items".to_owned()];
    let options = Options { patience: Duration::from_secs(4), tables, ..at_once() };
    let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
    let late = async {
        // Once everything was summed up, and so the change was missed.
        while progress.rows.load(Ordering::Relaxed) < 8000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shop.server.sql("two", change).unwrap();
    };
    let pair = shop.pair();
    let (compared, ()) =
        tokio::join!(verify(&pair, &options, shop.marks.path(), progress.clone(), stop), late);
    let compared = compared.unwrap();
    let orders = of(&compared, "public.orders");
    assert_eq!((&orders.found, orders.looked_again), (&Found::Same, 1));
    assert_eq!(of(&compared, "public.items").rows, [row(&["50", "1"], What::Differs)]);
}

#[tokio::test]
async fn a_row_that_changes_at_every_look_is_not_called_the_same() {
    let Some(shop) = Shop::start() else { return };
    let hot = "DO $$ BEGIN LOOP
            UPDATE orders SET note = 'hot ' || random() WHERE id = 17; COMMIT; PERFORM pg_sleep(0.02);
        END LOOP; END $$";
    let address = shop.server.address("postgres", "one");
    let mut writer = Command::new(rehome_testkit::postgres::programs().unwrap().join("psql"));
    let mut writer = writer.args(["-X", "-q", "-c", hot]).arg(address).stderr(Stdio::null()).spawn().unwrap();
    while shop.server.sql("one", "SELECT note FROM orders WHERE id = 17").unwrap() == "note 17" {}
    let options = Options { tables: vec!["public.orders".into()], ..at_once() };
    let compared = shop.compare(&options).await.unwrap();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!((&compared[0].found, compared[0].unsettled, compared[0].differing), (&Found::Unsettled, 1, 0));
}

#[tokio::test]
async fn tables_that_cannot_be_compared_are_told() {
    let Some(shop) = Shop::start() else { return };
    shop.server
        .sql("two", "DROP TABLE clicks; ALTER TABLE items DROP COLUMN what; CREATE TABLE extra ()")
        .unwrap();
    shop.server.sql("two", "ALTER TABLE orders ALTER COLUMN note TYPE varchar(100)").unwrap();
    let compared = shop.compare(&at_once()).await.unwrap();
    assert_eq!(of(&compared, "public.clicks").found, Found::Missing(Side::Target));
    assert_eq!(of(&compared, "public.extra").found, Found::Missing(Side::Source));
    let items = of(&compared, "public.items");
    assert_eq!((&items.found, &*items.notes[0]), (&Found::Unlike, "column what is not on the target"));
    let orders = of(&compared, "public.orders");
    assert_eq!(orders.found, Found::Same);
    assert_eq!(orders.notes, ["column note is text here and character varying(100) there"]);
    let unknown = Options { tables: vec!["public.orderz".into()], ..at_once() };
    let error = shop.compare(&unknown).await.unwrap_err();
    assert!(error.text.contains("public.orderz"), "{error}");
}

fn marks(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test]
async fn one_that_was_ended_goes_on_and_forgets_no_difference() {
    let Some(shop) = Shop::start() else { return };
    shop.server.sql("two", "DELETE FROM orders WHERE id = 3").unwrap();
    let options = Options { chunk_rows: 1, jobs: 3, tables: vec!["public.orders".into()], ..at_once() };
    let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
    let ended = async {
        for _ in 0..4000 {
            if progress.rows.load(Ordering::Relaxed) >= 2000 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let pair = shop.pair();
    let first = verify(&pair, &options, shop.marks.path(), progress.clone(), stop.clone());
    let (first, ()) = tokio::join!(first, ended);
    assert_eq!(first.unwrap_err().kind, rehome_part::ErrorKind::Cancelled);
    let file = std::fs::read_dir(shop.marks.path()).unwrap().next().unwrap().unwrap().path();
    let noted: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(noted["public.orders"]["parts"].as_array().unwrap().len(), 3, "{noted}");
    let reached = progress.rows.load(Ordering::Relaxed);
    assert!((2000..5000).contains(&reached), "{reached}");
    // What is gone over already is not read again: a new difference there is for the next comparison.
    shop.server.sql("two", "DELETE FROM orders WHERE id = 4").unwrap();
    let compared = shop.compare(&options).await.unwrap();
    assert_eq!(compared[0].source_rows, 5000);
    let mut rows = compared[0].rows.clone();
    rows.sort();
    assert_eq!(rows.first(), Some(&row(&["3"], What::OnlyOnSource)), "known from before");
    assert_eq!(marks(shop.marks.path()), 0);
}
