//! What has to change in HAProxy's configuration so that requests go another way, and what to know of it. Pure: it reads sections
//! and proposes bytes; nothing is written here.

use super::config::{Config, Line, Section};
use super::doors;
use crate::EntryError;
use crate::address::{Address, HostPort, Names};
use crate::edit::{Edits, indent, line_around, line_end};
use crate::files::{FileChange, Link};
use crate::finding::{Finding, Gravity, refuse_stops, sorted};
use crate::probe::Question;
use crate::service::{Service, Towards};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;

/// Words of a `server` line that concern TLS to it, with how many values follow each.
const TLS_WORDS: [(&str, usize); 21] = [
    ("ssl", 0),
    ("check-ssl", 0),
    ("no-check-ssl", 0),
    ("verify", 1),
    ("verifyhost", 1),
    ("ca-file", 1),
    ("crl-file", 1),
    ("crt", 1),
    ("sni", 1),
    ("alpn", 1),
    ("npn", 1),
    ("check-sni", 1),
    ("check-alpn", 1),
    ("ciphers", 1),
    ("ciphersuites", 1),
    ("ssl-min-ver", 1),
    ("ssl-max-ver", 1),
    ("force-tlsv12", 0),
    ("force-tlsv13", 0),
    ("no-tls-tickets", 0),
    ("no-ssl-reuse", 0),
];
const PROXY_WORDS: [(&str, usize); 5] = [
    ("send-proxy", 0),
    ("send-proxy-v2", 0),
    ("send-proxy-v2-ssl", 0),
    ("send-proxy-v2-ssl-cn", 0),
    ("check-send-proxy", 0),
];
const LIMIT_WORDS: [(&str, usize); 3] = [("maxconn", 1), ("minconn", 1), ("maxqueue", 1)];

/// A server line, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    pub place: String,
    pub backend: String,
    pub server: String,
    pub address: String,
    /// `source`, `gateway`, `target`, `elsewhere`.
    pub leads_to: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

#[derive(Debug)]
pub struct Plan {
    pub routes: Vec<Route>,
    pub files: Vec<FileChange>,
    pub findings: Vec<Finding>,
    pub links: Vec<Link>,
    /// Only addresses of servers change: the runtime API can do it without a reload.
    pub only_addresses: bool,
    pub(crate) questions: Vec<Question>,
}

impl Plan {
    /// # Errors
    /// When something stands in the way; the text names all of it.
    pub fn unless_stopped(self) -> Result<Self, EntryError> {
        refuse_stops(&self.findings).map(|()| self)
    }
}

/// What stands at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    Source(usize),
    Gateway(usize),
    Target(usize),
    Elsewhere,
}

pub(super) fn stands(place: &HostPort, services: &[Service], names: &Names) -> Stands {
    let find = |is: &dyn Fn(&Service) -> bool| services.iter().position(is);
    if let Some(number) = find(&|service| service.is_gateway(place, names)) {
        return Stands::Gateway(number);
    }
    if let Some(number) = find(&|service| service.is_source(place, names)) {
        return Stands::Source(number);
    }
    let is_target =
        |service: &Service| service.target.iter().any(|address| names.is_same(&address.into(), place));
    find(&is_target).map_or(Stands::Elsewhere, Stands::Target)
}

/// Host and port of a `server` line's address; `None` for sockets, variables, and addresses without a port.
pub(super) fn address_of(text: &str) -> Option<HostPort> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    HostPort::parse(&format!("{host}:{port}"), 0)
}

pub(super) struct Planner<'c> {
    config: &'c Config,
    names: &'c Names,
    services: &'c [Service],
    towards: Towards,
    edits: HashMap<usize, Edits>,
    findings: Vec<Finding>,
    only_addresses: bool,
}

impl<'c> Planner<'c> {
    pub(super) fn new(
        config: &'c Config,
        names: &'c Names,
        services: &'c [Service],
        towards: Towards,
    ) -> Self {
        let (edits, findings) = (HashMap::new(), Vec::new());
        Self { config, names, services, towards, edits, findings, only_addresses: true }
    }

    pub(super) fn plan(mut self) -> Result<Plan, EntryError> {
        let (mut routes, mut questions) = (Vec::new(), Vec::new());
        for section in self.config.sections.iter().filter(|section| section.has_servers()) {
            let standing: Vec<(&'c Line, Stands)> = section
                .servers()
                .map(|line| {
                    let at = address_of(line.word(2));
                    (line, at.map_or(Stands::Elsewhere, |at| stands(&at, self.services, self.names)))
                })
                .collect();
            routes.extend(standing.iter().map(|(line, stands)| self.route(section, line, *stands)));
            self.look_at_templates(section);
            self.look_at_portless(section);
            let concerned = standing.iter().find_map(|(_, stands)| match stands {
                Stands::Source(number) | Stands::Gateway(number) | Stands::Target(number) => Some(*number),
                Stands::Elsewhere => None,
            });
            if let Some(service) = concerned.and_then(|number| self.services.get(number)) {
                questions.extend(doors::questions(self.config, section, service));
            }
            self.change_section(section, &standing);
        }
        self.look_at_the_whole();
        questions.dedup();
        questions.truncate(24);
        let (files, links) = self.files()?;
        let only_addresses = self.only_addresses && !files.is_empty();
        Ok(Plan { routes, files, findings: sorted(self.findings), links, only_addresses, questions })
    }

    fn files(&self) -> Result<(Vec<FileChange>, Vec<Link>), EntryError> {
        let (mut files, mut links) = (Vec::new(), Vec::new());
        for (number, original) in self.config.files.iter().enumerate() {
            let Some(edits) = self.edits.get(&number).filter(|edits| !edits.is_empty()) else { continue };
            let change = edits.apply(&original.real, &original.bytes)?;
            if change.before != change.after {
                files.push(change);
                if original.is_link() {
                    links.push(original.link());
                }
            }
        }
        Ok((files, links))
    }

    fn route(&self, section: &Section, line: &Line, stands: Stands) -> Route {
        let (leads_to, service) = match stands {
            Stands::Source(number) => ("source", Some(number)),
            Stands::Gateway(number) => ("gateway", Some(number)),
            Stands::Target(number) => ("target", Some(number)),
            Stands::Elsewhere => ("elsewhere", None),
        };
        Route {
            place: self.config.place(line),
            backend: section.name().to_owned(),
            server: line.word(1).to_owned(),
            address: line.word(2).to_owned(),
            leads_to,
            service: service.and_then(|number| self.services.get(number)).map(|found| found.name.clone()),
        }
    }

    fn say(&mut self, id: &'static str, gravity: Gravity, line: &Line, text: String, remedy: &str) {
        let finding = Finding::new(id, gravity, self.config.place(line), text);
        self.findings.push(if remedy.is_empty() { finding } else { finding.remedy(remedy) });
    }

    fn change_section(&mut self, section: &'c Section, standing: &[(&'c Line, Stands)]) {
        let ours: Vec<(&'c Line, usize)> = standing
            .iter()
            .filter_map(|(line, stands)| match stands {
                Stands::Source(number) => Some((*line, *number)),
                _ => None,
            })
            .collect();
        let Some(service) = ours.first().and_then(|(_, number)| self.services.get(*number)) else { return };
        for (line, stands) in standing {
            let is_off = line.find(3, "disabled").is_some();
            if matches!(stands, Stands::Elsewhere | Stands::Target(_)) && !is_off {
                let text = format!(
                    "backend {} also sends to {}, which is no address of {}'s source: those requests would pass the gateway by",
                    section.name(),
                    line.word(2),
                    service.name
                );
                self.say(
                    "other-server",
                    Gravity::Stop,
                    line,
                    text,
                    "name it in `source_peers`, or mark it `disabled`",
                );
            }
        }
        for (number, (line, of)) in ours.iter().enumerate() {
            let Some(service) = self.services.get(*of) else { continue };
            let wanted = service.destinations(self.towards);
            let Some(to) = wanted.get(number % wanted.len().max(1)) else { continue };
            self.change_server(section, line, to, service);
        }
        let targets = service.destinations(self.towards).len();
        if targets > ours.len() {
            let text = format!("{} addresses and {} server lines: the rest is left out", targets, ours.len());
            self.say("more-addresses", Gravity::Look, &section.head, text, "add server lines for them");
        }
        if self.towards == Towards::Gateway {
            self.change_settings(section, service);
            self.look_at_origin(section, service);
        }
    }

    /// The address, and what was said for the former one alone. Names stay: other lines may call them.
    fn change_server(&mut self, section: &Section, line: &Line, to: &Address, service: &Service) {
        if let Some(word) = line.words.get(2) {
            self.edits(line.file).put(word.span.clone(), to.authority());
        }
        if self.towards == Towards::Gateway {
            self.change_tls(section, line, to);
            self.change_limits(section, line, service);
            self.change_proxy_header(section, line, service);
        }
    }

    /// Does a `default-server` line in force say this word?
    fn inherits(&self, section: &Section, word: &str) -> bool {
        let defaults = section.defaults.and_then(|number| self.config.sections.get(number));
        let lines = section.lines.iter().chain(defaults.map_or(&[][..], |found| &found.lines));
        lines.filter(|line| line.word(0) == "default-server").any(|line| line.find(1, word).is_some())
    }

    fn change_tls(&mut self, section: &Section, line: &Line, to: &Address) {
        let inherited = self.inherits(section, "ssl");
        match (inherited || line.find(3, "ssl").is_some(), to.secure) {
            (true, false) => {
                self.take_words(line, &TLS_WORDS, inherited.then_some("no-ssl"));
                let text = "the gateway is spoken to without TLS here".into();
                self.say("no-tls", Gravity::Note, line, text, "");
            }
            (false, true) => {
                let text = "the gateway speaks TLS and this line does not".into();
                let remedy = "add `ssl verify required ca-file …` to the line, then try again";
                self.say("tls", Gravity::Stop, line, text, remedy);
            }
            _ => {}
        }
    }

    fn change_limits(&mut self, section: &Section, line: &Line, service: &Service) {
        let inherited = self.inherits(section, "maxconn");
        if !inherited && line.find(3, "maxconn").is_none() {
            return;
        }
        self.take_words(line, &LIMIT_WORDS, inherited.then_some("maxconn 0"));
        let text = format!(
            "`maxconn` goes: writes that wait in the gateway (up to {}) would use it up and reads would queue behind them; the \
             application is no longer spared by it",
            service.hold_requests
        );
        let remedy = "bound the load in the application if it needs that";
        self.say("maxconn", Gravity::Look, line, text, remedy);
    }

    fn change_proxy_header(&mut self, section: &Section, line: &Line, service: &Service) {
        let inherited = PROXY_WORDS.iter().find(|(word, _)| self.inherits(section, word));
        let own = PROXY_WORDS.iter().any(|(word, _)| line.find(3, word).is_some());
        match (own || inherited.is_some(), service.proxy_protocol) {
            (true, false) => {
                let against = inherited.map(|(word, _)| format!("no-{word}"));
                self.take_words(line, &PROXY_WORDS, against.as_deref());
                let text = "`send-proxy` goes: the gateway of this service wants no PROXY header".into();
                let remedy = "set `proxy_protocol = true` for the service to keep it";
                self.say("send-proxy", Gravity::Look, line, text, remedy);
            }
            (false, true) => {
                self.only_addresses = false;
                self.edits(line.file).put(line_end_of(line), " send-proxy-v2");
            }
            _ => {}
        }
    }

    /// Takes words with their values out of a line, and adds one against what is inherited.
    fn take_words(&mut self, line: &Line, words: &[(&str, usize)], against: Option<&str>) {
        self.only_addresses = false;
        let mut at = 3;
        while at < line.words.len() {
            let values = words.iter().find(|(word, _)| *word == line.word(at)).map(|(_, values)| *values);
            let Some(values) = values else {
                at += 1;
                continue;
            };
            let last = (at + values).min(line.words.len() - 1);
            // With the blanks before it.
            let begin = line.words.get(at - 1).map_or(0, |word| word.span.end);
            let end = line.words.get(last).map_or(begin, |word| word.span.end);
            self.edits(line.file).put(begin..end, "");
            at = last + 1;
        }
        if let Some(against) = against {
            self.edits(line.file).put(line_end_of(line), format!(" {against}"));
        }
    }

    fn change_settings(&mut self, section: &'c Section, service: &Service) {
        let config = self.config;
        if let Some(found) = config.setting(section, &["timeout", "server"])
            && let Some(now) = time(found.word(2))
            && now < service.longest_wait()
        {
            let wanted = (now + service.hold_age).as_secs() + 1;
            let text = format!(
                "timeout server is {} s; a write may wait {} s in the gateway before the application gets it",
                now.as_secs_f64(),
                service.hold_age.as_secs_f64()
            );
            self.say("too-impatient", Gravity::Note, found, text, "");
            self.set(section, &["timeout", "server"], &format!("{wanted}s"));
        }
        if let Some(found) = config.setting(section, &["retry-on"])
            && found.texts().iter().skip(1).any(|word| !matches!(*word, "conn-failure" | "none"))
        {
            let text = "`retry-on` lets HAProxy send a request twice after it may have arrived; only failed connections stay".into();
            self.say("repeats", Gravity::Look, found, text, "");
            self.set(section, &["retry-on"], "conn-failure");
        }
    }

    /// In the section's own line if it has one, else in a new one under its head.
    fn set(&mut self, section: &Section, name: &[&str], value: &str) {
        self.only_addresses = false;
        if let Some(own) = section.lines.iter().rfind(|line| line.begins(name)) {
            let values = own.words.get(name.len()..).unwrap_or_default();
            if let (Some(first), Some(last)) = (values.first(), values.last()) {
                self.edits(own.file).put(first.span.start..last.span.end, value);
            }
            return;
        }
        let Some(original) = self.config.files.get(section.head.file) else { return };
        let bytes = &original.bytes;
        let indent = section
            .lines
            .first()
            .map_or_else(|| "    ".to_owned(), |line| indent(bytes, line_around(bytes, line.span.start)));
        let text = format!("{}{indent}{} {value}  # rehome", line_end(bytes), name.join(" "));
        let end = section.head.span.end;
        self.edits(section.head.file).put(end..end, text);
    }

    fn edits(&mut self, file: usize) -> &mut Edits {
        self.edits.entry(file).or_default()
    }

    fn look_at_templates(&mut self, section: &'c Section) {
        for line in section.lines.iter().filter(|line| line.word(0) == "server-template") {
            let leads = address_of(line.word(3)).map(|at| stands(&at, self.services, self.names));
            if matches!(leads, Some(Stands::Source(_))) {
                let text = "a template leads to the source, and its servers are found by a name".into();
                self.say("template", Gravity::Stop, line, text, "write `server` lines instead");
            }
        }
    }

    /// Without a port HAProxy takes the one that the client came to: which place that is cannot be said.
    fn look_at_portless(&mut self, section: &'c Section) {
        for line in section.servers().filter(|line| address_of(line.word(2)).is_none()) {
            let Some(bare) = address_of(&format!("{}:1", line.word(2))) else { continue };
            let is_host = |address: &Address| {
                self.names.is_same(&HostPort { host: address.host.clone(), port: 1 }, &bare)
            };
            if self.services.iter().flat_map(|service| &service.source).any(is_host) {
                let text =
                    "this line names the source's machine without a port: it may pass the gateway by".into();
                self.say("no-port", Gravity::Stop, line, text, "write the port");
            }
        }
    }

    fn look_at_origin(&mut self, section: &'c Section, service: &Service) {
        let mode = self.config.setting(section, &["mode"]).map_or("tcp", |line| line.word(1));
        if mode != "http" {
            if !service.proxy_protocol {
                let text = "`mode tcp` passes bytes: to the gateway all clients are HAProxy".into();
                let remedy =
                    "set `proxy_protocol = true` for the service and name HAProxy in its `trusted_proxies`";
                self.say("tcp", Gravity::Look, &section.head, text, remedy);
            }
            return;
        }
        let all = self.config.sections.iter().filter(|one| one.has_binds() || one.name() == section.name());
        let says = |line: &&Line| {
            line.begins(&["option", "forwardfor"])
                || line.word(0).starts_with("http-request")
                    && line
                        .words
                        .iter()
                        .any(|word| word.text.to_ascii_lowercase().starts_with("x-forwarded-"))
        };
        let spoken = all
            .flat_map(|one| &one.lines)
            .find(says)
            .or_else(|| self.config.setting(section, &["option", "forwardfor"]));
        let remedy = "name HAProxy's address in the service's `trusted_proxies`";
        match spoken {
            Some(line) if service.trusts_entry != Some(true) => {
                let text = "HAProxy tells whom it speaks for, and the gateway replaces that unless it trusts HAProxy: the \
                            application would see HAProxy's address, and http where clients used https";
                let gravity = if service.trusts_entry.is_some() { Gravity::Stop } else { Gravity::Look };
                self.say("not-trusted", gravity, line, text.into(), remedy);
            }
            None if !service.proxy_protocol => {
                let text = "HAProxy does not say for whom it asks: to the gateway all clients without a cookie or a token are one";
                let remedy = format!("add `option forwardfor`, and {remedy}");
                self.say("no-forwarded-for", Gravity::Look, &section.head, text.into(), &remedy);
            }
            _ => {}
        }
    }

    fn look_at_the_whole(&mut self) {
        let config = self.config;
        if let Some(line) = config.conditions.first() {
            let text = "lines between `.if` and `.endif` are read as if they were in force".into();
            self.say("condition", Gravity::Look, line, text, "see that the proposal fits both ways");
        }
        let mut all = config.sections.iter().flat_map(|section| &section.lines);
        if let Some(line) = all.find(|line| line.begins(&["http-request", "cache-use"])) {
            let text = "what HAProxy answers from its cache never reaches the gateway: a client may read older than its own write";
            self.say("cache", Gravity::Look, line, text.into(), "");
        }
        let state = config.sections.iter().flat_map(|section| &section.lines);
        let mut state = state.filter(|line| line.word(0) == "load-server-state-from-file");
        if let Some(line) = state.rfind(|line| line.word(1) != "none") {
            let text =
                "at a reload the addresses in the state file win over those in the configuration".into();
            let remedy = "write the file again once this is done (`show servers state` of the socket), before anybody reloads: \
                          else the former address comes back";
            self.say("state-file", Gravity::Look, line, text, remedy);
        }
    }
}

fn line_end_of(line: &Line) -> std::ops::Range<usize> {
    let end = line.words.last().map_or(line.span.end, |word| word.span.end);
    end..end
}

/// HAProxy's times: milliseconds where no unit is said.
pub(super) fn time(text: &str) -> Option<Duration> {
    let digits = text.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let micros = match unit {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(micros)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_times_are_read_as_haproxy_reads_them() {
        let at = |text| address_of(text).map(|found| (found.host, found.port));
        assert_eq!(at("10.0.0.5:80"), Some(("10.0.0.5".into(), 80)));
        assert_eq!(at("ipv6@[::1]:80"), Some(("::1".into(), 80)));
        assert_eq!(at("::1:80"), Some(("::1".into(), 80)));
        for text in ["10.0.0.5", "unix@/run/x", "/run/x", "$X:80", "a:+1"] {
            assert_eq!(at(text), None, "{text}");
        }
        assert_eq!(time("500"), Some(Duration::from_millis(500)));
        assert_eq!(time("5s"), Some(Duration::from_secs(5)));
        assert_eq!(time("5x"), None);
    }
}
