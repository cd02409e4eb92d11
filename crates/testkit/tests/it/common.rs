//! Clouds on temporary folders, with ports that the kernel chooses.

use http::HeaderMap;
use rehome_testkit::cloud::{Faults, Keys, RunningS3, S3Config, serve_s3};
use rehome_testkit::s3::S3;
use std::net::SocketAddr;
use std::path::Path;
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "feed-token";
pub const MIGRATION: &str = "arn:aws:iam::000000000000:user/migration";

pub fn keys(name: &str) -> Keys {
    Keys {
        access_key: format!("AK{name}"),
        secret_key: format!("secret-of-{name}"),
        principal: format!("arn:aws:iam::000000000000:user/{name}"),
    }
}

pub fn config(directory: &Path) -> S3Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    S3Config {
        directory: directory.into(),
        listen: any,
        app: keys("app"),
        migration: keys("migration"),
        events_listen: any,
        events_token: TOKEN.into(),
        bucket: "shop".into(),
        sync: false,
        feed_keep: 1_000_000,
        faults: Faults::default(),
        outlive_parent: false,
    }
}

/// A running cloud that ends with the test.
pub struct Cloud {
    pub running: RunningS3,
    pub app: S3,
    pub migration: S3,
    shutdown: CancellationToken,
}

impl Cloud {
    pub async fn start(config: S3Config) -> Self {
        let shutdown = CancellationToken::new();
        let bucket = config.bucket.clone();
        let running = serve_s3(config, shutdown.clone()).await.unwrap();
        let app = S3::new(running.address, &bucket, keys("app"));
        let migration = S3::new(running.address, &bucket, keys("migration"));
        Self { running, app, migration, shutdown }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        drop((self.app, self.migration));
        self.running.finished().await;
    }
}

pub fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// A fence as the migration sets it.
pub fn fence() -> String {
    serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "fence", "Effect": "Deny", "Principal": "*",
            "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": "arn:aws:s3:::shop/*",
            "Condition": {"StringNotEquals": {"aws:PrincipalArn": MIGRATION}}
        }]
    })
    .to_string()
}
