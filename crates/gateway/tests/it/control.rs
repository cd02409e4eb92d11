//! The control socket: who gets in, what is refused, what nonsense does.

use crate::support::*;
use proptest::prelude::*;
use rehome_gateway::client::{Client, ClientError};
use rehome_gateway::control::{Hello, MAX_LINE, Refusal, Request as Control, Response as Reply, VERSION};
use rehome_part::Token;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

fn hello(secret: &str) -> Vec<u8> {
    let hello = Hello { version: VERSION, secret: secret.into(), who: "test".into() };
    let mut line = serde_json::to_vec(&hello).unwrap();
    line.push(b'\n');
    line
}

async fn gateway() -> Gateway {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    Gateway::start(service(&source.url(), &target.url())).await
}

/// Sends bytes and returns the lines that come back until the end.
async fn talk(gateway: &Gateway, bytes: &[u8]) -> Vec<Reply> {
    let mut stream = UnixStream::connect(&gateway.config.control).await.unwrap();
    // The gateway may close before it read everything.
    let _sent = stream.write_all(bytes).await;
    let _shut = stream.shutdown().await;
    let mut lines = BufReader::new(stream).lines();
    let mut replies = Vec::new();
    while let Ok(Some(line)) = within("a reply", lines.next_line()).await {
        replies.push(serde_json::from_str(&line).unwrap());
    }
    replies
}

#[tokio::test]
async fn the_socket_is_private_and_wants_the_secret() {
    let gateway = gateway().await;
    let mode = std::fs::metadata(&gateway.config.control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Client::connect(&gateway.config.control, "guess", "test").await.unwrap_err();
    assert!(matches!(error, ClientError::Unwelcome { .. }) && !error.to_string().contains(SECRET), "{error}");
    let mut bytes = hello("guess");
    bytes.extend_from_slice(b"{\"do\":\"status\"}\n");
    let replies = talk(&gateway, &bytes).await;
    assert!(matches!(&replies[..], [Reply::Refused { why: Refusal::BadSecret, .. }]), "{replies:?}");
    assert!(!format!("{:?}", gateway.config).contains(SECRET));
    assert!(!format!("{:?}", gateway.control).contains(SECRET));
}

#[tokio::test]
async fn a_line_that_is_too_long_ends_the_connection() {
    let gateway = gateway().await;
    let mut bytes = hello(SECRET);
    bytes.extend(std::iter::repeat_n(b'x', MAX_LINE + 10));
    let replies = talk(&gateway, &bytes).await;
    assert!(
        matches!(&replies[..], [Reply::Done, Reply::Refused { why: Refusal::BadRequest, .. }]),
        "{replies:?}"
    );
}

#[tokio::test]
async fn requests_that_mean_nothing_change_nothing() {
    let gateway = gateway().await;
    let before = gateway.status().await;
    for (request, why) in [
        (Control::Weight { service: "nobody".into(), percent: 1, token: TOKEN }, Refusal::UnknownService),
        (Control::Weight { service: "api".into(), percent: 101, token: TOKEN }, Refusal::BadRequest),
        (Gateway::arm(1, 0), Refusal::BadRequest),
        (Gateway::arm(1, 600_000), Refusal::BadRequest),
        (Gateway::arm(2, 1_000), Refusal::StaleEpoch),
        (Control::Leave { run: "other".into(), token: TOKEN }, Refusal::OtherRun),
        (Control::Enroll { run: "shop".into(), token: Token(1) }, Refusal::StaleToken),
    ] {
        assert_eq!(gateway.refused(request).await, why);
    }
    let after = gateway.status().await;
    assert_eq!(
        (after.epoch, after.mode, after.run, after.highest_token),
        (before.epoch, before.mode, before.run, before.highest_token)
    );
}

#[tokio::test]
async fn one_client_serves_many_calls_at_once_and_outlives_a_restart() {
    let gateway = gateway().await;
    let status = futures::future::join_all((0..40).map(|_| gateway.status())).await;
    assert_eq!(status.len(), 40);
    let control = Client::new(&gateway.config.control, SECRET, "test");
    assert!(control.call(Control::Status).await.is_ok());
    let gateway = gateway.restart().await;
    assert!(control.call(Control::Status).await.is_ok(), "the broken connection is replaced");
    gateway.running.drain(Duration::ZERO).await;
    assert!(matches!(control.call(Control::Status).await, Err(error) if error.is_temporary()));
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_a_time_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("silent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path, SECRET, "test").with_timeout(Duration::from_millis(50));
    assert!(matches!(client.call(Control::Status).await, Err(ClientError::TimedOut { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, fork: false, ..ProptestConfig::default() })]
    /// Bytes, halves of requests and requests with odd values: every line is answered or the connection ends, and the gateway
    /// still serves afterwards with its state untouched.
    #[test]
    fn nonsense_on_the_control_socket_is_survived(
        lines in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "\\{\"do\":\"(settle|arm|hold|weight|revoke)\",\"epoch\":-?[0-9]{1,25},\"token\":[0-6]{1}\\}".prop_map(String::into_bytes),
                "\\{\"do\":\"[a-z]{0,8}\"[\\]\\}\\[]{0,3}".prop_map(String::into_bytes),
                Just(vec![b'['; 5_000]),
            ],
            1..12,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let gateway = gateway().await;
            let mut bytes = hello(SECRET);
            for line in &lines {
                bytes.extend_from_slice(line);
                bytes.push(b'\n');
            }
            let replies = talk(&gateway, &bytes).await;
            assert_eq!(replies[0], Reply::Done);
            let refused = replies.iter().skip(1).filter(|reply| matches!(reply, Reply::Refused { .. })).count();
            assert_eq!(refused, replies.len() - 1, "{replies:?}");
            assert!(refused >= lines.len(), "every line was answered");
            let status = gateway.status().await;
            assert_eq!((status.epoch.0, status.highest_token), (1, TOKEN));
        });
    }
}
