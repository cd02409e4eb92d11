//! Hold and release, leases, asking for the decision, restarts, intents.

use crate::support::*;
use rehome_gateway::client::Client;
use rehome_gateway::control::{
    Answer, Hello, Mode, Question, Refusal, Request as Control, Response as Reply, SessionRule,
};
use rehome_part::{Epoch, Side, Token};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_writers_wait_and_not_one_is_lost_doubled_or_misplaced() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    let mut caller = gateway.caller().await;
    assert_eq!(caller.post("/before", &[], "").await.side(), "source");
    let Reply::Held(held) = gateway.hold(1).await else { panic!("not held") };
    assert_eq!((held.in_flight, held.waiting), (0, 0));
    const WRITERS: usize = 300;
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let address = gateway.address;
            tokio::spawn(async move {
                let size = if number % 30 == 0 { 2 << 20 } else { number };
                let body = vec![number as u8; size];
                Caller::connect(address).await.post(&format!("/orders/{number}"), &[], body).await
            })
        })
        .collect();
    gateway.waiting(WRITERS as u64).await;
    assert_eq!(caller.get("/", &[]).await.side(), "source", "reads go on");
    let Reply::Held(held) =
        gateway.call(Control::Renew { epoch: Epoch(1), lease_ms: 30_000, token: TOKEN }).await
    else {
        panic!("not renewed")
    };
    assert_eq!((held.in_flight, held.waiting), (0, WRITERS as u64));
    assert!(held.fullness > 0.05 && held.waiting_bytes < 4 << 20, "bodies are left unread: {held:?}");
    assert_eq!((source.count("POST"), target.count("POST")), (1, 0));
    gateway.settle(2, Side::Target).await;
    for writer in writers {
        let got = within("a released write", writer).await.unwrap();
        assert_eq!((got.status.as_u16(), got.side()), (200, "target"));
    }
    assert_eq!((source.count("POST"), target.count("POST")), (1, WRITERS));
    let paths: HashSet<String> = target.paths("POST").into_iter().collect();
    assert_eq!(paths.len(), WRITERS, "each exactly once");
    for seen in target.seen.lock().unwrap().iter() {
        let number: usize = seen.path.rsplit('/').next().unwrap().parse().unwrap();
        assert!(seen.body.iter().all(|byte| *byte == number as u8), "whole and its own body");
    }
    let status = gateway.status().await;
    assert_eq!((status.epoch, status.owner, status.mode), (Epoch(2), Side::Target, Mode::Standing));
    assert_eq!(status.intent, Some(Epoch(2)));
    assert_eq!(status.services[0].refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_switches_under_writes_fail_none_and_double_none() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (stop, address) = (stop.clone(), gateway.address);
            tokio::spawn(async move {
                let mut caller = Caller::connect(address).await;
                let mut acknowledged = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let path = format!("/{writer}/{}", acknowledged.len());
                    let got = caller.post(&path, &[], "x").await;
                    assert_eq!(got.status, 200, "{path}");
                    acknowledged.push((path, got.side().to_owned()));
                }
                acknowledged
            })
        })
        .collect();
    let written = || source.count("POST") + target.count("POST");
    let mut owner = Side::Source;
    for epoch in 1..=10 {
        let before = written();
        eventually("writes under this owner", || async { written() >= before + 100 }).await;
        gateway.done(Gateway::arm(epoch, 30_000)).await;
        let Reply::Held(held) = gateway.hold(epoch).await else { panic!("not held") };
        assert_eq!(held.in_flight, 0);
        let (at_source, at_target) = (source.count("POST"), target.count("POST"));
        gateway.waiting(8).await;
        assert_eq!(
            (source.count("POST"), target.count("POST")),
            (at_source, at_target),
            "nothing passes a hold"
        );
        owner = owner.other();
        gateway.settle(epoch + 1, owner).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(within("a writer", writer).await.unwrap());
    }
    for (side, upstream) in [("source", &source), ("target", &target)] {
        let mut there = upstream.paths("POST");
        let mut told: Vec<String> =
            acknowledged.iter().filter(|(_, by)| by == side).map(|(path, _)| path.clone()).collect();
        there.sort();
        told.sort();
        assert_eq!(there, told, "each write once, on the side that acknowledged it: {side}");
    }
    let service = &gateway.status().await.services[0];
    assert_eq!(
        (service.refused, service.writes_unknown, service.source.failed, service.target.failed),
        (0, 0, 0, 0)
    );
}

#[tokio::test]
async fn the_line_moves_in_the_order_of_arrival() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut writers = Vec::new();
    for number in 0..20_u64 {
        let mut caller = gateway.caller().await;
        writers.push(tokio::spawn(async move { caller.post(&format!("/{number}"), &[], "").await }));
        gateway.waiting(number + 1).await;
    }
    gateway.settle(2, Side::Source).await;
    for writer in writers {
        assert_eq!(writer.await.unwrap().side(), "source", "an abort releases to the old owner");
    }
    let order: Vec<usize> =
        source.paths("POST").iter().map(|path| path.trim_matches('/').parse().unwrap()).collect();
    // They leave in order; on the way each has a connection of its own, so neighbours may swap.
    assert!(order.iter().enumerate().all(|(place, number)| place.abs_diff(*number) <= 4), "{order:?}");
}

#[tokio::test]
async fn continue_is_said_at_the_release_and_not_before() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    gateway.waiting(1).await;
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(150), stream.read(&mut byte)).await;
    assert!(early.is_err(), "nothing is said while the write waits");
    gateway.settle(2, Side::Target).await;
    let head = within("the interim answer", read_head(&mut stream)).await;
    assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let head = within("the answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-side: target"), "{head}");
    let seen = target.last();
    assert_eq!(&seen.body[..], b"hello");
    assert!(!seen.headers.contains_key("expect"));
}

#[tokio::test]
async fn http2_reads_go_on_beside_a_held_write() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut caller = Caller::connect_h2(gateway.address).await;
    let Caller::Two(sender) = &caller else { unreachable!() };
    let mut writers = Vec::new();
    for number in 0..24 {
        let mut writer = Caller::Two(sender.clone());
        let body = vec![b'w'; 300_000];
        writers.push(tokio::spawn(async move { writer.call("PUT", &format!("/{number}"), &[], body).await }));
    }
    gateway.waiting(24).await;
    for _ in 0..20 {
        let got = caller.get("/beside", &[]).await;
        assert_eq!((got.status.as_u16(), got.side()), (200, "source"));
    }
    assert_eq!(gateway.status().await.held.connections, 1);
    gateway.settle(2, Side::Target).await;
    for writer in writers {
        assert_eq!(within("a released write", writer).await.unwrap().side(), "target");
    }
    assert!(target.seen.lock().unwrap().iter().all(|seen| seen.body.len() == 300_000));
    assert_eq!(target.last().headers["host"], "shop.example");
}

#[tokio::test]
async fn a_hold_waits_for_what_is_in_flight_and_names_it() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    let mut caller = gateway.caller().await;
    let slow = tokio::spawn(async move { caller.post("/wait/a?secret=1", &[], "").await });
    eventually("the write is at the source", || async { source.count("POST") == 1 }).await;
    match gateway.hold_for(1, 50).await {
        Reply::Refused { why: Refusal::InFlight, text } => {
            assert!(text.contains("POST /wait/a") && !text.contains("secret"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let status = gateway.status().await;
    assert_eq!((status.mode, status.held.in_flight), (Mode::Held, 1), "writes stay held");
    assert_eq!(status.held.slow, ["POST /wait/a"]);
    source.let_go(1);
    assert!(matches!(gateway.hold(1).await, Reply::Held(held) if held.in_flight == 0));
    assert_eq!(slow.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_writes_do_not_keep_the_others_in_the_line() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut writers = Vec::new();
    for _ in 0..200 {
        let mut caller = gateway.caller().await;
        writers.push(tokio::spawn(async move { caller.post("/wait", &[], "").await }));
    }
    gateway.waiting(200).await;
    gateway.settle(2, Side::Target).await;
    eventually("all are at the target, none is answered", || async { target.count("POST") == 200 }).await;
    eventually("the line is empty", || async { gateway.status().await.held.in_flight == 200 }).await;
    target.let_go(200);
    for writer in writers {
        assert_eq!(within("an answer", writer).await.unwrap().status, 200);
    }
    assert_eq!(source.count("POST"), 0);
}

#[tokio::test]
async fn a_client_that_leaves_the_line_is_never_sent() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut stays = gateway.caller().await;
    for count in [1, 0] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(b"POST /gone HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
        gateway.waiting(1).await;
        drop(stream);
        gateway.waiting(0).await;
        assert_eq!(gateway.status().await.held.waiting_bytes, 0, "{count}");
    }
    let write = tokio::spawn(async move { stays.post("/stays", &[], "").await });
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(write.await.unwrap().status, 200);
    assert_eq!((target.paths("POST"), source.count("POST")), (vec!["/stays".to_owned()], 0));
    let status = gateway.status().await;
    assert_eq!((status.services[0].writes_unknown, status.services[0].refused), (0, 0));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_its_write() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    eventually("the write is at the source", || async { source.count("POST") == 1 }).await;
    drop(stream);
    eventually("the gateway noticed", || async { gateway.status().await.held.connections == 0 }).await;
    assert!(matches!(gateway.hold_for(1, 50).await, Reply::Refused { why: Refusal::InFlight, .. }));
    source.let_go(1);
    assert!(matches!(gateway.hold(1).await, Reply::Held(_)));
    let status = gateway.status().await;
    assert_eq!(
        status.services[0].writes_unknown + status.services[0].refused,
        0,
        "it was answered after all"
    );
}

#[tokio::test]
async fn an_expired_lease_holds_without_a_word() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 100)).await;
    eventually("the lease ended", || async { gateway.status().await.mode == Mode::Held }).await;
    let mut caller = gateway.caller().await;
    let write = tokio::spawn(async move { caller.post("/late", &[], "").await });
    gateway.waiting(1).await;
    assert_eq!(source.count("POST"), 0);
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert_eq!(write.await.unwrap().side(), "source", "never told to hold, so a new lease lets it go on");
}

#[tokio::test]
async fn a_renewed_lease_never_ends_a_hold() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut caller = gateway.caller().await;
    let write = tokio::spawn(async move { caller.post("/", &[], "").await });
    gateway.waiting(1).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.call(Control::Renew { epoch: Epoch(1), lease_ms: 30_000, token: TOKEN }).await;
    assert_eq!(gateway.status().await.mode, Mode::Held);
    assert_eq!((source.count("POST"), gateway.status().await.held.waiting), (0, 1));
    gateway.settle(2, Side::Target).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(write.await.unwrap().side(), "target");
}

/// Somebody who knows the decision, or does not yet.
struct Knower {
    socket: PathBuf,
    decision: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<(Hello, Question)>>>,
}

impl Knower {
    fn start(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let decision = Arc::new(Mutex::new(Answer::Undecided));
        let asked = Arc::<Mutex<Vec<(Hello, Question)>>>::default();
        let shared = (decision.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (decision, asked) = shared.clone();
                tokio::spawn(async move {
                    let mut lines = BufReader::new(stream).lines();
                    let hello = lines.next_line().await.unwrap().unwrap();
                    let question = lines.next_line().await.unwrap().unwrap();
                    let both =
                        (serde_json::from_str(&hello).unwrap(), serde_json::from_str(&question).unwrap());
                    asked.lock().unwrap().push(both);
                    let answer = serde_json::to_string(&*decision.lock().unwrap()).unwrap() + "\n";
                    lines.into_inner().into_inner().write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        Self { socket, decision, asked }
    }

    fn decide(&self, epoch: u64, owner: Side) {
        *self.decision.lock().unwrap() = Answer::Settled { epoch: Epoch(epoch), owner, token: TOKEN };
    }

    fn arm(&self, lease_ms: u64) -> Control {
        // The first socket is dead: an engine that is gone, beside a guard that lives.
        let ask = vec![self.socket.with_extension("dead"), self.socket.clone()];
        Control::Arm { epoch: Epoch(1), lease_ms, ask, ask_secret: "between us".into(), token: TOKEN }
    }

    async fn asked(&self, at_least: usize) {
        eventually("the gateway asks", || async { self.asked.lock().unwrap().len() >= at_least }).await;
    }
}

#[tokio::test]
async fn a_gateway_that_starts_into_a_switch_holds_and_asks() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let knower = Knower::start(gateway.socket("engine.sock"));
    gateway.caller().await.post("/before", &[], "").await;
    gateway.done(knower.arm(30_000)).await;
    let gateway = gateway.restart().await;
    let status = gateway.status().await;
    assert_eq!((status.mode, status.intent, status.highest_token), (Mode::Held, Some(Epoch(1)), TOKEN));
    let mut caller = gateway.caller().await;
    let write = tokio::spawn(async move { caller.post("/after", &[], "").await });
    gateway.waiting(1).await;
    knower.asked(3).await;
    assert_eq!((source.count("POST"), target.count("POST")), (1, 0), "no answer is no permission");
    knower.decide(2, Side::Target);
    assert_eq!(within("the release", write).await.unwrap().side(), "target");
    let asked = knower.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.0.secret, "between us");
    assert_eq!(asked.1, Question::Decision { run: "shop".into(), epoch: Epoch(2) });
    let status = gateway.restart().await.status().await;
    assert_eq!((status.mode, status.epoch, status.owner), (Mode::Standing, Epoch(2), Side::Target));
}

#[tokio::test]
async fn a_gateway_whose_lease_ended_asks_by_itself() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let knower = Knower::start(gateway.socket("engine.sock"));
    gateway.done(knower.arm(100)).await;
    gateway.hold(1).await;
    knower.asked(2).await;
    assert_eq!(gateway.status().await.mode, Mode::Held);
    knower.decide(2, Side::Source);
    eventually("settled", || async { gateway.status().await.mode == Mode::Standing }).await;
    assert_eq!(gateway.caller().await.post("/", &[], "").await.side(), "source");
    assert_eq!((source.count("POST"), target.count("POST")), (1, 0));
}

#[tokio::test]
async fn stale_tokens_epochs_and_runs_are_refused_also_after_a_restart() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Control::Settle { epoch: Epoch(2), owner: Side::Target, token: Token(9) }).await;
    let gateway = gateway.restart().await;
    let settle =
        |epoch, token| Control::Settle { epoch: Epoch(epoch), owner: Side::Source, token: Token(token) };
    assert_eq!(gateway.refused(settle(3, 8)).await, Refusal::StaleToken);
    assert_eq!(gateway.refused(settle(2, 9)).await, Refusal::StaleEpoch);
    assert_eq!(gateway.refused(settle(1, 9)).await, Refusal::StaleEpoch);
    let weight = Control::Weight { service: "api".into(), percent: 50, token: Token(8) };
    assert_eq!(gateway.refused(weight).await, Refusal::StaleToken);
    assert_eq!(gateway.status().await.services[0].weight_wanted, 0, "a refused request has no effect");
    assert_eq!(
        gateway.refused(Control::Enroll { run: "other".into(), token: Token(99) }).await,
        Refusal::OtherRun
    );
    assert_eq!(
        gateway
            .refused(Control::Hold {
                epoch: Epoch(2),
                in_flight_ms: 1,
                sessions: SessionRule::Wait,
                token: Token(9),
            })
            .await,
        Refusal::NotArmed
    );
    gateway.done(Control::Leave { run: "shop".into(), token: Token(9) }).await;
    assert_eq!(gateway.refused(settle(3, 9)).await, Refusal::OtherRun);
    assert_eq!(gateway.caller().await.post("/", &[], "").await.side(), "target", "the standing grant stays");
}

#[tokio::test]
async fn the_intent_is_on_the_disk_before_the_first_write_leaves() {
    let target = Upstream::start("target").await;
    let folder = Arc::new(Mutex::new(None::<PathBuf>));
    let found = Arc::<Mutex<Vec<serde_json::Value>>>::default();
    let (at, noted) = (folder.clone(), found.clone());
    let source = raw_upstream(move |mut stream| {
        let (at, noted) = (at.clone(), noted.clone());
        async move {
            while read_head(&mut stream).await.starts_with("POST") {
                let file = at.lock().unwrap().clone().unwrap();
                let text = std::fs::read_to_string(file).unwrap_or_else(|_| "{}".into());
                noted.lock().unwrap().push(serde_json::from_str(&text).unwrap());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    *folder.lock().unwrap() = Some(gateway.config.state_dir.join("epoch.json"));
    assert_eq!(gateway.status().await.intent, None);
    let mut caller = gateway.caller().await;
    caller.post("/", &[], "").await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let write = tokio::spawn(async move { caller.post("/", &[], "").await });
    gateway.waiting(1).await;
    gateway.settle(2, Side::Source).await;
    write.await.unwrap();
    gateway.settle(3, Side::Source).await;
    gateway.caller().await.post("/", &[], "").await;
    let intents: Vec<_> = found.lock().unwrap().iter().map(|state| state["intent"].clone()).collect();
    assert_eq!(intents, [1, 2, 3]);
}

#[tokio::test]
async fn a_grant_can_be_taken_back_until_the_first_write() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    gateway.settle(2, Side::Target).await;
    gateway.done(Control::Revoke { epoch: Epoch(2), token: TOKEN }).await;
    let gateway = gateway.restart().await;
    let mut caller = gateway.caller().await;
    let write = tokio::spawn(async move { caller.post("/", &[], "").await });
    gateway.waiting(1).await;
    let late = Control::Settle { epoch: Epoch(2), owner: Side::Target, token: TOKEN };
    assert_eq!(gateway.refused(late).await, Refusal::StaleEpoch);
    gateway.settle(3, Side::Source).await;
    assert_eq!(write.await.unwrap().side(), "source");
    assert_eq!(
        gateway.refused(Control::Revoke { epoch: Epoch(3), token: TOKEN }).await,
        Refusal::IntentRecorded
    );
    assert_eq!(target.count("POST"), 0);
}

#[tokio::test]
async fn a_full_line_refuses_before_a_byte_leaves() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::with(service(&source.url(), &target.url()), |config| {
        config.hold.requests = 3;
        config.hold.age = rehome_spec::Span::from_millis(400);
    })
    .await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut writers = Vec::new();
    for number in 0..3_u64 {
        let mut caller = gateway.caller().await;
        writers.push(tokio::spawn(async move { caller.post("/", &[], "").await }));
        gateway.waiting(number + 1).await;
    }
    assert!(gateway.status().await.held.fullness > 0.99);
    let refused = gateway.caller().await.post("/", &[], "").await;
    let mut all = vec![refused];
    for writer in writers {
        all.push(within("the longest wait", writer).await.unwrap());
    }
    for got in all {
        assert_eq!(got.status, 503, "the fourth at once, the others at their age");
        assert_eq!(got.headers["rehome-outcome"], "not-sent");
        assert!(got.headers.contains_key("retry-after"));
    }
    assert_eq!((source.count("POST"), target.count("POST")), (0, 0));
    let status = gateway.status().await;
    assert_eq!((status.services[0].refused, status.held.waiting, status.held.waiting_bytes), (4, 0, 0));
}

#[tokio::test]
async fn at_the_bound_of_connections_nobody_is_accepted() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway =
        Gateway::with(service(&source.url(), &target.url()), |config| config.hold.connections = 2).await;
    let mut first = gateway.caller().await;
    let mut second = gateway.caller().await;
    first.get("/", &[]).await;
    second.get("/", &[]).await;
    let mut third = gateway.caller().await;
    let waiting = tokio::spawn(async move { third.get("/third", &[]).await });
    first.get("/", &[]).await;
    assert!(gateway.status().await.held.fullness > 0.99);
    assert!(!source.paths("GET").contains(&"/third".to_owned()));
    drop(first);
    assert_eq!(within("a place became free", waiting).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_drain_lets_open_requests_finish_and_cuts_the_rest() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    let mut idle = gateway.caller().await;
    idle.get("/", &[]).await;
    let open = tokio::spawn(async move { caller.post("/wait", &[], "").await });
    eventually("the write is at the source", || async { source.count("POST") == 1 }).await;
    let address = gateway.address;
    let config = gateway.config.clone();
    let drain = tokio::spawn(gateway.running.drain(Duration::from_secs(20)));
    eventually("nobody is accepted", || async { TcpStream::connect(address).await.is_err() }).await;
    source.let_go(1);
    assert_eq!(open.await.unwrap().status, 200);
    assert_eq!(within("the drain", drain).await.unwrap().cut, 0);
    assert!(!config.control.exists());

    let gateway = Gateway::again(config, gateway.folder).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    gateway.hold(1).await;
    let mut held = gateway.caller().await;
    let held = tokio::spawn(async move { held.post("/held", &[], "").await });
    gateway.waiting(1).await;
    let mut stuck = gateway.caller().await;
    let stuck = tokio::spawn(async move {
        let request = stuck.request("GET", "/wait", &[], "");
        stuck.send(request).await
    });
    eventually("the read is at the source", || async { source.paths("GET").contains(&"/wait".into()) }).await;
    let drained = within("the drain", gateway.running.drain(Duration::from_millis(50))).await;
    assert_eq!(drained.cut, 2);
    let held = held.await.unwrap();
    assert_eq!((held.status.as_u16(), &held.headers["rehome-outcome"]), (503, &"not-sent".parse().unwrap()));
    assert!(stuck.await.unwrap().is_err());
    assert_eq!(source.paths("POST"), ["/wait"]);
}

#[tokio::test]
async fn only_one_gateway_per_folder_and_never_on_a_damaged_file() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let second = rehome_gateway::start(gateway.config.clone()).await.unwrap_err();
    assert!(second.to_string().contains("another gateway uses it"), "{second}");
    let mut elsewhere = gateway.config.clone();
    elsewhere.state_dir = gateway.socket("other-state");
    let third = rehome_gateway::start(elsewhere).await.unwrap_err();
    assert!(third.to_string().contains("another process answers"), "{third}");
    let (config, folder) = (gateway.config.clone(), gateway.folder.clone());
    gateway.running.drain(Duration::ZERO).await;
    std::fs::write(config.state_dir.join("epoch.json"), "{\"version\":1,").unwrap();
    let damaged = rehome_gateway::start(config.clone()).await.unwrap_err();
    assert!(damaged.to_string().contains("is damaged"), "{damaged}");
    std::fs::remove_file(config.state_dir.join("epoch.json")).unwrap();
    // A socket that a killed process left behind.
    drop(std::os::unix::net::UnixListener::bind(&config.control).unwrap());
    let gateway = Gateway::again(config.clone(), folder).await;
    assert!(Client::connect(&config.control, "wrong", "test").await.is_err());
    drop(gateway);
}
