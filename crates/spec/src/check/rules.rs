//! How the values of a migration file fit together: names, references, limits that nest, stores and their keys.
//! Values that are wrong by themselves were reported already and are passed over here.

use super::values::{is_private, store_url};
use super::{is_there_or_meant, listed, listeners, nearest};
use crate::problem::{Raw, quote};
use crate::tree::{Entry, Kind, Node};
use crate::{Hold, Switch};
use std::collections::BTreeMap;
use std::time::Duration;
use url::Url;

pub(super) fn check(root: &Node, found: &mut Vec<Raw>) {
    something_moves(root, found);
    for list in ["objects", "databases", "services", "gateways", "workers"] {
        unique(root.list(list), "name", &format!("two {list} are called"), found);
    }
    listeners::check(root.list("services"), found);
    unique(root.list("gateways"), "control", "two gateways are controlled by", found);
    for gateway in root.list("gateways") {
        remote(gateway, found);
    }
    switch(root, found);
    for objects in root.list("objects") {
        stores(root, objects, found);
        fence(objects, found);
    }
    two_into_one(root, found);
    one_name_one_part(root, found);
    for database in root.list("databases") {
        database_ends(database, found);
        bouncers(root, database, found);
        front(root, database, found);
    }
    for service in root.list("services") {
        uses(root, service, found);
        reads(service, found);
        same_address(service, found);
    }
}

fn something_moves(root: &Node, found: &mut Vec<Raw>) {
    if root.get("migration").is_some()
        && !is_there_or_meant(root, "objects")
        && !is_there_or_meant(root, "databases")
        && !is_there_or_meant(root, "services")
    {
        found.push(
            Raw::whole_file(
                "nothing moves: the file has no `[[objects]]`, no `[[databases]]` and no `[[services]]`",
            )
            .hint("`rehome init` writes a file with an example of each"),
        );
    }
}

fn unique(items: &[Node], key: &str, what: &str, found: &mut Vec<Raw>) {
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    for value in items.iter().filter_map(|item| item.get(key)) {
        let Some(text) = value.text().filter(|text| !text.is_empty()) else { continue };
        if seen.insert(text, ()).is_some() {
            let problem = Raw::error(&value.span, format!("{what} \"{}\"", quote(text)));
            found.push(problem.hint(format!("give this one a `{key}` of its own")));
        }
    }
}

/// From afar everybody can try: only the secret says who may.
fn remote(gateway: &Node, found: &mut Vec<Raw>) {
    let Some(remote) = gateway.entry("remote") else { return };
    if gateway.get("token").is_none() {
        let text = "a gateway that is reached from afar needs a `token`";
        let problem = Raw::error(&remote.key_span, text);
        found.push(problem.hint("add `token = \"env:GATEWAY_TOKEN\"`, the same secret on both machines"));
    }
}

fn time(node: Option<&Node>, key: &str, default: crate::Span) -> Option<Duration> {
    match node.and_then(|node| node.get(key)) {
        None => Some(default.0),
        Some(value) => crate::shape::parse_span(value.text()?).ok().map(|span| span.0),
    }
}

/// Time-outs nest: what is inside ends before what is around it, so that giving up is always an orderly step.
fn switch(root: &Node, found: &mut Vec<Raw>) {
    let Some(table) = root.entry("switch") else { return };
    let node = &table.value;
    let (limits, hold_limits) = (Switch::default(), Hold::default());
    let hold = node.get("hold");
    let age = time(hold, "age", hold_limits.age);
    let place = |key: &str| {
        let own = node.get(key).or_else(|| hold.and_then(|hold| hold.get("age")));
        own.map_or(&table.key_span, |value| &value.span).clone()
    };
    let inner = [
        ("in_flight_deadline", time(Some(node), "in_flight_deadline", limits.in_flight_deadline)),
        ("max_pause", time(Some(node), "max_pause", limits.max_pause)),
    ];
    for (key, value) in inner {
        let (Some(value), Some(age)) = (value, age) else { continue };
        if value >= age {
            let (value, age) = (show(value), show(age));
            found.push(
                Raw::error(&place(key), format!("`{key}` ({value}) must be shorter than `hold.age` ({age})"))
                    .hint("waiting requests would be refused before the switch gives up: lower this, or raise `hold.age`"),
            );
        }
        if value.is_zero() {
            let problem = Raw::error(&place(key), format!("`{key}` is zero"));
            found.push(problem.hint("no switch can be that fast; write \"2s\""));
        }
    }
    read_steps(node, found);
    let bounds =
        ["requests", "connections"].into_iter().filter_map(|key| hold?.get(key).map(|value| (key, value)));
    for (key, value) in bounds.filter(|(_, value)| value.integer() == Some(0)) {
        let problem = Raw::error(&value.span, format!("`hold.{key}` is 0, so nothing could wait"));
        found.push(problem.hint("leave it out for the default"));
    }
}

fn show(time: Duration) -> String {
    crate::shape::show_span(crate::Span(time))
}

fn read_steps(switch: &Node, found: &mut Vec<Raw>) {
    let mut before = 0;
    for step in switch.list("read_steps") {
        let Some(percent) = step.integer() else { continue };
        let problem = if percent > 99 {
            "a step above 99 % is no step: all reads go over with the switch itself".to_owned()
        } else if percent < 1 {
            "a step is at least 1 %".to_owned()
        } else if percent <= before {
            format!("the steps must grow, and {percent} comes after {before}")
        } else {
            before = percent;
            continue;
        };
        found.push(
            Raw::error(&step.span, format!("`read_steps`: {problem}"))
                .hint("write for example [1, 5, 25, 50]"),
        );
        before = percent;
    }
}

fn stores(root: &Node, objects: &Node, found: &mut Vec<Raw>) {
    for side in ["source", "target"] {
        let Some(store) = objects.entry(side) else { continue };
        let Some(url) = store.value.text_of("url").and_then(store_url) else { continue };
        if url.scheme() == "file" {
            for key in ["access_key", "secret_key", "endpoint"] {
                if let Some(entry) = store.value.entry(key) {
                    found.push(Raw::warning(
                        &entry.key_span,
                        format!("a local folder has no `{key}`; it is not used"),
                    ));
                }
            }
        } else if !matches!(url.scheme(), "gcs" | "azblob") {
            keys(store, found);
            region(root, store, side, url.scheme(), found);
        }
        plain_http(&store.value, found);
    }
    let address = |side| {
        let store = objects.get(side)?;
        let url = store.text_of("url").map(|url| url.trim_end_matches('/'))?;
        Some((url, store.text_of("endpoint"), store.text_of("region")))
    };
    if let (Some(source), Some(target)) = (address("source"), address("target"))
        && source == target
        && !source.0.is_empty()
        && let Some(entry) = objects.entry("target")
    {
        let place = entry.value.get("url").map_or(&entry.key_span, |url| &url.span);
        let problem =
            Raw::error(place, format!("source and target are the same place, \"{}\"", quote(source.0)));
        found.push(problem.hint("name the bucket of the new cloud"));
    }
}

fn keys(store: &Entry, found: &mut Vec<Raw>) {
    let (access, secret) =
        (is_there_or_meant(&store.value, "access_key"), is_there_or_meant(&store.value, "secret_key"));
    let missing = match (access, secret) {
        (true, true) => return,
        (true, false) => "`secret_key`",
        (false, true) => "`access_key`",
        (false, false) => "`access_key` and no `secret_key`",
    };
    found.push(
        Raw::error(&store.key_span, format!("`{}` has no {missing}", store.key))
            .hint("add `access_key = \"env:ID\", secret_key = \"env:SECRET\"`: the migration's own keys, not the application's"),
    );
}

/// Without an endpoint the address of the service follows from the region.
fn region(root: &Node, store: &Entry, side: &str, scheme: &str, found: &mut Vec<Raw>) {
    let place = root.get("migration").and_then(|migration| migration.get(side));
    // A place that is no table was reported as that.
    let named = is_there_or_meant(&store.value, "endpoint")
        || is_there_or_meant(&store.value, "region")
        || place
            .is_none_or(|place| !matches!(place.kind, Kind::Table(_)) || is_there_or_meant(place, "region"));
    if !named {
        let problem = Raw::error(
            &store.key_span,
            format!("nothing says in which region `{scheme}://` is to be reached"),
        );
        let hint = format!("add `region` here or to `{side}` of `[migration]`, or an `endpoint` here");
        found.push(problem.hint(hint));
    }
}

fn plain_http(store: &Node, found: &mut Vec<Raw>) {
    let Some(endpoint) = store.get("endpoint") else { return };
    let Some(url) = endpoint.text().and_then(|text| Url::parse(text).ok()) else { return };
    if url.scheme() == "http" && !is_private(&url) {
        let problem =
            Raw::warning(&endpoint.span, "data and signed requests would cross a public network without TLS");
        found.push(problem.hint("write `https://`"));
    }
}

fn two_into_one(root: &Node, found: &mut Vec<Raw>) {
    let mut seen: Vec<(String, String)> = Vec::new();
    for objects in root.list("objects") {
        let Some(target) = objects.get("target") else { continue };
        let Some(url) = target.get("url") else { continue };
        let Some(text) = url.text().filter(|text| store_url(text).is_some()) else { continue };
        let folder = format!("{}/", text.trim_end_matches('/'));
        let endpoint = target.text_of("endpoint").unwrap_or_default().to_owned();
        let clash = seen.iter().any(|(other, at)| {
            *at == endpoint && (other.starts_with(&folder) || folder.starts_with(other.as_str()))
        });
        if clash {
            let problem = Raw::error(&url.span, format!("two objects move into \"{}\"", quote(text)));
            found.push(problem.hint("give each a bucket or prefix of its own, none inside another"));
        }
        seen.push((folder, endpoint));
    }
}

/// Services name their parts, whatever they are.
fn one_name_one_part(root: &Node, found: &mut Vec<Raw>) {
    let objects: Vec<&str> =
        root.list("objects").iter().filter_map(|objects| objects.text_of("name")).collect();
    for name in root.list("databases").iter().filter_map(|database| database.get("name")) {
        if name.text().is_some_and(|text| objects.contains(&text)) {
            let problem = Raw::error(
                &name.span,
                format!("objects are called \"{}\", too", quote(name.text().unwrap_or_default())),
            );
            found.push(problem.hint("give each part a name of its own"));
        }
    }
}

/// A PgBouncer speaks PostgreSQL's protocol, and one gateway drives it.
fn bouncers(root: &Node, database: &Node, found: &mut Vec<Raw>) {
    let gateways: Vec<&str> =
        root.list("gateways").iter().filter_map(|gateway| gateway.text_of("name")).collect();
    let url = database.get("source").and_then(|source| source.text_of("url")).unwrap_or("postgres:");
    for bouncer in database.list("pgbouncers") {
        let Some(admin) = bouncer.get("admin") else { continue };
        if !url.starts_with("postgres") {
            let problem =
                Raw::error(&admin.span, "PgBouncer stands before PostgreSQL, and this is another engine");
            found.push(problem.hint("take `pgbouncers` out"));
            continue;
        }
        match bouncer.get("gateway") {
            Some(named) if named.text().is_some_and(|name| gateways.contains(&name)) => {}
            None if gateways.len() <= 1 => {}
            named => {
                let span = named.map_or_else(|| admin.span.clone(), |named| named.span.clone());
                let text = match named.and_then(Node::text) {
                    Some(name) => format!("no gateway is called \"{}\"", quote(name)),
                    None => "several gateways, and none is named that runs beside this PgBouncer".to_owned(),
                };
                let hint = match gateways.is_empty() {
                    true => "leave `gateway` out: the file has no [[gateways]]".to_owned(),
                    false => format!("write `gateway = …`, one of: {}", listed(gateways.iter().copied())),
                };
                found.push(Raw::error(&span, text).hint(hint));
            }
        }
    }
}

/// A front door speaks PostgreSQL's protocol on an address of its own, and lets in whom it can prove.
fn front(root: &Node, database: &Node, found: &mut Vec<Raw>) {
    let Some(entry) = database.entry("front") else { return };
    let url = database.get("source").and_then(|source| source.text_of("url")).unwrap_or("postgres:");
    if !url.starts_with("postgres") {
        let text = "a front door speaks PostgreSQL's protocol, and this is another engine";
        found.push(Raw::error(&entry.key_span, text).hint("take `front` out"));
        return;
    }
    let logins = database.get("source").map_or(&[][..], |source| source.list("applications"));
    if !logins.iter().any(|login| login.get("password").is_some()) {
        let text = "nobody could come in: no login under the source's `applications` has a password";
        let hint = "write `applications = [{ user = \"shop\", password = \"env:SHOP_PASSWORD\" }]`";
        found.push(Raw::error(&entry.key_span, text).hint(hint));
    }
    let Some(listen) = entry.value.get("listen") else { return };
    let Some(text) = listen.text().filter(|text| !text.is_empty()) else { return };
    let others = root.list("databases").iter().filter_map(|other| other.get("front"));
    let taken = others.chain(root.list("services")).filter_map(|other| other.get("listen"));
    if !text.ends_with(":0")
        && taken.into_iter().any(|other| other.span.start < listen.span.start && other.text() == Some(text))
    {
        let problem = Raw::error(&listen.span, format!("something else listens on \"{}\", too", quote(text)));
        found.push(problem.hint("give this front door an address of its own"));
    }
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if entry.value.list("tls").is_empty() && !is_private_to_this_machine(host) {
        let problem = Raw::warning(
            &listen.span,
            "clients come without TLS: what they read and write can be seen on the way",
        );
        found.push(problem.hint("add `tls = [{ chain = …, key = \"file:…\" }]`, or listen on 127.0.0.1"));
    }
}

fn is_private_to_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn database_ends(database: &Node, found: &mut Vec<Raw>) {
    let url = |side: &str| database.get(side).and_then(|end| end.get("url")?.text().map(str::to_owned));
    let scheme = |text: &str| {
        text.split(':')
            .next()
            .unwrap_or_default()
            .replace("postgresql", "postgres")
            .replace("rediss", "redis")
            .replace("mariadb", "mysql")
    };
    if let (Some(source), Some(target)) = (url("source"), url("target"))
        && let Some(place) = database.get("target").and_then(|end| end.get("url"))
    {
        if source == target {
            let problem = Raw::error(&place.span, "`source` and `target` are the same database");
            found.push(problem.hint("write where the database is in the new cloud"));
        } else if scheme(&source) != scheme(&target) {
            let problem = Raw::error(&place.span, "`source` and `target` are of different engines");
            found.push(problem.hint("a database moves by its engine's own replication, to the same engine"));
        }
    }
    let fence = database.get("fence").and_then(Node::text).unwrap_or("writes");
    let has_logins = |side: &str| database.get(side).is_none_or(|end| !end.list("applications").is_empty());
    let place = database.entry("name").map_or(0..0, |entry| entry.value.span.clone());
    if fence == "none" {
        let place = database.get("fence").map_or(place, |fence| fence.span.clone());
        found.push(
            Raw::warning(&place, "without a fence, nothing keeps a forgotten writer out of the old side")
                .hint("the report will say \"one writable side: not proven\""),
        );
    } else if !(has_logins("source") && has_logins("target")) {
        found.push(Raw::warning(&place, "nothing can prove the fence: `applications` are missing").hint(
            "add the application's own logins of both sides; the proof is a write that they are refused",
        ));
    }
}

fn fence(objects: &Node, found: &mut Vec<Raw>) {
    let plan = objects.get("fence");
    let by = plan.and_then(|plan| plan.text_of("by")).unwrap_or("policy");
    let place = plan.and_then(|plan| plan.get("by")).or(plan).map(|node| node.span.clone());
    let place = place.or_else(|| objects.entry("source").map(|entry| entry.key_span.clone())).unwrap_or(0..0);
    match by {
        "none" => found.push(
            Raw::warning(&place, "without a fence, nothing keeps a forgotten writer out of the old side")
                .hint("the report will say \"one writable side: not proven\""),
        ),
        "policy" => policy(objects, &place, found),
        _ => {}
    }
    let Some(plan) = plan else { return };
    for (kind, keys) in [("command", ["close", "open"]), ("hook", ["source", "target"])] {
        for key in keys {
            match (by == kind, plan.entry(key)) {
                (true, None) => found.push(
                    Raw::error(&place, format!("a fence by {kind} needs `{key}`")).hint(fence_example(kind)),
                ),
                (true, Some(entry)) if kind == "command" && plan.list(key).is_empty() => {
                    found.push(
                        Raw::error(&entry.value.span, format!("`{key}` is empty")).hint(fence_example(kind)),
                    );
                }
                // An empty list says nothing; programs write it.
                (false, Some(entry)) if !is_empty_list(&entry.value) => found.push(
                    Raw::error(
                        &entry.key_span,
                        format!("`{key}` is for a fence by {kind}; this one is by {by}"),
                    )
                    .hint(format!("write `by = \"{kind}\"`, or take `{key}` out")),
                ),
                _ => {}
            }
        }
    }
}

fn is_empty_list(node: &Node) -> bool {
    matches!(&node.kind, Kind::List(items) if items.is_empty())
}

fn fence_example(kind: &str) -> &'static str {
    match kind {
        "command" => {
            "for example `close = [\"/usr/local/bin/shop-ctl\", \"read-only\", \"{side}\"]`, and `open` alike"
        }
        _ => {
            "for example `source = { url = \"https://shop.example/fence\", token = \"env:FENCE_TOKEN\" }`, and `target` alike"
        }
    }
}

fn policy(objects: &Node, place: &std::ops::Range<usize>, found: &mut Vec<Raw>) {
    let scheme = |side| {
        let url = objects.get(side).and_then(|store| store.text_of("url")).and_then(store_url)?;
        Some(url.scheme().to_owned())
    };
    let without = ["source", "target"]
        .into_iter()
        .filter_map(scheme)
        .find(|scheme| matches!(scheme.as_str(), "file" | "azblob"));
    if let Some(scheme) = without {
        found.push(Raw::warning(place, format!("`{scheme}://` has no bucket policy to fence with")).hint(
            "say how writers are kept out: `fence = { by = \"command\", … }`, `\"hook\"` or `\"none\"`",
        ));
    } else if objects.get("application").is_none() && objects.get("source").is_some() {
        found.push(Raw::warning(place, "nothing can prove the fence: `application` is missing").hint(
            "add the application's own keys of both sides; the proof is a write that they are refused",
        ));
    }
}

fn uses(root: &Node, service: &Node, found: &mut Vec<Raw>) {
    let all = root.list("objects").iter().chain(root.list("databases"));
    let parts: Vec<&str> = all.filter_map(|part| part.text_of("name")).collect();
    for used in service.list("uses") {
        let Some(name) = used.text().filter(|name| !parts.contains(name)) else { continue };
        let problem = Raw::error(&used.span, format!("no part is called \"{}\"", quote(name)));
        let problem = match nearest(name, parts.iter().copied()) {
            Some(guess) => problem.hint(format!("did you mean \"{guess}\"?")),
            None => problem,
        };
        found.push(match parts.is_empty() {
            true => {
                problem.hint("the file has no parts yet: add `[[objects]]` or `[[databases]]` with this name")
            }
            false => problem.hint(format!("parts of this file: {}", listed(parts.iter().copied()))),
        });
    }
}

fn reads(service: &Node, found: &mut Vec<Raw>) {
    for method in service.list("reads") {
        let Some(name) = method.text().filter(|name| matches!(*name, "POST" | "PUT" | "PATCH" | "DELETE"))
        else {
            continue;
        };
        found.push(
            Raw::warning(&method.span, format!("`reads` holds {name}, which usually writes"))
                .hint("a read is never held, and may go to the side that does not own the data"),
        );
    }
}

fn same_address(service: &Node, found: &mut Vec<Raw>) {
    let of = |first: &str, peers: &str| {
        let all = service.get(first).into_iter().chain(service.list(peers));
        all.filter_map(|node| Some((node.text()?.trim_end_matches('/'), node.span.clone())))
            .collect::<Vec<_>>()
    };
    let sources = of("source", "source_peers");
    for (address, span) in of("target", "target_peers") {
        if sources.iter().any(|(source, _)| *source == address) {
            let problem = Raw::error(&span, "`source` and `target` are the same address");
            found.push(problem.hint("write where the service runs in the new cloud"));
        }
    }
}
