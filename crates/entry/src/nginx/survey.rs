//! What a configuration does: its upstreams, the passes that lead to them, the settings in force there, and the ways by which a
//! request reaches them. It judges nothing and changes nothing.

use super::tree::{Directive, Tree};
use crate::address::HostPort;
use crate::probe::{Place, Question};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What speaks to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Proxy,
    Grpc,
    /// uwsgi, FastCGI, SCGI, memcached: no HTTP.
    Foreign,
    /// `stream`: bytes.
    Stream,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leads {
    /// To an `upstream` by its name (its number in [`Survey::upstreams`]).
    Upstream(usize),
    Direct(HostPort),
    /// Decided per request.
    Variable,
    /// A unix socket, or what cannot be read.
    Elsewhere,
}

#[derive(Debug)]
pub struct Upstream<'t> {
    pub name: String,
    pub directive: &'t Directive,
    pub servers: Vec<&'t Directive>,
    pub is_stream: bool,
}

/// One block around a pass, with the directives that stand in it directly.
#[derive(Debug, Clone)]
pub struct Level<'t> {
    pub block: Option<&'t Directive>,
    pub items: Vec<&'t Directive>,
}

/// A `proxy_pass` or one of its kin.
#[derive(Debug)]
pub struct Pass<'t> {
    pub directive: &'t Directive,
    pub kind: Kind,
    pub leads: Leads,
    /// `https://`, `grpcs://`.
    pub secure: bool,
    /// What stands for host and port in the text.
    pub authority: String,
    /// What follows them: a path, a variable, or nothing.
    pub rest: String,
    /// From `http` to the innermost block.
    pub levels: Vec<Level<'t>>,
    /// Ways to reach it from outside; none where it takes more than a path to get there.
    pub questions: Vec<Question>,
    /// The location takes this one path and none below it.
    pub is_exact: bool,
}

impl<'t> Pass<'t> {
    /// The innermost `location`.
    pub fn location(&self) -> Option<&Level<'t>> {
        self.levels.iter().rev().find(|level| level.block.is_some_and(|block| block.name() == "location"))
    }

    /// The setting in force: the innermost that is there.
    pub fn setting(&self, name: &str) -> Option<&'t Directive> {
        self.levels
            .iter()
            .rev()
            .find_map(|level| level.items.iter().find(|item| item.name() == name).copied())
    }

    /// A list in force: the innermost level that has any of that name hides all others.
    pub fn list(&self, name: &str) -> Vec<&'t Directive> {
        let of = |level: &Level<'t>| -> Vec<&'t Directive> {
            level.items.iter().filter(|item| item.name() == name).copied().collect()
        };
        self.levels.iter().rev().map(of).find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// `proxy_` or `grpc_`.
    pub fn prefix(&self) -> &'static str {
        if self.kind == Kind::Grpc { "grpc" } else { "proxy" }
    }
}

#[derive(Debug)]
pub struct Survey<'t> {
    pub upstreams: Vec<Upstream<'t>>,
    pub passes: Vec<Pass<'t>>,
    /// Values that variables may take: of `set`, `map`, `split_clients`, `geo`.
    pub values: Vec<(&'t Directive, &'t str)>,
}

/// A listening socket and the names answered there.
#[derive(Debug, Clone)]
struct Server {
    doors: Vec<Door>,
    host: String,
}

#[derive(Debug, Clone)]
struct Door {
    place: Place,
    secure: bool,
    http2: bool,
    proxy_header: bool,
}

impl<'t> Survey<'t> {
    pub fn of(tree: &'t Tree) -> Self {
        let mut survey = Self { upstreams: Vec::new(), passes: Vec::new(), values: Vec::new() };
        let top = tree.expanded(tree.main());
        let blocks = |name: &'static str| top.iter().filter(move |directive| directive.name() == name);
        for (block, is_stream) in
            blocks("http").map(|block| (block, false)).chain(blocks("stream").map(|block| (block, true)))
        {
            for directive in tree.expanded(block.children()) {
                if directive.name() == "upstream" {
                    survey.add_upstream(tree, directive, is_stream);
                }
            }
        }
        let mut walk = Walk { tree, survey, server: None, in_stream: false };
        for block in blocks("http") {
            walk.block(&mut Vec::new(), block);
        }
        walk.in_stream = true;
        for block in blocks("stream") {
            walk.block(&mut Vec::new(), block);
        }
        walk.survey
    }

    fn add_upstream(&mut self, tree: &'t Tree, directive: &'t Directive, is_stream: bool) {
        let servers = tree.expanded(directive.children());
        let servers = servers.into_iter().filter(|item| item.name() == "server").collect();
        self.upstreams.push(Upstream { name: directive.value().to_owned(), directive, servers, is_stream });
    }
}

struct Walk<'t> {
    tree: &'t Tree,
    survey: Survey<'t>,
    server: Option<Server>,
    in_stream: bool,
}

impl<'t> Walk<'t> {
    fn block(&mut self, levels: &mut Vec<Level<'t>>, block: &'t Directive) {
        let items = self.tree.expanded(block.children());
        if block.name() == "server" {
            self.server = Some(server(&items));
        }
        levels.push(Level { block: Some(block), items: items.clone() });
        for item in items {
            match item.name() {
                "proxy_pass" | "grpc_pass" | "uwsgi_pass" | "fastcgi_pass" | "scgi_pass"
                | "memcached_pass" => {
                    let pass = self.pass(levels, item);
                    self.survey.passes.push(pass);
                }
                "set" => self.survey.values.extend(item.values().nth(1).map(|value| (item, value))),
                "map" | "split_clients" | "geo" => self.table(item),
                "upstream" | "types" | "charset_map" => {}
                _ if item.block.is_some() => self.block(levels, item),
                _ => {}
            }
        }
        levels.pop();
        if block.name() == "server" {
            self.server = None;
        }
    }

    fn table(&mut self, table: &'t Directive) {
        for line in table.children() {
            self.survey.values.extend(line.values().next().map(|value| (line, value)));
        }
    }

    fn pass(&self, levels: &[Level<'t>], directive: &'t Directive) -> Pass<'t> {
        let kind = match directive.name() {
            _ if self.in_stream => Kind::Stream,
            "proxy_pass" => Kind::Proxy,
            "grpc_pass" => Kind::Grpc,
            _ => Kind::Foreign,
        };
        let text = directive.value();
        let (scheme, after) = text.split_once("://").unwrap_or(("", text));
        let end = after.find(['/', '?', '$']).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        let secure = matches!(scheme, "https" | "grpcs");
        let leads = self.leads(scheme, authority, rest, secure);
        let mut pass = Pass {
            directive,
            kind,
            leads,
            secure,
            authority: authority.to_owned(),
            rest: rest.to_owned(),
            levels: levels.to_vec(),
            questions: Vec::new(),
            is_exact: false,
        };
        if let Some((path, is_exact)) = pass.location().and_then(|level| path_into(level.block?)) {
            pass.questions = self.questions(path);
            pass.is_exact = is_exact;
        }
        pass
    }

    fn leads(&self, scheme: &str, authority: &str, rest: &str, secure: bool) -> Leads {
        // Variables that begin with a path leave host and port as they are written.
        let is_path = |rest: &str| {
            ["$request_uri", "$uri", "$document_uri", "$is_args"].iter().any(|name| rest.starts_with(name))
        };
        if scheme.contains('$') || rest.starts_with('$') && !is_path(rest) {
            return Leads::Variable;
        }
        if authority.starts_with("unix:") {
            return Leads::Elsewhere;
        }
        let is_it = |upstream: &Upstream<'_>| {
            upstream.is_stream == self.in_stream && upstream.name.eq_ignore_ascii_case(authority)
        };
        if let Some(number) = self.survey.upstreams.iter().position(is_it) {
            return Leads::Upstream(number);
        }
        let port = if secure { 443 } else { 80 };
        HostPort::parse(authority, port).map_or(Leads::Elsewhere, Leads::Direct)
    }

    fn questions(&self, path: &str) -> Vec<Question> {
        let Some(server) = self.server.as_ref().filter(|_| !self.in_stream) else { return Vec::new() };
        let ask = |door: &Door| Question {
            place: door.place.clone(),
            secure: door.secure,
            prior_knowledge: door.http2 && !door.secure,
            proxy_header: door.proxy_header,
            host: server.host.clone(),
            path: path.to_owned(),
        };
        server.doors.iter().map(ask).collect()
    }
}

/// The path of a location, and whether it is this one only.
fn path_into(location: &Directive) -> Option<(&str, bool)> {
    let values: Vec<&str> = location.values().collect();
    let (path, is_exact) = match values.as_slice() {
        ["=", path] => (*path, true),
        ["^~", path] | [path] => (*path, false),
        _ => return None,
    };
    path.starts_with('/').then_some((path, is_exact))
}

fn server(items: &[&Directive]) -> Server {
    let all_secure = items.iter().any(|item| item.name() == "ssl" && item.value() == "on");
    let all_http2 = items.iter().any(|item| item.name() == "http2" && item.value() == "on");
    let mut doors: Vec<Door> =
        items.iter().filter(|item| item.name() == "listen").filter_map(|item| door(item)).collect();
    if doors.is_empty() {
        let place = Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 80)));
        doors.push(Door { place, secure: false, http2: false, proxy_header: false });
    }
    for door in &mut doors {
        door.secure |= all_secure;
        door.http2 |= all_http2 && door.secure;
    }
    let mut names = items.iter().filter(|item| item.name() == "server_name").flat_map(|item| item.values());
    let is_plain =
        |name: &&str| HostPort::parse(name, 80).is_some() && !name.starts_with('.') && !name.contains('_');
    Server { doors, host: names.find(is_plain).unwrap_or("localhost").to_owned() }
}

fn door(listen: &Directive) -> Option<Door> {
    let text = listen.value();
    let has = |word: &str| listen.values().skip(1).any(|value| value == word);
    let place = if let Some(path) = text.strip_prefix("unix:") {
        Place::Unix(path.into())
    } else if let Ok(port) = text.parse::<u16>() {
        Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    } else {
        let text = text.strip_prefix('*').map_or_else(|| text.to_owned(), |rest| format!("0.0.0.0{rest}"));
        let at = HostPort::parse(&text, 80)?;
        let host = if at.host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { at.host.as_str() };
        let address: IpAddr = match host.parse().ok()? {
            IpAddr::V4(address) if address.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(address) if address.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        Place::Tcp(SocketAddr::new(address, at.port))
    };
    Some(Door { place, secure: has("ssl"), http2: has("http2"), proxy_header: has("proxy_protocol") })
}

/// nginx's times: `60`, `60s`, `1m30s`, `500ms`. `None` for variables.
pub fn time(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|sign: char| sign.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit);
        let number: u64 = number.parse().ok()?;
        let millis = match unit.trim() {
            "" | "s" => 1_000,
            "ms" => 1,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            "M" => 2_592_000_000,
            "y" => 31_536_000_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, millis) in [("60", 60_000), ("1m30s", 90_000), ("500ms", 500), ("1h 5m", 3_900_000)] {
            assert_eq!(time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert!(time("$t").is_none() && time("").is_none() && time("5x").is_none());
    }

    #[test]
    fn passes_are_found_wherever_they_stand() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("nginx.conf");
        std::fs::write(
            &config,
            "http { upstream App { server 10.0.0.5:8000; }\n\
             server { listen 443 ssl http2; server_name _ shop.example;\n\
               location /api { proxy_read_timeout 5s; proxy_pass http://app/v1; }\n\
               location ~ \\.php$ { fastcgi_pass unix:/run/php.sock; }\n\
               location = /x { if ($a) { proxy_pass https://10.0.0.6$request_uri; } proxy_pass $where; } }\n\
             server { listen [::]:81 proxy_protocol; location / { grpc_pass grpc://10.0.0.7:50; } } }",
        )
        .unwrap();
        let tree = Tree::read(&config).unwrap();
        let survey = Survey::of(&tree);
        let seen: Vec<_> = survey.passes.iter().map(|pass| (pass.kind, pass.leads.clone())).collect();
        let at = |host: &str, port| Leads::Direct(HostPort { host: host.into(), port });
        assert_eq!(
            seen,
            [
                (Kind::Proxy, Leads::Upstream(0)),
                (Kind::Foreign, Leads::Elsewhere),
                (Kind::Proxy, at("10.0.0.6", 443)),
                (Kind::Proxy, Leads::Variable),
                (Kind::Grpc, at("10.0.0.7", 50)),
            ]
        );
        let first = &survey.passes[0];
        assert_eq!(first.setting("proxy_read_timeout").unwrap().value(), "5s");
        assert_eq!(first.questions[0].route(), "https://shop.example/api at 127.0.0.1:443");
        let last = &survey.passes[4].questions[0];
        assert!(last.proxy_header && last.place == Place::Tcp("[::1]:81".parse().unwrap()));
    }
}
