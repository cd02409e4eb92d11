//! `rehome entry dns` with a real BIND and two real gateways: the name moves, and who still comes by the old address is carried
//! to the new side all the same. Killed with -9 the same command goes on.

use crate::harness::{Place, Ran, wait_for};
use rehome_gateway::client::Client;
use rehome_gateway::control::{Request, Response};
use rehome_part::{Epoch, Side, Token};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const NAME: &str = "shop.example.test";
const SECRET: &str = "cmVob21lLXRlc3Qtc2VjcmV0LW9mLTMyLWJ5dGVzISE=";
const LIMIT: Duration = Duration::from_secs(30);

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn named() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder: PathBuf| folder.join("named")).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(), "named is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: named is missing; run scripts/tools.sh");
    }
    found
}

/// A primary of `example.test` with the old entry's address, on a port of this machine.
struct Bind {
    _process: Process,
    place: Place,
    port: u16,
}

impl Bind {
    fn start() -> Option<Self> {
        let program = named()?;
        for _ in 0..10 {
            let place = Place::new();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if UdpSocket::bind(("127.0.0.1", port)).is_err() {
                continue;
            }
            let zone =
                "$TTL 300\n@ SOA ns1 root 1 2 1 3600 30\n@ NS ns1\nns1 A 127.0.0.1\nshop A 127.0.0.1\n";
            place.write("zone.db", zone);
            place.write("key", SECRET);
            let text = format!(
                "options {{ directory \"{}\"; pid-file none; session-keyfile none; lock-file none; recursion no;\n\
                 listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; dnssec-validation no; }};\n\
                 controls {{ }};\nkey move {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
                 zone \"example.test\" {{ type primary; file \"zone.db\"; notify no;\n\
                 update-policy {{ grant move name {NAME} A AAAA CNAME; }}; }};\n",
                place.folder.path().display()
            );
            let configuration = place.write("named.conf", &text);
            let mut command = Command::new(&program);
            command
                .args(["-g", "-n", "1", "-c"])
                .arg(configuration)
                .stdin(Stdio::null())
                .stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
            let process = Process(child);
            let runs = lines.any(|line| line.ends_with(" running"));
            std::thread::spawn(move || lines.for_each(drop));
            if runs {
                return Some(Self { _process: process, place, port });
            }
        }
        panic!("named did not run on ten ports");
    }

    fn command(&self, verb: &str, more: &[&str]) -> Command {
        let (server, key) =
            (format!("127.0.0.1:{}", self.port), format!("file:{}", self.place.path("key").display()));
        let port = self.port.to_string();
        let mut arguments = vec!["entry", "dns", verb, "--resolver", &server, "--port", &port];
        if !matches!(verb, "show" | "wait") {
            arguments.extend(["--key-name", "move", "--key", &key]);
        }
        arguments.extend(more);
        self.place.command(&arguments)
    }

    fn run(&self, verb: &str, more: &[&str]) -> Ran {
        crate::harness::ran(self.command(verb, more).output().unwrap())
    }

    fn good(&self, verb: &str, more: &[&str]) -> Value {
        let mut all = more.to_vec();
        all.push("--json");
        let ran = self.run(verb, &all);
        assert_eq!(ran.code, 0, "{verb} {more:?}: {}", ran.stderr);
        let value = ran.last_json();
        assert_eq!(value["ui"], "1.0");
        value
    }

    /// Where a client that asks anew is sent.
    fn resolved(&self) -> Vec<String> {
        let shown = self.good("show", &[NAME]);
        let sets = shown["servers"][0]["entry"].as_array().unwrap().clone();
        let values = sets.iter().flat_map(|set| set["values"].as_array().unwrap().clone());
        values.map(|value| value.as_str().unwrap().to_owned()).collect()
    }
}

/// An application that says which side it is and counts what it is asked.
fn application(side: &'static str) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                while let Some(first) = lines.next() {
                    lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
                    if first.starts_with("POST") {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{side}", side.len());
                    if (&stream).write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

/// A write by the name, at an address that a client has kept or just got.
fn write_at(address: &str, port: u16) -> String {
    let mut stream = TcpStream::connect((address, port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request =
        format!("POST /order HTTP/1.1\r\nhost: {NAME}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

/// A gateway of its own at `address:port`, with its metrics there too.
fn gateway(
    place: &Place,
    address: &str,
    port: u16,
    metrics: u16,
    source: SocketAddr,
    target: SocketAddr,
) -> Process {
    let control = place.path(&format!("{address}.sock"));
    place.write("secret", "sixteen or more characters");
    let text = format!(
        "[migration]\nname = \"shop\"\nsource = {{ cloud = \"old\" }}\ntarget = {{ cloud = \"new\" }}\n\
         [[services]]\nname = \"web\"\nlisten = \"{address}:{port}\"\nsource = \"http://{source}\"\n\
         target = \"http://{target}\"\nhosts = [\"{NAME}\"]\n\
         [[gateways]]\nname = \"at-{}\"\ncontrol = \"{}\"\ntoken = \"file:{}\"\n",
        address.replace('.', "-"),
        control.display(),
        place.path("secret").display()
    );
    let file = place.write(&format!("{address}.toml"), &text);
    let ready = place.path(&format!("{address}.ready"));
    let mut command = place.command(&["gateway", "--file", file.to_str().unwrap()]);
    command.args(["--metrics", &format!("{address}:{metrics}"), "--ready", ready.to_str().unwrap()]);
    let process = Process(command.stderr(Stdio::null()).spawn().unwrap());
    wait_for("the gateway", LIMIT, || ready.exists().then_some(()));
    process
}

/// The switch was made: the target owns the writes, at every gateway.
async fn switched(place: &Place, address: &str) {
    let control = place.path(&format!("{address}.sock"));
    let client = Client::connect(control, "sixteen or more characters", "test").await.unwrap();
    for request in [
        Request::Enroll { run: "shop".into(), token: Token(1) },
        Request::Settle { epoch: Epoch(2), owner: Side::Target, token: Token(1) },
    ] {
        assert_eq!(client.call(request).await.unwrap(), Response::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_still_comes_by_the_old_address_reaches_the_new_side() {
    let Some(bind) = Bind::start() else { return };
    let ((source, old_writes), (target, new_writes)) = (application("old side"), application("new side"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::new();
    let _old = gateway(&place, "127.0.0.1", port, metrics, source, target);
    let _new = gateway(&place, "127.0.0.2", port, metrics, source, target);
    // Before the switch everybody writes to the old side, wherever they come in: DNS decides nothing.
    bind.good("lower-ttl", &[NAME, "--ttl", "1"]);
    let file = place.path("127.0.0.1.toml");
    let file = ["--file", file.to_str().unwrap()];
    // The name and the port to look at come from the migration file; the old TTL still lives, so a yes is needed.
    let point = ["--to", "127.0.0.2", file[0], file[1]];
    let refused = bind.run("point", &point);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("live until"), "{}", refused.stderr);
    assert_eq!(bind.resolved(), ["127.0.0.1"]);
    let pointed = bind.good("point", &[&point[..], &["--yes"]].concat());
    assert_eq!((&pointed["changed"], pointed["former"][0]["ttl"].as_u64()), (&Value::Bool(true), Some(300)));
    assert_eq!(bind.resolved(), ["127.0.0.2"]);
    assert_eq!(
        (write_at("127.0.0.1", port), write_at("127.0.0.2", port)),
        ("old side".into(), "old side".into())
    );
    // After the switch everybody writes to the new side: whoever asks anew, and whoever keeps the old address for ever.
    for address in ["127.0.0.1", "127.0.0.2"] {
        switched(&place, address).await;
    }
    let before = old_writes.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(
            (write_at("127.0.0.1", port), write_at("127.0.0.2", port)),
            ("new side".into(), "new side".into())
        );
    }
    assert_eq!((old_writes.load(Ordering::SeqCst) - before, new_writes.load(Ordering::SeqCst)), (0, 40));
    // And the way back of the name does not take the writes back.
    let page = format!("http://127.0.0.1:{metrics}/metrics");
    let waited = bind.run("wait", &[NAME, "--timeout", "0", "--old-entry", &page, "--json"]);
    assert_eq!(waited.code, 20, "the old TTL of 300 s: {}", waited.stderr);
    assert_eq!(waited.last_json()["old_entry_requests"], 0);
    bind.good("back", &[NAME]);
    assert_eq!(bind.resolved(), ["127.0.0.1"]);
    assert_eq!(write_at("127.0.0.1", port), "new side");
}

#[test]
fn killed_it_goes_on_and_back_is_exact() {
    let Some(bind) = Bind::start() else { return };
    let state = bind.place.path("state/dns/shop.example.test.json");
    let mut child = Process(
        bind.command("point", &[NAME, "--to", "192.0.2.9", "--to", "2001:db8::9", "--yes"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("has taken it")));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(std::fs::read_to_string(&state).unwrap().contains("127.0.0.1"), "the way back is on the disk");
    let again = bind.good("point", &[NAME, "--to", "192.0.2.9", "--to", "2001:db8::9", "--yes"]);
    assert_eq!(
        (&again["changed"], &again["former"][0]["values"][0]),
        (&Value::Bool(false), &"127.0.0.1".into())
    );
    assert_eq!(bind.resolved(), ["192.0.2.9", "2001:db8::9"]);
    bind.good("back", &[NAME]);
    let shown = bind.good("show", &[NAME]);
    assert_eq!(shown["servers"][0]["entry"], shown["state"]["former"]);
    assert_eq!(shown["servers"][0]["entry"][0]["ttl"], 300);
}

#[test]
fn errors_say_what_to_do_and_never_the_secret() {
    let Some(bind) = Bind::start() else { return };
    let expect = |ran: Ran, code: i32, words: &[&str]| {
        assert_eq!(ran.code, code, "{}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
        }
        assert!(!ran.stderr.contains(SECRET) && !ran.stdout.contains(SECRET), "{}", ran.stderr);
    };
    expect(bind.run("back", &[NAME]), 1, &["was not changed by rehome", "hint:"]);
    expect(bind.run("lower-ttl", &["other.example.test"]), 1, &["no A, AAAA or CNAME"]);
    expect(bind.run("lower-ttl", &[]), 2, &["which name?"]);
    expect(
        bind.run("point", &["ns1.example.test", "--to", "192.0.2.9", "--yes"]),
        6,
        &["REFUSED", "update policy"],
    );
    // A secret in the place of a reference is not repeated.
    let mut wrong =
        bind.place.command(&["entry", "dns", "lower-ttl", NAME, "--key-name", "move", "--key", SECRET]);
    let server = format!("127.0.0.1:{}", bind.port);
    wrong.args(["--resolver", &server, "--port", &bind.port.to_string()]);
    expect(crate::harness::ran(wrong.output().unwrap()), 6, &["--key", "env:NAME"]);
    // Nothing listens where the name is to point: a yes is needed, and nothing was changed.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let silent = ["--to", "127.0.0.3", "--probe", &free];
    expect(bind.run("point", &[&[NAME][..], &silent].concat()), 3, &["does not answer at 127.0.0.3"]);
    assert_eq!(bind.resolved(), ["127.0.0.1"]);
    let gone = format!("127.0.0.1:{free}");
    let mut dead = bind.place.command(&["entry", "dns", "show", NAME, "--resolver", &gone]);
    expect(crate::harness::ran(dead.output().unwrap()), 5, &[&gone]);
}
