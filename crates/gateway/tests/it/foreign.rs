//! Clients that nobody here wrote, each through a hold and a switch: its write waits, the other side becomes the owner, and the
//! client gets that side's answer. Python's come from `scripts/tools.sh`; where a program is missing the test says that it did
//! not run, and under `REHOME_REQUIRE_TOOLS` it fails.

use crate::strict::Recorder;
use crate::support::*;
use rehome_gateway::control::{Refusal, Request as Control, Response as Reply, SessionRule};
use rehome_part::{Epoch, Side};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A program that `scripts/tools.sh` installed, or one of the system's; `None` (said loudly) where it is missing and not required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
fn tool(name: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("REHOME_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    let system = std::env::var_os("PATH").unwrap_or_default();
    let mut places = match name {
        "python" => vec![tools.join("venv/bin")],
        _ => std::env::split_paths(&system).collect(),
    }
    .into_iter();
    let found = places.find_map(|folder| Some(folder.join(name)).filter(|path| path.exists()));
    if found.is_none() {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "{name} is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: {name} is missing; run scripts/tools.sh");
    }
    found
}

/// A script of `clients/` at work: we speak with it by lines.
struct Script {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Script {
    fn start(python: &Path, script: &str, argument: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients");
        let mut child = Command::new(python)
            .arg("-B")
            .arg(folder.join(script))
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, input, output: BufReader::new(output).lines() }
    }

    async fn line(&mut self) -> String {
        let line = within("a line of the client", self.output.next_line()).await.unwrap();
        line.unwrap_or_else(|| "(the client ended)".into())
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

/// A gateway between two sides, with writes held.
async fn held_between(source: &str, target: &str) -> Gateway {
    let gateway = Gateway::start(service(source, target)).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert!(matches!(gateway.hold(1).await, Reply::Held(_)));
    gateway
}

fn hold(sessions: SessionRule, in_flight_ms: u64) -> Control {
    Control::Hold { epoch: Epoch(1), in_flight_ms, sessions, token: TOKEN }
}

#[tokio::test]
async fn curl_waits_with_a_large_body_that_takes_no_memory() {
    let Some(curl) = tool("curl") else { return };
    const UPLOADS: usize = 4;
    const SIZE: usize = 20 << 20;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'c'; SIZE]).unwrap();
    for more in [
        &["--http1.1", "-H", "Expect:"][..],
        &["--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "60"],
        &["--http2-prior-knowledge"],
    ] {
        let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
        let gateway = held_between(&source.url(), &target.url()).await;
        let before = resident();
        let uploads: Vec<_> = (0..UPLOADS)
            .map(|_| {
                let mut command = Command::new(&curl);
                command.args(["-sS", "--noproxy", "*", "-w", "%{http_code} %{size_upload}", "-T"]);
                command.arg(&file).args(more).arg(format!("http://{}/upload", gateway.address));
                tokio::spawn(command.kill_on_drop(true).output())
            })
            .collect();
        gateway.waiting(UPLOADS as u64).await;
        let held = gateway.status().await.held;
        assert!(held.waiting_bytes < (UPLOADS as u64) * (70 << 10), "{held:?}");
        // What the client could send lies in the sockets, at most one buffer of each connection is here.
        let taken = resident().saturating_sub(before);
        assert!(taken < 8 << 10, "{taken} kB for bodies that must stay unread: {more:?}");
        gateway.settle(2, Side::Target).await;
        for upload in uploads {
            let output = within("curl", upload).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said, format!("target200 {SIZE}"), "{more:?}: {output:?}");
        }
        assert!(target.seen.lock().unwrap().iter().all(|seen| seen.body.len() == SIZE));
        assert_eq!((target.count("PUT"), source.count("PUT")), (UPLOADS, 0));
    }
}

#[tokio::test]
async fn a_full_window_of_one_stream_blocks_no_other() {
    let Some(python) = tool("python") else { return };
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = held_between(&source.url(), &target.url()).await;
    let mut client = Script::start(&python, "windows.py", &gateway.address.to_string());
    // The window of a stream, or the first window of the connection when that is all the client heard of.
    let stuck = client.line().await;
    assert!(matches!(stuck.as_str(), "stuck after 65535" | "stuck after 65536"), "{stuck}");
    gateway.waiting(1).await;
    client.tell("read").await;
    assert_eq!(client.line().await, "reads 200 source 200 source 200 source 200 source 200 source");
    client.tell("write").await;
    assert_eq!(client.line().await, "another");
    gateway.waiting(2).await;
    client.tell("reset").await;
    assert_eq!(client.line().await, "taken back");
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    client.tell("go on").await;
    assert_eq!(client.line().await, "write 200 target");
    assert_eq!(target.paths("PUT"), ["/stuck"]);
    assert_eq!(target.last().body.len(), 300_000);
    assert_eq!(target.count("POST") + source.count("POST"), 0, "what was taken back is never sent");
}

#[tokio::test]
async fn a_websocket_stays_with_its_owner_until_it_is_closed() {
    let Some(python) = tool("python") else { return };
    let mut source = Script::start(&python, "websocket_server.py", "source");
    let mut target = Script::start(&python, "websocket_server.py", "target");
    let url = |port: String| format!("http://127.0.0.1:{port}");
    let gateway = Gateway::start(service(&url(source.line().await), &url(target.line().await))).await;
    let mut client = Script::start(&python, "websocket_client.py", &gateway.address.to_string());
    assert_eq!(client.line().await, "open");
    client.tell("before").await;
    assert_eq!(client.line().await, "source:before");
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert_eq!(gateway.refused(hold(SessionRule::Wait, 50)).await, Refusal::Sessions);
    client.tell("meanwhile").await;
    assert_eq!(client.line().await, "source:meanwhile", "it waits for the session, which goes on");
    client.tell("wait for the end").await;
    assert!(matches!(gateway.call(hold(SessionRule::Close, 10_000)).await, Reply::Held(_)));
    assert_eq!(client.line().await, "cut");
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(client.line().await, "open");
    client.tell("after").await;
    assert_eq!(client.line().await, "target:after");
}

#[tokio::test]
async fn a_reader_of_events_comes_back_to_the_new_owner() {
    let Some(python) = tool("python") else { return };
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut client = Script::start(&python, "events.py", &gateway.address.to_string());
    assert_eq!(client.line().await, "200 source data: 1");
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert!(matches!(gateway.call(hold(SessionRule::Close, 10_000)).await, Reply::Held(_)));
    assert_eq!(client.line().await, "cut");
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(client.line().await, "200 target data: 1");
}

#[tokio::test]
async fn pipelined_answers_keep_their_order_through_a_hold() {
    let Some(python) = tool("python") else { return };
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = held_between(&source.url(), &target.url()).await;
    let mut client = Script::start(&python, "pipeline.py", &gateway.address.to_string());
    assert_eq!(client.line().await, "r1 200 source", "a read before the first write does not wait");
    gateway.waiting(1).await;
    assert_eq!(source.count("GET"), 1, "what stands behind a held write waits with it");
    gateway.settle(2, Side::Target).await;
    for number in 2..=5 {
        assert_eq!(client.line().await, format!("r{number} 200 target"));
    }
    assert_eq!(
        (target.paths("POST"), target.paths("GET")),
        (vec!["/2".into(), "/4".into()], vec!["/3".into(), "/5".to_owned()])
    );
}

#[tokio::test]
async fn chunks_and_their_trailers_come_through_a_hold() {
    let Some(python) = tool("python") else { return };
    let (source, target) = (Upstream::start("source").await, Recorder::start().await);
    let gateway = held_between(&source.url(), &target.url()).await;
    let mut client = Script::start(&python, "trailers.py", &gateway.address.to_string());
    gateway.waiting(1).await;
    assert!(target.lines().is_empty());
    gateway.settle(2, Side::Target).await;
    assert_eq!(client.line().await, "200");
    // Others were opened ahead of time.
    let texts: Vec<String> = target.take().iter().map(|connection| connection.text()).collect();
    let [text] = &texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>()[..] else {
        panic!("one connection was used")
    };
    assert!(text.contains("\r\ntrailer: x-sum\r\n") && text.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{text:?}");
    assert_eq!(source.count("PUT"), 0);
}

/// An end of the sending side looks like an end of the client: TCP tells no difference before something is sent. The gateway
/// takes it for the latter, since a write of a client that gave up must not be sent: it may have been repeated elsewhere.
#[tokio::test]
async fn a_client_that_half_closes_while_it_waits_is_never_sent() {
    let Some(python) = tool("python") else { return };
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = held_between(&source.url(), &target.url()).await;
    let mut client = Script::start(&python, "half_close.py", &gateway.address.to_string());
    assert_eq!(client.line().await, "nothing");
    gateway.waiting(0).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(gateway.caller().await.post("/after", &[], "").await.side(), "target");
    assert_eq!((source.count("POST"), target.paths("POST")), (0, vec!["/after".to_owned()]));
}

#[tokio::test]
async fn grpc_calls_wait_and_reach_the_new_owner() {
    let Some(python) = tool("python") else { return };
    let mut source = Script::start(&python, "grpc_server.py", "source");
    let mut target = Script::start(&python, "grpc_server.py", "target");
    let service = serde_json::json!({
        "name": "api",
        "listen": "127.0.0.1:0",
        "source": format!("http://127.0.0.1:{}", source.line().await),
        "target": format!("http://127.0.0.1:{}", target.line().await),
        "upstream_http": "2",
    });
    let gateway = Gateway::start(serde_json::from_value(service).unwrap()).await;
    let mut client = Script::start(&python, "grpc_client.py", &gateway.address.to_string());
    client.tell("first").await;
    assert_eq!(client.line().await, "source placed first");
    assert_eq!(client.line().await, "source first 0, source first 1, source first 2");
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert!(matches!(gateway.hold(1).await, Reply::Held(_)));
    client.tell("second").await;
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(client.line().await, "target placed second");
    assert_eq!(client.line().await, "target second 0, target second 1, target second 2");
}

/// A page in a real browser writes, reads and listens to events while writes are held: the read is answered at once by the owner, the
/// write and the event stream by the new one, and the page knows nothing of it.
#[tokio::test]
async fn a_browser_comes_through_a_hold_unharmed() {
    let Some(browser) = tool("chromium-headless-shell") else { return };
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = held_between(&source.url(), &target.url()).await;
    let profile = tempfile::tempdir().unwrap();
    let child = Command::new(browser)
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--no-proxy-server",
            "--disable-background-networking",
            "--dump-dom",
        ])
        .args(["--virtual-time-budget=60000", "--timeout=60000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/page", gateway.address))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    gateway.waiting(2).await;
    eventually("the read did not wait", || async { source.paths("GET").contains(&"/orders".to_owned()) })
        .await;
    gateway.settle(2, Side::Target).await;
    let shown = within("the browser's end", child.wait_with_output()).await.unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("200 source; 200 target; 1"), "{shown}");
    assert_eq!((source.count("POST"), target.count("POST")), (0, 1));
}
