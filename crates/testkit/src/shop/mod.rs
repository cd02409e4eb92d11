//! The sample application: orders, receipts and pictures over HTTP, kept in its cloud's bucket with its own credentials.
//! It does not deduplicate and knows nothing of migrations: a request that reaches it twice is carried out twice, and
//! leaves two receipts.

mod order;
mod records;

pub use order::Order;
pub(crate) use records::order_of;
pub use records::{DATABASE_TABLES, DatabaseConfig};
use records::{Database, Records};

use crate::cloud::process::{Ready, end_asked, read_config, say_ready};
use crate::cloud::{CloudError, Keys, bind};
use crate::s3::{REQUEST_HEADER, S3, S3Failure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Where pictures, orders and receipts are kept.
pub const MEDIA: &str = "media/";
pub const ORDERS: &str = "orders/";
pub const RECEIPTS: &str = "receipts/";
/// Names the cloud in every answer.
pub const CLOUD_HEADER: &str = "shop-cloud";

const LONGEST_BODY: usize = 64 * 1024;

/// One shop. Debug shows no secret (see [`Keys`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShopConfig {
    /// The cloud's name, for [`CLOUD_HEADER`].
    pub cloud: String,
    /// Port 0: the kernel chooses.
    pub listen: SocketAddr,
    pub s3: SocketAddr,
    pub bucket: String,
    pub keys: Keys,
    /// Orders and receipts are here, not in the bucket.
    #[serde(default)]
    pub database: Option<DatabaseConfig>,
    /// How long a write is thought about before it is stored.
    #[serde(default)]
    pub think_ms: u64,
    /// How long every answer is kept back.
    #[serde(default)]
    pub slow_ms: u64,
    #[serde(default)]
    pub outlive_parent: bool,
}

/// A shop that runs in this process until its token fires.
#[derive(Debug)]
pub struct RunningShop {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl RunningShop {
    pub async fn finished(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the shop broke");
        }
    }
}

/// Starts a shop; it listens when this returns.
pub async fn serve(config: ShopConfig, shutdown: CancellationToken) -> Result<RunningShop, CloudError> {
    let (listener, address) = bind(config.listen).await?;
    let cloud = HeaderValue::from_str(&config.cloud).unwrap_or(HeaderValue::from_static("unnamed"));
    let shop = Arc::new(Shop {
        s3: S3::new(config.s3, &config.bucket, config.keys.clone()),
        cloud,
        database: config.database.clone().map(Database::new).map(Arc::new),
        config: Arc::new(config),
    });
    let task = tokio::spawn(crate::listen::serve(listener, shutdown, move |request| {
        let shop = shop.clone();
        async move { shop.answer(request).await }
    }));
    Ok(RunningShop { address, task })
}

/// Runs the shop that the JSON file (mode 0600) describes until told to end.
pub async fn main(config_path: &Path) -> Result<(), CloudError> {
    let config: ShopConfig = read_config(config_path)?;
    let shutdown = CancellationToken::new();
    let outlive = config.outlive_parent;
    let running = serve(config, shutdown.clone()).await?;
    say_ready(&Ready { pid: std::process::id(), addresses: vec![running.address] })?;
    end_asked(outlive).await;
    shutdown.cancel();
    running.finished().await;
    Ok(())
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

#[derive(Debug)]
struct Shop {
    s3: S3,
    database: Option<Arc<Database>>,
    cloud: HeaderValue,
    config: Arc<ShopConfig>,
}

/// What a client sends with a write. `number` counts the client's own requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    pub client: String,
    pub number: u64,
    pub amount: u64,
}

/// An answer other than the one hoped for.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl From<S3Failure> for Refusal {
    fn from(failure: S3Failure) -> Self {
        let status = match failure {
            // Refused by a fence, or by a cloud in trouble: try again later.
            S3Failure::Refused { .. } | S3Failure::NotSent(_) => StatusCode::SERVICE_UNAVAILABLE,
            S3Failure::Unknown(_) | S3Failure::Garbled(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("storage: {failure}"))
    }
}

impl Shop {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut response = match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => json_answer(refusal.status, &json!({ "error": refusal.why })),
        };
        tokio::time::sleep(Duration::from_millis(self.config.slow_ms)).await;
        response.headers_mut().insert(CLOUD_HEADER, self.cloud.clone());
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        // What it writes names the request, so that the change hook can tell who came through a gateway.
        let s3 = self.s3.for_request(request.headers().get(REQUEST_HEADER));
        let (database, cloud) = (self.database.clone(), self.cloud.clone());
        let this = Self { s3, database, cloud, config: Arc::clone(&self.config) };
        this.serve(request).await
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path().to_string();
        let segments: Vec<&str> = path.trim_start_matches('/').splitn(2, '/').collect();
        match (request.method(), &segments[..]) {
            (&Method::GET, ["healthz"]) => self.health().await,
            (&Method::POST, ["orders"]) => self.create(wish(request).await?).await,
            (&Method::GET, ["orders"]) => self.receipts(request.uri().query().unwrap_or("")).await,
            (&Method::GET, ["orders", id]) => self.show(id).await,
            (&Method::PUT, ["orders", id]) => self.update(id, wish(request).await?).await,
            (&Method::DELETE, ["orders", id]) => self.remove(id).await,
            (&Method::GET, ["media", key]) => self.media(key, request.headers()).await,
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "no such page")),
        }
    }

    fn records(&self) -> Records<'_> {
        match &self.database {
            Some(database) => Records::Database(database),
            None => Records::Bucket(&self.s3),
        }
    }

    async fn health(&self) -> Result<Response<Body>, Refusal> {
        self.records().health().await?;
        Ok(json_answer(StatusCode::OK, &json!({ "healthy": true })))
    }

    async fn create(&self, wish: Wish) -> Result<Response<Body>, Refusal> {
        check_name(&wish.client)?;
        self.think().await;
        let order = Order::new(&wish);
        self.records().create(&order, &self.config.cloud).await?;
        Ok(json_answer(StatusCode::CREATED, &json!({ "order": order.id })))
    }

    async fn update(&self, id: &str, wish: Wish) -> Result<Response<Body>, Refusal> {
        check_name(id)?;
        self.think().await;
        let version = self.records().update(id, &wish).await?;
        Ok(json_answer(StatusCode::OK, &json!({ "order": id, "version": version })))
    }

    async fn remove(&self, id: &str) -> Result<Response<Body>, Refusal> {
        check_name(id)?;
        self.think().await;
        self.records().remove(id).await?;
        Ok(json_answer(StatusCode::OK, &json!({ "order": id })))
    }

    async fn show(&self, id: &str) -> Result<Response<Body>, Refusal> {
        check_name(id)?;
        let order = self.records().load(id).await?;
        Ok(json_answer(StatusCode::OK, &order))
    }

    async fn receipts(&self, query: &str) -> Result<Response<Body>, Refusal> {
        let client = query.strip_prefix("client=").unwrap_or("");
        check_name(client)?;
        let receipts = self.records().receipts(client).await?;
        Ok(json_answer(StatusCode::OK, &json!({ "receipts": receipts })))
    }

    async fn media(&self, path: &str, asked: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let name = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the name is not UTF-8"))?;
        let mut headers = HeaderMap::new();
        for name in [header::RANGE, header::IF_NONE_MATCH] {
            if let Some(value) = asked.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let (head, body) = self.s3.stream(&format!("{MEDIA}{name}"), &headers).await?.into_parts();
        if head.status.is_client_error() || head.status.is_server_error() {
            let status = if head.status == StatusCode::NOT_FOUND {
                head.status
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            return Err(Refusal::new(status, "the picture cannot be shown"));
        }
        let mut response = Response::new(body.boxed_unsync());
        *response.status_mut() = head.status;
        let shown = [
            header::CONTENT_TYPE,
            header::CONTENT_LENGTH,
            header::CONTENT_ENCODING,
            header::CONTENT_LANGUAGE,
            header::CONTENT_DISPOSITION,
            header::CONTENT_RANGE,
            header::CACHE_CONTROL,
            header::ETAG,
            header::LAST_MODIFIED,
        ];
        for name in shown {
            if let Some(value) = head.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }

    async fn think(&self) {
        tokio::time::sleep(Duration::from_millis(self.config.think_ms)).await;
    }
}

async fn wish(request: Request<Incoming>) -> Result<Wish, Refusal> {
    let body = Limited::new(request.into_body(), LONGEST_BODY).collect().await;
    let body =
        body.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("not understood: {error}")))
}

/// Names become parts of keys.
fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a name is up to 64 letters, digits, - and _"));
    }
    Ok(())
}

fn json_answer(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("plain data serializes");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
