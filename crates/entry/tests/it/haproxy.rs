//! Real HAProxy: weights and drain under load, what holds and what only seems to, the gateway put in and taken out.

use crate::support::*;
use http::Method;
use rehome_entry::EntryError;
use rehome_entry::change::To;
use rehome_entry::haproxy::hold::{self, Hold};
use rehome_entry::haproxy::{Haproxy, Plan, Runtime, Way};
use rehome_entry::quiet::NoRun;
use rehome_entry::service::{Service, Towards};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

struct Running {
    folder: tempfile::TempDir,
    port: u16,
    driver: Haproxy,
    process: Option<Program>,
}

const HEAD: &str = "global\n  stats socket FOLDER/admin.sock mode 600 level admin\n  stats socket FOLDER/operator.sock mode 600 level operator\n\
                    \x20 maxconn 2000\n\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  timeout queue 20s\n\
                    \x20 option forwardfor\n\n";

impl Running {
    /// `PORT` becomes a free port, `FOLDER` the folder.
    fn prepare(program: &Path, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let fill = |text: &str| {
            text.replace("FOLDER", &folder.path().display().to_string()).replace("PORT", &port.to_string())
        };
        let config = folder.path().join("haproxy.cfg");
        write(&config, &fill(text));
        let driver = Haproxy {
            program: program.to_owned(),
            configs: vec![config],
            runtime: Some(Runtime::Unix(folder.path().join("admin.sock"))),
            pid_file: Some(folder.path().join("haproxy.pid")),
            reload: None,
            state: folder.path().join("state"),
        };
        Self { folder, port, driver, process: None }
    }

    async fn start(&mut self) {
        let mut command = Command::new(&self.driver.program);
        command.args(["-W", "-db", "-p"]).arg(self.folder.path().join("haproxy.pid"));
        command.arg("-f").arg(self.config()).stderr(Stdio::null());
        self.process = Some(Program::start(&mut command));
        let port = self.port;
        let runtime = self.runtime().clone();
        until("haproxy", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() && runtime.info().await.is_ok()
        })
        .await;
    }

    fn config(&self) -> &PathBuf {
        &self.driver.configs[0]
    }

    fn runtime(&self) -> &Runtime {
        self.driver.runtime.as_ref().unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn get(&self, path: &str) -> Fetched {
        fetch(Method::GET, &self.address(), "shop.example", path).await.unwrap()
    }

    async fn propose(&self, service: &Service) -> Plan {
        let plan = self.driver.plan(std::slice::from_ref(service), Towards::Gateway).await.unwrap();
        plan.unless_stopped().unwrap()
    }

    async fn install(&self, service: &Service, way: Way) -> Result<rehome_entry::change::Done, EntryError> {
        let plan = self.propose(service).await;
        self.driver.install(std::slice::from_ref(service), &plan, way, &NoRun).await
    }

    async fn remove(
        &self,
        service: &Service,
        to: To,
        way: Way,
    ) -> Result<rehome_entry::change::Done, EntryError> {
        self.driver.remove(std::slice::from_ref(service), to, way, &NoRun).await
    }
}

struct Parties {
    source: Origin,
    target: Origin,
    gateway: Origin,
}

impl Parties {
    async fn new() -> Self {
        Self {
            source: Origin::application("source").await,
            target: Origin::application("target").await,
            gateway: Origin::gateway().await,
        }
    }

    fn service(&self) -> Service {
        service(&self.source, &self.target, &self.gateway)
    }

    fn fill(&self, text: &str) -> String {
        text.replace("SOURCE", &self.source.address.to_string())
            .replace("TARGET", &self.target.address.to_string())
    }
}

const PAIR: &str = "frontend web\n  bind 127.0.0.1:PORT\n  default_backend app\n\nbackend app\n  server source SOURCE weight 100\n\
                    \x20 server target TARGET weight 0\n";
const ONE: &str = "frontend web\n  bind 127.0.0.1:PORT\n  default_backend app\n\nbackend app\n  # ours\n  server one SOURCE  # the only one\n";

async fn running(text: &str) -> Option<(Parties, Running)> {
    let program = tool("haproxy")?;
    let parties = Parties::new().await;
    let mut haproxy = Running::prepare(&program, &parties.fill(&format!("{HEAD}{text}")));
    haproxy.start().await;
    Some((parties, haproxy))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_move_under_load_and_nothing_fails() {
    let Some((parties, haproxy)) = running(PAIR).await else { return };
    let mut idle = Vec::new();
    for round in 0..40 {
        let begun = Instant::now();
        let weights = [("source".to_owned(), 100 - round), ("target".to_owned(), round)];
        haproxy.runtime().weights("app", &weights).await.unwrap();
        idle.push(begun.elapsed());
    }
    idle.sort();
    let load = Load::start(haproxy.address().parse().unwrap(), 8, &Method::POST);
    let mut times = Vec::new();
    for round in 0..60_u32 {
        let share = [0, 5, 25, 50, 100, 50, 0][round as usize % 7];
        let so_far = load.answered();
        let begun = Instant::now();
        let weights = [("source".to_owned(), 100 - share), ("target".to_owned(), share)];
        haproxy.runtime().weights("app", &weights).await.unwrap();
        times.push(begun.elapsed());
        until("requests between", async || load.answered() > so_far + 100).await;
    }
    let seen = (parties.source.got.lock().unwrap().len(), parties.target.got.lock().unwrap().len());
    let tally = load.end().await;
    times.sort();
    eprintln!(
        "60 weight changes of both servers under 8 clients: {} answered, median {:?}, sides {seen:?}; without load {:?}",
        tally.answered.load(Ordering::SeqCst),
        times[times.len() / 2],
        idle[idle.len() / 2]
    );
    assert_eq!((tally.failed.load(Ordering::SeqCst), tally.reset.load(Ordering::SeqCst)), (0, 0));
    assert!(seen.0 > 0 && seen.1 > 0);
}

#[tokio::test]
async fn nobody_left_is_refused_because_haproxy_answers_503() {
    let Some((_parties, haproxy)) = running(PAIR).await else { return };
    let runtime = haproxy.runtime();
    let weight = |name: &str, weight| (name.to_owned(), weight);
    for error in [
        runtime.weights("app", &[weight("source", 0)]).await.unwrap_err(),
        runtime.weights("app", &[weight("nobody", 5)]).await.unwrap_err(),
        runtime.weights("app", &[weight("target", 257)]).await.unwrap_err(),
        runtime.weights("nowhere", &[weight("source", 5)]).await.unwrap_err(),
        runtime.drain("app", "source").await.unwrap_err(),
    ] {
        assert!(matches!(error, EntryError::Unfit { .. }), "{error}");
    }
    runtime.weights("app", &[weight("target", 50)]).await.unwrap();
    runtime.drain("app", "source").await.unwrap();
    for _ in 0..10 {
        assert_eq!(haproxy.get("/").await.body, "target");
    }
    let error = runtime.weights("app", &[weight("target", 0)]).await.unwrap_err().to_string();
    assert!(error.contains("503"), "a server that drains by order takes nobody: {error}");
    runtime.ready("app", "source").await.unwrap();
    runtime.weights("app", &[weight("target", 0)]).await.unwrap();
    assert_eq!(haproxy.get("/").await.body, "source");
}

#[tokio::test]
async fn a_socket_without_rights_is_said_to_be_one() {
    let Some((_parties, haproxy)) = running(PAIR).await else { return };
    let operator = Runtime::Unix(haproxy.folder.path().join("operator.sock"));
    assert_eq!(operator.servers().await.unwrap().len(), 2);
    let error = operator.weights("app", &[("target".to_owned(), 5)]).await.unwrap_err();
    assert!(
        matches!(error, EntryError::Refused { .. }) && error.to_string().contains("level admin"),
        "{error}"
    );
    let gone = Runtime::Unix(haproxy.folder.path().join("gone.sock"));
    assert!(gone.info().await.unwrap_err().is_retryable());
}

#[tokio::test]
async fn put_in_at_runtime_and_taken_out_without_one_lost_request() {
    let Some((parties, haproxy)) = running(ONE).await else { return };
    let (service, before) = (parties.service(), haproxy.text());
    let load = Load::start(haproxy.address().parse().unwrap(), 8, &Method::POST);
    until("load", async || load.answered() > 200).await;
    let plan = haproxy.propose(&service).await;
    assert!(plan.only_addresses, "{:?}", plan.findings);
    let done = haproxy.install(&service, Way::Best).await.unwrap();
    assert_eq!(done.taken_up.by, "runtime");
    assert!(done.seen.iter().any(|seen| seen.through_gateway), "{done:?}");
    assert!(haproxy.text().contains(&format!("server one {}  # the only one", parties.gateway.address)));
    let at_source = parties.source.got.lock().unwrap().len();
    let so_far = load.answered();
    until("load after it", async || load.answered() > so_far + 200).await;
    let late = parties.source.got.lock().unwrap().len() - at_source;
    assert_eq!(late, 0, "no request goes the former way once it is proven");
    assert!(!haproxy.install(&service, Way::Best).await.unwrap().changed);
    haproxy.remove(&service, To::Source, Way::Best).await.unwrap();
    assert_eq!(haproxy.text(), before);
    haproxy.install(&service, Way::Best).await.unwrap();
    haproxy.remove(&service, To::Target, Way::Best).await.unwrap();
    assert_eq!(haproxy.get("/").await.body, "target");
    let tally = load.end().await;
    assert_eq!((tally.failed.load(Ordering::SeqCst), tally.reset.load(Ordering::SeqCst)), (0, 0));
    assert!(haproxy.text().contains(&format!("server one {}", parties.target.address)));
}

#[tokio::test]
async fn a_move_that_was_killed_is_finished() {
    let Some((parties, haproxy)) = running(ONE).await else { return };
    let (service, gateway) = (parties.service(), parties.gateway.address.to_string());
    let (ip, port) = gateway.split_once(':').unwrap();
    haproxy.install(&service, Way::Best).await.unwrap();
    for words in [
        &["add", "server", "app/rehome-spare", &gateway][..],
        &["set", "server", "app/rehome-spare", "state", "ready"],
        &["set", "server", "app/one", "state", "drain"],
        &["set", "server", "app/one", "addr", ip, "port", port],
    ] {
        haproxy.runtime().command(words).await.unwrap();
    }
    haproxy.remove(&service, To::Source, Way::Best).await.unwrap();
    let servers = haproxy.runtime().servers().await.unwrap();
    assert_eq!(servers.len(), 1, "{servers:?}");
    assert!(
        servers[0].status.starts_with("no check") && servers[0].address == parties.source.address.to_string()
    );
    assert_eq!(haproxy.get("/").await.body, "source");
}

#[tokio::test]
async fn what_takes_no_server_at_runtime_is_reloaded() {
    let text = ONE.replace("backend app\n", "backend app\n  balance static-rr\n");
    let Some((parties, haproxy)) = running(&text).await else { return };
    let (service, before) = (parties.service(), haproxy.text());
    let done = haproxy.install(&service, Way::Best).await.unwrap();
    assert_eq!(done.taken_up.by, "reload");
    assert!(done.taken_up.notes.iter().any(|note| note.contains("not at runtime")), "{done:?}");
    haproxy.remove(&service, To::Source, Way::Best).await.unwrap();
    assert_eq!((haproxy.text(), haproxy.get("/").await.body), (before, "source".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_in_by_a_reload_with_everything_that_has_to_go() {
    let text = "frontend web\n  bind 127.0.0.1:PORT\n  acl is_shop hdr(host) -i shop.example\n  acl is_api path_beg /api\n\
                \x20 use_backend app if is_shop is_api\n  http-request return status 404 if !is_shop\n  default_backend other\n\n\
                backend app\n  timeout server 3s\n  retry-on all-retryable-errors\n  cookie SRV insert indirect\n\
                \x20 default-server check inter 1s\n  server a SOURCE maxconn 20 cookie a send-proxy-v2 weight 10\n  use-server a if { always_true }\n\n\
                backend other\n  http-request return status 200 content-type text/plain string other\n";
    let Some(program) = tool("haproxy") else { return };
    let parties = Parties::new().await;
    // The application of this test speaks no PROXY: what matters is what the line becomes.
    let plain = format!("{HEAD}{}", text.replace(" send-proxy-v2", ""));
    let mut haproxy = Running::prepare(&program, &parties.fill(&plain));
    haproxy.start().await;
    let service = parties.service();
    let before = haproxy.text();
    let plan = haproxy.propose(&service).await;
    let ids: Vec<&str> = plan.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, ["maxconn", "repeats", "too-impatient"]);
    assert!(!plan.only_addresses);
    let diff = plan.files[0].diff();
    for line in [
        format!("+  server a {} cookie a weight 10", parties.gateway.address),
        "+  timeout server 19s".into(),
        "+  retry-on conn-failure".into(),
    ] {
        assert!(diff.contains(&line), "{line}\n{diff}");
    }
    let load = Load::start(haproxy.address().parse().unwrap(), 8, &Method::GET);
    until("load", async || load.answered() > 500).await;
    let done = haproxy.install(&service, Way::Best).await.unwrap();
    assert_eq!(done.taken_up.by, "reload");
    assert!(
        done.seen.iter().any(|seen| seen.route.contains("shop.example/api") && seen.through_gateway),
        "{done:?}"
    );
    assert_eq!(haproxy.get("/api/x").await.body, "gateway");
    let back = haproxy.remove(&service, To::Source, Way::Best).await.unwrap();
    assert_eq!(back.taken_up.by, "reload");
    assert_eq!(haproxy.text(), before);
    assert_eq!(haproxy.get("/api/x").await.body, "source");
    let tally = load.end().await;
    let said = done.taken_up.open_connections.unwrap() + back.taken_up.open_connections.unwrap();
    let reset = tally.reset.load(Ordering::SeqCst);
    eprintln!(
        "two reloads of HAProxy under 8 clients: {} answered, {reset} reset, at most {said} said",
        tally.answered.load(Ordering::SeqCst)
    );
    assert!(reset <= said && tally.failed.load(Ordering::SeqCst) == 0, "{tally:?}");

    let proxied = Running::prepare(&program, &parties.fill(&format!("{HEAD}{text}")));
    let plan = proxied.driver.plan(std::slice::from_ref(&service), Towards::Gateway).await.unwrap();
    assert!(plan.findings.iter().any(|finding| finding.id == "send-proxy"));
    assert!(plan.files[0].diff().contains(" cookie a weight 10"), "{}", plan.files[0].diff());
}

/// What was said for the former server alone goes, inherited or not, and HAProxy takes what is left.
#[tokio::test]
async fn words_for_the_former_server_go() {
    let Some(program) = tool("haproxy") else { return };
    let parties = Parties::new().await;
    for (line, defaults, left, ids) in [
        (
            "ssl verify none sni str(a.example) alpn http/1.1 check-ssl check inter 2s",
            "",
            " check inter 2s",
            &["no-tls"][..],
        ),
        ("check", "ssl verify none", " check no-ssl", &["no-tls"]),
        ("maxconn 10 maxqueue 5 weight 3", "", " weight 3", &["maxconn"]),
        ("weight 3", "maxconn 10", " weight 3 maxconn 0", &["maxconn"]),
        ("check send-proxy-v2 # why", "", " check # why", &["send-proxy"]),
        ("check", "send-proxy", " check no-send-proxy", &["send-proxy"]),
        ("check", "send-proxy-v2", " check no-send-proxy-v2", &["send-proxy"]),
    ] {
        let text = format!(
            "{HEAD}frontend web\n  bind 127.0.0.1:PORT\n  default_backend app\n\nbackend app\n  default-server {defaults} rise 2\n  server one SOURCE {line}\n"
        );
        let haproxy = Running::prepare(&program, &parties.fill(&text));
        let plan = haproxy.propose(&parties.service()).await;
        assert!(!plan.only_addresses);
        assert_eq!(plan.findings.iter().map(|finding| finding.id).collect::<Vec<_>>(), ids, "{line}");
        let diff = plan.files[0].diff();
        assert!(
            diff.contains(&format!("+  server one {}{left}\n", parties.gateway.address)),
            "{line}\n{diff}"
        );
        std::fs::write(haproxy.config(), &plan.files[0].after).unwrap();
        let tested = Command::new(&program).arg("-c").arg("-f").arg(haproxy.config()).output().unwrap();
        assert!(tested.status.success(), "{line}: {}", String::from_utf8_lossy(&tested.stderr));
    }
    let text =
        format!("{HEAD}{}", ONE.replace("server one SOURCE", "server one SOURCE\n  server two 192.0.2.1:80"));
    let haproxy = Running::prepare(&program, &parties.fill(&text));
    let plan = haproxy.driver.plan(&[parties.service()], Towards::Gateway).await.unwrap();
    let error = plan.unless_stopped().unwrap_err().to_string();
    assert!(error.contains("192.0.2.1:80"), "{error}");

    let bare = ONE.replace("server one SOURCE", "server one 127.0.0.1");
    let haproxy = Running::prepare(&program, &parties.fill(&format!("{HEAD}{bare}")));
    let plan = haproxy.driver.plan(&[parties.service()], Towards::Gateway).await.unwrap();
    assert!(plan.findings.iter().any(|finding| finding.id == "no-port"), "{:?}", plan.findings);
    let error = haproxy.driver.install(&[parties.service()], &plan, Way::Best, &NoRun).await.unwrap_err();
    assert!(error.to_string().contains("nothing in this configuration leads to the source"), "{error}");
}

#[tokio::test]
async fn what_haproxy_refuses_or_cannot_prove_changes_nothing() {
    let Some((parties, haproxy)) = running(ONE).await else { return };
    let before = haproxy.text();
    let mut service = parties.service();
    parties.gateway.broken.store(true, Ordering::SeqCst);
    for way in [Way::Best, Way::Reload] {
        let error = haproxy.install(&service, way).await.unwrap_err();
        assert!(matches!(error, EntryError::NotProven { undone: true, .. }), "{error}");
        assert_eq!(haproxy.text(), before);
        assert_eq!(haproxy.get("/").await.body, "source", "{way:?}");
    }
    service.gateway.host = "no-such-gateway.invalid".into();
    let error = haproxy.install(&service, Way::Reload).await.unwrap_err();
    assert!(matches!(error, EntryError::Unfit { .. }) && error.to_string().contains("refuse"), "{error}");
    assert_eq!(haproxy.text(), before);

    let service = parties.service();
    let plan = haproxy.propose(&service).await;
    std::fs::write(haproxy.config(), format!("{before}# mine\n")).unwrap();
    let error =
        haproxy.driver.install(std::slice::from_ref(&service), &plan, Way::Best, &NoRun).await.unwrap_err();
    assert!(matches!(error, EntryError::Changed { .. }), "{error}");
    assert!(haproxy.driver.record().unwrap().is_none());
}

/// What HAProxy 2.6 does with requests when it is told to hold them by its own means. The hold of this driver rests on it.
#[tokio::test]
async fn nothing_of_its_own_makes_requests_wait() {
    let Some((_parties, haproxy)) = running(ONE).await else { return };
    let runtime = haproxy.runtime();
    runtime.command(&["set", "maxconn", "server", "app/one", "0"]).await.unwrap();
    assert_eq!(haproxy.get("/").await.status, 200, "maxconn 0 of a server is no limit");
    for (what, back) in [
        (
            &["set", "server", "app/one", "state", "maint"][..],
            &["set", "server", "app/one", "state", "ready"][..],
        ),
        (&["set", "server", "app/one", "state", "drain"], &["set", "server", "app/one", "state", "ready"]),
        (&["set", "weight", "app/one", "0"], &["set", "weight", "app/one", "100%"]),
    ] {
        runtime.command(what).await.unwrap();
        assert_eq!(haproxy.get("/").await.status, 503, "{what:?}");
        runtime.command(back).await.unwrap();
        assert_eq!(haproxy.get("/").await.status, 200, "{back:?}");
    }
    let mut kept = Line::open(&haproxy.address()).await.unwrap();
    kept.send(Method::GET, "a", "/").await.unwrap();
    runtime.command(&["set", "maxconn", "frontend", "web", "0"]).await.unwrap();
    let kept = kept.send(Method::GET, "a", "/").await.unwrap();
    assert_eq!(kept.status, 200, "the frontend's maxconn stops no kept connection");
    let address = haproxy.address();
    let new = tokio::time::timeout(Duration::from_secs(1), fetch(Method::GET, &address, "a", "/")).await;
    assert!(
        new.is_err(),
        "a new one waits; 2.6.12 then dies of its watchdog when the limit is raised again: {new:?}"
    );
}

#[tokio::test]
async fn held_writes_wait_and_nothing_is_lost() {
    let Some(program) = tool("haproxy") else { return };
    let parties = Parties::new().await;
    let mut haproxy =
        Running::prepare(&program, &parties.fill(&format!("{HEAD}{ONE}").replace("client 30s", "client 1s")));
    let hold = Hold {
        folder: haproxy.folder.path().to_owned(),
        age: Duration::from_secs(4),
        requests: 10,
        reads: ["GET", "HEAD", "OPTIONS"].map(String::from).to_vec(),
    };
    haproxy.start().await;
    let error = hold::set(haproxy.runtime(), &hold.map_path(), true).await.unwrap_err();
    assert!(error.to_string().contains("no hold prepared"), "{error}");
    let done = haproxy.driver.prepare_hold(&hold, &NoRun).await.unwrap();
    assert_eq!(done.by, "reload");
    assert_eq!(haproxy.driver.prepare_hold(&hold, &NoRun).await.unwrap().by, "none", "prepared is prepared");

    let address = haproxy.address();
    let mut kept = Line::open(&address).await.unwrap();
    kept.send(Method::POST, "a", "/").await.unwrap();
    hold::set(haproxy.runtime(), &hold.map_path(), true).await.unwrap();
    assert!(hold::is_held(haproxy.runtime(), &hold.map_path()).await.unwrap());
    let posts = parties.source.count(Method::POST);
    let begun = Instant::now();
    let mut writes = tokio::task::JoinSet::new();
    writes.spawn(async move { kept.send(Method::POST, "a", "/").await });
    for _ in 0..8 {
        let address = address.clone();
        writes.spawn(async move { fetch(Method::PUT, &address, "a", "/").await });
    }
    // Longer than `timeout client`; reads go on meanwhile.
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(haproxy.get("/").await.status, 200);
    }
    assert!(writes.try_join_next().is_none(), "every write waits");
    assert_eq!((parties.source.count(Method::POST), parties.source.count(Method::PUT)), (posts, 0));
    hold::set(haproxy.runtime(), &hold.map_path(), false).await.unwrap();
    for answer in writes.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!((parties.source.count(Method::POST), parties.source.count(Method::PUT)), (posts + 1, 8));

    // Too many, and too long: 503 before anything was sent.
    hold::set(haproxy.runtime(), &hold.map_path(), true).await.unwrap();
    let mut writes = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let address = address.clone();
        writes.spawn(async move { fetch(Method::PUT, &address, "a", "/").await });
    }
    let statuses: Vec<u16> =
        writes.join_all().await.into_iter().map(|answer| answer.unwrap().status).collect();
    assert_eq!(statuses, [503; 12]);
    assert_eq!(parties.source.count(Method::PUT), 8);
    hold::set(haproxy.runtime(), &hold.map_path(), false).await.unwrap();
    assert_eq!(fetch(Method::PUT, &address, "a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_state_file_brings_the_former_address_back_and_is_overruled() {
    let text = format!(
        "{}{ONE}",
        HEAD.replace("  maxconn 2000\n", "  maxconn 2000\n  server-state-file FOLDER/states\n")
            .replace("  mode http\n", "  mode http\n  load-server-state-from-file global\n")
    );
    let Some(program) = tool("haproxy") else { return };
    let parties = Parties::new().await;
    let mut haproxy = Running::prepare(&program, &parties.fill(&text));
    let states = haproxy.folder.path().join("states");
    std::fs::write(&states, "").unwrap();
    haproxy.start().await;
    let dump = async || {
        let text = haproxy.runtime().command(&["show", "servers", "state"]).await.unwrap();
        std::fs::write(&states, format!("{text}\n")).unwrap();
    };
    dump().await;
    let service = parties.service();
    let plan = haproxy.propose(&service).await;
    assert!(plan.findings.iter().any(|finding| finding.id == "state-file"));
    let done = haproxy.install(&service, Way::Reload).await.unwrap();
    assert!(done.seen.iter().any(|seen| seen.through_gateway), "{done:?}");
    assert_eq!(done.taken_up.by, "reload");
    assert!(done.taken_up.notes.iter().any(|note| note.contains("at runtime")), "{:?}", done.taken_up.notes);
    assert_eq!(haproxy.get("/").await.body, "gateway");
    haproxy.remove(&service, To::Source, Way::Best).await.unwrap();
    assert_eq!(haproxy.get("/").await.body, "source");
}
