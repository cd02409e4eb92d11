//! The change hook's protocol against a server that speaks HTTP over a socket.

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rehome_objects::{Change, Feed, HookFeed, Page};
use rehome_part::ErrorKind;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Request {
    pub path_and_query: String,
    pub token: Option<String>,
    pub body: String,
}

pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// A tiny server on loopback; it ends with the test.
pub struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let service = service_fn(move |request: hyper::Request<Incoming>| {
                        let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                        async move {
                            let token = request
                                .headers()
                                .get("authorization")
                                .map(|v| v.to_str().unwrap().to_owned());
                            let path_and_query = request.uri().path_and_query().unwrap().to_string();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let body = String::from_utf8_lossy(&body).into_owned();
                            let request = Request { path_and_query, token, body };
                            let Answer { status, body } = answer(&request);
                            seen.lock().unwrap().push(request);
                            let body = Full::new(bytes::Bytes::from(body));
                            Ok::<_, Infallible>(hyper::Response::builder().status(status).body(body).unwrap())
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self { port, requests, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn questions_are_asked_as_documented() {
    let server = Server::start(|request| {
        let body = if request.path_and_query.contains("head=true") {
            r#"{"head":"1042"}"#
        } else {
            r#"{"head":"1042","position":"1041","changes":[{"position":"1041","key":"2024/cat+1.jpg","kind":"put"}]}"#
        };
        Answer { status: 200, body: body.into() }
    })
    .await;
    let feed = HookFeed::new(&server.url("/changes?tenant=7"), Some("t".into()), "2024/").unwrap();
    assert_eq!(feed.head().await.unwrap(), 1042);
    let page = feed.changes(1040, 500, Duration::from_millis(250)).await.unwrap().unwrap();
    let change = Change { position: 1041, key: "cat+1.jpg".into(), deleted: false, request: None };
    assert_eq!(page, Page { head: 1042, position: 1041, changes: vec![change] });
    let asked = server.requests();
    assert_eq!(asked[0].path_and_query, "/changes?tenant=7&head=true");
    assert_eq!(asked[1].path_and_query, "/changes?tenant=7&after=1040&limit=500&wait_ms=250");
    assert!(asked.iter().all(|request| request.token.as_deref() == Some("Bearer t")));
}

#[tokio::test]
async fn answers_say_what_the_caller_can_do() {
    for (status, body, kind, temporary) in [
        (401, "", ErrorKind::Credentials, false),
        (404, "", ErrorKind::NotFound, false),
        (503, "", ErrorKind::Network, true),
        (429, "", ErrorKind::Network, true),
        (200, "<html>", ErrorKind::Corrupt, false),
    ] {
        let server = Server::start(move |_| Answer { status, body: body.into() }).await;
        let feed = HookFeed::new(&server.url("/"), None, "").unwrap();
        let error = feed.changes(0, 1, Duration::ZERO).await.unwrap_err();
        assert_eq!((error.kind, error.is_temporary()), (kind, temporary), "{status}");
    }
    let server = Server::start(|_| Answer { status: 410, body: String::new() }).await;
    let feed = HookFeed::new(&server.url("/"), None, "").unwrap();
    assert_eq!(feed.changes(5, 1, Duration::ZERO).await.unwrap(), None);
    let port = server.port;
    drop(server);
    let nobody = HookFeed::new(&format!("http://127.0.0.1:{port}/"), None, "").unwrap();
    let reached = nobody.head().await;
    assert!(reached.is_err_and(|error| error.kind == ErrorKind::Network && error.is_temporary()));
    assert!(HookFeed::new("ftp://x/", None, "").is_err());
}
