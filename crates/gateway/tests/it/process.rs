//! A gateway that is a process of its own: stopped past its lease, killed in the middle of a switch.

use crate::support::*;
use rehome_gateway::client::Client;
use rehome_gateway::control::{Mode, Request as Control, Response as Reply, SessionRule, Status};
use rehome_gateway::{Config, start};
use rehome_part::{Epoch, Side};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const FOLDER: &str = "REHOME_TEST_GATEWAY_FOLDER";

/// Not a test: what the child process runs. Without its folder it does nothing.
#[tokio::test]
#[ignore = "started by the tests of this module"]
async fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let config: Vec<String> =
        serde_json::from_slice(&std::fs::read(folder.join("sides.json")).unwrap()).unwrap();
    let running = start(config_of(folder, &config[0], &config[1])).await.unwrap();
    let address = running.address("api").unwrap().to_string();
    std::fs::write(folder.join("address.new"), address).unwrap();
    std::fs::rename(folder.join("address.new"), folder.join("address")).unwrap();
    running.wait().await;
}

fn config_of(folder: &Path, source: &str, target: &str) -> Config {
    Config::new(
        "edge-1",
        folder.join("state"),
        folder.join("control.sock"),
        SECRET,
        vec![service(source, target)],
    )
}

struct Process {
    child: Child,
    pid: Pid,
    address: SocketAddr,
    control: Client,
}

impl Process {
    async fn start(folder: &Path, source: &Upstream, target: &Upstream) -> Self {
        std::fs::write(folder.join("sides.json"), serde_json::to_vec(&[source.url(), target.url()]).unwrap())
            .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::child", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let file = folder.join("address");
        eventually("the child listens", || async { file.exists() }).await;
        let address = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let control = Client::connect(folder.join("control.sock"), SECRET, "test").await.unwrap();
        Self { child, pid, address, control: control.with_timeout(Duration::from_secs(20)) }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero())).unwrap();
        let states =
            threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
        // `id (name) state …`
        states.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    }

    async fn done(&self, request: Control) {
        assert_eq!(self.control.call(request).await.unwrap(), Reply::Done);
    }

    async fn status(&self) -> Status {
        match self.control.call(Control::Status).await.unwrap() {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_gateway_stopped_past_its_lease_wakes_up_holding() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = tempfile::tempdir().unwrap();
    let gateway = Process::start(folder.path(), &source, &target).await;
    gateway.done(Control::Enroll { run: "shop".into(), token: TOKEN }).await;
    let mut caller = Caller::connect(gateway.address).await;
    assert_eq!(caller.post("/before", &[], "").await.side(), "source");
    let (lease, armed) = (Duration::from_millis(500), std::time::Instant::now());
    gateway.done(Gateway::arm(1, lease.as_millis() as u64)).await;
    kill_process(gateway.pid, Signal::STOP).unwrap();
    // One thread takes the signal and stops the others; on a busy machine they run on until it had its turn.
    eventually("every thread stands still", || async { gateway.is_stopped() }).await;
    // It lies in the socket of the sleeper when that wakes up.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    eventually("the lease is over", || async { armed.elapsed() > lease + Duration::from_millis(100) }).await;
    kill_process(gateway.pid, Signal::CONT).unwrap();
    eventually("the write waits", || async { gateway.status().await.held.waiting == 1 }).await;
    assert_eq!((gateway.status().await.mode, source.count("POST")), (Mode::Held, 1));
    gateway.done(Control::Settle { epoch: Epoch(2), owner: Side::Target, token: TOKEN }).await;
    let head = within("the answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-side: target"), "{head}");
    assert_eq!(
        (source.paths("POST"), target.paths("POST")),
        (vec!["/before".into()], vec!["/late".to_owned()])
    );
}

#[tokio::test]
async fn a_gateway_killed_while_it_holds_comes_back_holding() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Process::start(folder.path(), &source, &target).await;
    gateway.done(Control::Enroll { run: "shop".into(), token: TOKEN }).await;
    Caller::connect(gateway.address).await.post("/before", &[], "").await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    let hold =
        Control::Hold { epoch: Epoch(1), in_flight_ms: 10_000, sessions: SessionRule::Wait, token: TOKEN };
    assert!(matches!(gateway.control.call(hold).await.unwrap(), Reply::Held(_)));
    let mut caller = Caller::connect(gateway.address).await;
    let held = tokio::spawn(async move {
        let request = caller.request("POST", "/held", &[], "");
        caller.send(request).await
    });
    eventually("the write waits", || async { gateway.status().await.held.waiting == 1 }).await;
    gateway.child.kill().await.unwrap();
    assert!(within("the open request", held).await.unwrap().is_err(), "it fails with its gateway");
    std::fs::remove_file(folder.path().join("address")).unwrap();
    let gateway = Process::start(folder.path(), &source, &target).await;
    let status = gateway.status().await;
    assert_eq!((status.mode, status.epoch, status.intent), (Mode::Held, Epoch(1), Some(Epoch(1))));
    assert_eq!(status.run.as_deref(), Some("shop"));
    // The lease alone does not let it write again: it had proved its hold to somebody.
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert_eq!(gateway.status().await.mode, Mode::Held);
    gateway.done(Control::Settle { epoch: Epoch(2), owner: Side::Target, token: TOKEN }).await;
    assert_eq!(Caller::connect(gateway.address).await.post("/after", &[], "").await.side(), "target");
    assert_eq!(
        (source.paths("POST"), target.paths("POST")),
        (vec!["/before".into()], vec!["/after".to_owned()])
    );
}
