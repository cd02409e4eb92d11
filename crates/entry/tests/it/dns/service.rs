//! A vendor's service on loopback: it keeps records, checks every signature by its own computation, fails when it is told to,
//! and notes what it was asked. What a call means is the test's.

use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rehome_entry::EntryError;
use rehome_entry::dns::http::Endpoint;
use rehome_entry::dns::{Credentials, Entry, Zone};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
pub const SECRET_KEY: &str = "do-not-show-this-secret";
/// How often a change is asked for in tests.
pub const POLL: Duration = Duration::from_millis(10);

pub fn credentials() -> Credentials {
    Credentials {
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        session_token: Some("a/token+=".into()),
    }
}

#[derive(Debug, Clone, Default)]
pub struct Record {
    pub id: u64,
    /// In the zone, `shop` or `@`.
    pub host: String,
    pub kind: String,
    pub value: String,
    pub ttl: u32,
    /// What this record has beside, as the service writes it.
    pub more: BTreeMap<String, String>,
}

pub struct Asked {
    pub method: String,
    pub path: String,
    pub raw_query: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Asked {
    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> String {
        let pairs = self.raw_query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        percent_encoding::percent_decode_str(found.unwrap_or_default()).decode_utf8().unwrap().into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What a service is and what it was told.
#[derive(Default)]
pub struct Kept {
    pub records: Vec<Record>,
    pub next_id: u64,
    /// The names of the calls, in order.
    pub calls: Vec<String>,
    /// For the next call of a name: this answer instead, the call done before it or not.
    pub faults: VecDeque<(String, u16, String, bool)>,
    /// How often lists still show what was before the last change.
    pub lag: u32,
    pub shown: Vec<Record>,
    /// Counts down to what a change takes.
    pub pending: u32,
}

impl Kept {
    pub fn add(&mut self, host: &str, kind: &str, value: &str, ttl: u32, more: &[(&str, &str)]) -> u64 {
        self.next_id += 1;
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (host, kind, value) = (host.to_owned(), kind.to_owned(), value.to_owned());
        self.records.push(Record { id: self.next_id, host, kind, value, ttl, more });
        self.next_id
    }

    pub fn fail(&mut self, call: &str, status: u16, answer: &str) {
        self.faults.push_back((call.to_owned(), status, answer.to_owned(), false));
    }

    /// What a list shows; with lag the former state for a while.
    pub fn listed(&mut self) -> Vec<Record> {
        match self.lag.checked_sub(1) {
            Some(left) => self.lag = left,
            None => self.shown = self.records.clone(),
        }
        self.shown.clone()
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls.iter().filter(|name| *name == call).count()
    }
}

pub type Means = fn(&mut Kept, &Asked) -> (u16, String);

pub struct Service {
    pub address: SocketAddr,
    pub kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    /// `named` gives a call its name, `signed` checks its signature, `means` does it.
    pub async fn start(named: fn(&Asked) -> String, signed: fn(&Asked) -> String, means: Means) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let state = kept.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = state.clone();
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let state = state.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let asked = Asked {
                            method: head.method.to_string(),
                            path: head.uri.path().to_owned(),
                            raw_query: head.uri.query().unwrap_or_default().to_owned(),
                            headers: head.headers,
                            body: body.collect().await.unwrap().to_bytes().to_vec(),
                        };
                        assert_eq!(asked.header("authorization"), signed(&asked), "the signature");
                        let (status, text) =
                            answer(&mut state.lock().unwrap(), &asked, &named(&asked), means);
                        let answer =
                            hyper::Response::builder().status(status).body(Full::new(Bytes::from(text)));
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, kept, task }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("http://{}", self.address)).unwrap()
    }

    pub fn kept<R>(&self, look: impl FnOnce(&mut Kept) -> R) -> R {
        look(&mut self.kept.lock().unwrap())
    }
}

fn answer(kept: &mut Kept, asked: &Asked, call: &str, means: Means) -> (u16, String) {
    kept.calls.push(call.to_owned());
    match kept.faults.iter().position(|(of, ..)| of == call) {
        Some(place) => {
            let (_, status, text, done) = kept.faults.remove(place).unwrap();
            if done {
                means(kept, asked);
            }
            (status, text)
        }
        None => means(kept, asked),
    }
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The canonical request over what really arrived, and the names of the headers that were said to be signed.
pub fn canonical(asked: &Asked) -> (String, String) {
    let authorization = asked.header("authorization");
    let names = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let lines: String = names.split(';').map(|name| format!("{name}:{}\n", asked.header(name))).collect();
    let Asked { method, path, raw_query, body, .. } = asked;
    (format!("{method}\n{path}\n{raw_query}\n{lines}\n{names}\n{}", sha256(body)), names)
}

/// What every driver does, whatever the service.
pub async fn contract(zone: &dyn Zone) {
    let shop = super::name("shop.example.com");
    let entry = super::entry;
    assert!(!zone.capabilities().tested, "nobody has tried it on the real service");
    assert_eq!(zone.read(&shop).await.unwrap().entry, Entry::default());
    let mut now = Entry::default();
    for next in [
        entry(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 300),
        entry(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 60),
        entry(&["192.0.2.9", "2001:db8::1", "2001:db8::2"], 60),
        entry(&["lb.example.net"], 60),
        entry(&["192.0.2.1", "192.0.2.2"], 300),
        Entry::default(),
    ] {
        zone.replace(&shop, &now, &next).await.unwrap();
        assert_eq!(zone.read(&shop).await.unwrap().entry, next);
        // It is there already.
        zone.replace(&shop, &now, &next).await.unwrap();
        // What was read is no longer there.
        let stale = entry(&["198.51.100.1"], 300);
        let error = zone.replace(&shop, &stale, &now).await.unwrap_err();
        assert!(matches!(error, EntryError::Changed { .. }), "{error:?}");
        assert_eq!(zone.read(&shop).await.unwrap().entry, next);
        now = next;
    }
    let text = format!("{zone:?}");
    assert!(!text.contains(SECRET_KEY) && !text.contains("a/token"), "{text}");
}
