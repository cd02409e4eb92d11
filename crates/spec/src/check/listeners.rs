//! Services that share one `listen`: what must be the same for all of them, and what must tell them apart.

use crate::problem::{Raw, quote};
use crate::tree::{Entry, Kind, Node};
use std::net::SocketAddr;

pub(super) fn check(services: &[Node], found: &mut Vec<Raw>) {
    let mut before: Vec<(&Node, Listen)> = Vec::new();
    for service in services {
        alone(service, found);
        let Some(listen) = Listen::of(service) else { continue };
        let others: Vec<&Node> =
            before.iter().filter(|(_, other)| *other == listen).map(|(node, _)| *node).collect();
        if let Some(first) = others.first() {
            agree(first, service, found);
        }
        if let Some(rival) = others.iter().find_map(|other| Rival::of(other, service)) {
            found.push(rival.problem(service));
        }
        before.push((service, listen));
    }
}

/// Two ways of writing one address are one address.
#[derive(PartialEq)]
enum Listen<'a> {
    Address(SocketAddr),
    Text(&'a str),
}

impl<'a> Listen<'a> {
    fn of(service: &'a Node) -> Option<Self> {
        let text = service.text_of("listen").filter(|text| !text.is_empty())?;
        Some(text.parse().map_or(Self::Text(text), Self::Address))
    }
}

fn name(service: &Node) -> String {
    quote(service.text_of("name").unwrap_or_default())
}

/// What one service says by itself.
fn alone(service: &Node, found: &mut Vec<Raw>) {
    if let Some(entry) = service.entry("proxy_protocol")
        && service.is_true("proxy_protocol")
        && service.list("trusted_proxies").is_empty()
    {
        found.push(
            Raw::error(
                &entry.key_span,
                "`proxy_protocol` without `trusted_proxies`: nobody's header would be believed",
            )
            .hint("add the addresses of your load balancers: `trusted_proxies = [\"10.0.0.0/8\"]`"),
        );
    }
    for network in service.list("trusted_proxies") {
        let everybody = network.text().and_then(|text| crate::network::parse_network(text).ok());
        if everybody.is_some_and(crate::Network::is_all) {
            found.push(
                Raw::warning(&network.span, "everybody is a trusted proxy: any client can claim any address")
                    .hint("name the networks of your load balancers"),
            );
        }
    }
    if let Some(bound) = service.get("connections_per_client").filter(|bound| bound.integer() == Some(0)) {
        found.push(
            Raw::error(&bound.span, "`connections_per_client` is 0, so nobody could connect")
                .hint("leave it out for no bound"),
        );
    }
}

/// What concerns a connection is settled before anybody knows which service a request is for.
fn agree(first: &Node, service: &Node, found: &mut Vec<Raw>) {
    let (one, other) = (name(first), name(service));
    let place = |key: &str| {
        let entry: Option<&Entry> = service.entry(key).or_else(|| service.entry("listen"));
        entry.map_or(service.span.clone(), |entry| entry.key_span.clone())
    };
    let speaks_tls = |node: &Node| !node.list("tls").is_empty();
    if speaks_tls(first) != speaks_tls(service) {
        let (with, without) = if speaks_tls(first) { (&one, &other) } else { (&other, &one) };
        let text = format!("\"{with}\" has `tls` and \"{without}\" on the same `listen` has none");
        found.push(Raw::error(&place("tls"), text).hint(
            "a port speaks TLS or it does not: give both a certificate, or one of them a `listen` of its own",
        ));
    }
    for key in ["proxy_protocol", "trusted_proxies", "connections_per_client"] {
        if said(first, key) != said(service, key) {
            let text = format!("\"{one}\" and \"{other}\" share a `listen` and differ in `{key}`");
            found.push(
                Raw::error(&place(key), text)
                    .hint("it is about the connection, not the request: write the same for both"),
            );
        }
    }
}

/// A value in a form that can be compared; what is absent is the default.
fn said(service: &Node, key: &str) -> Option<Vec<String>> {
    let one = |node: &Node| match &node.kind {
        Kind::Text(text) => text.clone(),
        Kind::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    match &service.get(key)?.kind {
        Kind::Bool(false) => None,
        Kind::List(items) if items.is_empty() => None,
        Kind::List(items) => {
            let mut items: Vec<String> = items.iter().map(one).collect();
            items.sort();
            Some(items)
        }
        _ => Some(vec![one(service.get(key)?)]),
    }
}

/// Two services that would take the same request.
struct Rival {
    name: String,
    host: Option<String>,
    path: String,
}

impl Rival {
    fn of(other: &Node, service: &Node) -> Option<Self> {
        let (hosts, paths) = (hosts(service), paths(service));
        let host = self::hosts(other).into_iter().find(|host| hosts.contains(host))?;
        let path = self::paths(other).into_iter().find(|path| paths.contains(path))?;
        Some(Self { name: name(other), host, path })
    }

    fn problem(self, service: &Node) -> Raw {
        let listen = service.get("listen");
        let text = listen.and_then(Node::text).map(quote).unwrap_or_default();
        let key = ["paths", "hosts"].into_iter().find_map(|key| service.get(key)).or(listen);
        let span = key.map_or(service.span.clone(), |node| node.span.clone());
        let what = match (self.host, self.path.as_str()) {
            (None, "/") => format!("two services listen on \"{text}\" and nothing tells them apart"),
            (None, path) => format!("\"{}\" takes the path \"{path}\" on \"{text}\", too", self.name),
            (Some(host), "/") => format!("\"{}\" takes the host \"{host}\" on \"{text}\", too", self.name),
            (Some(host), path) => format!("\"{}\" takes \"{host}{path}\" on \"{text}\", too", self.name),
        };
        Raw::error(&span, what)
            .hint("give each `hosts` or `paths` that the other does not have, or a `listen` of its own")
    }
}

fn hosts(service: &Node) -> Vec<Option<String>> {
    let hosts = service.list("hosts").iter().filter_map(Node::text);
    let hosts: Vec<_> = hosts.map(|host| Some(host.trim_end_matches('.').to_lowercase())).collect();
    if hosts.is_empty() { vec![None] } else { hosts }
}

fn paths(service: &Node) -> Vec<String> {
    let paths = service.list("paths").iter().filter_map(Node::text);
    let paths: Vec<_> = paths.map(|path| format!("{}/", path.trim_end_matches('/'))).collect();
    if paths.is_empty() { vec!["/".into()] } else { paths }
}
