//! The rules of one user, as `ACL LIST` writes them and `ACL SETUSER` reads them. Pure; knows no server.
//! Passwords are in them as hashes only.

use serde::{Deserialize, Serialize};

/// What nobody may do behind a fence besides writing: each of these leads around it. What replicas and monitoring need stays.
/// A server may be too old for some of them, or have them under another name.
pub(super) const AROUND: &[&str] =
    &["acl", "config", "replicaof", "slaveof", "failover", "debug", "module", "cluster"];

/// A user and its rules in the order of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rules {
    pub user: String,
    words: Vec<String>,
}

/// A rule that allows or takes away commands, or a set of rules of its own.
fn is_about_commands(word: &str) -> bool {
    word.starts_with(['+', '-', '('])
}

/// Is it allowed to come in at all?
fn is_switch(word: &str) -> bool {
    word == "on" || word == "off"
}

impl Rules {
    /// A line of `ACL LIST`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("user ")?.split(' ');
        let user = words.next()?.to_owned();
        let mut joined: Vec<String> = Vec::new();
        let mut is_inside = false;
        // A set of rules in brackets is one word.
        for word in words.filter(|word| !word.is_empty()) {
            match joined.last_mut().filter(|_| is_inside) {
                Some(last) => {
                    last.push(' ');
                    last.push_str(word);
                }
                None => joined.push(word.to_owned()),
            }
            is_inside = (is_inside || word.starts_with('(')) && !word.ends_with(')');
        }
        Some(Self { user, words: joined })
    }

    /// The words of `ACL SETUSER` that make this user where there is none.
    pub fn make(&self) -> Vec<&str> {
        ["ACL", "SETUSER", &self.user].into_iter().chain(self.words.iter().map(String::as_str)).collect()
    }

    /// The words of `ACL SETUSER` that give a user exactly these commands and this switch and leave the rest of it alone: one command,
    /// so there is no moment between. `now`: the user as it is.
    pub fn change(&self, now: &Self) -> Vec<&str> {
        let mut all = vec!["ACL", "SETUSER", &self.user];
        all.extend(self.words.iter().filter(|word| is_switch(word)).map(String::as_str));
        all.push("nocommands");
        // Before 7.0 there are no sets in brackets, and no word to remove them.
        if self.words.iter().chain(&now.words).any(|word| word.starts_with('(')) {
            all.push("clearselectors");
        }
        all.extend(self.words.iter().filter(|word| is_about_commands(word)).map(String::as_str));
        all
    }

    /// The same user without writes. `known`: has the server a command of this name?
    pub fn without_writes(&self, known: impl Fn(&str) -> bool) -> Self {
        let mut taken = vec!["-@write".to_owned()];
        taken.extend(AROUND.iter().filter(|name| known(name)).map(|name| format!("-{name}")));
        let mut words: Vec<String> = Vec::new();
        for word in &self.words {
            // A set in brackets allows by itself, whatever the others take away.
            match word.strip_suffix(')') {
                Some(open) => words.push(format!("{open} {})", taken.join(" "))),
                None => words.push(word.clone()),
            }
        }
        words.extend(taken);
        Self { user: self.user.clone(), words }
    }

    /// The same user, kept out.
    pub fn kept_out(&self) -> Self {
        let words = self.words.iter().filter(|word| !is_switch(word)).cloned();
        Self { user: self.user.clone(), words: std::iter::once("off".to_owned()).chain(words).collect() }
    }

    pub fn is_on(&self) -> bool {
        self.words.iter().any(|word| word == "on")
    }

    pub fn needs_no_password(&self) -> bool {
        self.words.iter().any(|word| word == "nopass")
    }

    /// These rules with the commands and the switch of `former`: passwords, keys and channels stay as others left them meanwhile.
    pub fn as_before(&self, former: &Self) -> Self {
        let is_fenced = |word: &&String| is_about_commands(word) || is_switch(word);
        let (switches, commands): (Vec<&String>, Vec<&String>) =
            former.words.iter().filter(is_fenced).partition(|word| is_switch(word));
        let kept = self.words.iter().filter(|word| !is_fenced(word));
        let words = switches.into_iter().chain(kept).chain(commands).cloned().collect();
        Self { user: self.user.clone(), words }
    }

    /// A key that this user may touch by its patterns, and that no application has.
    pub fn probe_key(&self) -> Option<String> {
        let patterns = self.words.iter().filter_map(|word| {
            word.strip_prefix('~').or_else(|| word.strip_prefix("%RW~")).or_else(|| word.strip_prefix("%W~"))
        });
        patterns
            .map(|pattern| if pattern == "*" { "rehome:probe".to_owned() } else { inside(pattern) })
            .next()
    }
}

/// A key that a pattern matches.
fn inside(pattern: &str) -> String {
    let mut key = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => key.push_str("rehome-probe"),
            '?' => key.push('x'),
            '\\' => key.extend(letters.next()),
            '[' => {
                let set: String = letters.by_ref().take_while(|letter| *letter != ']').collect();
                key.push(set.chars().find(|letter| *letter != '^').unwrap_or('x'));
            }
            other => key.push(other),
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "user app on #5f ~shop:* &* +@all -@dangerous (~x* resetchannels -@all +get) (~y +set)";

    #[test]
    fn a_fence_reaches_into_brackets_and_is_taken_away_exactly() {
        let former = Rules::parse(LINE).unwrap();
        assert_eq!(former.user, "app");
        let fenced = former.without_writes(|name| name == "acl");
        let words = fenced.change(&former).join(" ");
        assert_eq!(
            words,
            "ACL SETUSER app on nocommands clearselectors +@all -@dangerous (~x* resetchannels -@all +get -@write -acl) \
             (~y +set -@write -acl) -@write -acl"
        );
        assert_eq!(fenced.as_before(&former), former);
        assert_eq!(former.kept_out().as_before(&former), former);
        assert!(!former.kept_out().is_on() && former.is_on());
        // A password that was changed behind the fence stays changed.
        let rotated = Rules {
            user: "app".into(),
            words: vec!["on".into(), "#77".into(), "~shop:*".into(), "-@write".into()],
        };
        assert!(rotated.as_before(&former).make().join(" ").contains("#77 ~shop:* +@all -@dangerous (~x*"));
    }

    #[test]
    fn the_key_of_a_probe_is_one_the_user_may_touch() {
        let key = |line: &str| Rules::parse(line).unwrap().probe_key();
        assert_eq!(key(LINE).as_deref(), Some("shop:rehome-probe"));
        assert_eq!(key("user a on ~* +@all").as_deref(), Some("rehome:probe"));
        assert_eq!(key("user a on %R~x %W~q[ab]? +@all").as_deref(), Some("qax"));
        assert_eq!(key("user a on +@all"), None);
    }
}
