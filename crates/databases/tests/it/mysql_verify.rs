//! Comparisons on a real MariaDB: what is the same, and what differs and by which row.

use crate::support::*;
use rehome_databases::Address;
use rehome_databases::verify::{Compared, Found, Options, Pair, Progress, Row, What, verify};
use rehome_testkit::mariadb::Mariadb;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Every kind of key, and values whose text depends on settings.
pub const SHOP: &str = "
    CREATE TABLE orders (id bigint unsigned PRIMARY KEY, at timestamp(3) NULL, amount decimal(12,2), ratio float, exact double,
        note varchar(200), data json, raw varbinary(20), body longblob, kind enum('a','b'), tags set('x','y'), bits bit(5),
        place point, took time(2), one uuid, double_amount decimal(13,2) AS (amount * 2) STORED);
    INSERT INTO orders (id, at, amount, ratio, exact, note, data, raw, body, kind, tags, bits, place, took, one)
        SELECT seq, FROM_UNIXTIME(1700000000 + seq), seq / 7, seq / 3, seq / 3, IF(seq % 5, CONCAT('nöte ', seq), NULL),
            CONCAT('{\"n\":', seq, '}'), UNHEX(LPAD(HEX(seq), 8, '0')), REPEAT('x', seq % 50), 'b', 'x,y', seq % 31,
            POINT(seq, 1), '12:00:00.5', UUID() FROM seq_1_to_3000;
    CREATE TABLE items (order_id bigint, line smallint, what text, PRIMARY KEY (order_id, line));
    INSERT INTO items SELECT seq DIV 3, seq % 3, CONCAT('item ', seq) FROM seq_1_to_3000;
    CREATE TABLE customers (email varchar(100) PRIMARY KEY, `Na``me` text) CHARSET latin1;
    INSERT INTO customers SELECT CONCAT('Kunde', seq, '@example.com'), CONCAT('Zoë ', seq) FROM seq_1_to_2000;
    CREATE TABLE clicks (page varchar(20), at datetime);
    INSERT INTO clicks SELECT CONCAT('page ', seq % 10), NULL FROM seq_1_to_1000;
    CREATE TABLE marks (id binary(4), n decimal(5,1), d date, PRIMARY KEY (d, n, id));
    INSERT INTO marks SELECT UNHEX(LPAD(HEX(seq), 8, '0')), seq / 10, DATE'2026-01-01' + INTERVAL seq % 9 DAY FROM seq_1_to_900;
    CREATE TABLE rates (r float PRIMARY KEY);
    INSERT INTO rates SELECT seq / 3 FROM seq_1_to_500;
    CREATE TABLE empty (id uuid PRIMARY KEY);";

struct Shop {
    server: Mariadb,
    marks: tempfile::TempDir,
}

impl Shop {
    fn start() -> Option<Self> {
        let server = mariadb(&[])?;
        server.sql("mysql", "CREATE DATABASE one; CREATE DATABASE two").unwrap();
        server.sql("one", SHOP).unwrap();
        for table in server.sql("one", "SHOW TABLES").unwrap().lines() {
            let copied = format!("CREATE TABLE two.{table} LIKE one.{table}");
            server.sql("two", &copied).unwrap();
            let columns = "SELECT GROUP_CONCAT(CONCAT('`', REPLACE(COLUMN_NAME, '`', '``'), '`')) FROM information_schema.COLUMNS
                WHERE TABLE_SCHEMA = 'one' AND EXTRA NOT LIKE '%GENERATED%' AND TABLE_NAME = ";
            let columns = server.sql("one", &format!("{columns} '{table}'")).unwrap();
            let filled = format!("INSERT INTO two.{table} ({columns}) SELECT {columns} FROM one.{table}");
            server.sql("two", &filled).unwrap();
        }
        // Another default there must not look like another value.
        server.sql("mysql", "SET GLOBAL time_zone = '+08:00'; SET GLOBAL sql_mode = 'ANSI'").unwrap();
        Some(Self { server, marks: tempfile::tempdir().unwrap() })
    }

    async fn compare(&self, options: &Options) -> (Vec<Compared>, u64) {
        let end = |database| {
            let address = Address::parse(&self.server.socket_address("root", database)).unwrap();
            (address, None)
        };
        let pair = Pair { source: end("one"), target: end("two") };
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        let compared = verify(&pair, options, self.marks.path(), progress.clone(), stop).await.unwrap();
        (compared, progress.rows.load(Ordering::Relaxed))
    }
}

fn at_once() -> Options {
    Options { chunk_rows: 300, jobs: 2, patience: Duration::ZERO, ..Options::default() }
}

fn row(key: &[&str], what: What) -> Row {
    Row { key: key.iter().map(|value| (*value).to_owned()).collect(), what }
}

#[tokio::test]
async fn the_same_rows_are_the_same_whatever_the_settings() {
    let Some(shop) = Shop::start() else { return };
    let (compared, rows) = shop.compare(&at_once()).await;
    let found: Vec<(&str, u64, u64)> =
        compared.iter().map(|one| (&*one.table, one.source_rows, one.target_rows)).collect();
    let wanted = [
        ("clicks", 1000, 1000),
        ("customers", 2000, 2000),
        ("empty", 0, 0),
        ("items", 3000, 3000),
        ("marks", 900, 900),
        ("orders", 3000, 3000),
        ("rates", 500, 500),
    ];
    assert_eq!(found, wanted);
    assert_eq!(rows, 10_400);
    assert!(compared.iter().all(|one| one.found == Found::Same && one.looked_again == 0), "{compared:?}");
}

#[tokio::test]
async fn each_difference_has_a_name() {
    let Some(shop) = Shop::start() else { return };
    shop.server
        .sql(
            "two",
            "DELETE FROM orders WHERE id IN (1, 2424); UPDATE orders SET ratio = ratio * 1.000001 WHERE id = 700;
             UPDATE orders SET note = '' WHERE id = 5; UPDATE orders SET body = CONCAT(body, ' ') WHERE id = 900;
             INSERT INTO orders (id) VALUES (99999); DELETE FROM items WHERE order_id = 7 AND line = 2;
             UPDATE customers SET `Na``me` = 'Zoe 3' WHERE email = 'Kunde3@example.com';
             DELETE FROM clicks WHERE page = 'page 3' LIMIT 1; UPDATE marks SET n = 5000 WHERE id = UNHEX('00000011');
             DELETE FROM rates ORDER BY r LIMIT 1",
        )
        .unwrap();
    let (compared, _) = shop.compare(&at_once()).await;
    let of = |table: &str| compared.iter().find(|one| one.table == table).unwrap();
    let mut rows = of("orders").rows.clone();
    rows.sort();
    let wanted = [
        row(&["1"], What::OnlyOnSource),
        row(&["2424"], What::OnlyOnSource),
        row(&["5"], What::Differs),
        row(&["700"], What::Differs),
        row(&["900"], What::Differs),
        row(&["99999"], What::OnlyOnTarget),
    ];
    assert_eq!(rows, wanted);
    assert_eq!(of("items").rows, [row(&["7", "2"], What::OnlyOnSource)]);
    assert_eq!(of("customers").rows, [row(&["Kunde3@example.com"], What::Differs)]);
    assert_eq!((of("clicks").differing, of("rates").differing), (1, 1));
    let mut marks = of("marks").rows.clone();
    marks.sort();
    let there = ["2026-01-09", "1.7", "00000011"];
    assert_eq!(marks[0], row(&there, What::OnlyOnSource));
    assert_eq!(marks[1], row(&["2026-01-09", "5000.0", "00000011"], What::OnlyOnTarget));
}
