//! Two MariaDB servers with a schema that moves from one to the other, and the hands of the migration and of the application in them.

use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use rehome_databases::mysql::MysqlPart;
use rehome_databases::{Address, End, Ends, FenceMeans, Login};
use rehome_part::contract::{Refused, Rig};
use rehome_part::{Flow, FollowState, Part, Progress, Side};
use rehome_testkit::mariadb::Mariadb;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SECRET: &str = "not to be shown";
/// No more than the migration's user needs. SUPER is for the event scheduler's switch alone.
pub const RIGHTS: &str = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW,
    CREATE ROUTINE, ALTER ROUTINE, EXECUTE, EVENT, TRIGGER, CREATE USER, PROCESS, RELOAD, SUPER, SET USER, CONNECTION ADMIN, READ_ONLY ADMIN,
    BINLOG ADMIN, BINLOG MONITOR, BINLOG REPLAY, REPLICATION SLAVE, REPLICATION SLAVE ADMIN, SLAVE MONITOR";
const TABLE: &str = "CREATE TABLE shop.files (k varchar(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, content longblob NOT NULL)";
const APP: &str = "CREATE USER app@'%' IDENTIFIED BY 'app''s own'; GRANT SELECT, INSERT, UPDATE, DELETE ON shop.* TO app@'%'";

#[derive(Debug)]
pub struct World {
    pub source: Mariadb,
    pub target: Mariadb,
    pub state: tempfile::TempDir,
    means: FenceMeans,
}

pub async fn as_user(server: &Mariadb, user: &str, password: &str) -> mysql_async::Result<Conn> {
    let opts = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(server.port())
        .prefer_socket(false)
        .user(Some(user))
        .pass(Some(password));
    Conn::new(opts).await
}

impl World {
    pub fn start(means: FenceMeans, options: &[&str]) -> Option<Self> {
        if !rehome_testkit::mariadb::is_here() {
            return None;
        }
        let (source, target) = std::thread::scope(|scope| {
            let other = scope.spawn(|| Mariadb::start(options).unwrap());
            (Mariadb::start(options).unwrap(), other.join().unwrap())
        });
        for server in [&source, &target] {
            let mover = format!(
                "CREATE USER mover@'%' IDENTIFIED BY '{SECRET}'; GRANT {RIGHTS} ON *.* TO mover@'%' WITH GRANT OPTION"
            );
            server.sql("mysql", &mover).unwrap();
        }
        source.sql("mysql", &format!("CREATE DATABASE shop; {TABLE}; {APP}")).unwrap();
        Some(Self { source, target, state: tempfile::tempdir().unwrap(), means })
    }

    pub fn server(&self, side: Side) -> &Mariadb {
        if side == Side::Source { &self.source } else { &self.target }
    }

    pub fn mysql_part(&self) -> MysqlPart {
        self.mysql_part_of(self.ends())
    }

    pub fn mysql_part_of(&self, ends: Ends) -> MysqlPart {
        MysqlPart::new("shop", ends, self.means, self.state.path()).unwrap()
    }

    pub fn ends(&self) -> Ends {
        let end = |server: &Mariadb| {
            let address = Address::parse(&server.address("mover", "shop")).unwrap();
            let login = Login { user: "app".into(), password: Some("app's own".into()) };
            End { applications: vec![login], ..End::new(address, Some(SECRET.into())) }
        };
        Ends { source: end(&self.source), target: end(&self.target) }
    }

    pub async fn mover(&self, side: Side) -> Conn {
        as_user(self.server(side), "mover", SECRET).await.unwrap()
    }

    /// What a question of the migration's user is answered with, behind a fence, too.
    pub async fn mover_sql(&self, side: Side, statement: &str) -> Vec<String> {
        self.mover(side).await.query(statement).await.unwrap()
    }

    pub async fn app(&self, side: Side) -> mysql_async::Result<Conn> {
        as_user(self.server(side), "app", "app's own").await
    }

    async fn as_app(
        &self,
        side: Side,
        statement: &str,
        values: Vec<mysql_async::Value>,
    ) -> Result<(), Refused> {
        let refused = |error: mysql_async::Error| Refused(error.to_string());
        let mut conn = self.app(side).await.map_err(refused)?;
        conn.exec_drop(statement, mysql_async::Params::Positional(values)).await.map_err(refused)
    }
}

const WRITE: &str = "INSERT INTO shop.files VALUES (?, ?) ON DUPLICATE KEY UPDATE content = VALUES(content)";

#[async_trait]
impl Rig for World {
    fn part(&self) -> Arc<dyn Part> {
        Arc::new(self.mysql_part())
    }

    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused> {
        self.as_app(side, WRITE, vec![key.into(), content.into()]).await
    }

    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused> {
        self.as_app(side, "DELETE FROM shop.files WHERE k = ?", vec![key.into()]).await
    }

    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        let mut conn = self.mover(side).await;
        conn.exec_first("SELECT content FROM shop.files WHERE k = ?", (key,)).await.unwrap()
    }

    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>) {
        let mut conn = self.mover(side).await;
        conn.query_drop("SET SESSION sql_log_bin = 0").await.unwrap();
        match content {
            Some(content) => conn.exec_drop(WRITE, (key, content)).await.unwrap(),
            None => conn.exec_drop("DELETE FROM shop.files WHERE k = ?", (key,)).await.unwrap(),
        }
    }

    async fn write_late(&self, side: Side, key: &str, content: &[u8]) {
        self.mover(side).await.exec_drop(WRITE, (key, content)).await.unwrap();
    }

    async fn guard(&self, side: Side) -> String {
        let mut conn = self.mover(side).await;
        let mut all: Vec<String> = Vec::new();
        for statement in [
            "SELECT CONCAT('read_only ', @@GLOBAL.read_only, ', event_scheduler ', @@GLOBAL.event_scheduler)",
            "SELECT CONCAT('account ', User, '@', Host, ', locked ',
                COALESCE(JSON_VALUE(Priv, '$.account_locked'), '0') IN ('1', 'true'), ' ', COALESCE(JSON_VALUE(Priv, '$.authentication_string'), ''))
             FROM mysql.global_priv WHERE User NOT LIKE 'rehome%' ORDER BY User, Host",
            "SELECT CONCAT('may ', Db, User, Host) FROM mysql.db ORDER BY 1",
            "SELECT CONCAT('schema ', SCHEMA_NAME) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME <> 'rehome' ORDER BY 1",
            "SELECT CONCAT('table ', TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' ORDER BY 1",
        ] {
            let lines: Vec<Option<String>> = conn.query(statement).await.unwrap();
            all.extend(lines.into_iter().flatten());
        }
        all.join("\n")
    }

    async fn make_target(&self) {
        self.target.sql("mysql", &format!("CREATE DATABASE shop; {TABLE}; {APP}")).unwrap();
    }

    async fn remains(&self) -> Vec<String> {
        let mut all = Vec::new();
        for side in [Side::Source, Side::Target] {
            let mut conn = self.mover(side).await;
            for statement in [
                "SELECT CONCAT('schema ', SCHEMA_NAME) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'rehome'",
                "SELECT CONCAT('account ', User) FROM mysql.user WHERE User LIKE 'rehome%'",
            ] {
                let lines: Vec<String> = conn.query(statement).await.unwrap();
                all.extend(lines.into_iter().map(|line| format!("{side}: {line}")));
            }
            let slaves: Vec<mysql_async::Row> = conn.query("SHOW ALL SLAVES STATUS").await.unwrap();
            all.extend(slaves.iter().map(|_| format!("{side}: replication")));
        }
        if let Ok(flows) = std::fs::read_to_string(self.state.path().join("mysql-shop-flows.json"))
            && flows.trim() != "{}"
        {
            all.push(format!("state: {flows}"));
        }
        all
    }
}

#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

/// A follower in the background.
pub struct Following {
    task: JoinHandle<rehome_part::Result<()>>,
    stop: CancellationToken,
    pub state: watch::Receiver<FollowState>,
}

pub fn follow(part: &Arc<MysqlPart>, flow: Flow) -> Following {
    let (report, state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let (part, token) = (Arc::clone(part), stop.clone());
    let task = tokio::spawn(async move { part.follow(flow, report, token).await });
    Following { task, stop, state }
}

impl Following {
    pub async fn caught_up(&mut self) {
        let near = self.state.wait_for(|state| state.lag_seconds.is_some_and(|lag| lag < 0.2));
        tokio::time::timeout(Duration::from_secs(30), near).await.unwrap().unwrap();
    }

    /// Until everything that was written before this call is there.
    pub async fn reaches(&mut self, part: &MysqlPart, flow: Flow) {
        let head = part.head(flow).await.unwrap();
        let covered =
            |state: &FollowState| state.applied.as_ref().is_some_and(|applied| part.covers(applied, &head));
        tokio::time::timeout(Duration::from_secs(30), self.state.wait_for(covered)).await.unwrap().unwrap();
    }

    pub async fn finish(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// What it ended with by itself.
    pub async fn ended(self) -> rehome_part::Error {
        tokio::time::timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap().unwrap_err()
    }
}

pub async fn copy(part: &MysqlPart) -> rehome_part::CopySummary {
    part.prepare().await.unwrap();
    part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.unwrap()
}

/// Differences that a full comparison finds.
pub async fn differences(part: &MysqlPart) -> Vec<String> {
    let full = rehome_part::Scope::Full;
    let result = part.verify(Flow::Forward, full, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    assert_eq!(result.in_motion, 0);
    result.differences.into_iter().map(|one| one.text).collect()
}
