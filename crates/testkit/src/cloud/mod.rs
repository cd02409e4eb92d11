//! One embedded cloud: an S3 server with two principals, bucket policies and a change feed, all on one folder.
//! Protocol, signatures and XML are `s3s`; what is kept, and when it counts as written, is ours. It survives `kill -9`
//! at any point (and a power cut with [`S3Config::sync`]).

mod answers;
mod api;
mod content;
mod faults;
mod feed;
mod intake;
mod listing;
mod multipart;
mod mutation;
mod policy;
pub(crate) mod process;
mod record;
mod store;

pub use faults::{FaultSwitch, Faults};
pub use mutation::{Mutation, Operation, read_mutations};
pub use process::main_s3;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, StdError, s3_error};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Who made a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// The shop.
    Application,
    /// The migration, and whoever looks after it.
    Migration,
}

/// The credentials of one principal. Debug does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    pub access_key: String,
    pub secret_key: String,
    /// What policies call it: `arn:aws:iam::000000000000:user/app`.
    pub principal: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("access_key", &self.access_key)
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

/// One cloud's S3 server. Debug does not show secrets.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Everything is kept below this folder; one server at a time.
    pub directory: PathBuf,
    /// Port 0: the kernel chooses.
    pub listen: SocketAddr,
    pub app: Keys,
    pub migration: Keys,
    /// Where the change feed listens.
    pub events_listen: SocketAddr,
    pub events_token: String,
    /// Created when it is not there; the change feed tells of this bucket only.
    pub bucket: String,
    /// Sync content and log to disk before a write is acknowledged.
    #[serde(default)]
    pub sync: bool,
    /// Changes the feed keeps; older positions are answered 410.
    #[serde(default = "default_feed_keep")]
    pub feed_keep: usize,
    #[serde(default)]
    pub faults: Faults,
    /// Go on when standard input ends; otherwise the process ends with its parent.
    #[serde(default)]
    pub outlive_parent: bool,
}

fn default_feed_keep() -> usize {
    1_000_000
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("directory", &self.directory)
            .field("listen", &self.listen)
            .field("events_listen", &self.events_listen)
            .field("bucket", &self.bucket)
            .field("app", &self.app)
            .field("migration", &self.migration)
            .finish_non_exhaustive()
    }
}

/// Why a process of the test kit could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error("cannot use the folder {path}: {source}", path = path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot read the configuration {path}: {why}", path = path.display())]
    Config { path: PathBuf, why: String },
    #[error("cannot say that it is ready: {0}")]
    Ready(io::Error),
}

/// A server that runs in this process until its token fires.
#[derive(Debug)]
pub struct RunningS3 {
    /// The address S3 requests go to.
    pub address: SocketAddr,
    /// The address of the change feed.
    pub events_address: SocketAddr,
    store: Arc<Store>,
    tasks: [JoinHandle<()>; 2],
}

impl RunningS3 {
    pub fn faults(&self) -> &FaultSwitch {
        &self.store.faults
    }

    /// Ends when `shutdown` has fired and open requests are done.
    pub async fn finished(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a server task broke");
            }
        }
    }
}

/// Starts the S3 server and its change feed; both listen when this returns.
pub async fn serve_s3(config: S3Config, shutdown: CancellationToken) -> Result<RunningS3, CloudError> {
    let store = Store::open(&config)?;
    let (listener, address) = bind(config.listen).await?;
    let (events, events_address) = bind(config.events_listen).await?;
    let service = service(&config, store.clone());
    let faulty = store.clone();
    let s3 = tokio::spawn(crate::listen::serve(listener, shutdown.clone(), move |request| {
        answer(service.clone(), faulty.clone(), request)
    }));
    let feed = tokio::spawn(feed::serve(events, store.clone(), config.bucket, config.events_token, shutdown));
    Ok(RunningS3 { address, events_address, store, tasks: [s3, feed] })
}

pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), CloudError> {
    let failed = |source| CloudError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let real = listener.local_addr().map_err(failed)?;
    Ok((listener, real))
}

fn service(config: &S3Config, store: Arc<Store>) -> S3Service {
    let principals = Principals {
        application: (config.app.access_key.clone(), config.app.secret_key.clone().into()),
        migration: (config.migration.access_key.clone(), config.migration.secret_key.clone().into()),
    };
    let mut builder = S3ServiceBuilder::new(api::Api { store, application: config.app.access_key.clone() });
    builder.set_auth(principals);
    builder.build()
}

type Body = UnsyncBoxBody<Bytes, StdError>;

async fn answer(service: S3Service, store: Arc<Store>, request: Request<Incoming>) -> Response<Body> {
    let (slow, fails) = store.faults.next_request();
    if !slow.is_zero() {
        tokio::time::sleep(slow).await;
    }
    if fails {
        let text =
            "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>as configured</Message></Error>";
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    match service.call(request.map(s3s::Body::from)).await {
        Ok(response) => response.map(BodyExt::boxed_unsync),
        Err(error) => {
            tracing::error!(?error, "the S3 service broke");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "<Error><Code>InternalError</Code></Error>")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

struct Principals {
    application: (String, SecretKey),
    migration: (String, SecretKey),
}

#[async_trait::async_trait]
impl S3Auth for Principals {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        [&self.application, &self.migration]
            .into_iter()
            .find(|(known, _)| known == access_key)
            .map(|(_, secret)| secret.clone())
            .ok_or_else(|| s3_error!(InvalidAccessKeyId))
    }
}
