//! What has to change in a configuration so that requests go another way, and what that changes for everybody. Pure: it reads
//! the survey and proposes bytes; nothing is written here.

use super::survey::{Kind, Leads, Pass, Survey, Upstream};
use super::tree::{Directive, Tree};
use crate::EntryError;
use crate::address::{Address, HostPort, Names};
use crate::edit::{Edits, indent, line_around, line_end};
use crate::files::{FileChange, Link};
use crate::finding::{Finding, Gravity, refuse_stops, sorted};
use crate::probe::Question;
use crate::service::{Service, Towards};
use serde::Serialize;
use std::collections::HashMap;

/// More ways than these are not asked for the proof.
const MAX_QUESTIONS: usize = 24;

/// Where a pass leads, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// `file:line`.
    pub place: String,
    /// The directive, `proxy_pass http://app`.
    pub text: String,
    /// `source`, `gateway`, `target`, `elsewhere`, `variable`.
    pub leads_to: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The upstream block on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

/// A proposal: what there is, what would change, what to know.
#[derive(Debug)]
pub struct Plan {
    pub routes: Vec<Route>,
    pub files: Vec<FileChange>,
    pub findings: Vec<Finding>,
    /// Links whose file is changed in their place: the link and the file.
    pub links: Vec<Link>,
    pub(crate) questions: Vec<Question>,
}

impl Plan {
    /// # Errors
    /// When something stands in the way; the text names all of it.
    pub fn unless_stopped(self) -> Result<Self, EntryError> {
        refuse_stops(&self.findings).map(|()| self)
    }
}

pub(super) struct Planner<'t> {
    pub(super) tree: &'t Tree,
    pub(super) survey: &'t Survey<'t>,
    pub(super) names: &'t Names,
    pub(super) services: &'t [Service],
    pub(super) towards: Towards,
    edits: HashMap<usize, Edits>,
    pub(super) findings: Vec<Finding>,
    /// How often each file is included.
    shared: HashMap<usize, usize>,
}

/// What stands at an address of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Source(usize),
    Gateway(usize),
    Target(usize),
    Elsewhere,
}

impl<'t> Planner<'t> {
    pub(super) fn new(
        tree: &'t Tree,
        survey: &'t Survey<'t>,
        names: &'t Names,
        services: &'t [Service],
        towards: Towards,
    ) -> Self {
        let mut shared = HashMap::new();
        for source in &tree.files {
            count_includes(&source.directives, &mut shared);
        }
        Self { tree, survey, names, services, towards, edits: HashMap::new(), findings: Vec::new(), shared }
    }

    pub(super) fn plan(mut self) -> Result<Plan, EntryError> {
        let survey = self.survey;
        let ours: Vec<Option<usize>> =
            survey.upstreams.iter().map(|upstream| self.change_upstream(upstream)).collect();
        let mut routes = Vec::new();
        let mut questions: Vec<Question> = Vec::new();
        for pass in &survey.passes {
            let stands = self.standing(pass, &ours);
            routes.push(self.route(pass, stands));
            if let Stands::Source(number) | Stands::Gateway(number) | Stands::Target(number) = stands {
                questions.extend(self.questions(pass, number));
            }
            if let Stands::Source(service) = stands {
                self.change_pass(pass, service);
            }
        }
        self.look_at_variables();
        let mut kept: Vec<Question> = Vec::new();
        for question in questions {
            if !kept.contains(&question) && kept.len() < MAX_QUESTIONS {
                kept.push(question);
            }
        }
        let (files, links) = self.files()?;
        Ok(Plan { routes, files, findings: sorted(self.findings), links, questions: kept })
    }

    /// The health path of the service where the location takes it, else the location's own.
    fn questions(&self, pass: &Pass<'_>, service: usize) -> Vec<Question> {
        let health = self.services.get(service).and_then(|service| service.health.as_ref());
        let asked = pass.questions.iter().cloned();
        let with_health = |question: Question| match health {
            Some(health) if !pass.is_exact && health.starts_with(&question.path) => {
                Question { path: health.clone(), ..question }
            }
            _ => question,
        };
        asked.map(with_health).collect()
    }

    fn files(&self) -> Result<(Vec<FileChange>, Vec<Link>), EntryError> {
        let (mut files, mut links) = (Vec::new(), Vec::new());
        for (number, source) in self.tree.files.iter().enumerate() {
            let Some(edits) = self.edits.get(&number).filter(|edits| !edits.is_empty()) else { continue };
            let change = edits.apply(&source.original.real, &source.original.bytes)?;
            if change.before != change.after {
                files.push(change);
                if source.original.is_link() {
                    links.push(source.original.link());
                }
            }
        }
        Ok((files, links))
    }

    pub(super) fn say(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(super) fn place(&self, directive: &Directive) -> String {
        self.tree.place_of(directive)
    }

    fn stands(&self, place: &HostPort) -> Stands {
        let find = |is: &dyn Fn(&Service) -> bool| self.services.iter().position(is);
        if let Some(number) = find(&|service| service.is_gateway(place, self.names)) {
            return Stands::Gateway(number);
        }
        if let Some(number) = find(&|service| service.is_source(place, self.names)) {
            return Stands::Source(number);
        }
        let is_target = |service: &Service| {
            service.target.iter().any(|address| self.names.is_same(&address.into(), place))
        };
        find(&is_target).map_or(Stands::Elsewhere, Stands::Target)
    }

    fn standing(&self, pass: &Pass<'_>, ours: &[Option<usize>]) -> Stands {
        match &pass.leads {
            Leads::Direct(place) => self.stands(place),
            Leads::Upstream(number) => match ours.get(*number).copied().flatten() {
                Some(service) => Stands::Source(service),
                None => {
                    let servers = self.survey.upstreams.get(*number).map_or(&[][..], |up| &up.servers);
                    let first = servers.iter().find_map(|server| HostPort::parse(server.value(), 80));
                    first.map_or(Stands::Elsewhere, |place| self.stands(&place))
                }
            },
            Leads::Variable | Leads::Elsewhere => Stands::Elsewhere,
        }
    }

    fn route(&self, pass: &Pass<'_>, stands: Stands) -> Route {
        let (leads_to, service) = match stands {
            Stands::Source(number) => ("source", Some(number)),
            Stands::Gateway(number) => ("gateway", Some(number)),
            Stands::Target(number) => ("target", Some(number)),
            Stands::Elsewhere if pass.leads == Leads::Variable => ("variable", None),
            Stands::Elsewhere => ("elsewhere", None),
        };
        let upstream = match &pass.leads {
            Leads::Upstream(number) => self.survey.upstreams.get(*number).map(|found| found.name.clone()),
            _ => None,
        };
        Route {
            place: self.place(pass.directive),
            text: format!("{} {}", pass.directive.name(), pass.directive.value()),
            leads_to,
            service: service.and_then(|number| self.services.get(number)).map(|found| found.name.clone()),
            upstream,
        }
    }

    pub(super) fn edits(&mut self, file: usize) -> &mut Edits {
        self.edits.entry(file).or_default()
    }

    pub(super) fn bytes(&self, file: usize) -> &'t [u8] {
        self.tree.files.get(file).map_or(&[], |source| &source.original.bytes)
    }

    /// Puts other servers in the place of those of the source. Which service it is for, if for any.
    fn change_upstream(&mut self, upstream: &Upstream<'t>) -> Option<usize> {
        let mut ours: Vec<(&'t Directive, usize)> = Vec::new();
        let mut others = Vec::new();
        for server in &upstream.servers {
            let standing =
                HostPort::parse(server.value(), 80).map_or(Stands::Elsewhere, |at| self.stands(&at));
            match standing {
                Stands::Source(service) => ours.push((server, service)),
                _ if server.values().any(|value| value == "down") => {}
                _ => others.push(*server),
            }
        }
        let (_, service) = *ours.first()?;
        if upstream.is_stream {
            return Some(service);
        }
        let first = self.services.get(service)?;
        let is_split =
            |other: &usize| self.services.get(*other).is_some_and(|other| other.gateway != first.gateway);
        if ours.iter().any(|(_, other)| is_split(other)) {
            let text = format!("upstream {} mixes services that have different gateways", upstream.name);
            let finding = Finding::new("mixed", Gravity::Stop, self.place(upstream.directive), text);
            self.say(finding.remedy("give each service an upstream of its own"));
        }
        for other in others {
            let text = format!(
                "upstream {} also sends to {}, which is no address of {}'s source: those requests would pass the gateway by",
                upstream.name,
                other.value(),
                first.name
            );
            let finding = Finding::new("other-server", Gravity::Stop, self.place(other), text);
            self.say(finding.remedy("name it in `source_peers`, or mark it `down`"));
        }
        let servers: Vec<&'t Directive> = ours.into_iter().map(|(server, _)| server).collect();
        self.replace_servers(&servers, first);
        Some(service)
    }

    fn replace_servers(&mut self, servers: &[&'t Directive], service: &Service) {
        let wanted = service.destinations(self.towards);
        let last = wanted.len().min(servers.len()).saturating_sub(1);
        for (number, server) in servers.iter().enumerate() {
            let Some(address) = wanted.get(number) else {
                self.take_out(server);
                continue;
            };
            // The gateway is one address: weights, limits and marks of failure that were meant for several would only hurt.
            let words = match self.towards {
                Towards::Gateway => 1..server.words.len(),
                Towards::Target => 1..2,
            };
            let span = span_of(server, words);
            self.edits(server.file).put(span, address.authority());
            if number == last {
                for more in wanted.iter().skip(servers.len()) {
                    self.insert_after(server, &format!("server {};", more.authority()));
                }
            }
        }
        self.note_parameters(servers);
    }

    fn note_parameters(&mut self, servers: &[&'t Directive]) {
        if self.towards == Towards::Target {
            return;
        }
        for server in servers.iter().filter(|server| server.words.len() > 2) {
            let parameters: Vec<&str> = server.values().skip(1).collect();
            let text = format!("`{}` goes: it was meant for one of several servers", parameters.join(" "));
            let spares = parameters.iter().any(|word| word.starts_with("max_conns"));
            let gravity = if spares { Gravity::Look } else { Gravity::Note };
            let finding = Finding::new("server-parameters", gravity, self.place(server), text);
            self.say(finding);
        }
    }

    /// A directive with its line, where it stands alone there.
    fn take_out(&mut self, directive: &Directive) {
        let bytes = self.bytes(directive.file);
        let line = line_around(bytes, directive.span.start);
        let is_blank = |part: Option<&[u8]>| part.is_some_and(|part| part.trim_ascii().is_empty());
        let alone = directive.span.end <= line.end
            && is_blank(bytes.get(line.start..directive.span.start))
            && is_blank(bytes.get(directive.span.end..line.end));
        let span = if alone {
            let after = bytes.get(line.end..).unwrap_or_default();
            let end = after.iter().position(|byte| *byte == b'\n').map_or(line.end, |at| line.end + at + 1);
            line.start..end
        } else {
            directive.span.clone()
        };
        self.edits(directive.file).put(span, "");
    }

    fn change_pass(&mut self, pass: &Pass<'t>, number: usize) {
        let Some(service) = self.services.get(number) else { return };
        match pass.kind {
            Kind::Foreign => {
                let text =
                    format!("{} speaks no HTTP, and the gateway speaks nothing else", pass.directive.name());
                let finding = Finding::new("no-http", Gravity::Stop, self.place(pass.directive), text);
                self.say(finding.remedy("put an HTTP server before the application, and pass to that"));
            }
            Kind::Stream => {
                let text =
                    "a `stream` leads to the source: it passes bytes, which this driver does not change";
                let finding = Finding::new("stream", Gravity::Stop, self.place(pass.directive), text);
                self.say(finding.remedy(
                    "point it at the gateway by hand, with `proxy_protocol on` if the service has it",
                ));
            }
            Kind::Proxy | Kind::Grpc => {
                let Some(to) = service.destinations(self.towards).first().cloned() else { return };
                self.change_address(pass, &to, service);
                if self.towards == Towards::Gateway {
                    self.look_at_pass(pass, service);
                    self.change_settings(pass, service);
                }
            }
        }
    }

    /// The pass itself: host and port where they are written in it, the scheme where it differs.
    fn change_address(&mut self, pass: &Pass<'t>, to: &Address, service: &Service) {
        let is_direct = matches!(pass.leads, Leads::Direct(_));
        if !is_direct && pass.secure == to.secure {
            return;
        }
        let scheme = match (pass.kind, to.secure) {
            (Kind::Grpc, true) => "grpcs",
            (Kind::Grpc, false) => "grpc",
            _ => to.scheme(),
        };
        let authority = if is_direct { to.authority() } else { pass.authority.clone() };
        let bare = pass.kind == Kind::Grpc && !pass.directive.value().contains("://") && !to.secure;
        let begin = if bare { authority } else { format!("{scheme}://{authority}") };
        let text = format!("{begin}{}", pass.rest);
        let span = span_of(pass.directive, 1..2);
        self.edits(pass.directive.file).put(span, quoted(&text));
        if is_direct && self.towards == Towards::Target && service.target.len() > 1 {
            let text = format!("only {} of {} target addresses fits here", to, service.target.len());
            let finding = Finding::new("one-of-several", Gravity::Look, self.place(pass.directive), text);
            self.say(finding.remedy("give the service an upstream block if all of them are to serve"));
        }
        if pass.kind == Kind::Proxy {
            self.keep_host(pass, is_direct);
            self.keep_redirects(pass);
        } else if is_direct {
            let text = "the application sees the new address as `:authority`";
            let finding = Finding::new("authority", Gravity::Look, self.place(pass.directive), text);
            self.say(finding.remedy("set `grpc_set_header Host` if it cares"));
        }
    }

    /// Puts a statement behind a directive: on a line of its own where the directive has one, beside it where not.
    pub(super) fn insert_after(&mut self, directive: &Directive, statement: &str) {
        let bytes = self.bytes(directive.file);
        let end = directive.span.end;
        let line = line_around(bytes, end);
        let rest = bytes.get(end..line.end).unwrap_or_default().trim_ascii();
        let first = line_around(bytes, directive.span.start);
        let leads_its_line =
            bytes.get(first.start..directive.span.start).is_some_and(|part| part.trim_ascii().is_empty());
        if leads_its_line && (rest.is_empty() || rest.starts_with(b"#")) {
            let text = format!("{}{}{statement}  # rehome", line_end(bytes), indent(bytes, first));
            self.edits(directive.file).put(line.end..line.end, text);
        } else {
            self.edits(directive.file).put(end..end, format!(" {statement}"));
        }
    }

    /// The same at the beginning of a block.
    pub(super) fn insert_into(&mut self, block: &Directive, statement: &str) {
        let Some(inside) = block.block.as_ref().map(|block| block.inside) else { return };
        let bytes = self.bytes(block.file);
        let line = line_around(bytes, inside);
        let rest = bytes.get(inside..line.end).unwrap_or_default().trim_ascii();
        if rest.is_empty() || rest.starts_with(b"#") {
            let deeper = block.children().first().filter(|child| child.span.start > line.end);
            let indent = match deeper {
                Some(child) => indent(bytes, line_around(bytes, child.span.start)),
                None => format!("{}    ", indent(bytes, line.clone())),
            };
            let text = format!("{}{indent}{statement}  # rehome", line_end(bytes));
            self.edits(block.file).put(line.end..line.end, text);
        } else {
            self.edits(block.file).put(inside..inside, format!(" {statement}"));
        }
    }

    pub(super) fn is_shared(&self, file: usize) -> bool {
        self.shared.get(&file).is_some_and(|count| *count > 1)
    }

    /// A variable may lead to the source without anybody seeing it here.
    fn look_at_variables(&mut self) {
        for (directive, value) in &self.survey.values {
            let plain = value.split_once("://").map_or(*value, |(_, after)| after);
            let plain = plain.split(['/', '?', '$']).next().unwrap_or_default();
            let has_port = plain.contains(':') || value.contains("://");
            let Some(place) = HostPort::parse(plain, 80).filter(|_| has_port) else { continue };
            if let Stands::Source(_) = self.stands(&place) {
                let text =
                    format!("a variable holds the source's address {plain}: it would pass the gateway by");
                let finding = Finding::new("variable-source", Gravity::Stop, self.place(directive), text);
                self.say(
                    finding.remedy("name an `upstream` there instead, or write the gateway's address in"),
                );
            }
        }
        let variable = |pass: &&Pass<'t>| pass.leads == Leads::Variable;
        for pass in self.survey.passes.iter().filter(variable) {
            let text = format!(
                "`{}` is decided per request and cannot be followed here; an upstream that it names is changed with it",
                pass.directive.value()
            );
            let finding = Finding::new("variable", Gravity::Look, self.place(pass.directive), text);
            self.say(finding.remedy("make sure that none of its values leads past the gateway"));
        }
    }
}

/// The bytes of these words of a directive, and of what stands between them.
pub(super) fn span_of(directive: &Directive, words: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let words = directive.words.get(words).unwrap_or_default();
    match (words.first(), words.last()) {
        (Some(first), Some(last)) => first.span.start..last.span.end,
        _ => directive.span.end - 1..directive.span.end - 1,
    }
}

/// In quotes, if it needs them.
pub(super) fn quoted(text: &str) -> String {
    let is_plain =
        |sign: char| !sign.is_whitespace() && !matches!(sign, ';' | '{' | '}' | '"' | '\'' | '\\' | '#');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn count_includes(directives: &[Directive], shared: &mut HashMap<usize, usize>) {
    for directive in directives {
        for number in &directive.included {
            *shared.entry(*number).or_default() += 1;
        }
        count_includes(directive.children(), shared);
    }
}
