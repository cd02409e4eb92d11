//! A TOML file as one kind of tree: tables, lists and values with their places in the text, however they were written
//! (`[header]`, `{ inline }` or dotted keys). It checks nothing.

use std::ops::Range;
use toml_edit::{Item, TableLike, Value};

/// A value and where it is written, in bytes.
#[derive(Clone)]
pub struct Node {
    pub span: Range<usize>,
    pub kind: Kind,
}

#[derive(Clone)]
pub enum Kind {
    Table(Vec<Entry>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Float,
    Bool(bool),
    Date,
}

#[derive(Clone)]
pub struct Entry {
    pub key: String,
    pub key_span: Range<usize>,
    pub value: Node,
}

impl Node {
    /// The whole file.
    pub fn of(document: &toml_edit::Document<&str>) -> Self {
        table(document.as_table(), 0..0)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Table(entries) => entries,
            _ => &[],
        }
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The items of the list under `key`; nothing when it is absent or no list.
    pub fn list(&self, key: &str) -> &[Self] {
        match self.get(key).map(|node| &node.kind) {
            Some(Kind::List(items)) => items,
            _ => &[],
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::text)
    }

    pub fn integer(&self) -> Option<i64> {
        match self.kind {
            Kind::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// Is `true` written under `key`?
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|node| matches!(node.kind, Kind::Bool(true)))
    }

    /// With its article, for messages.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Table(_) => "a table",
            Kind::List(_) => "a list",
            Kind::Text(_) => "a string",
            Kind::Integer(_) => "an integer",
            Kind::Float => "a number with a fraction",
            Kind::Bool(_) => "true or false",
            Kind::Date => "a date",
        }
    }
}

fn table(table: &dyn TableLike, fallback: Range<usize>) -> Node {
    let entries = table.iter().filter_map(|(name, item)| {
        let key_span = table.key(name).and_then(toml_edit::Key::span).unwrap_or_else(|| fallback.clone());
        let value = from_item(item, &key_span)?;
        Some(Entry { key: name.to_owned(), key_span, value })
    });
    Node { kind: Kind::Table(entries.collect()), span: fallback }
}

fn from_item(item: &Item, key: &Range<usize>) -> Option<Node> {
    // Tables made by dotted keys have no place of their own: their key stands for them.
    let span = item.span().unwrap_or_else(|| key.clone());
    match item {
        Item::None => None,
        Item::Value(value) => Some(from_value(value, key)),
        Item::Table(found) => Some(table(found, span)),
        Item::ArrayOfTables(list) => {
            let items = list.iter().map(|found| table(found, found.span().unwrap_or_else(|| key.clone())));
            Some(Node { kind: Kind::List(items.collect()), span })
        }
    }
}

fn from_value(value: &Value, key: &Range<usize>) -> Node {
    let span = value.span().unwrap_or_else(|| key.clone());
    let kind = match value {
        Value::String(text) => Kind::Text(text.value().clone()),
        Value::Integer(number) => Kind::Integer(*number.value()),
        Value::Float(_) => Kind::Float,
        Value::Boolean(truth) => Kind::Bool(*truth.value()),
        Value::Datetime(_) => Kind::Date,
        Value::Array(items) => Kind::List(items.iter().map(|item| from_value(item, key)).collect()),
        Value::InlineTable(inline) => return table(inline, span),
    };
    Node { span, kind }
}
