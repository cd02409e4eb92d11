//! By which addresses, hosts and paths a request reaches a backend from outside: the questions for the proof. Rules that it does
//! not understand give fewer questions, never wrong ones that change anything.

use super::config::{Config, Line, Section};
use super::plan::address_of;
use crate::probe::{Place, Question};
use crate::service::Service;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a rule asks of a request, as far as it is understood.
#[derive(Debug, Clone, Default)]
struct Wish {
    host: Option<String>,
    path: Option<String>,
}

pub(super) fn questions(config: &Config, backend: &Section, service: &Service) -> Vec<Question> {
    let mut questions = Vec::new();
    for section in config.sections.iter().filter(|section| section.has_binds()) {
        let wishes = wishes(config, section, backend);
        for bind in section.lines.iter().filter(|line| line.word(0) == "bind") {
            let has = |word: &str| bind.find(2, word).is_some();
            let http2 = bind.find(2, "proto").is_some_and(|at| bind.word(at + 1) == "h2");
            for place in bind.word(1).split(',').filter_map(place) {
                questions.extend(wishes.iter().map(|wish| Question {
                    place: place.clone(),
                    secure: has("ssl"),
                    prior_knowledge: http2 && !has("ssl"),
                    proxy_header: has("accept-proxy"),
                    host: wish.host.clone().unwrap_or_else(|| "localhost".into()),
                    path: wish.path.clone().or_else(|| service.health.clone()).unwrap_or_else(|| "/".into()),
                }));
            }
        }
    }
    questions
}

fn wishes(config: &Config, section: &Section, backend: &Section) -> Vec<Wish> {
    if std::ptr::eq(section, backend) {
        return vec![Wish::default()];
    }
    let mut wishes = Vec::new();
    for line in section.lines.iter().filter(|line| line.begins(&["use_backend", backend.name()])) {
        wishes.push(wish(section, line));
    }
    let default = config.setting(section, &["default_backend"]);
    if default.is_some_and(|line| line.word(1) == backend.name()) {
        wishes.push(Wish::default());
    }
    wishes
}

/// From the `acl` lines that the rule names.
fn wish(section: &Section, rule: &Line) -> Wish {
    let mut wish = Wish::default();
    for name in rule.words.iter().skip(3).map(|word| word.text.as_str()) {
        for acl in section.lines.iter().filter(|line| line.begins(&["acl", name])) {
            let what = acl.word(2);
            let is_value = |word: &&str| !word.starts_with('-') && !matches!(*word, "str" | "beg" | "dom");
            let mut words = acl.words.iter().skip(3).map(|word| word.text.as_str());
            let Some(value) = words.find(is_value) else { continue };
            if what.contains("hdr") && what.contains("host") || what.starts_with("ssl_fc_sni") {
                wish.host = Some(value.to_owned());
            } else if what.starts_with("path") && value.starts_with('/') {
                wish.path = Some(value.to_owned());
            }
        }
    }
    wish
}

fn place(text: &str) -> Option<Place> {
    if let Some(path) = text.strip_prefix("unix@").or_else(|| text.starts_with('/').then_some(text)) {
        return Some(Place::Unix(path.into()));
    }
    let any = text.strip_prefix('*').unwrap_or(text);
    if let Some(port) = any.strip_prefix(':')
        && let Ok(port) = port.parse()
    {
        return Some(Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    let at = address_of(text)?;
    let ip: IpAddr =
        if at.host == "localhost" { Ipv4Addr::LOCALHOST.into() } else { at.host.parse().ok()? };
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(Place::Tcp(SocketAddr::new(ip, at.port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_places_to_ask_at() {
        let tcp = |text: &str| Some(Place::Tcp(text.parse().unwrap()));
        assert_eq!(place("*:80"), tcp("127.0.0.1:80"));
        assert_eq!(place(":80"), tcp("127.0.0.1:80"));
        assert_eq!(place(":::80"), tcp("[::1]:80"));
        assert_eq!(place("10.0.0.1:80"), tcp("10.0.0.1:80"));
        assert_eq!(place("/run/x"), Some(Place::Unix("/run/x".into())));
        assert_eq!(place(":80-90"), None);
        assert_eq!(place("abns@x"), None);
    }
}
