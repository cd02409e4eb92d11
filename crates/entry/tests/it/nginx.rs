//! Real nginx: configurations of different styles, the gateway put in and taken out, and everything that can go wrong between.

use crate::support::*;
use async_trait::async_trait;
use http::Method;
use rehome_entry::EntryError;
use rehome_entry::address::Address;
use rehome_entry::change::To;
use rehome_entry::finding::Gravity;
use rehome_entry::nginx::alone::Alone;
use rehome_entry::nginx::{Nginx, Plan};
use rehome_entry::quiet::{Guard, NoRun, Quiet};
use rehome_entry::service::{Service, Towards};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A folder like /etc/nginx with an nginx that runs on it.
struct Running {
    folder: tempfile::TempDir,
    port: u16,
    driver: Nginx,
    process: Option<Program>,
}

impl Running {
    /// `sites` are files below the folder; `PORT` in them becomes a free one, `PORT2` another.
    fn prepare(program: &Path, main: &str, sites: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // nginx's workers are another user's when the tests are root's.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (port, second) = (free_port(), free_port());
        let at = |name: &str| folder.path().join("etc").join(name);
        let fill = |text: &str| text.replace("PORT2", &second.to_string()).replace("PORT", &port.to_string());
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};", folder.path().display()))
            .join(" ");
        let head = format!(
            "worker_processes 2;\npid {0}/nginx.pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 512; }}\n",
            folder.path().display()
        );
        write(&at("temp.conf"), &format!("{temp}\naccess_log off;\n"));
        write(&at("nginx.conf"), &format!("{head}{}", fill(main)));
        for (name, text) in sites {
            write(&at(name), &fill(text));
        }
        let driver = Nginx {
            program: program.to_owned(),
            config: at("nginx.conf"),
            prefix: Some(folder.path().to_owned()),
            pid_file: None,
            reload: None,
            state: folder.path().join("state"),
        };
        Self { folder, port, driver, process: None }
    }

    async fn start(&mut self) {
        let mut command = Command::new(&self.driver.program);
        command.arg("-c").arg(&self.driver.config).arg("-p").arg(self.folder.path());
        command.args(["-g", "daemon off;"]).stderr(Stdio::null());
        self.process = Some(Program::start(&mut command));
        let pid_file = self.folder.path().join("nginx.pid");
        let port = self.port;
        until("nginx", async || {
            pid_file.exists() && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
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

    async fn install(&self, service: &Service) -> Result<rehome_entry::change::Done, EntryError> {
        let plan = self.propose(service).await;
        self.driver.install(std::slice::from_ref(service), &plan, &NoRun).await
    }

    async fn remove(&self, service: &Service, to: To) -> Result<rehome_entry::change::Done, EntryError> {
        self.driver.remove(std::slice::from_ref(service), to, &NoRun).await
    }

    /// Every file of the configuration, links by where they lead.
    fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if entry.file_type().unwrap().is_symlink() {
                    let to = std::fs::read_link(&path).unwrap();
                    found.insert(path, to.into_os_string().into_encoded_bytes());
                } else if path.is_dir() {
                    walk(&path, found);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    found.insert(path, bytes);
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.folder.path().join("etc"), &mut found);
        found
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
    }
}

const SIMPLE: &str = "http { include temp.conf;\n  server {\n    listen 127.0.0.1:PORT;\n    location / {\n      \
                      proxy_pass http://SOURCE;\n    }\n  }\n}\n";

async fn simple() -> Option<(Parties, Running)> {
    let program = tool("nginx")?;
    let parties = Parties::new().await;
    let mut nginx = Running::prepare(&program, &parties.fill(SIMPLE), &[]);
    nginx.start().await;
    Some((parties, nginx))
}

/// Installs, looks, takes out: to the source every byte is as before, and to the target the target answers.
async fn there_and_back(parties: &Parties, nginx: &Running, service: &Service, path: &str) {
    let before = nginx.bytes();
    assert_eq!(nginx.get(path).await.body, "source");
    let done = nginx.install(service).await.unwrap();
    assert!(done.changed && done.seen.iter().any(|seen| seen.through_gateway), "{done:?}");
    assert_eq!(done.taken_up.by, "reload");
    assert_eq!(nginx.get(path).await.body, "gateway");
    let proofs =
        parties.gateway.got.lock().unwrap().iter().filter_map(|got| got.id.clone()).collect::<Vec<_>>();
    assert!(proofs.iter().any(|id| id.starts_with("rehome-proof-")), "{proofs:?}");
    let again = nginx.install(service).await.unwrap();
    assert!(!again.changed, "a second install only proves");
    let preview = nginx.driver.removal(std::slice::from_ref(service), To::Source).await.unwrap();
    assert!(!preview.is_empty());
    nginx.remove(service, To::Source).await.unwrap();
    assert_eq!(nginx.bytes(), before);
    assert_eq!(nginx.get(path).await.body, "source");
    assert!(!nginx.remove(service, To::Source).await.unwrap().changed, "nothing is left to remove");

    nginx.install(service).await.unwrap();
    nginx.remove(service, To::Target).await.unwrap();
    assert_eq!(nginx.get(path).await.body, "target");
    assert!(nginx.driver.record().unwrap().is_none());
}

#[tokio::test]
async fn debian_style_with_a_linked_site_an_upstream_and_a_snippet() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let site = parties.fill(
        "# The shop.\nupstream app {\n\tserver SOURCE weight=3 max_fails=2; # first\n\tserver 192.0.2.1:1 down;\n\tkeepalive 8;\n}\n\n\
         server {\n\tlisten 127.0.0.1:PORT;\n\tserver_name shop.example;\n\n\tlocation / {\n\t\tproxy_pass http://app;  # all of it\n\
         \t\tproxy_http_version 1.1;\n\t\tproxy_set_header Connection \"\";\n\t\tinclude proxy_params;\n\t\tproxy_read_timeout 5s;\n\t}\n}\n",
    );
    let mut nginx = Running::prepare(
        &program,
        "http { include temp.conf;\n include sites-enabled/*;\n}\n",
        &[
            ("sites-available/shop", &site),
            (
                "proxy_params",
                "proxy_set_header Host $http_host;\nproxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n",
            ),
        ],
    );
    let etc = nginx.folder.path().join("etc");
    std::fs::create_dir(etc.join("sites-enabled")).unwrap();
    std::os::unix::fs::symlink("../sites-available/shop", etc.join("sites-enabled/shop")).unwrap();
    std::fs::set_permissions(
        etc.join("sites-available/shop"),
        std::os::unix::fs::PermissionsExt::from_mode(0o604),
    )
    .unwrap();
    nginx.start().await;
    let service = parties.service();
    let plan = nginx.propose(&service).await;
    assert_eq!(plan.links.len(), 1, "the link is said: {:?}", plan.links);
    let gateway = parties.gateway.address;
    let diff = plan.files[0].diff();
    for line in [
        format!("+\tserver {gateway}; # first"),
        "+\t\tproxy_next_upstream off;  # rehome".into(),
        "+\t\tproxy_read_timeout 20s;".into(),
    ] {
        assert!(diff.contains(&line), "{line}\n{diff}");
    }
    let changed = diff.lines().filter(|line| line.starts_with('+')).count();
    assert_eq!(changed, 4, "nothing else changes:\n{diff}");
    there_and_back(&parties, &nginx, &service, "/").await;
    let mode = std::fs::metadata(etc.join("sites-available/shop")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o604);
}

#[tokio::test]
async fn inline_addresses_keep_the_host_and_the_redirects() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let text = parties.fill(
        "http { include temp.conf;\r\n  proxy_set_header X-Site 'a shop';\r\n  server { listen 127.0.0.1:PORT;\r\n\
         \u{20}   location / { proxy_pass http://SOURCE; }\r\n    location /shop/ {\r\n      proxy_pass http://SOURCE/app/;\r\n    }\r\n\
         \u{20}   location ~ ^/media/ { if ($request_method = POST) { proxy_pass http://SOURCE; } }\r\n  }\r\n}\r\n",
    );
    let mut nginx = Running::prepare(&program, &text, &[]);
    nginx.start().await;
    let service = parties.service();
    let hosts = |origin: &Origin| origin.got.lock().unwrap().last().unwrap().host.clone();
    let before = nginx.get("/shop/moved").await;
    assert!(before.location.is_some());
    let host = hosts(&parties.source);
    assert_eq!(host, parties.source.address.to_string());
    let rooted = nginx.get("/moved").await.location;
    nginx.install(&service).await.unwrap();
    assert_eq!(nginx.get("/shop/moved").await.location, before.location);
    assert_eq!(hosts(&parties.gateway), host, "the application sees the host that it saw");
    assert_eq!(nginx.get("/moved").await.location, rooted);
    let posted = fetch(Method::POST, &nginx.address(), "shop.example", "/media/x").await.unwrap();
    assert_eq!(posted.body, "gateway");
    assert_eq!(hosts(&parties.gateway), host);
    nginx.remove(&service, To::Source).await.unwrap();
    there_and_back(&parties, &nginx, &service, "/shop/").await;
}

#[tokio::test]
async fn a_tls_server_with_http2_behind_a_redirect() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let certified = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let text = parties.fill(
        "http { include temp.conf;\n  map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n\
         \u{20} upstream app { server SOURCE; }\n\
         \u{20} server { listen 127.0.0.1:PORT; server_name shop.example; return 301 https://$host$request_uri; }\n\
         \u{20} server { listen 127.0.0.1:PORT2 ssl http2; server_name shop.example;\n    ssl_certificate tls/cert.pem; ssl_certificate_key tls/key.pem;\n\
         \u{20}   location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Host $host;\n\
         \u{20}     proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;\n\
         \u{20}     proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } } }\n",
    );
    let mut nginx = Running::prepare(
        &program,
        &text,
        &[("tls/cert.pem", &certified.cert.pem()), ("tls/key.pem", &certified.signing_key.serialize_pem())],
    );
    nginx.start().await;
    let before = nginx.bytes();
    let mut service = parties.service();
    service.trusts_entry = Some(false);
    let plan = nginx.driver.plan(std::slice::from_ref(&service), Towards::Gateway).await.unwrap();
    assert!(plan.findings.iter().any(|finding| finding.id == "websocket"));
    let error = plan.unless_stopped().unwrap_err().to_string();
    assert!(error.contains("http where clients used https"), "{error}");

    service.trusts_entry = Some(true);
    let done = nginx.install(&service).await.unwrap();
    assert!(
        done.seen.iter().any(|seen| seen.route.starts_with("https://") && seen.through_gateway),
        "{done:?}"
    );
    nginx.remove(&service, To::Source).await.unwrap();
    assert_eq!(nginx.bytes(), before);
}

/// Ports that want a PROXY header, speak HTTP/2 only, or are unix sockets are asked as they want to be.
#[tokio::test]
async fn every_kind_of_door_is_proven() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let text = parties.fill(
        "http { include temp.conf; upstream app { server SOURCE; }\n\
         server { listen 127.0.0.1:PORT proxy_protocol; location = /one { proxy_pass http://app; } }\n\
         server { listen 127.0.0.1:PORT2 http2; location ^~ /two { proxy_pass http://app; } }\n\
         server { listen unix:FOLDER/door; location / { auth_basic x; auth_basic_user_file none; proxy_pass http://app; } }\n\
         server { listen unix:FOLDER/other; location @named { proxy_pass http://app; } location / { try_files /none @named; } } }\n",
    );
    let mut nginx = Running::prepare(&program, &text, &[("none", "")]);
    let folder = nginx.folder.path().display().to_string();
    let config = nginx.driver.config.clone();
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("FOLDER", &folder)).unwrap();
    nginx.start().await;
    let mut service = parties.service();
    service.health = Some("/two/health".into());
    let done = nginx.install(&service).await.unwrap();
    let seen: Vec<_> = done.seen.iter().map(|seen| (seen.answer.clone(), seen.through_gateway)).collect();
    assert_eq!(seen, [(Ok(200), true), (Ok(200), true), (Ok(401), false)], "{done:?}");
    assert!(done.seen[1].route.contains("/two/health"));
    nginx.remove(&service, To::Source).await.unwrap();
}

#[tokio::test]
async fn several_servers_of_which_one_is_nobodys() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let second = Origin::application("source").await;
    let text = parties
        .fill(
            "http { include temp.conf;\n upstream app {\n  least_conn;\n  server SOURCE;\n  # the second\n  server OTHER max_conns=9;\n }\n\
             server { listen 127.0.0.1:PORT; location / { proxy_pass http://app; proxy_next_upstream error timeout non_idempotent; } } }\n",
        )
        .replace("OTHER", &second.address.to_string());
    let mut nginx = Running::prepare(&program, &text, &[]);
    nginx.start().await;
    let mut service = parties.service();
    let plan = nginx.driver.plan(std::slice::from_ref(&service), Towards::Gateway).await.unwrap();
    assert!(plan.findings.iter().any(|found| found.id == "repeats" && found.gravity == Gravity::Look));
    let error = plan.unless_stopped().unwrap_err().to_string();
    assert!(error.contains(&second.address.to_string()), "{error}");
    service.source.push(second.url());
    there_and_back(&parties, &nginx, &service, "/").await;
}

/// A source with TLS behind a gateway without: the scheme changes, and with it what nginx would turn round in redirects.
#[tokio::test]
async fn a_source_with_tls_is_passed_on_without() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let text = parties.fill(
        "http { include temp.conf; upstream app { server SOURCE; }\n proxy_read_timeout 4s; proxy_next_upstream off;\n\
         server { listen 127.0.0.1:PORT; location / { proxy_pass https://app; proxy_ssl_server_name on; }\n\
         location /x/ { limit_except GET { proxy_pass https://SOURCE; } } location /g { grpc_pass grpcs://app; } } }\n",
    );
    let nginx = Running::prepare(&program, &text, &[]);
    let mut service = parties.service();
    service.source = service.source.iter().map(|at| Address { secure: true, ..at.clone() }).collect();
    service.http2 = true;
    let plan = nginx.propose(&service).await;
    let diff = plan.files[0].diff();
    let gateway = parties.gateway.address;
    for text in [
        "proxy_pass http://app; proxy_redirect https://app/ /; proxy_read_timeout 19s;".into(),
        format!("proxy_pass http://{gateway};"),
        "grpc_pass grpc://app; grpc_next_upstream off;".into(),
        format!(
            "location /x/ {{ proxy_set_header Host {}; proxy_redirect https://{}/ /;",
            parties.source.address, parties.source.address
        ),
    ] {
        assert!(diff.contains(&text), "{text}\n{diff}");
    }
    std::fs::write(&nginx.driver.config, &plan.files[0].after).unwrap();
    let tested = Command::new(&program).arg("-t").arg("-c").arg(&nginx.driver.config).output().unwrap();
    assert!(tested.status.success(), "{}\n{diff}", String::from_utf8_lossy(&tested.stderr));
}

#[tokio::test]
async fn what_speaks_no_http_or_goes_by_a_variable_is_said() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let text = parties.fill(
        "http { include temp.conf; map $uri $pool { default SOURCE; }\n\
         server { listen 127.0.0.1:PORT; location / { uwsgi_pass SOURCE; } location /x { proxy_pass http://$pool; } } }\n",
    );
    let nginx = Running::prepare(&program, &text, &[]);
    let service = parties.service();
    let plan = nginx.driver.plan(std::slice::from_ref(&service), Towards::Gateway).await.unwrap();
    let ids: Vec<&str> = plan.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, ["no-http", "variable-source", "variable"]);
    assert!(plan.files.is_empty());
    let lua = Running::prepare(
        &program,
        "http { server { location / {\n access_by_lua_block { x = 1 } } } }\n",
        &[],
    );
    let error = lua.driver.plan(&[service], Towards::Gateway).await.unwrap_err().to_string();
    assert!(error.contains("nginx.conf:6") && error.contains("another language"), "{error}");
}

#[tokio::test]
async fn what_nginx_refuses_changes_nothing() {
    let Some((parties, nginx)) = simple().await else { return };
    let before = nginx.bytes();
    let mut service = parties.service();
    // A name that nobody knows: nginx refuses to start with it.
    service.gateway.host = "no-such-gateway.invalid".into();
    let error = nginx.install(&service).await.unwrap_err().to_string();
    assert!(error.contains("host not found") && error.contains("nothing was changed"), "{error}");
    assert_eq!(nginx.bytes(), before);
    assert!(nginx.driver.record().unwrap().is_none());

    let config = &nginx.driver.config;
    let plan = nginx.propose(&parties.service()).await;
    let broken = String::from_utf8(std::fs::read(config).unwrap()).unwrap().replace("listen", "lissen");
    std::fs::write(config, &broken).unwrap();
    let error = nginx.driver.install(&[parties.service()], &plan, &NoRun).await.unwrap_err();
    assert!(matches!(error, EntryError::Changed { .. } | EntryError::Unfit { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(config).unwrap(), broken, "somebody's own mistake stays theirs");
    assert_eq!(nginx.get("/").await.body, "source");
}

#[tokio::test]
async fn an_edit_between_proposal_and_install_is_not_written_over() {
    let Some((parties, nginx)) = simple().await else { return };
    let plan = nginx.propose(&parties.service()).await;
    let config = &nginx.driver.config;
    let edited = format!("{}# mine\n", std::fs::read_to_string(config).unwrap());
    std::fs::write(config, &edited).unwrap();
    let error = nginx.driver.install(&[parties.service()], &plan, &NoRun).await.unwrap_err();
    assert!(matches!(error, EntryError::Changed { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(config).unwrap(), edited);

    // What is added while the gateway is in stays when it is taken out.
    nginx.install(&parties.service()).await.unwrap();
    let now = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, format!("{now}# later\n")).unwrap();
    nginx.remove(&parties.service(), To::Source).await.unwrap();
    assert_eq!(std::fs::read_to_string(config).unwrap(), format!("{edited}# later\n"));
    assert_eq!(nginx.get("/").await.body, "source");

    nginx.install(&parties.service()).await.unwrap();
    let now = std::fs::read_to_string(config).unwrap();
    let mine = now.replace(&parties.gateway.address.to_string(), "127.0.0.1:9");
    std::fs::write(config, &mine).unwrap();
    let error = nginx.remove(&parties.service(), To::Source).await.unwrap_err();
    assert!(matches!(error, EntryError::Changed { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(config).unwrap(), mine, "the very line that was ours is theirs now");
}

#[tokio::test]
async fn without_proof_everything_is_put_back() {
    let Some((parties, nginx)) = simple().await else { return };
    let before = nginx.bytes();
    parties.gateway.broken.store(true, Ordering::SeqCst);
    let error = nginx.install(&parties.service()).await.unwrap_err();
    assert!(matches!(error, EntryError::NotProven { undone: true, .. }), "{error}");
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(nginx.bytes(), before);
    assert_eq!(nginx.get("/").await.body, "source");
    assert!(nginx.driver.record().unwrap().is_none());

    // Some other server at the gateway's address is no gateway.
    let mut service = parties.service();
    service.gateway = parties.target.url();
    service.target = vec![parties.gateway.url()];
    let error = nginx.install(&service).await.unwrap_err().to_string();
    assert!(error.contains("is no rehome gateway"), "{error}");
    assert_eq!(nginx.bytes(), before);
    let gone = Origin::gateway().await.url();
    let error = nginx.install(&Service { gateway: gone, ..service }).await.unwrap_err().to_string();
    assert!(error.contains("no gateway answers"), "{error}");
}

#[derive(Debug)]
struct Asked {
    allowed: bool,
    held: Arc<AtomicBool>,
}

struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Quiet for Asked {
    async fn may_change_now(&self) -> Result<Guard, String> {
        if !self.allowed {
            return Err("the run shop-1 is between ARMED and OPEN".into());
        }
        self.held.store(true, Ordering::SeqCst);
        Ok(Guard::holding(Held(Arc::clone(&self.held))))
    }
}

#[tokio::test]
async fn nothing_changes_between_armed_and_open() {
    let Some((parties, nginx)) = simple().await else { return };
    let (before, held) = (nginx.bytes(), Arc::<AtomicBool>::default());
    let plan = nginx.propose(&parties.service()).await;
    let quiet = Asked { allowed: false, held: Arc::clone(&held) };
    let error = nginx.driver.install(&[parties.service()], &plan, &quiet).await.unwrap_err();
    assert!(matches!(&error, EntryError::NotNow { why } if why.contains("the run shop-1")), "{error}");
    assert_eq!(nginx.bytes(), before);
    assert!(nginx.driver.record().unwrap().is_none());

    let quiet = Asked { allowed: true, held: Arc::clone(&held) };
    let services = [parties.service()];
    let work = nginx.driver.install(&services, &plan, &quiet);
    let mut work = std::pin::pin!(work);
    let mut was_held = false;
    loop {
        tokio::select! {
            done = &mut work => { done.unwrap(); break; }
            () = tokio::time::sleep(Duration::from_millis(1)) => was_held |= held.load(Ordering::SeqCst),
        }
    }
    assert!(was_held && !held.load(Ordering::SeqCst), "held to the end and not longer");
}

/// An application that reads a request whole and closes without an answer, once it has answered one on that connection.
async fn forgetful() -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::<std::sync::Mutex<Vec<String>>>::default());
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                for number in 0..2 {
                    let (mut text, mut piece) = (String::new(), [0; 1024]);
                    while !text.contains("\r\n\r\n") || text.starts_with("PUT") && !text.ends_with("body") {
                        match stream.read(&mut piece).await {
                            Ok(length @ 1..) => text += &String::from_utf8_lossy(&piece[..length]),
                            _ => return,
                        }
                    }
                    all.lock().unwrap().push(text.split(' ').next().unwrap().to_owned());
                    if number == 0 {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        let _ = stream.write_all(answer).await;
                    }
                }
            });
        }
    });
    (address, seen)
}

/// Why `proxy_next_upstream off` is proposed: with one server too, nginx sends a PUT again when a kept connection breaks.
#[tokio::test]
async fn a_put_is_sent_twice_without_the_proposal_and_once_with_it() {
    let Some(program) = tool("nginx") else { return };
    for (extra, puts) in [("", 2), ("proxy_next_upstream off;", 1)] {
        let (address, seen) = forgetful().await;
        let text = format!(
            "http {{ include temp.conf; upstream app {{ server {address}; keepalive 4; }}\n\
             server {{ listen 127.0.0.1:PORT; location / {{ proxy_pass http://app; proxy_http_version 1.1; \
             proxy_set_header Connection ''; {extra} }} }} }}\n"
        );
        let mut nginx = Running::prepare(&program, &text, &[]);
        nginx.start().await;
        // Both workers may have a kept connection of their own: enough requests on one client connection use one worker.
        let mut line = Line::open(&nginx.address()).await.unwrap();
        assert_eq!(line.send(Method::GET, "shop.example", "/").await.unwrap().status, 200);
        let put = line.send(Method::PUT, "shop.example", "/").await.unwrap();
        let sent = seen.lock().unwrap().iter().filter(|method| *method == "PUT").count();
        assert_eq!(sent, puts, "{extra}: {put:?}");
    }
}

/// What a reload costs, counted: clients that never pause, over kept connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_load_loses_at_most_what_it_says() {
    let Some((parties, nginx)) = simple().await else { return };
    let load = Load::start(nginx.address().parse().unwrap(), 16, &Method::GET);
    until("load", async || load.answered() > 500).await;
    let done = nginx.install(&parties.service()).await.unwrap();
    let so_far = load.answered();
    until("load after it", async || load.answered() > so_far + 500).await;
    let back = nginx.remove(&parties.service(), To::Source).await.unwrap();
    let so_far = load.answered();
    until("load after it", async || load.answered() > so_far + 500).await;
    let tally = load.end().await;
    let (reset, failed) = (tally.reset.load(Ordering::SeqCst), tally.failed.load(Ordering::SeqCst));
    let said = done.taken_up.open_connections.unwrap() + back.taken_up.open_connections.unwrap();
    eprintln!(
        "two reloads under 16 clients: {} answered, {failed} failed, {reset} reset, at most {said} said",
        tally.answered.load(Ordering::SeqCst)
    );
    assert_eq!(failed, 0);
    assert!(reset <= said, "{reset} resets, {said} said");
}

const ALONE: &str = "http { include temp.conf; include alone/rehome-shop-http.conf;\n server { listen 127.0.0.1:PORT;\n\
                     include alone/rehome-shop-server.conf; location / { include alone/rehome-shop-location.conf; } } }\n";

fn alone(parties: &Parties) -> Alone {
    Alone {
        service: "shop".into(),
        source: vec![parties.source.url()],
        target: vec![parties.target.url()],
        target_owns: false,
        percent: 0,
        reads: ["GET", "HEAD", "OPTIONS"].map(String::from).to_vec(),
        key: "$http_x_client".into(),
        mirror: 0,
    }
}

/// Which side each of some hundred clients reads from, and writes to.
async fn sides(address: &str) -> (Vec<String>, Vec<String>) {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let mut line = Line::open(address).await.unwrap();
    for number in 0..400 {
        let client = format!("client-{number}");
        reads.push(line.send_as(Method::GET, &client).await.unwrap().body);
        if number % 20 == 0 {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                writes.push(line.send_as(method, &client).await.unwrap().body);
            }
        }
        if line.is_closed() {
            line = Line::open(address).await.unwrap();
        }
    }
    (reads, writes)
}

#[tokio::test]
async fn nginx_alone_splits_reads_by_client_and_never_a_write() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let mut nginx = Running::prepare(&program, ALONE, &[("alone/README", "")]);
    let folder = nginx.folder.path().join("etc/alone");
    let mut files = alone(&parties);
    let (changed, reloaded) =
        nginx.driver.write_alone(&files, &folder, &NoRun).await.unwrap_or_else(|error| {
            panic!("nginx takes what is written: {error}");
        });
    // Not running yet: the files are there, nothing could be reloaded.
    assert!(changed.len() == 3 && reloaded.is_none());
    nginx.start().await;
    let part = |reads: &[String]| reads.iter().filter(|side| *side == "target").count();
    let mut former = 0;
    for (percent, expected) in [(0, 0..=0), (25, 70..=130), (50, 160..=240), (100, 400..=400), (0, 0..=0)] {
        files.percent = percent;
        let (_, reloaded) = nginx.driver.write_alone(&files, &folder, &NoRun).await.unwrap();
        assert_eq!(reloaded.is_some(), percent != former, "a step is a reload, no step is none");
        former = percent;
        let (reads, writes) = sides(&nginx.address()).await;
        assert!(expected.contains(&part(&reads)), "{percent} %: {} of 400", part(&reads));
        assert!(writes.iter().all(|side| side == "source"), "{percent} %: {writes:?}");
        assert_eq!(sides(&nginx.address()).await.0, reads, "the same client reads from the same side");
    }
    files.target_owns = true;
    nginx.driver.write_alone(&files, &folder, &NoRun).await.unwrap();
    let (reads, writes) = sides(&nginx.address()).await;
    assert!(reads.iter().chain(&writes).all(|side| side == "target"));
}

#[tokio::test]
async fn nginx_alone_mirrors_a_sample_of_reads() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let mut nginx = Running::prepare(&program, ALONE, &[("alone/README", "")]);
    let folder = nginx.folder.path().join("etc/alone");
    let files = Alone { mirror: 50, ..alone(&parties) };
    nginx.driver.write_alone(&files, &folder, &NoRun).await.unwrap();
    nginx.start().await;
    let (reads, _) = sides(&nginx.address()).await;
    assert!(reads.iter().all(|side| side == "source"), "the answer is the source's");
    let copies = || parties.target.count(Method::GET);
    until("the copies", async || copies() > 150).await;
    assert!((150..=250).contains(&copies()), "{} of 400", copies());
    let got = parties.target.got.lock().unwrap().clone();
    assert!(got.iter().all(|got| got.method == Method::GET && got.path == "/"), "no write is ever mirrored");
}

#[tokio::test]
async fn what_nginx_alone_does_not_take_is_not_left_there() {
    let Some(program) = tool("nginx") else { return };
    let parties = Parties::new().await;
    let nginx = Running::prepare(&program, ALONE, &[("alone/README", "")]);
    let folder = nginx.folder.path().join("etc/alone");
    let files = Alone { key: "$no_such_variable".into(), ..alone(&parties) };
    let error = nginx.driver.write_alone(&files, &folder, &NoRun).await.unwrap_err().to_string();
    assert!(error.contains("no_such_variable"), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}
