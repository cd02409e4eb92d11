//! What a person sees of a run: the tree, the plain lines, the report. All of it is drawn from the journal's views.

pub mod follow;
pub mod lines;
pub mod progress;
pub mod report;
pub mod screen;
pub mod tree;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// A span of the migration file as people write it: `2s`, `24h`.
pub fn unit(span: rehome_spec::Span) -> String {
    span.to_string()
}

/// How many of a copy's findings are losses; remarks (a store that reports no checksum) are none.
pub fn lost(findings: &[rehome_part::Finding]) -> u64 {
    findings.iter().filter(|finding| finding.severity > rehome_part::Severity::Info).count() as u64
}

/// The status code a plain GET gets, or why there is none.
pub async fn http_status(url: &str, deadline: Duration) -> Result<u16, String> {
    let uri: hyper::Uri = url.parse().map_err(|error| format!("not an address: {error}"))?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Empty<bytes::Bytes>>(hyper_util::client::legacy::connect::HttpConnector::new());
    let asked = async {
        let answer = client.get(uri).await.map_err(|error| root(&error))?;
        let status = answer.status().as_u16();
        // Read a little, so that the server sees an orderly client; the size is bounded by the deadline.
        let _ = http_body_util::Limited::new(answer.into_body(), 1 << 20).collect().await;
        Ok(status)
    };
    tokio::time::timeout(deadline, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", deadline.as_secs())))
}

/// The innermost cause: "connection refused" says more than "client error".
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
