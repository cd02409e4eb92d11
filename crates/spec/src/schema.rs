//! The JSON Schema of the migration file, made from the shapes. The structural check reads it too, so that editors and
//! this program cannot disagree.

use crate::Migration;
use serde_json::Value;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| sorted(schemars::schema_for!(Migration).to_value()));

/// Keys in the order of the alphabet, whatever order other crates of a build make serde_json keep.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        other => other,
    }
}

/// The schema as it is committed at `docs/rehome.schema.json`: indented, ending with a newline.
pub fn schema_json() -> String {
    format!("{:#}\n", *SCHEMA)
}

/// A place in the schema with references and options followed.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// The name of the shape in the schema's definitions, if it has one (`Span`, `Secret`, `Store`).
    pub name: Option<&'static str>,
    schema: &'static Value,
}

impl Shape {
    pub fn root() -> Self {
        Self { name: None, schema: &SCHEMA }
    }

    fn follow(schema: &'static Value) -> Self {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            return Self { name: Some(name), schema: &SCHEMA["$defs"][name] };
        }
        // `Option<T>` of a named shape: the shape, or null, which TOML does not have.
        let options = schema["anyOf"].as_array().into_iter().flatten();
        match options.into_iter().find(|option| option["type"] != "null") {
            Some(option) => Self::follow(option),
            None => Self { name: None, schema },
        }
    }

    /// `string`, `integer`, `array`, `object`, `boolean`; enums are strings.
    pub fn kind(self) -> &'static str {
        match &self.schema["type"] {
            Value::String(kind) => kind,
            Value::Array(kinds) => {
                kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("")
            }
            _ if !self.words().is_empty() => "string",
            _ => "",
        }
    }

    /// The allowed words of an enum; empty for everything else.
    pub fn words(self) -> Vec<&'static str> {
        let variants = self.schema["oneOf"].as_array().into_iter().flatten();
        let each = variants.chain(std::iter::once(self.schema));
        each.flat_map(|variant| {
            let several = variant["enum"].as_array().into_iter().flatten();
            several.chain(variant.get("const"))
        })
        .filter_map(Value::as_str)
        .collect()
    }

    pub fn properties(self) -> impl Iterator<Item = (&'static str, Self)> {
        let properties = self.schema["properties"].as_object().into_iter().flatten();
        properties.map(|(key, schema)| (key.as_str(), Self::follow(schema)))
    }

    pub fn property(self, key: &str) -> Option<Self> {
        self.schema["properties"].get(key).map(Self::follow)
    }

    /// What the values of a table with free keys are; `None` for tables with fixed keys.
    pub fn values(self) -> Option<Self> {
        self.schema.get("additionalProperties").filter(|schema| schema.is_object()).map(Self::follow)
    }

    pub fn required(self) -> impl Iterator<Item = &'static str> {
        self.schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    pub fn items(self) -> Option<Self> {
        self.schema.get("items").map(Self::follow)
    }

    /// The range an integer must be in.
    pub fn range(self) -> (i64, i64) {
        let smallest = self.schema["minimum"].as_i64().unwrap_or(i64::MIN);
        let largest = match self.schema["format"].as_str() {
            Some("uint8") => i64::from(u8::MAX),
            Some("uint32") => i64::from(u32::MAX),
            _ => i64::MAX,
        };
        (smallest, self.schema["maximum"].as_i64().unwrap_or(largest))
    }
}
