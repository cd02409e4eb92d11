use rehome_spec::{FenceBy, Level, Loaded, Migration, Secret, Size, Span, TEMPLATE, template};
use std::path::Path;

/// The example of the design, as it stands there.
const DESIGN: &str = r#"
[migration]
name = "shop"
source = { cloud = "aliyun",  region = "cn-hangzhou" }
target = { cloud = "tencent", region = "ap-shanghai" }

[[objects]]
name   = "media"
source = { url = "oss://shop-media",   access_key = "env:OSS_ID", secret_key = "env:OSS_SECRET" }
target = { url = "cos://shop-media-1", access_key = "env:COS_ID", secret_key = "env:COS_SECRET" }

[[services]]
name   = "api"
listen = "0.0.0.0:8080"
source = "http://10.0.0.5:8000"
target = "http://10.8.0.5:8000"
health = "/healthz"
uses   = ["media"]
max_staleness = "2s"

[[workers]]
name = "nightly-invoices"
stop = "systemctl stop invoices"
start = "systemctl start invoices"
is_stopped = "! systemctl is-active invoices"
"#;

/// Every key there is, written in the three ways of TOML.
const EVERYTHING: &str = r##"
[migration]
name = "every_thing-1"
journal_copy = "/mnt/copy"
[migration.source]
cloud = "a"
region = "r"
[migration.target]
cloud = "b"

[switch]
max_pause = "1500ms"
in_flight_deadline = "0.5s"
read_steps = [1, 99]
read_step_time = "5m"
soak = "7d"
sessions = "close"
[switch.hold]
requests = 10
age = "15s"
connections = 20
bytes = "1.5KiB"

[[objects]]
name = "a"
concurrency = 8
source.url = "s3://bucket/pre fix/ä"
source.endpoint = "http://127.0.0.1:9000"
source.region = "us-east-1"
source.access_key = "file:/etc/id"
source.secret_key = "cmd:pass show 'my key'"
source.path_style = true
source.principal = "arn:aws:iam::1:user/rehome"
application = { source = { access_key = "env:A", secret_key = "env:B" }, target = { access_key = "env:C", secret_key = "env:D" } }
changes = { source = { url = "https://x.example/changes?since=0", token = "env:T" }, target = { url = "https://y.example/" } }
[objects.target]
url = "azblob://container/prefix"
[objects.fence]
by = "hook"
source = { url = "http://10.0.0.1/fence" }
target = { url = "http://10.0.0.2/fence", token = "env:F" }

[[objects]]
name = "b"
source = { url = "file:///srv/b" }
target = { url = "gcs://bucket" }
fence = { by = "command", close = ["ctl", "ro", "{side}"], open = ["ctl", "rw", "{side}"] }

[[services]]
name = "api"
listen = "[::1]:8080"
source = "https://old.example"
target = "https://new.example/"
health = "/health?deep=1"
reads = ["GET", "REPORT"]
uses = ["a", "b"]
max_staleness = "0s"
clients = ["cookie:session", "header:x-user", "address"]
upstream_idle = "4s"
upstream_timeout = "1m"
tls = [{ chain = "/etc/shop.pem", key = "file:/etc/shop.key" }, { chain = "/etc/other.pem", key = "env:KEY" }]
hosts = ["shop.example.com", "*.Example.com."]
paths = ["/api/", "/v2"]
proxy_protocol = true
trusted_proxies = ["10.0.0.0/8", "192.168.1.4", "fd00::/8"]
max_body = "1.5MiB"
connections_per_client = 9

[[services]]
name = "pages"
listen = "[::1]:8080"
source = "http://10.0.0.5:8000"
target = "http://10.8.0.5:8000"
tls = [{ chain = "/etc/pages.pem", key = "cmd:pass show pages" }]
proxy_protocol = true
trusted_proxies = ["fd00::/8", "10.0.0.0/8", "192.168.1.4"]
connections_per_client = 9

[[gateways]]
name = "edge-1"
control = "/run/rehome/edge-1.sock"
token = "env:EDGE"

[[gateways]]
name = "edge-2"
control = "/run/rehome/edge-2.sock"
token = "env:EDGE"
remote = { address = "10.8.0.6:7443", listen = "0.0.0.0:7443", tls = { chain = "/etc/edge.pem", key = "file:/etc/edge.key" }, ca = "/etc/ca.pem" }

[[workers]]
name = "w"
stop = "a"
start = "b"
is_stopped = "c"
env = { PATH = "/bin", LANG = "C" }
"##;

fn loaded(text: &str) -> Loaded {
    Migration::parse_with_warnings(text, "rehome.toml")
        .unwrap_or_else(|error| panic!("{}", error.render(false)))
}

#[test]
fn the_example_of_the_design_is_read_with_its_defaults() {
    let loaded = loaded(DESIGN);
    let migration = &loaded.migration;
    assert_eq!(migration.objects[0].source.url, "oss://shop-media");
    assert_eq!(migration.objects[0].fence.by, FenceBy::Policy);
    assert_eq!(migration.switch.read_steps, [1, 5, 25, 50]);
    assert_eq!(migration.services[0].reads, ["GET", "HEAD", "OPTIONS"]);
    assert_eq!(migration.switch.hold.bytes, Size(64 << 20));
    // The application's keys are not in it, and that is worth a word, not a refusal.
    insta::assert_snapshot!(loaded.render_warnings(false));
}

#[test]
fn every_key_is_read_however_it_is_written() {
    let loaded = loaded(EVERYTHING);
    assert_eq!(loaded.warnings, []);
    let migration = loaded.migration;
    assert_eq!(migration.switch.in_flight_deadline, Span::from_millis(500));
    assert_eq!(migration.switch.hold.bytes, Size(1536));
    assert_eq!(migration.objects[0].source.path_style, Some(true));
    assert_eq!(migration.services[0].tls[0].chain, Path::new("/etc/shop.pem"));
    assert_eq!(migration.services[0].max_body, Some(Size(3 << 19)));
    assert_eq!(migration.services[1].connections_per_client, Some(9));
    assert!(migration.services[1].trusted_proxies[0].contains("fd12::1".parse().expect("an address")));
    assert_eq!(migration.gateway_token("edge-1"), Some(&Secret("env:EDGE".into())));
    assert_eq!(migration.gateway_token("edge-3"), None);
    let remote = migration.gateways[1].remote.as_ref().expect("it is on another machine");
    assert_eq!((remote.address.as_str(), remote.listen.as_deref()), ("10.8.0.6:7443", Some("0.0.0.0:7443")));
    let secrets: Vec<String> =
        migration.secrets().into_iter().map(|(place, secret)| format!("{place}: {}", secret.0)).collect();
    insta::assert_snapshot!(secrets.join("\n"));
    // Written by a program and read again, it is the same.
    let written = toml::to_string(&migration).expect("it can be written");
    assert_eq!(Migration::parse(&written, "again"), Ok(migration));
}

#[test]
fn the_template_is_a_whole_migration_without_a_warning() {
    assert!(TEMPLATE.starts_with("#:schema "));
    let loaded = loaded(&template("my-shop"));
    assert_eq!((loaded.migration.migration.name.as_str(), loaded.warnings.len()), ("my-shop", 0));
}

#[test]
fn what_the_template_comments_out_is_right_too() {
    // A line is commented-out TOML when what follows `# ` begins like TOML; prose begins with a capital letter.
    let uncommented: Vec<&str> = TEMPLATE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.starts_with('[') || rest.contains(" = ") && !rest.starts_with(char::is_uppercase) =>
            {
                rest
            }
            _ => line,
        })
        .filter(|line| !line.starts_with("the path, "))
        .collect();
    let loaded = loaded(&uncommented.join("\n"));
    assert_eq!(loaded.migration.gateways.len(), 1);
    assert_eq!(loaded.migration.workers.len(), 1);
    assert_eq!(loaded.migration.objects[0].fence.by, FenceBy::Command);
    assert!(
        loaded.migration.objects[0].changes.is_some() && loaded.migration.migration.journal_copy.is_some()
    );
    // The figures that the template calls defaults are the defaults.
    assert_eq!(loaded.migration.switch, rehome_spec::Switch::default());
}

#[test]
fn without_gateways_one_is_expected_at_the_runs_own_socket() {
    let migration = loaded(DESIGN).migration;
    let gateways = migration.gateways_or_default(Path::new("/home/me/.local/state/rehome"));
    assert_eq!(gateways.len(), 1);
    assert_eq!(gateways[0].control, Path::new("/home/me/.local/state/rehome/gateways/shop/gateway.sock"));
    let named = loaded(EVERYTHING).migration.gateways_or_default(Path::new("/x"));
    assert_eq!(named[0].name, "edge-1");
}

#[test]
fn a_file_is_loaded_from_disk() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("rehome.toml");
    std::fs::write(&path, TEMPLATE).expect("write");
    assert_eq!(Migration::load(&path).expect("loads").migration.name, "shop");
}

#[test]
fn files_that_are_no_migration_files_are_refused_in_words() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("rehome.toml");
    let said = |path: &Path| {
        let error = Migration::load(path).expect_err("refused");
        assert!(error.problems().iter().all(|problem| problem.level == Level::Error));
        error.render(false).replace(&folder.path().display().to_string(), "FOLDER")
    };
    let mut all = vec![said(&path), said(folder.path())];
    std::fs::write(&path, b"[migration]\nname = \"caf\xe9\"\n").expect("write");
    all.push(said(&path));
    std::fs::write(&path, vec![b'#'; (rehome_spec::MAX_FILE_BYTES + 1) as usize]).expect("write");
    all.push(said(&path));
    std::fs::write(&path, "").expect("write");
    all.push(said(&path));
    insta::assert_snapshot!(all.join("----\n"));
}
