//! Single values: times, sizes, references to secrets, names, addresses. What a value means beside others is in `rules`.

use super::{listed, nearest};
use crate::problem::{Raw, is_reference, quote};
use crate::secret;
use std::net::SocketAddr;
use std::ops::Range;
use url::{Host, Url};

/// Kinds of stores, with what people call them elsewhere.
pub(super) const STORE_SCHEMES: [&str; 7] = ["s3", "oss", "cos", "obs", "gcs", "azblob", "file"];
const ALIASES: [(&str, &str); 9] = [
    ("gs", "gcs"),
    ("az", "azblob"),
    ("azure", "azblob"),
    ("wasb", "azblob"),
    ("wasbs", "azblob"),
    ("s3a", "s3"),
    ("s3n", "s3"),
    ("cosn", "cos"),
    ("minio", "s3"),
];

pub(super) const HOW_TO_REFER: &str =
    "write where the secret is kept: \"env:NAME\", \"file:PATH\" or \"cmd:PROGRAM ARG\"";

/// The longest path of a unix socket.
const MAX_SOCKET_PATH: usize = 107;
const MAX_NAME: usize = 64;

/// What to write for a key that is missing or wrong.
pub(super) fn example_of(shape: Option<&str>, key: &str) -> String {
    let example = match (shape, key) {
        (None | Some("Migration"), "migration") => {
            "begin with `[migration]`, its `name`, `source` and `target`"
        }
        (Some("Header"), "source") => "add `source = { cloud = \"aliyun\", region = \"cn-hangzhou\" }`",
        (Some("Header"), "target") => "add `target = { cloud = \"tencent\", region = \"ap-shanghai\" }`",
        (Some("Header"), "name") => "add `name = \"shop\"`",
        (Some("Place"), "cloud") => "add `cloud = \"aliyun\"`: any word that tells you where it is",
        (Some("Objects"), "source") => {
            "add `source = { url = \"oss://bucket\", access_key = \"env:ID\", secret_key = \"env:SECRET\" }`"
        }
        (Some("Objects"), "target") => {
            "add `target = { url = \"cos://bucket\", access_key = \"env:ID\", secret_key = \"env:SECRET\" }`"
        }
        (Some("Store"), "url") => "add `url = \"s3://bucket/prefix\"`",
        (Some("Service"), "source") => "add `source = \"http://10.0.0.5:8000\"`: where it runs today",
        (Some("Service"), "target") => "add `target = \"http://10.8.0.5:8000\"`: where it will run",
        (Some("DatabaseFront"), "listen") => "add `listen = \"0.0.0.0:5432\"`: where clients connect",
        (_, "listen") => "add `listen = \"0.0.0.0:8080\"`: where the gateway takes requests",
        (_, "remote") => {
            "remote = { address = \"10.0.0.6:7443\", tls = { chain = \"/etc/rehome/edge.pem\", key = \"file:/etc/rehome/edge.key\" } }"
        }
        (_, "control") => "add `control = \"/run/rehome/gateway.sock\"`",
        (_, "stop") => "add `stop = \"systemctl stop NAME\"`",
        (_, "start") => "add `start = \"systemctl start NAME\"`",
        (_, "is_stopped") => "add `is_stopped = \"! systemctl is-active NAME\"`: succeeds when it is stopped",
        (_, "access_key" | "secret_key" | "token") => return format!("add `{key} = \"env:NAME\"`"),
        (Some("Certificate"), "chain") => {
            "add `chain = \"/etc/rehome/shop.pem\"`: the certificate and those that lead to its authority"
        }
        (Some("Certificate"), "key") => "add `key = \"file:/etc/rehome/shop.key\"`",
        (_, "tls") => "tls = [{ chain = \"/etc/rehome/shop.pem\", key = \"file:/etc/rehome/shop.key\" }]",
        (_, "hosts") => "hosts = [\"shop.example.com\", \"*.example.com\"]",
        (_, "paths") => "paths = [\"/api/\"]",
        (_, "trusted_proxies") => "trusted_proxies = [\"10.0.0.0/8\"]",
        (_, "name") => "add `name = \"media\"`",
        (_, "url") => "add `url = \"https://shop.example/changes\"`",
        (_, "read_steps") => "read_steps = [1, 5, 25, 50]",
        (_, "uses") => "uses = [\"media\"]",
        _ => return format!("{key} = …"),
    };
    example.to_owned()
}

/// Checks one text by the name of its shape and the keys that lead to it.
pub(super) fn check(
    shape: Option<&str>,
    path: &[String],
    text: &str,
    span: &Range<usize>,
    found: &mut Vec<Raw>,
) {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let problem = match (shape, path.as_slice()) {
        (Some("Span"), [.., key]) => {
            crate::shape::parse_span(text).err().map(|why| span_problem(key, text, &why, span))
        }
        (Some("Size"), [.., key]) => {
            crate::shape::parse_size(text).err().map(|why| size_problem(key, text, &why, span))
        }
        (Some("Network"), _) => network(text, span),
        (
            Some("Secret"),
            ["services", "tls", "key"]
            | ["gateways", "remote", "tls", "key"]
            | ["databases", "front", "tls", "key"],
        ) => key_file(text, span),
        (Some("Secret"), [.., key]) => secret_problem(key, text, span),
        (Some("ClientKey"), _) => client_key(text, span),
        (_, ["migration" | "objects" | "databases" | "services" | "gateways" | "workers", "name"]) => {
            name(text, span)
        }
        (_, ["databases", "source" | "target", key @ ("url" | "seen_by_other")]) => database(key, text, span),
        (_, ["databases", "source" | "target", "applications", key @ "user"]) => not_empty(key, text, span),
        (_, ["databases", "pgbouncers", "admin"]) => console(text, span),
        (_, ["databases", "front", "listen"]) => listen(text, span),
        (_, ["databases", "pgbouncers", key @ "file"]) => {
            whole_path(key, text, "/etc/pgbouncer/rehome.ini", span)
        }
        (_, ["databases", "pgbouncers", "options"]) => one_line(text, span),
        (_, ["objects", "source" | "target", "url"]) => store(text, span),
        (_, ["objects", .., "endpoint"]) => {
            service_address("endpoint", text, "https://oss-cn-hangzhou.aliyuncs.com", span)
        }
        (_, ["objects", "changes" | "fence", _, "url"]) => web_address("url", text, span).err(),
        (_, ["services", key @ ("source" | "target")]) => {
            service_address(key, text, "http://10.0.0.5:8000", span)
        }
        (_, ["services", key @ ("source_peers" | "target_peers")]) => {
            service_address(key, text, "http://10.0.0.6:8000", span)
        }
        (_, ["services", key @ "upstream_ca"]) => whole_path(key, text, "/etc/rehome/ca.pem", span),
        (_, ["services", "listen"]) => listen(text, span),
        (_, ["services", "health"]) => health(text, span),
        (_, ["services", "reads"]) => method(text, span),
        (
            _,
            ["services", "tls", "chain"]
            | ["gateways", "remote", "tls", "chain"]
            | ["databases", "front", "tls", "chain"],
        ) => whole_path("chain", text, "/etc/rehome/shop.pem", span),
        (_, ["gateways", "remote", "ca"]) => whole_path("ca", text, "/etc/rehome/ca.pem", span),
        (_, ["gateways", "remote", key @ ("address" | "listen")]) => host_and_port(key, text, span),
        (_, ["services", "hosts"]) => host(text, span),
        (_, ["services", "paths"]) => path_prefix(text, span),
        (_, ["gateways", "control"]) => control(text, span),
        (_, ["workers", key @ ("stop" | "start" | "is_stopped")]) => not_empty(key, text, span),
        (_, ["migration", "source" | "target", key @ "cloud"]) => not_empty(key, text, span),
        (_, ["migration", key @ "journal_copy"]) => not_empty(key, text, span),
        _ => None,
    };
    found.extend(problem);
}

fn span_problem(key: &str, text: &str, why: &str, span: &Range<usize>) -> Raw {
    const UNITS: [(&str, &str); 14] = [
        ("sec", "s"),
        ("secs", "s"),
        ("second", "s"),
        ("seconds", "s"),
        ("min", "m"),
        ("mins", "m"),
        ("minute", "m"),
        ("minutes", "m"),
        ("hour", "h"),
        ("hours", "h"),
        ("hr", "h"),
        ("day", "d"),
        ("days", "d"),
        ("msec", "ms"),
    ];
    unit_problem(key, text, why, span, "a length of time", &UNITS, "s")
}

fn size_problem(key: &str, text: &str, why: &str, span: &Range<usize>) -> Raw {
    const UNITS: [(&str, &str); 12] = [
        ("k", "KiB"),
        ("kb", "KB"),
        ("kib", "KiB"),
        ("m", "MiB"),
        ("mb", "MB"),
        ("mib", "MiB"),
        ("g", "GiB"),
        ("gb", "GB"),
        ("gib", "GiB"),
        ("t", "TiB"),
        ("tb", "TB"),
        ("b", "B"),
    ];
    unit_problem(key, text, why, span, "a size", &UNITS, "MiB")
}

fn unit_problem(
    key: &str,
    text: &str,
    why: &str,
    span: &Range<usize>,
    what: &str,
    units: &[(&str, &str)],
    usual: &str,
) -> Raw {
    let problem = Raw::error(span, format!("`{key}`: \"{}\" is not {what}", quote(text)));
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_lowercase();
    let meant = match unit.as_str() {
        "" => Some(usual),
        unit => units.iter().find(|(name, _)| *name == unit).map(|(_, meant)| *meant),
    };
    match meant.filter(|_| number.parse::<f64>().is_ok()) {
        Some(meant) => problem.hint(format!("write `{key} = \"{number}{meant}\"`")),
        // What follows the colon says what to write.
        None => problem.hint(why.split_once(": ").map_or(why, |(_, advice)| advice).to_owned()),
    }
}

fn secret_problem(key: &str, text: &str, span: &Range<usize>) -> Option<Raw> {
    let how = |problem: Raw| problem.hint(HOW_TO_REFER);
    if text.trim().is_empty() {
        return Some(how(Raw::error(span, format!("`{key}` is empty"))));
    }
    if !is_reference(text) {
        let variable = format!("REHOME_{}", key.to_uppercase());
        let text = format!("`{key}` holds a secret in plain text, or something that is no reference");
        return Some(how(Raw::error(span, text))
            .hint(format!("put it into the environment and write `{key} = \"env:{variable}\"`; a secret that was in a file is spent: renew it")));
    }
    secret::check_reference(text).err().map(|why| how(Raw::error(span, format!("`{key}`: {why}"))))
}

fn name(text: &str, span: &Range<usize>) -> Option<Raw> {
    let problem = |why: String| {
        Some(Raw::error(span, why).hint("use letters, digits, `-` and `_`, like \"shop-media\""))
    };
    if text.is_empty() {
        return problem("`name` is empty".into());
    }
    if text.len() > MAX_NAME {
        return problem(format!("`name` is longer than {MAX_NAME} characters"));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match text.chars().find(|c| !good(*c)) {
        Some(bad) => problem(format!("`name` cannot hold `{}`", bad.escape_debug())),
        // It becomes the name of a folder and an argument of commands.
        None if text.starts_with('-') => problem("`name` cannot begin with `-`".into()),
        None => None,
    }
}

fn not_empty(key: &str, text: &str, span: &Range<usize>) -> Option<Raw> {
    text.trim().is_empty().then(|| Raw::error(span, format!("`{key}` is empty")).hint(example_of(None, key)))
}

fn client_key(text: &str, span: &Range<usize>) -> Option<Raw> {
    let named = |kind: &str| {
        text.strip_prefix(kind).is_some_and(|name| !name.is_empty() && name.chars().all(is_token))
    };
    if text == "address" || named("cookie:") || named("header:") {
        return None;
    }
    let problem = Raw::error(span, format!("\"{}\" does not tell clients apart", quote(text)));
    Some(problem.hint("write \"cookie:NAME\", \"header:NAME\" or \"address\""))
}

/// A character of an HTTP method or header name.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn method(text: &str, span: &Range<usize>) -> Option<Raw> {
    if text.is_empty() || !text.chars().all(is_token) {
        return Some(
            Raw::error(span, format!("\"{}\" is not an HTTP method", quote(text)))
                .hint("write for example \"GET\""),
        );
    }
    let upper = text.to_uppercase();
    (upper != text).then(|| {
        Raw::error(span, format!("\"{}\" would match no request: methods have capital letters", quote(text)))
            .hint(format!("write \"{upper}\""))
    })
}

/// The parts of a store's address that matter here.
pub(super) fn store_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| STORE_SCHEMES.contains(&url.scheme()))
}

/// Engines that move; what else an address may say is its driver's business.
const DATABASE_SCHEMES: [&str; 6] = ["postgres", "postgresql", "mysql", "mariadb", "redis", "rediss"];

fn database(key: &str, text: &str, span: &Range<usize>) -> Option<Raw> {
    let example = "write for example \"postgres://rehome@10.0.0.5:5432/shop\"";
    let Ok(url) = Url::parse(text) else {
        let problem =
            Raw::error(span, format!("`{key}` \"{}\" is not the address of a database", quote(text)));
        return Some(problem.hint(example));
    };
    if url.password().is_some() {
        let problem = Raw::error(span, "this address carries a password in plain text");
        return Some(problem.hint("take it out of the address and write `password = \"env:NAME\"`"));
    }
    if !DATABASE_SCHEMES.contains(&url.scheme()) {
        let problem = Raw::error(span, format!("no database that moves is called `{}`", quote(url.scheme())));
        let problem = match nearest(url.scheme(), DATABASE_SCHEMES) {
            Some(guess) => problem.hint(format!("did you mean `{guess}://`?")),
            None => problem,
        };
        return Some(problem.hint(format!("known kinds: {}", listed(DATABASE_SCHEMES))));
    }
    if url.scheme().starts_with("redis") {
        return None; // who we are and which numbers there are has a default
    }
    let missing = match (url.username().is_empty(), url.path().trim_matches('/').is_empty()) {
        (true, _) => "user",
        (_, true) => "database",
        _ => return None,
    };
    Some(Raw::error(span, format!("`{key}` names no {missing}")).hint(example))
}

/// PgBouncer's admin console. The file beside it is written here, so it is on this machine, too.
fn console(text: &str, span: &Range<usize>) -> Option<Raw> {
    let example = "write for example \"postgres://rehome@127.0.0.1:6432/pgbouncer\"";
    let text_of = |text: String| Some(Raw::error(span, text).hint(example));
    let Some(url) = Url::parse(text).ok().filter(|url| url.scheme().starts_with("postgres")) else {
        return text_of(format!("`admin` \"{}\" is not the address of a console", quote(text)));
    };
    if url.password().is_some() {
        let problem = Raw::error(span, "this address carries a password in plain text");
        return Some(problem.hint("take it out of the address and write `password = \"env:NAME\"`"));
    }
    if url.username().is_empty() {
        return text_of("`admin` names no user".to_owned());
    }
    if url.path() != "/pgbouncer" {
        return text_of("the console is the database `pgbouncer`".to_owned());
    }
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let is_socket = url.query_pairs().any(|(key, value)| key == "host" && value.starts_with('/'));
    if is_here || is_socket {
        return None;
    }
    let problem = Raw::error(span, "the console is on another machine");
    Some(problem.hint("run a gateway beside this PgBouncer: it writes a file that PgBouncer includes"))
}

/// It becomes part of a line of another program's configuration.
fn one_line(text: &str, span: &Range<usize>) -> Option<Raw> {
    let known = text.chars().all(|c| !c.is_control() && c != ';');
    (!known).then(|| {
        Raw::error(span, "these settings are not one line").hint("write for example \"pool_size=20\"")
    })
}

fn store(text: &str, span: &Range<usize>) -> Option<Raw> {
    let example = "write for example \"s3://bucket/prefix\" or \"file:///srv/media\"";
    let Ok(url) = Url::parse(text) else {
        return Some(
            Raw::error(span, format!("\"{}\" is not the address of a store", quote(text))).hint(example),
        );
    };
    if carries_a_password(&url) {
        return Some(password_in(span, "access_key and secret_key"));
    }
    let scheme = url.scheme();
    if !STORE_SCHEMES.contains(&scheme) {
        let problem = Raw::error(span, format!("no kind of store is called `{}`", quote(scheme)));
        let alias = ALIASES.iter().find(|(alias, _)| *alias == scheme).map(|(_, meant)| *meant);
        let problem = match alias.or_else(|| nearest(scheme, STORE_SCHEMES)) {
            Some(guess) => problem.hint(format!("did you mean `{guess}://`?")),
            None if matches!(scheme, "http" | "https") => problem
                .hint("name the bucket in `url` (\"s3://bucket\") and put this address into `endpoint`"),
            None => problem,
        };
        return Some(problem.hint(format!("known kinds: {}", listed(STORE_SCHEMES))));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let text = "the address of a store has no `?` and no `#`";
        return Some(Raw::error(span, text).hint("regions, endpoints and secrets have keys of their own"));
    }
    let host = url.host_str().unwrap_or_default();
    match (scheme, host) {
        ("file", "") if url.path().len() > 1 => None,
        ("file", "") => {
            Some(Raw::error(span, "this address names no folder").hint("write \"file:///srv/media\""))
        }
        ("file", _) => Some(
            Raw::error(span, "a local folder has no host")
                .hint("write three slashes and the whole path: \"file:///srv/media\""),
        ),
        (_, "") => Some(
            Raw::error(span, format!("`{}` names no bucket", quote(text)))
                .hint(format!("write \"{scheme}://bucket\" or \"{scheme}://bucket/prefix\"")),
        ),
        _ if url.port().is_some() => {
            Some(Raw::error(span, "a bucket has no port").hint("put the service's address into `endpoint`"))
        }
        _ => None,
    }
}

fn carries_a_password(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

fn password_in(span: &Range<usize>, keys: &str) -> Raw {
    Raw::error(span, "this address carries a user or password in plain text")
        .hint(format!("take it out of the address and use {keys}"))
}

/// `http://` or `https://` with a host.
fn web_address(key: &str, text: &str, span: &Range<usize>) -> Result<Url, Raw> {
    let example = "write it with `http://` or `https://`, like \"http://10.0.0.5:8000\"";
    let Ok(url) = Url::parse(text) else {
        return Err(Raw::error(span, format!("`{key}`: \"{}\" is not an address", quote(text))).hint(example));
    };
    if carries_a_password(&url) {
        return Err(password_in(span, "a reference to a secret"));
    }
    if !matches!(url.scheme(), "http" | "https") {
        let text = format!("`{key}` must begin with `http://` or `https://`, not `{}:`", quote(url.scheme()));
        return Err(Raw::error(span, text).hint(example));
    }
    Ok(url)
}

/// An address of a whole service: nothing after host and port.
fn service_address(key: &str, text: &str, example: &str, span: &Range<usize>) -> Option<Raw> {
    let url = match web_address(key, text, span) {
        Ok(url) => url,
        Err(problem) => return Some(problem),
    };
    let surplus = match (url.path(), url.query(), url.fragment()) {
        (_, _, Some(_)) => "a fragment",
        (_, Some(_), _) => "a query",
        (path, _, _) if path.len() > 1 => "a path",
        _ => return None,
    };
    let bare = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{}://{host}:{port}", url.scheme()),
        (Some(host), None) => format!("{}://{host}", url.scheme()),
        (None, _) => example.to_owned(),
    };
    let problem = Raw::error(span, format!("`{key}` is a host and a port; this one has {surplus}"));
    Some(problem.hint(format!("write \"{}\"", quote(&bare))))
}

fn listen(text: &str, span: &Range<usize>) -> Option<Raw> {
    if text.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let problem = Raw::error(span, format!("`listen`: \"{}\" is not address:port", quote(text)));
    let port = text.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse::<u16>().ok());
    let host = text.rsplit_once(':').map_or("", |(host, _)| host);
    Some(match (host, port) {
        ("localhost" | "http://localhost", Some(port)) => problem.hint(format!("write \"127.0.0.1:{port}\"")),
        (_, Some(port)) => problem.hint(format!(
            "write \"0.0.0.0:{port}\", or the address of one network card; IPv6 as \"[::]:{port}\""
        )),
        _ => {
            problem.hint("write \"0.0.0.0:8080\", or the address of one network card; IPv6 as \"[::]:8080\"")
        }
    })
}

fn health(text: &str, span: &Range<usize>) -> Option<Raw> {
    if text.starts_with('/') && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return None;
    }
    Some(
        Raw::error(span, format!("`health`: \"{}\" is not a path", quote(text)))
            .hint("write a path that answers 200 on both sides, like \"/healthz\""),
    )
}

fn control(text: &str, span: &Range<usize>) -> Option<Raw> {
    if text.len() > MAX_SOCKET_PATH {
        let text = format!(
            "`control` is {} bytes long; a unix socket's path can have {MAX_SOCKET_PATH}",
            text.len()
        );
        return Some(Raw::error(span, text).hint("choose a shorter one, like \"/run/rehome/gateway.sock\""));
    }
    if !text.starts_with('/') {
        let text = "`control` must be a whole path: gateway and engine may be started in different folders";
        return Some(Raw::error(span, text).hint("write for example \"/run/rehome/gateway.sock\""));
    }
    None
}

/// Another machine is named by itself: an address that only listens reaches nobody.
fn host_and_port(key: &str, text: &str, span: &Range<usize>) -> Option<Raw> {
    let example = "write it like \"10.0.0.6:7443\" or \"edge-1.example.com:7443\"";
    let Some((host, port)) = text.rsplit_once(':') else {
        let why = format!("`{key}`: \"{}\" has no port", quote(text));
        return Some(Raw::error(span, why).hint(example));
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(good) || port.parse::<u16>().is_err() {
        let why = format!("`{key}`: \"{}\" is no host with a port", quote(text));
        return Some(Raw::error(span, why).hint(example));
    }
    let nowhere = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified());
    (key == "address" && (nowhere || port == "0")).then(|| {
        let why = format!("`{key}`: \"{}\" is no place to go to", quote(text));
        Raw::error(span, why).hint("name the gateway's own address here, and where it listens in `listen`")
    })
}

fn network(text: &str, span: &Range<usize>) -> Option<Raw> {
    let why = crate::network::parse_network(text).err()?;
    let (what, advice) = why.split_once(": write ").unwrap_or((&why, "it like \"10.0.0.0/8\""));
    Some(Raw::error(span, format!("`trusted_proxies`: {}", quote(what))).hint(format!("write {advice}")))
}

/// A path from the root: the gateway may be started in any folder.
fn whole_path(key: &str, text: &str, example: &str, span: &Range<usize>) -> Option<Raw> {
    let why = match text {
        "" => format!("`{key}` is empty"),
        text if !text.starts_with('/') => format!("`{key}`: \"{}\" is not a whole path", quote(text)),
        text if text.contains('\0') => format!("`{key}` holds a zero byte, which no path can"),
        _ => return None,
    };
    Some(
        Raw::error(span, why)
            .hint(format!("the gateway may be started in any folder: write for example \"{example}\"")),
    )
}

fn key_file(text: &str, span: &Range<usize>) -> Option<Raw> {
    let file = text.strip_prefix("file:").filter(|path| !path.is_empty() && !path.starts_with('~'));
    secret_problem("key", text, span).or_else(|| whole_path("key", file?, "file:/etc/rehome/shop.key", span))
}

fn host(text: &str, span: &Range<usize>) -> Option<Raw> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let labels = name.strip_suffix('.').unwrap_or(name).split('.');
    let (mut labels, long) =
        (labels.map(|label| (1..=63).contains(&label.len()) && label.chars().all(good)), name.len() > 253);
    if labels.all(|is_good| is_good) && !long {
        return None;
    }
    let problem = Raw::error(span, format!("`hosts`: \"{}\" is not the name of a host", quote(text)));
    Some(match (text.contains("://") || text.contains(['/', ':']), text.is_ascii()) {
        (true, _) => {
            problem.hint("write the name alone, without scheme, port and path: \"shop.example.com\"")
        }
        (_, false) => problem.hint("write it as browsers send it, beginning with `xn--`"),
        _ => problem.hint("write \"shop.example.com\", or \"*.example.com\" for every name one step below"),
    })
}

fn path_prefix(text: &str, span: &Range<usize>) -> Option<Raw> {
    let surplus = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '\\' | '*');
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    let why = if !text.starts_with('/') {
        "does not begin with `/`"
    } else if let Some(bad) = text.chars().find(|c| surplus(*c)) {
        match bad {
            '*' => "has a `*`; whatever is below a path belongs to it anyway",
            '%' => "has a `%`; paths are compared after `%20` and its like were decoded",
            _ => "is not a plain path",
        }
    } else if text.contains("//") || text.split('/').any(is_dots) {
        "has empty or dotted steps, which no request can match"
    } else {
        return None;
    };
    Some(
        Raw::error(span, format!("`paths`: \"{}\" {why}", quote(text)))
            .hint("write for example \"/api/\": it stands for `/api` and everything below"),
    )
}

/// Is this the address of a machine on a network of one's own?
pub(super) fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        Some(Host::Domain(name)) => {
            !name.contains('.')
                || [".local", ".internal", ".lan", ".localhost"].iter().any(|end| name.ends_with(end))
        }
        None => true,
    }
}
