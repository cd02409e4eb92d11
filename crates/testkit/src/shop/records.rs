//! Where a shop keeps orders and receipts: in its cloud's bucket, or in PostgreSQL with connections that it keeps, as applications do.

use super::{ORDERS, Order, RECEIPTS, Refusal, Wish};
use crate::s3::S3;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

/// The shop's tables. An order keeps every request that was applied to it; a receipt says which cloud's shop wrote it, and when.
pub const DATABASE_TABLES: &str = "
    CREATE TABLE orders (
        id text PRIMARY KEY, client text NOT NULL, number bigint NOT NULL, amount bigint NOT NULL,
        version bigint NOT NULL, history bigint[] NOT NULL DEFAULT '{}');
    CREATE TABLE receipts (
        id bigserial PRIMARY KEY, client text NOT NULL, number bigint NOT NULL, order_id text NOT NULL,
        cloud text NOT NULL, nanos bigint NOT NULL);
    CREATE INDEX receipts_of_client ON receipts (client);";

const CONNECT: Duration = Duration::from_secs(5);
const KEPT: usize = 16;

/// Where the database is, and who the shop is there.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    pub address: SocketAddr,
    pub user: String,
    pub password: String,
    pub database: String,
}

impl std::fmt::Debug for DatabaseConfig {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseConfig").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Orders and receipts of one shop.
#[derive(Debug)]
pub(super) enum Records<'a> {
    Bucket(&'a S3),
    Database(&'a Database),
}

impl Records<'_> {
    pub async fn health(&self) -> Result<(), Refusal> {
        match self {
            Self::Bucket(s3) => s3.list_page(ORDERS, None, 1).await.map(drop).map_err(Refusal::from),
            Self::Database(database) => database.rows("SELECT 1 FROM orders LIMIT 1", &[]).await.map(drop),
        }
    }

    pub async fn create(&self, order: &Order, cloud: &str) -> Result<(), Refusal> {
        match self {
            Self::Bucket(s3) => {
                store(s3, order).await?;
                let receipt = format!("{RECEIPTS}{}/{}-{}", order.client, order.number, order.id);
                s3.put(&receipt, &HeaderMap::new(), Bytes::from(order.id.clone())).await?;
                Ok(())
            }
            Self::Database(database) => {
                let (number, amount) = (order.number.cast_signed(), order.amount.cast_signed());
                let nanos = crate::monotonic_nanos().cast_signed();
                // One statement, one transaction.
                let statement = "WITH made AS (INSERT INTO orders (id, client, number, amount, version) VALUES ($1, $2, $3, $4, $3))
                                 INSERT INTO receipts (client, number, order_id, cloud, nanos) VALUES ($2, $3, $1, $5, $6)";
                database
                    .rows(statement, &[&order.id, &order.client, &number, &amount, &cloud, &nanos])
                    .await
                    .map(drop)
            }
        }
    }

    /// The order's version after it.
    pub async fn update(&self, id: &str, wish: &Wish) -> Result<u64, Refusal> {
        let foreign = || Refusal::new(StatusCode::FORBIDDEN, "another client's order");
        match self {
            Self::Bucket(s3) => {
                let mut order = self.load(id).await?;
                if order.client != wish.client {
                    return Err(foreign());
                }
                order.apply(wish);
                store(s3, &order).await?;
                Ok(order.version)
            }
            Self::Database(database) => {
                let (number, amount) = (wish.number.cast_signed(), wish.amount.cast_signed());
                let statement =
                    "UPDATE orders SET amount = $3, version = $4, history = array_append(history, $4)
                                 WHERE id = $1 AND client = $2 RETURNING version";
                let rows = database.rows(statement, &[&id, &wish.client, &amount, &number]).await?;
                match rows.first() {
                    Some(row) => Ok(row.get::<_, i64>(0).cast_unsigned()),
                    None => self.load(id).await.and_then(|_| Err(foreign())),
                }
            }
        }
    }

    pub async fn remove(&self, id: &str) -> Result<(), Refusal> {
        match self {
            Self::Bucket(s3) => {
                s3.delete(&format!("{ORDERS}{id}.json")).await.map(drop).map_err(Refusal::from)
            }
            Self::Database(database) => {
                database.rows("DELETE FROM orders WHERE id = $1", &[&id]).await.map(drop)
            }
        }
    }

    pub async fn load(&self, id: &str) -> Result<Order, Refusal> {
        let missing = || Refusal::new(StatusCode::NOT_FOUND, "no such order");
        match self {
            Self::Bucket(s3) => {
                let found = s3.get(&format!("{ORDERS}{id}.json")).await?;
                let (_, text) = found.ok_or_else(missing)?;
                serde_json::from_slice(&text).map_err(|error| {
                    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the order is damaged: {error}"))
                })
            }
            Self::Database(database) => {
                let statement =
                    "SELECT id, client, number, amount, version, history FROM orders WHERE id = $1";
                let rows = database.rows(statement, &[&id]).await?;
                rows.first().map(order_of).ok_or_else(missing)
            }
        }
    }

    /// The receipts of one client: `{number}-{order}` each.
    pub async fn receipts(&self, client: &str) -> Result<Vec<String>, Refusal> {
        match self {
            Self::Bucket(s3) => {
                let prefix = format!("{RECEIPTS}{client}/");
                let listed = s3.list(&prefix).await?;
                Ok(listed
                    .iter()
                    .filter_map(|line| Some(line.key.strip_prefix(&prefix)?.to_owned()))
                    .collect())
            }
            Self::Database(database) => {
                let statement =
                    "SELECT number || '-' || order_id FROM receipts WHERE client = $1 ORDER BY id";
                let rows = database.rows(statement, &[&client]).await?;
                Ok(rows.iter().map(|row| row.get(0)).collect())
            }
        }
    }
}

async fn store(s3: &S3, order: &Order) -> Result<(), Refusal> {
    let text = serde_json::to_vec(order).expect("an order is plain data");
    let headers =
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))].into_iter().collect();
    s3.put(&format!("{ORDERS}{}.json", order.id), &headers, text.into()).await?;
    Ok(())
}

/// As the table has it: id, client, number, amount, version, history.
pub(crate) fn order_of(row: &Row) -> Order {
    let number = |place: usize| row.get::<_, i64>(place).cast_unsigned();
    Order {
        id: row.get(0),
        client: row.get(1),
        number: number(2),
        amount: number(3),
        version: number(4),
        history: row.get::<_, Vec<i64>>(5).into_iter().map(i64::cast_unsigned).collect(),
    }
}

/// Connections that are kept for the next request.
#[derive(Debug)]
pub(crate) struct Database {
    config: DatabaseConfig,
    idle: Mutex<Vec<Client>>,
}

impl Database {
    pub fn new(config: DatabaseConfig) -> Self {
        Self { config, idle: Mutex::default() }
    }

    async fn rows(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Refusal> {
        let client = match self.kept() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let outcome = client.query(statement, values).await;
        let mut idle = self.idle.lock().expect("no code panics while it holds this lock");
        if !client.is_closed() && idle.len() < KEPT {
            idle.push(client);
        }
        outcome.map_err(|error| {
            // Refused before anything was done, or an end nobody told us.
            let status = match error.code() {
                Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Refusal::new(status, format!("database: {}", told(&error)))
        })
    }

    fn kept(&self) -> Option<Client> {
        let mut idle = self.idle.lock().expect("no code panics while it holds this lock");
        idle.retain(|client| !client.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<Client, Refusal> {
        let unavailable =
            |why: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("database: {why}"));
        let mut config = tokio_postgres::Config::new();
        config.host(self.config.address.ip().to_string()).port(self.config.address.port());
        config.user(&self.config.user).password(&self.config.password).dbname(&self.config.database);
        config.application_name("shop");
        let connected = tokio::time::timeout(CONNECT, config.connect(NoTls)).await;
        let (client, connection) = connected
            .map_err(|_| unavailable("no answer".into()))?
            .map_err(|error| unavailable(told(&error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
        Ok(client)
    }
}

fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
