//! Keys, types, words and units, against the schema. One walk, from top to bottom.

use super::{is_there_or_meant, listed, nearest, values};
use crate::problem::{Raw, quote};
use crate::schema::Shape;
use crate::tree::{Entry, Kind, Node};
use std::ops::Range;

/// Where the walk is: the keys from the top, without indices.
struct Walk<'a> {
    path: Vec<String>,
    found: &'a mut Vec<Raw>,
}

pub(super) fn check(shape: Shape, root: &Node, found: &mut Vec<Raw>) {
    let mut walk = Walk { path: Vec::new(), found };
    walk.table(shape, root, None);
}

impl Walk<'_> {
    /// `own`: the key that this table is the value of.
    fn table(&mut self, shape: Shape, node: &Node, own: Option<&Entry>) {
        for entry in node.entries() {
            match shape.property(&entry.key).or_else(|| shape.values()) {
                Some(expected) => {
                    self.path.push(entry.key.clone());
                    self.value(expected, &entry.value, Some(entry));
                    self.path.pop();
                }
                None => self.unknown(shape, entry),
            }
        }
        for key in shape.required().filter(|key| !is_there_or_meant(node, key)) {
            self.missing(shape, key, node, own);
        }
    }

    fn value(&mut self, shape: Shape, node: &Node, entry: Option<&Entry>) {
        match (shape.kind(), &node.kind) {
            ("object", Kind::Table(_)) => self.table(shape, node, entry),
            ("array", Kind::List(items)) => {
                if let Some(expected) = shape.items() {
                    items.iter().for_each(|item| self.value(expected, item, entry));
                }
            }
            ("string", Kind::Text(text)) => self.text(shape, text, &node.span),
            ("integer", Kind::Integer(number)) => self.integer(shape, *number, &node.span),
            ("boolean", Kind::Bool(_)) => {}
            (kind, _) => self.wrong_type(shape, kind, node, entry),
        }
    }

    fn text(&mut self, shape: Shape, text: &str, span: &Range<usize>) {
        let words = shape.words();
        if !words.is_empty() && !words.contains(&text) {
            let problem = Raw::error(span, format!("{} cannot be \"{}\"", self.key(), quote(text)));
            let guess = nearest(text, words.iter().copied());
            self.found.push(problem.hint(suggest(guess, "write one of", words.iter().copied())));
        }
        values::check(shape.name, &self.path, text, span, self.found);
    }

    fn integer(&mut self, shape: Shape, number: i64, span: &Range<usize>) {
        if self.path.last().is_some_and(|key| key == "read_steps") {
            // The rules say more about them.
            return;
        }
        let (smallest, largest) = shape.range();
        if !(smallest..=largest).contains(&number) {
            let text = format!("{} is {number}; it must be from {smallest} to {largest}", self.key());
            self.found.push(Raw::error(span, text));
        }
    }

    fn unknown(&mut self, shape: Shape, entry: &Entry) {
        let keys: Vec<&str> = shape.properties().map(|(key, _)| key).collect();
        let guess = nearest(&entry.key, keys.iter().copied()).filter(|guess| *guess != entry.key);
        let problem = Raw::error(&entry.key_span, format!("unknown key `{}`", quote(&entry.key)));
        let place = match self.path.is_empty() {
            true => "at the top of the file".to_owned(),
            false => format!("in `{}`", self.path.join(".")),
        };
        let problem = match guess {
            Some(guess) => problem.hint(format!("did you mean `{guess}`?")),
            None => match elsewhere(&entry.key) {
                Some(home) => problem.hint(format!("`{}` belongs in {home}", entry.key)),
                None => problem,
            },
        };
        self.found.push(problem.hint(format!("allowed {place}: {}", listed(keys))));
    }

    fn missing(&mut self, shape: Shape, key: &str, node: &Node, own: Option<&Entry>) {
        let place = self.path.join(".");
        let text = match node.text_of("name").filter(|_| !place.is_empty()) {
            Some(name) => format!("`{place}` \"{}\" has no `{key}`", quote(name)),
            None if place.is_empty() => format!("the file has no `[{key}]`"),
            None => format!("`{place}` has no `{key}`"),
        };
        let problem = match own {
            None => Raw::whole_file(text),
            // An empty span means that the table is written nowhere by itself.
            Some(entry) if node.span.is_empty() => Raw::error(&entry.key_span, text),
            Some(_) => Raw::error(&node.span, text),
        };
        self.found.push(problem.hint(values::example_of(shape.name, key)));
    }

    fn wrong_type(&mut self, shape: Shape, kind: &str, node: &Node, entry: Option<&Entry>) {
        let key = self.key();
        let expected = match (kind, shape.name) {
            (_, Some("Span")) => "a length of time with its unit",
            (_, Some("Size")) => "a size with its unit",
            (_, Some("Secret")) => "a reference to a secret",
            ("string", _) => "a string",
            ("integer", _) => "a whole number",
            ("boolean", _) => "true or false",
            ("array", _) => "a list",
            _ => "a table",
        };
        let problem = Raw::error(&node.span, format!("{key} must be {expected}, not {}", node.kind_name()));
        let name = entry.map_or("", |entry| entry.key.as_str());
        let hint = match (kind, shape.name, &node.kind) {
            (_, Some("Span"), Kind::Integer(number)) => {
                format!("write `{name} = \"{number}s\"` or \"{number}ms\"")
            }
            (_, Some("Size"), Kind::Integer(number)) => {
                format!("write `{name} = \"{number}B\"` or \"{number}MiB\"")
            }
            (_, Some("Span"), _) => {
                "write a number and one of ms, s, m, h, d, in quotes, like \"2s\"".to_owned()
            }
            (_, Some("Size"), _) => "write a number and its unit, in quotes, like \"64MiB\"".to_owned(),
            (_, Some("Secret"), _) => values::HOW_TO_REFER.to_owned(),
            ("array", _, Kind::Table(_)) => format!("write `[[{name}]]`, with two brackets, for each"),
            ("object", _, Kind::List(_)) => format!("write `[{name}]`, with one bracket: there is only one"),
            ("array", _, Kind::Text(_)) if shape.items().is_some_and(|items| items.kind() == "object") => {
                format!("write for example `{}`", values::example_of(None, name))
            }
            ("array", _, Kind::Text(_)) => format!("put it in brackets: `{name} = [\"…\"]`"),
            ("string", _, Kind::Integer(_) | Kind::Float | Kind::Bool(_) | Kind::Date) => {
                "put it in quotes".to_owned()
            }
            (_, Some("Place"), _) => {
                format!("write `{name} = {{ cloud = \"aliyun\", region = \"cn-hangzhou\" }}`")
            }
            (_, Some("Store"), _) => {
                format!(
                    "write `{name} = {{ url = \"s3://bucket\", access_key = \"env:ID\", secret_key = \"env:SECRET\" }}`"
                )
            }
            (_, Some("Hook"), _) => {
                format!("write `{name} = {{ url = \"https://…\", token = \"env:NAME\" }}`")
            }
            ("integer", ..) => "write it without quotes and without a fraction".to_owned(),
            ("boolean", ..) => "write true or false, without quotes".to_owned(),
            _ => format!("for example: {}", values::example_of(None, name)),
        };
        self.found.push(problem.hint(hint));
    }

    /// The key at hand, as it is named in messages.
    fn key(&self) -> String {
        format!("`{}`", self.path.last().map_or("the file", String::as_str))
    }
}

fn suggest<'a>(guess: Option<&str>, otherwise: &str, all: impl IntoIterator<Item = &'a str>) -> String {
    let all = listed(all);
    match guess {
        Some(guess) => format!("did you mean \"{guess}\"? allowed: {all}"),
        None => format!("{otherwise}: {all}"),
    }
}

/// The one other place that takes a key of this name.
fn elsewhere(key: &str) -> Option<String> {
    let mut homes = Vec::new();
    for (name, shape) in Shape::root().properties() {
        let (shape, label) = match shape.items() {
            Some(items) => (items, format!("`[[{name}]]`")),
            None => (shape, format!("`[{name}]`")),
        };
        if shape.property(key).is_some() {
            homes.push(label.clone());
        }
        let inner = shape.properties().filter(|(_, inner)| inner.property(key).is_some());
        homes.extend(inner.map(|(inner, _)| format!("`{inner}` of {label}")));
    }
    (1..=3).contains(&homes.len()).then(|| homes.join(" or "))
}
