//! `rehome entry nginx` and `haproxy` with the real gateway behind the real programs, killed at any moment and taken out again.

use crate::harness::{Place, Ran, Running, free_port, system, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// An application that answers every request with its own name, on kept connections.
fn application(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream, name));
        }
    });
    port
}

fn serve(mut stream: &TcpStream, name: &str) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink()).ok()?;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// One request on a connection of its own: head and body.
fn ask(port: u16, method: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!(
        "{method} / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.to_ascii_lowercase(), body.to_owned())
}

struct Scene {
    place: Place,
    source: u16,
    target: u16,
    port: u16,
    _gateway: Running,
}

impl Scene {
    /// Two applications and a gateway between, as the migration file says.
    fn new() -> Self {
        let place = Place::new();
        std::fs::set_permissions(place.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let (source, target, gateway) = (application("source"), application("target"), free_port());
        place.write(
            "rehome.toml",
            &format!(
                "[migration]\nname = \"shop\"\nsource = {{ cloud = \"a\" }}\ntarget = {{ cloud = \"b\" }}\n\n\
                 [[services]]\nname = \"api\"\nlisten = \"127.0.0.1:{gateway}\"\nsource = \"http://127.0.0.1:{source}\"\n\
                 target = \"http://127.0.0.1:{target}\"\nhealth = \"/\"\ntrusted_proxies = [\"127.0.0.1\"]\n\n\
                 [[gateways]]\nname = \"one\"\ncontrol = \"{}\"\n",
                place.path("control.sock").display()
            ),
        );
        let ready = place.path("ready");
        let mut command = place.command(&["gateway", "--ready", ready.to_str().unwrap()]);
        let gateway = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_for("the gateway", LIMIT, || ready.exists().then_some(()));
        Self { place, source, target, port: free_port(), _gateway: gateway }
    }

    fn start(&self, command: &mut Command) -> Running {
        let running = Running(
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(),
        );
        wait_for("the entry", LIMIT, || TcpStream::connect(("127.0.0.1", self.port)).ok());
        running
    }

    fn nginx(&self, program: &Path) -> Running {
        let folder = self.place.folder.path().display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("  {name}_temp_path {folder}/{name};\n"))
            .collect();
        let config = self.place.write(
            "nginx.conf",
            &format!(
                "pid {folder}/nginx.pid;\nerror_log {folder}/nginx.log;\nevents {{ worker_connections 256; }}\nhttp {{\n  access_log off;\n{temp}\
                 \x20 upstream app {{ server 127.0.0.1:{}; keepalive 8; }}\n  server {{\n    listen 127.0.0.1:{};\n    server_name shop.example;\n\
                 \x20   location / {{\n      proxy_pass http://app;\n      proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n\
                 \x20     proxy_set_header Host $host;\n      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n    }}\n  }}\n}}\n",
                self.source, self.port
            ),
        );
        self.start(Command::new(program).arg("-c").arg(config).args(["-g", "daemon off;"]))
    }

    fn haproxy(&self, program: &Path) -> Running {
        let folder = self.place.folder.path().display();
        let config = self.place.write(
            "haproxy.cfg",
            &format!(
                "global\n  stats socket {folder}/admin.sock mode 600 level admin\n  pidfile {folder}/haproxy.pid\n\ndefaults\n  mode http\n\
                 \x20 timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  option forwardfor\n\n\
                 frontend web\n  bind 127.0.0.1:{}\n  default_backend app\n\nbackend app\n  server one 127.0.0.1:{}\n",
                self.port, self.source
            ),
        );
        self.start(Command::new(program).args(["-W", "-db", "-f"]).arg(config))
    }

    fn entry(&self, driver: &str, more: &[&str]) -> Command {
        let config = self.place.path(if driver == "nginx" { "nginx.conf" } else { "haproxy.cfg" });
        let mut words = vec!["entry", driver];
        words.extend(more);
        words.extend(["--config", config.to_str().unwrap()]);
        self.place.command(&words)
    }

    fn run(&self, driver: &str, more: &[&str]) -> Ran {
        crate::harness::ran(self.entry(driver, more).output().unwrap())
    }

    fn came_through(&self) -> bool {
        ask(self.port, "POST").0.contains("via: 1.1 rehome")
    }

    fn text(&self, driver: &str) -> String {
        let name = if driver == "nginx" { "nginx.conf" } else { "haproxy.cfg" };
        std::fs::read_to_string(self.place.path(name)).unwrap()
    }

    /// Shown, proposed, put in, proven, taken out: to the source byte for byte, and to the target.
    fn there_and_back(&self, driver: &str) {
        let before = self.text(driver);
        let shown = self.run(driver, &["show", "--json"]).last_json();
        assert_eq!((&shown["gateway"], &shown["routes"][0]["leads_to"]), (&"out".into(), &"source".into()));
        let proposed = self.run(driver, &["propose"]);
        assert!(proposed.code == 0 && proposed.stdout.starts_with("--- "), "{}", proposed.stderr);
        let refused = self.run(driver, &["install"]);
        assert_eq!(refused.code, 3, "nobody to ask: {}", refused.stderr);
        assert_eq!(self.text(driver), before);

        let installed = self.run(driver, &["install", "--yes", "--json"]);
        assert_eq!(installed.code, 0, "{}", installed.stderr);
        let document = installed.last_json();
        assert_eq!(
            (&document["changed"], &document["seen"][0]["through_gateway"]),
            (&true.into(), &true.into())
        );
        assert!(self.came_through());
        assert_eq!(ask(self.port, "POST").1, "source");
        assert_eq!(self.run(driver, &["show", "--json"]).last_json()["gateway"], "in");
        assert_eq!(self.run(driver, &["install", "--json"]).last_json()["changed"], false);

        let removed = self.run(driver, &["remove", "--to", "source", "--yes"]);
        assert_eq!(removed.code, 0, "{}", removed.stderr);
        assert_eq!(self.text(driver), before);
        assert!(!self.came_through());
        assert_eq!(self.run(driver, &["remove", "--to", "source", "--yes"]).code, 0, "twice is once");

        assert_eq!(self.run(driver, &["install", "--yes"]).code, 0);
        let removed = self.run(driver, &["remove", "--to", "target", "--yes"]);
        assert_eq!(removed.code, 0, "{}", removed.stderr);
        assert_eq!(ask(self.port, "POST").1, "target");
        assert!(self.text(driver).contains(&format!("127.0.0.1:{}", self.target)));
        assert!(!self.came_through());
        // As it was, for what comes next.
        let path = self.place.path(if driver == "nginx" { "nginx.conf" } else { "haproxy.cfg" });
        std::fs::write(path, before).unwrap();
    }

    /// SIGKILL after a while that grows from round to round; then on, or back.
    fn killed_anywhere(&self, driver: &str) {
        let before = self.text(driver);
        let (mut unfinished, mut millis) = (0, 5);
        while millis < 400 {
            let mut child = self.entry(driver, &["install", "--yes"]);
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(millis));
            let _ = child.kill();
            child.wait().unwrap();
            assert_eq!(ask(self.port, "POST").1, "source", "users notice nothing");
            let stage = self.run(driver, &["show", "--json"]).last_json()["gateway"].clone();
            unfinished += usize::from(stage == "half in");
            if millis % 2 == 0 {
                let again = self.run(driver, &["install", "--yes"]);
                assert_eq!(again.code, 0, "after {millis} ms, {stage}: {}", again.stderr);
                assert!(self.came_through());
            }
            let back = self.run(driver, &["remove", "--to", "source", "--yes"]);
            assert_eq!(back.code, 0, "after {millis} ms, {stage}: {}", back.stderr);
            assert_eq!(self.text(driver), before, "after {millis} ms");
            assert!(!self.came_through());
            millis += 31;
        }
        eprintln!("{driver}: of 13 kills {unfinished} left it half in");
        let folder = std::fs::read_dir(self.place.folder.path()).unwrap().flatten();
        let left: Vec<_> =
            folder.filter(|entry| entry.file_name().to_string_lossy().starts_with(".rehome-")).collect();
        assert!(left.len() <= 1, "what a kill left is swept: {left:?}");
    }
}

#[test]
fn the_gateway_behind_nginx() {
    let Some(program) = system("nginx") else { return };
    let scene = Scene::new();
    let nginx = scene.nginx(&program);
    scene.there_and_back("nginx");
    drop(nginx);
    let _nginx = scene.nginx(&program);
    scene.killed_anywhere("nginx");
}

#[test]
fn the_gateway_behind_haproxy() {
    let Some(program) = system("haproxy") else { return };
    let scene = Scene::new();
    let haproxy = scene.haproxy(&program);
    scene.there_and_back("haproxy");
    drop(haproxy);
    let _haproxy = scene.haproxy(&program);
    scene.killed_anywhere("haproxy");
    let weights = scene.run("haproxy", &["weights", "app", "source=50", "--json"]);
    assert_eq!(weights.last_json()["running"][0]["weight"], 50, "{}", weights.stderr);
    let nobody = scene.run("haproxy", &["weights", "app", "one=0"]);
    assert!(nobody.code == 1 && nobody.stderr.contains("503"), "{}", nobody.stderr);
    let held = scene.run("haproxy", &["hold"]);
    assert!(held.code == 1 && held.stderr.contains("--prepare"), "{}", held.stderr);
}

/// What has to stop an installation does, with the line and what to do about it.
#[test]
fn what_stands_in_the_way_is_named() {
    let Some(program) = system("nginx") else { return };
    let scene = Scene::new();
    let _nginx = scene.nginx(&program);
    let file = scene.place.path("rehome.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("trusted_proxies = [\"127.0.0.1\"]\n", "");
    std::fs::write(&file, text).unwrap();
    let before = scene.text("nginx");
    let refused = scene.run("nginx", &["install", "--yes"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("nginx.conf:") && refused.stderr.contains("trusted_proxies"),
        "{}",
        refused.stderr
    );
    assert_eq!(scene.text("nginx"), before);
    let unknown = scene.run("nginx", &["show", "--service", "nobody"]);
    assert_eq!(unknown.code, 4, "{}", unknown.stderr);
}
