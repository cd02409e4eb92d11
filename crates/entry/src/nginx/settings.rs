//! The settings around a pass that matter to a gateway: what repeats requests, what is too impatient for a hold, which headers
//! would change without anybody having asked. Part of the plan; pure like it.

use super::plan::{Planner, quoted, span_of};
use super::survey::{Kind, Leads, Level, Pass, time};
use super::tree::Directive;
use crate::finding::{Finding, Gravity};
use crate::service::Service;
use std::time::Duration;

/// What nginx waits where nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

impl<'t> Planner<'t> {
    pub(super) fn change_settings(&mut self, pass: &Pass<'t>, service: &Service) {
        let prefix = pass.prefix();
        let next = format!("{prefix}_next_upstream");
        let repeats = pass.setting(&next);
        if repeats.is_none_or(|found| found.value() != "off") {
            self.say_repeats(pass, repeats);
            self.set(pass, &next, "off");
        }
        for what in ["read", "send"] {
            self.lengthen(pass, &format!("{prefix}_{what}_timeout"), service);
        }
    }

    fn say_repeats(&mut self, pass: &Pass<'t>, repeats: Option<&Directive>) {
        let place = self.place(repeats.unwrap_or(pass.directive));
        let dangerous = repeats.is_some_and(|found| found.values().any(|value| value == "non_idempotent"));
        let (gravity, text) = if dangerous {
            (Gravity::Look, "`non_idempotent` lets nginx send a POST twice; it goes")
        } else {
            (
                Gravity::Note,
                "nginx sends a PUT or DELETE again when a kept connection breaks under it; that ends, the gateway repeats reads",
            )
        };
        self.say(Finding::new("repeats", gravity, place, text));
    }

    /// A write may wait in the gateway on top of what the application takes.
    fn lengthen(&mut self, pass: &Pass<'t>, name: &str, service: &Service) {
        let found = pass.setting(name);
        let place = self.place(found.unwrap_or(pass.directive));
        let Some(now) = found.map_or(Some(DEFAULT_TIMEOUT), |found| time(found.value())) else { return };
        if now >= service.longest_wait() {
            return;
        }
        let wanted = now + service.hold_age;
        let text = format!(
            "{name} is {} s; a write may wait {} s in the gateway before the application gets it",
            now.as_secs_f64(),
            service.hold_age.as_secs_f64()
        );
        self.say(Finding::new("too-impatient", Gravity::Note, place, text));
        let seconds = wanted.as_secs() + u64::from(wanted.subsec_nanos() > 0);
        self.set(pass, name, &format!("{seconds}s"));
    }

    /// Sets a value for the location of this pass: in its own line if there is one, else behind the pass.
    fn set(&mut self, pass: &Pass<'t>, name: &str, value: &str) {
        let holder = pass.location();
        let own = holder.and_then(|level| level.items.iter().find(|item| item.name() == name).copied());
        match own {
            Some(own) if own.file != pass.directive.file && self.is_shared(own.file) => {
                let text =
                    format!("`{name}` stands in a file that others include too; it is not changed there");
                let finding = Finding::new("shared-file", Gravity::Look, self.place(own), text);
                self.say(finding.remedy(format!("write `{name} {value};` for this location")));
            }
            Some(own) => {
                let span = span_of(own, 1..own.words.len());
                self.edits(own.file).put(span, value);
            }
            None => self.state(pass, holder, &format!("{name} {value};")),
        }
    }

    /// Adds a statement to the location. `if` and `limit_except` take a pass but none of its settings.
    fn state(&mut self, pass: &Pass<'t>, holder: Option<&Level<'t>>, statement: &str) {
        let stands_in_location = pass.levels.last().and_then(|level| level.block).map(Directive::name);
        match (stands_in_location, holder.and_then(|level| level.block)) {
            (Some("if" | "limit_except"), Some(location)) => self.insert_into(location, statement),
            _ => self.insert_after(pass.directive, statement),
        }
    }

    /// `Host` defaults to what the pass names; the application is to see what it saw.
    pub(super) fn keep_host(&mut self, pass: &Pass<'t>, is_direct: bool) {
        let headers = pass.list("proxy_set_header");
        let uses_address = |header: &&&Directive| {
            header
                .values()
                .nth(1)
                .is_some_and(|value| value.contains("$proxy_host") || value.contains("$proxy_port"))
        };
        for header in headers.iter().filter(uses_address).filter(|_| is_direct) {
            let text = "the header is made of the pass's own address, which changes";
            let finding = Finding::new("proxy-host", Gravity::Look, self.place(header), text);
            self.say(finding.remedy(format!("write `{}` instead of the variable", pass.authority)));
        }
        let says_host = |header: &&Directive| header.value().eq_ignore_ascii_case("host");
        if !is_direct || headers.iter().any(says_host) {
            return;
        }
        let holder = pass.location();
        let stands_here = |header: &&Directive| {
            holder.is_some_and(|level| level.items.iter().any(|item| std::ptr::eq(*item, *header)))
        };
        if !headers.iter().all(stands_here) {
            // Headers are inherited only where a level has none of its own.
            for header in &headers {
                let values: Vec<String> = header.values().map(quoted).collect();
                self.state(pass, holder, &format!("proxy_set_header {};", values.join(" ")));
            }
        }
        let host = default_host(pass);
        self.state(pass, holder, &format!("proxy_set_header Host {};", quoted(&host)));
    }

    /// Without `proxy_redirect`, answers that name the pass's own address are turned round; that address is another now.
    pub(super) fn keep_redirects(&mut self, pass: &Pass<'t>) {
        let set = pass.list("proxy_redirect");
        let is_default = set.is_empty() || set.iter().any(|found| found.value() == "default");
        if !is_default || pass.directive.value().contains('$') {
            return;
        }
        let location = pass.location().and_then(|level| level.block);
        let path = location.and_then(|location| location.words.last()).map(|word| word.text.clone());
        let is_regex = location.is_some_and(|location| location.value().starts_with('~'));
        let former = pass.directive.value();
        let statement = match (pass.rest.is_empty(), path) {
            (true, _) => format!("proxy_redirect {} /;", quoted(&format!("{former}/"))),
            (false, Some(path)) if !is_regex => {
                format!("proxy_redirect {} {};", quoted(former), quoted(&path))
            }
            _ => return,
        };
        let holder = pass.location().cloned();
        let own_default = holder
            .iter()
            .flat_map(|level| &level.items)
            .find(|item| item.name() == "proxy_redirect" && item.value() == "default");
        match own_default {
            Some(own) => self.edits(own.file).put(own.span.clone(), statement),
            None => self.state(pass, holder.as_ref(), &statement),
        }
    }

    /// What is not changed and good to know.
    pub(super) fn look_at_pass(&mut self, pass: &Pass<'t>, service: &Service) {
        self.look_at_origin(pass, service);
        self.look_at_connections(pass);
        let place = self.place(pass.directive);
        if service.proxy_protocol {
            let text = "the gateway wants a PROXY header, which nginx cannot send to an HTTP server";
            let finding = Finding::new("proxy-protocol", Gravity::Stop, place.clone(), text);
            self.say(
                finding
                    .remedy("set `proxy_protocol = false` for the service; `X-Forwarded-For` says the same"),
            );
        }
        if pass.kind == Kind::Grpc && !service.http2 {
            let text = "gRPC needs HTTP/2 up to the application";
            let finding = Finding::new("grpc", Gravity::Stop, place.clone(), text);
            self.say(finding.remedy("set `upstream_http = \"2\"` for the service"));
        }
        let is_on = |name: &str| pass.setting(name).is_some_and(|found| found.value() != "off");
        if pass.kind == Kind::Proxy
            && pass.setting("proxy_request_buffering").is_none_or(|found| found.value() != "off")
        {
            let text = "nginx takes a request's whole body before it passes it on: bodies of held writes lie in nginx's files meanwhile";
            self.say(Finding::new("request-buffering", Gravity::Note, place.clone(), text));
        }
        if is_on("proxy_cache") {
            let text = "what nginx answers from its cache never reaches the gateway: a client may read older than its own write";
            self.say(Finding::new("cache", Gravity::Look, place.clone(), text));
        }
        let hides = pass.list("proxy_hide_header");
        if hides.iter().any(|hidden| hidden.value().eq_ignore_ascii_case("via")) {
            let text = "`Via` is hidden, by which a request is seen to go through the gateway: there will be no proof here";
            self.say(Finding::new("no-via", Gravity::Look, place, text));
        }
    }

    fn look_at_origin(&mut self, pass: &Pass<'t>, service: &Service) {
        let headers = pass.list(&format!("{}_set_header", pass.prefix()));
        let says =
            |name: &str| headers.iter().find(|header| header.value().eq_ignore_ascii_case(name)).copied();
        let forwarded = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"];
        let spoken: Vec<&Directive> = forwarded.iter().filter_map(|name| says(name)).collect();
        let remedy = "name nginx's address in the service's `trusted_proxies`";
        if let (Some(first), false) = (spoken.first(), service.trusts_entry == Some(true)) {
            let text = "nginx tells whom it speaks for, and the gateway replaces that unless it trusts nginx: the application \
                        would see nginx's address, and http where clients used https";
            let gravity = if service.trusts_entry.is_some() { Gravity::Stop } else { Gravity::Look };
            let finding = Finding::new("not-trusted", gravity, self.place(first), text);
            self.say(finding.remedy(remedy));
        }
        if says("X-Forwarded-For").is_none() && says("Forwarded").is_none() {
            let text = "nginx does not say for whom it asks: to the gateway all clients without a cookie or a token are one";
            let finding = Finding::new("no-forwarded-for", Gravity::Look, self.place(pass.directive), text);
            let header = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
            self.say(finding.remedy(format!("add `{header}`, and {remedy}")));
        }
    }

    fn look_at_connections(&mut self, pass: &Pass<'t>) {
        if pass.kind != Kind::Proxy {
            return;
        }
        let headers = pass.list("proxy_set_header");
        let place = self.place(pass.directive);
        if headers.iter().any(|header| header.value().eq_ignore_ascii_case("upgrade")) {
            let text = "upgrades (WebSocket) are passed on; to the gateway they are sessions of the owner";
            self.say(Finding::new("websocket", Gravity::Note, place.clone(), text));
        }
        let keeps = match &pass.leads {
            Leads::Upstream(number) => self.survey.upstreams.get(*number).is_some_and(|upstream| {
                self.tree
                    .expanded(upstream.directive.children())
                    .iter()
                    .any(|item| item.name() == "keepalive")
            }),
            _ => false,
        };
        let version = pass.setting("proxy_http_version").is_some_and(|found| found.value() == "1.1");
        let close = headers.iter().any(|header| {
            header.value().eq_ignore_ascii_case("connection") && header.values().nth(1) != Some("close")
        });
        if !(keeps && version && close) {
            let text = "nginx opens a connection for each request here, as it did before";
            let finding = Finding::new("no-keepalive", Gravity::Note, place, text);
            let remedy = "an upstream with `keepalive 64;`, `proxy_http_version 1.1;` and `proxy_set_header Connection \"\";` \
                          about doubles what it can carry";
            self.say(finding.remedy(remedy));
        }
    }
}

/// What nginx sends as `Host` where nothing else is said: the name as it is written, the port unless it is the scheme's own.
fn default_host(pass: &Pass<'_>) -> String {
    let own = if pass.secure { ":443" } else { ":80" };
    pass.authority.strip_suffix(own).unwrap_or(&pass.authority).to_owned()
}
