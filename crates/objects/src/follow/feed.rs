//! Change feeds: what the application (or its store) says was put and deleted, each change with a position that only grows.
//! [`HookFeed`] speaks the protocol of docs/change-hook.md. A feed never decides what a change means.

use crate::http::{Endpoint, Http, refused};
use async_trait::async_trait;
use http::{Method, StatusCode};
use rehome_part::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::fmt::Debug;
use std::time::Duration;

/// Changes asked for at once.
pub(crate) const PAGE_CHANGES: usize = 1_000;
/// On top of the time the server may wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// One change, told by the place it happened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub position: u64,
    pub key: String,
    pub deleted: bool,
    /// The id of the request that made it; empty: none did. `None`: the feed does not tell.
    pub request: Option<String>,
}

/// An answer of a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The newest position of all.
    pub head: u64,
    /// Everything up to here is in this page or was in an earlier one.
    pub position: u64,
    pub changes: Vec<Change>,
}

/// A source of changes.
///
/// - A change is in the feed before its write is acknowledged to the writer;
/// - positions only grow, and every change has its own;
/// - several changes of one key come in the order they happened.
#[async_trait]
pub trait Feed: Debug + Send + Sync {
    /// The newest position; 0 before the first change.
    async fn head(&self) -> Result<u64>;

    /// Changes after `after`, oldest first, waiting up to `wait` for the first one. `None`: that position is not kept any
    /// more, changes may have been missed.
    async fn changes(&self, after: u64, limit: usize, wait: Duration) -> Result<Option<Page>>;
}

/// The feed of a change hook.
#[derive(Debug)]
pub struct HookFeed {
    http: Http,
    endpoint: Endpoint,
    /// The part's prefix in the bucket; the hook's keys are relative to the bucket.
    prefix: String,
}

#[derive(Deserialize)]
struct WireHead {
    head: String,
}

#[derive(Deserialize)]
struct WirePage {
    head: String,
    position: String,
    changes: Vec<WireChange>,
}

#[derive(Deserialize)]
struct WireChange {
    position: String,
    key: String,
    kind: WireKind,
    #[serde(default)]
    request: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireKind {
    Put,
    Delete,
}

impl HookFeed {
    /// A client for the hook at `url`. Keys are given relative to `prefix`; changes outside of it are left out.
    ///
    /// # Errors
    /// When `url` is no http(s) address.
    pub fn new(url: &str, token: Option<String>, prefix: &str) -> Result<Self> {
        let parsed =
            url::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(
                || Error::permanent(ErrorKind::Unsupported, format!("`{url}` is not an http(s) address")),
            )?;
        let endpoint = Endpoint { url: parsed, token };
        Ok(Self { http: Http::new()?, endpoint, prefix: prefix.into() })
    }

    async fn ask(&self, query: &[(&str, String)], wait: Duration) -> Result<Option<bytes::Bytes>> {
        let answer = self.http.send(Method::GET, &self.endpoint, query, None, wait + ANSWER_LIMIT).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.body)),
            StatusCode::GONE => Ok(None),
            _ => Err(refused(&self.endpoint.url, &answer)),
        }
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::permanent(
            ErrorKind::Corrupt,
            format!("{} does not keep the protocol: {what}", self.endpoint.url),
        )
        .hint("see docs/change-hook.md")
    }

    fn parse<'b, T: Deserialize<'b>>(&self, body: &'b [u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|e| self.wrong(e))
    }

    fn number(&self, text: &str) -> Result<u64> {
        text.parse().map_err(|_| self.wrong(format!("`{text}` is not a position")))
    }

    fn page(&self, after: u64, wire: WirePage) -> Result<Page> {
        let (head, position) = (self.number(&wire.head)?, self.number(&wire.position)?);
        let mut last = after;
        let mut changes = Vec::with_capacity(wire.changes.len());
        for change in wire.changes {
            let number = self.number(&change.position)?;
            if number <= last {
                return Err(self.wrong(format!("position {number} comes after {last}")));
            }
            last = number;
            if let Some(key) = change.key.strip_prefix(self.prefix.as_str()) {
                let deleted = matches!(change.kind, WireKind::Delete);
                let (key, request) = (key.to_owned(), change.request);
                changes.push(Change { position: number, key, deleted, request });
            }
        }
        if position < last || head < position {
            return Err(self.wrong(format!("head {head}, position {position}, last change {last}")));
        }
        Ok(Page { head, position, changes })
    }
}

#[async_trait]
impl Feed for HookFeed {
    async fn head(&self) -> Result<u64> {
        let body = self.ask(&[("head", "true".into())], Duration::ZERO).await?;
        let body = body.ok_or_else(|| self.wrong("410 in answer to head"))?;
        self.number(&self.parse::<WireHead>(&body)?.head)
    }

    async fn changes(&self, after: u64, limit: usize, wait: Duration) -> Result<Option<Page>> {
        let query = [
            ("after", after.to_string()),
            ("limit", limit.to_string()),
            ("wait_ms", wait.as_millis().to_string()),
        ];
        match self.ask(&query, wait).await? {
            None => Ok(None),
            Some(body) => self.page(after, self.parse(&body)?).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed() -> HookFeed {
        HookFeed::new("http://127.0.0.1:9/changes", Some("secret-token".into()), "media/").unwrap()
    }

    fn page(text: &str) -> Result<Page> {
        let feed = feed();
        feed.page(4, feed.parse(text.as_bytes())?)
    }

    #[test]
    fn keys_are_relative_to_the_prefix() {
        let read = page(
            r#"{"head":"9","position":"8","changes":[{"position":"5","key":"media/a b%","kind":"put","request":"r-1"},
               {"position":"6","key":"other/x","kind":"put"},{"position":"8","key":"media/é","kind":"delete"}]}"#,
        );
        let expected = vec![
            Change { position: 5, key: "a b%".into(), deleted: false, request: Some("r-1".into()) },
            Change { position: 8, key: "é".into(), deleted: true, request: None },
        ];
        assert_eq!(read.unwrap(), Page { head: 9, position: 8, changes: expected });
    }

    #[test]
    fn positions_that_do_not_grow_are_refused() {
        for text in [
            r#"{"head":"9","position":"8","changes":[{"position":"4","key":"media/a","kind":"put"}]}"#,
            r#"{"head":"9","position":"8","changes":[{"position":"7","key":"m","kind":"put"},{"position":"7","key":"m","kind":"put"}]}"#,
            r#"{"head":"9","position":"6","changes":[{"position":"7","key":"media/a","kind":"put"}]}"#,
            r#"{"head":"6","position":"7","changes":[]}"#,
            r#"{"head":"x","position":"7","changes":[]}"#,
        ] {
            assert_eq!(page(text).unwrap_err().kind, ErrorKind::Corrupt, "{text}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        assert!(!format!("{:?}", feed()).contains("secret-token"));
    }
}
