//! Reads a keepalived.conf as far as these commands must: blocks, words, comments. It believes the file and not what was once
//! written into it, since people edit. Never follows an `include`, never writes.

use super::pair::SharedAddress;
use super::render::{INSTANCE, TRACK_FILE};
use crate::EntryError;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const DEEPEST: usize = 8;

/// A line of words, and the block that it opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Statement {
    pub words: Vec<String>,
    pub block: Vec<Statement>,
}

impl Statement {
    fn is(&self, name: &str) -> bool {
        self.words.first().is_some_and(|word| word == name)
    }

    fn word(&self, index: usize) -> Option<&str> {
        self.words.get(index).map(String::as_str)
    }

    fn within<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.block.iter().filter(move |inner| inner.is(name))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.block.iter().find(|inner| inner.is(name)).and_then(|inner| inner.word(1))
    }
}

/// What a file says, with everything below its blocks.
pub(crate) fn statements(text: &str) -> Vec<Statement> {
    let mut stack: Vec<Vec<Statement>> = vec![Vec::new()];
    for line in text.lines() {
        let mut words: Vec<String> = Vec::new();
        for word in split(line) {
            match word {
                Word::Open if stack.len() < DEEPEST => {
                    let opener = Statement { words: std::mem::take(&mut words), block: Vec::new() };
                    // `{` on a line of its own belongs to the line before.
                    match stack.last_mut() {
                        Some(here) if opener.words.is_empty() && !here.is_empty() => {}
                        Some(here) => here.push(opener),
                        None => {}
                    }
                    stack.push(Vec::new());
                }
                Word::Open => {}
                Word::Close => {
                    flush(&mut stack, &mut words);
                    close(&mut stack);
                }
                Word::Text(text) => words.push(text),
            }
        }
        flush(&mut stack, &mut words);
    }
    while stack.len() > 1 {
        close(&mut stack);
    }
    stack.pop().unwrap_or_default()
}

fn flush(stack: &mut [Vec<Statement>], words: &mut Vec<String>) {
    if let Some(here) = stack.last_mut().filter(|_| !words.is_empty()) {
        here.push(Statement { words: std::mem::take(words), block: Vec::new() });
    }
}

fn close(stack: &mut Vec<Vec<Statement>>) {
    if stack.len() > 1
        && let Some(block) = stack.pop()
        && let Some(opener) = stack.last_mut().and_then(|here| here.last_mut())
    {
        opener.block.extend(block);
    }
}

enum Word {
    Text(String),
    Open,
    Close,
}

fn split(line: &str) -> Vec<Word> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let end = |word: &mut String, words: &mut Vec<Word>| {
        if !word.is_empty() {
            words.push(Word::Text(std::mem::take(word)));
        }
    };
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => word.push(character),
            '#' | '!' => break,
            '{' | '}' => {
                end(&mut word, &mut words);
                words.push(if character == '{' { Word::Open } else { Word::Close });
            }
            _ if character.is_whitespace() => end(&mut word, &mut words),
            _ => word.push(character),
        }
    }
    end(&mut word, &mut words);
    words
}

/// What an installed file says of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub interface: String,
    pub router_id: u8,
    pub advert: Duration,
    pub own: Option<IpAddr>,
    pub peers: Vec<IpAddr>,
    pub addresses: Vec<SharedAddress>,
    pub hand_over: PathBuf,
    /// The addresses stay on the loopback of both nodes.
    pub keeps: bool,
    /// What the check asks, where it is ours.
    pub check: Option<String>,
}

impl Installed {
    /// # Errors
    /// There is no pair of ours in this text, or a part of it is missing.
    pub fn read(text: &str) -> Result<Self, EntryError> {
        let all = statements(text);
        let lacks = |what: &str| {
            EntryError::unfit(
                format!("{what} is missing in the configuration of the pair"),
                "write it anew: rehome entry keepalived install",
            )
        };
        let named = |kind: &'static str, name: &'static str| {
            all.iter().find(move |one| one.is(kind) && one.word(1) == Some(name))
        };
        let instance = named("vrrp_instance", INSTANCE).ok_or_else(|| lacks("`vrrp_instance rehome`"))?;
        let file = named("track_file", TRACK_FILE).and_then(|file| file.value("file"));
        let seconds = instance.value("advert_int").and_then(|text| text.parse::<f64>().ok());
        let seconds = seconds.filter(|seconds| (0.01..=40.95).contains(seconds));
        let addresses = ["virtual_ipaddress", "virtual_ipaddress_excluded"]
            .into_iter()
            .flat_map(|block| instance.within(block))
            .flat_map(|block| &block.block)
            .filter_map(|line| line.word(0)?.parse().ok())
            .collect::<Vec<SharedAddress>>();
        let first_is =
            |ip: IpAddr| move |line: &Statement| line.word(0).is_some_and(|word| starts_with(word, ip));
        let kept = |ip| {
            all.iter().filter(|one| one.is("static_ipaddress")).flat_map(|one| &one.block).any(first_is(ip))
        };
        let script = named("vrrp_script", super::render::SCRIPT).and_then(|script| script.value("script"));
        Ok(Self {
            interface: instance.value("interface").ok_or_else(|| lacks("its interface"))?.to_owned(),
            router_id: router_id(instance).ok_or_else(|| lacks("its virtual_router_id"))?,
            advert: seconds.map(Duration::from_secs_f64).ok_or_else(|| lacks("its advert_int"))?,
            own: instance.value("unicast_src_ip").and_then(|text| text.parse().ok()),
            peers: instance
                .within("unicast_peer")
                .flat_map(|block| &block.block)
                .filter_map(|line| line.word(0)?.parse().ok())
                .collect(),
            keeps: addresses.iter().all(|address| kept(address.ip)),
            hand_over: file.map(PathBuf::from).ok_or_else(|| lacks("`track_file rehome_hand_over`"))?,
            check: script.and_then(|script| script.rsplit(' ').next()).map(Into::into),
            addresses: Some(addresses).filter(|all| !all.is_empty()).ok_or_else(|| lacks("every address"))?,
        })
    }

    /// After how much silence of the other node this one would take over, at most.
    pub fn takes_over_after(&self) -> Duration {
        self.advert * 4
    }
}

fn starts_with(word: &str, ip: IpAddr) -> bool {
    word.split('/').next().is_some_and(|address| address.parse() == Ok(ip))
}

fn router_id(instance: &Statement) -> Option<u8> {
    instance.value("virtual_router_id").and_then(|text| text.parse().ok())
}

/// An instance of somebody else in `text` that has this id on this interface.
pub(crate) fn same_id(text: &str, interface: &str, id: u8) -> Option<String> {
    let all = statements(text);
    let mut others = all.iter().filter(|one| one.is("vrrp_instance") && one.word(1) != Some(INSTANCE));
    let same = others.find(|one| one.value("interface") == Some(interface) && router_id(one) == Some(id));
    same.and_then(|one| one.word(1)).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::super::pair::tests::wish;
    use super::super::pair::{Node, Pair, Wish};
    use super::super::render;
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let pair = Pair::check(wish()).unwrap();
        for (node, beside) in [(Node::First, false), (Node::Second, true)] {
            let read = Installed::read(&render::config(&pair, node, beside)).unwrap();
            assert_eq!(read.interface, "eth0");
            assert_eq!((read.router_id, read.advert), (51, Duration::from_millis(300)));
            assert_eq!((read.own, read.peers), (Some(pair.own(node)), vec![pair.peer(node)]));
            assert_eq!(read.addresses, pair.addresses);
            assert_eq!(read.hand_over, PathBuf::from("/run/rehome-hand-over-51"));
            assert!(read.keeps);
            assert_eq!(read.check.as_deref(), Some("127.0.0.1:9100"));
        }
        let bare = Pair::check(Wish { keep: false, ..wish() }).unwrap();
        assert!(!Installed::read(&render::config(&bare, Node::First, false)).unwrap().keeps);
    }

    #[test]
    fn files_of_other_people_are_understood() {
        let text = "vrrp_instance WEB\n{\n interface eth0 # the wire\n virtual_router_id 51\n \
                    virtual_ipaddress { 10.0.0.9/24 dev \"eth0\" } }\n! vrrp_instance GONE { interface eth0\n";
        assert_eq!(same_id(text, "eth0", 51).as_deref(), Some("WEB"));
        assert_eq!(same_id(text, "eth1", 51), None);
        assert_eq!(same_id(text, "eth0", 52), None);
        let error = Installed::read(text).unwrap_err().to_string();
        assert!(error.contains("vrrp_instance rehome"), "{error}");
    }

    #[test]
    fn broken_files_end() {
        for text in ["{{{{{{{{{{{{{{{{", "}}}}", "a { b", "\"", "a \"b {\n}", ""] {
            let _ = statements(text);
        }
        assert_eq!(statements("a 1 { b 2\n c }")[0].block.len(), 2);
    }
}
