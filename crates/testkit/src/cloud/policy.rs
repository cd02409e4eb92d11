//! Bucket policies: parsed strictly, evaluated for two known principals. Only denials matter here, because both principals
//! are allowed everything that no policy denies. A policy with a part this server would not enforce is refused when it
//! is set: a fence that looks set and is not would be worse than none.

use serde_json::{Map, Value};

/// What is asked of a policy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The ARN of who asks.
    pub principal: &'a str,
    /// `s3:PutObject`, …
    pub action: &'a str,
    pub bucket: &'a str,
    /// `None` for an action on the bucket itself.
    pub key: Option<&'a str>,
}

#[derive(Debug, Clone)]
pub(super) struct Policy {
    denials: Vec<Statement>,
}

#[derive(Debug, Clone)]
struct Statement {
    principals: Matcher,
    actions: Matcher,
    resources: Matcher,
    conditions: Vec<Condition>,
}

/// A list of patterns, or everything but them.
#[derive(Debug, Clone)]
struct Matcher {
    patterns: Vec<String>,
    negated: bool,
    ignore_case: bool,
}

/// A condition on `aws:PrincipalArn`, the only key this server knows.
#[derive(Debug, Clone)]
struct Condition {
    values: Vec<String>,
    wildcards: bool,
    negated: bool,
}

impl Policy {
    /// The error says what is wrong, for people.
    pub(super) fn parse(text: &str, bucket: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let document = value.as_object().ok_or("a policy is an object")?;
        known(document, &["Version", "Id", "Statement"])?;
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err("Statement is missing".into()),
        };
        let mut denials = Vec::new();
        for statement in statements {
            let fields = statement.as_object().ok_or("a statement is an object")?;
            let parsed = Statement::parse(fields, bucket)?;
            match fields.get("Effect").and_then(Value::as_str) {
                Some("Deny") => denials.push(parsed),
                Some("Allow") => {} // both principals are allowed everything anyway
                _ => return Err("Effect is neither Allow nor Deny".into()),
            }
        }
        Ok(Self { denials })
    }

    pub(super) fn denies(&self, asked: Asked<'_>) -> bool {
        self.denials.iter().any(|statement| statement.applies(asked))
    }
}

impl Statement {
    fn parse(fields: &Map<String, Value>, bucket: &str) -> Result<Self, String> {
        known(
            fields,
            &[
                "Sid",
                "Effect",
                "Principal",
                "NotPrincipal",
                "Action",
                "NotAction",
                "Resource",
                "NotResource",
                "Condition",
            ],
        )?;
        let resources = Matcher::parse(fields, "Resource", "NotResource", false, strings)?;
        let arn = format!("arn:aws:s3:::{bucket}");
        let inside = |pattern: &String| {
            pattern == "*"
                || pattern
                    .strip_prefix(&arn)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest.starts_with('*'))
        };
        if let Some(foreign) = resources.patterns.iter().find(|pattern| !inside(pattern)) {
            return Err(format!("Resource {foreign} is not in this bucket"));
        }
        Ok(Self {
            principals: Matcher::parse(fields, "Principal", "NotPrincipal", false, principals)?,
            actions: Matcher::parse(fields, "Action", "NotAction", true, strings)?,
            resources,
            conditions: Condition::parse_all(fields.get("Condition"))?,
        })
    }

    fn applies(&self, asked: Asked<'_>) -> bool {
        let resource = match asked.key {
            Some(key) => format!("arn:aws:s3:::{}/{key}", asked.bucket),
            None => format!("arn:aws:s3:::{}", asked.bucket),
        };
        self.principals.matches(asked.principal)
            && self.actions.matches(asked.action)
            && self.resources.matches(&resource)
            && self.conditions.iter().all(|condition| condition.holds(asked.principal))
    }
}

impl Matcher {
    fn parse(
        fields: &Map<String, Value>,
        plain: &str,
        inverse: &str,
        ignore_case: bool,
        read: fn(&Value) -> Result<Vec<String>, String>,
    ) -> Result<Self, String> {
        let (value, negated) = match (fields.get(plain), fields.get(inverse)) {
            (Some(value), None) => (value, false),
            (None, Some(value)) => (value, true),
            _ => return Err(format!("exactly one of {plain} and {inverse} is needed")),
        };
        let patterns = read(value).map_err(|error| format!("{plain}: {error}"))?;
        Ok(Self { patterns, negated, ignore_case })
    }

    fn matches(&self, text: &str) -> bool {
        let found = self.patterns.iter().any(|pattern| {
            if self.ignore_case {
                like(pattern.to_ascii_lowercase().as_bytes(), text.to_ascii_lowercase().as_bytes())
            } else {
                like(pattern.as_bytes(), text.as_bytes())
            }
        });
        found != self.negated
    }
}

impl Condition {
    fn parse_all(value: Option<&Value>) -> Result<Vec<Self>, String> {
        let Some(value) = value else { return Ok(Vec::new()) };
        let operators = value.as_object().ok_or("Condition is an object")?;
        let mut conditions = Vec::new();
        for (operator, keys) in operators {
            // The ARN operators take wildcards, all four of them.
            let (wildcards, negated) = match operator.as_str() {
                "StringEquals" => (false, false),
                "StringNotEquals" => (false, true),
                "StringLike" | "ArnEquals" | "ArnLike" => (true, false),
                "StringNotLike" | "ArnNotEquals" | "ArnNotLike" => (true, true),
                other => return Err(format!("condition operator {other} is not supported here")),
            };
            for (key, values) in keys.as_object().ok_or("a condition is an object")? {
                if !key.eq_ignore_ascii_case("aws:PrincipalArn") {
                    return Err(format!("condition key {key} is not supported here"));
                }
                conditions.push(Self { values: strings(values)?, wildcards, negated });
            }
        }
        Ok(conditions)
    }

    fn holds(&self, principal: &str) -> bool {
        let found = self.values.iter().any(|value| {
            if self.wildcards { like(value.as_bytes(), principal.as_bytes()) } else { value == principal }
        });
        found != self.negated
    }
}

fn known(fields: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    match fields.keys().find(|key| !names.contains(&key.as_str())) {
        Some(key) => Err(format!("{key} is not supported here")),
        None => Ok(()),
    }
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| value.as_str().map(String::from).ok_or_else(|| "expected text".to_string());
    let list = match value {
        Value::Array(list) => list.iter().map(text).collect::<Result<Vec<_>, _>>()?,
        one => vec![text(one)?],
    };
    if list.is_empty() { Err("the list is empty".into()) } else { Ok(list) }
}

fn principals(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Object(kinds) => {
            known(kinds, &["AWS"])?;
            strings(kinds.get("AWS").ok_or("only AWS principals are supported here")?)
        }
        Value::String(text) if text == "*" => Ok(vec![text.clone()]),
        _ => Err("expected \"*\" or {\"AWS\": …}".into()),
    }
}

/// `*` stands for any bytes, `?` for one byte.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at_pattern, mut at_text) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some(b'*') => {
                back = Some((at_pattern, at_text));
                at_pattern += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[at_text] => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => match back {
                Some((star, taken)) => {
                    back = Some((star, taken + 1));
                    at_pattern = star + 1;
                    at_text = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at_pattern..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "arn:aws:iam::000000000000:user/app";
    const MIGRATION: &str = "arn:aws:iam::000000000000:user/migration";

    fn denied(policy: &str, principal: &str, action: &str, key: Option<&str>) -> bool {
        Policy::parse(policy, "shop").unwrap().denies(Asked { principal, action, bucket: "shop", key })
    }

    #[test]
    fn a_fence_denies_the_application_and_exempts_the_migration() {
        for operator in ["StringNotEquals", "StringNotLike", "ArnNotEquals", "ArnNotLike"] {
            let fence = format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"fence","Effect":"Deny","Principal":"*",
                "Action":["s3:PutObject","s3:Delete*"],"Resource":["arn:aws:s3:::shop","arn:aws:s3:::shop/*"],
                "Condition":{{"{operator}":{{"aws:PrincipalArn":"{MIGRATION}"}}}}}}]}}"#
            );
            assert!(denied(&fence, APP, "s3:PutObject", Some("a")), "{operator}");
            assert!(denied(&fence, APP, "s3:DeleteObject", Some("a")), "{operator}");
            assert!(!denied(&fence, APP, "s3:GetObject", Some("a")), "{operator}");
            assert!(!denied(&fence, MIGRATION, "s3:PutObject", Some("a")), "{operator}");
        }
    }

    #[test]
    fn named_principals_resources_and_inverses() {
        let one = format!(
            r#"{{"Statement":{{"Effect":"Deny","Principal":{{"AWS":"{APP}"}},"NotAction":"s3:Get*","Resource":"arn:aws:s3:::shop/private/*"}}}}"#
        );
        assert!(denied(&one, APP, "s3:PutObject", Some("private/x")));
        assert!(!denied(&one, APP, "s3:PutObject", Some("public/x")));
        assert!(!denied(&one, APP, "s3:GetObject", Some("private/x")));
        assert!(!denied(&one, MIGRATION, "s3:PutObject", Some("private/x")));
        let allow = r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}"#;
        assert!(!denied(allow, APP, "s3:PutObject", Some("x")));
    }

    #[test]
    fn what_would_not_be_enforced_is_refused() {
        for bad in [
            "nonsense",
            r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"*","Resource":"arn:aws:s3:::other/*"}]}"#,
            r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}]}"#,
            r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:username":"app"}}}]}"#,
            r#"{"Statement":[{"Effect":"Deny","Principal":{"Service":"x"},"Action":"*","Resource":"*"}]}"#,
        ] {
            assert!(Policy::parse(bad, "shop").is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards() {
        assert!(like(b"*", b""));
        assert!(like(b"a*b*c", b"aXbYbZc"));
        assert!(!like(b"a*b*c", b"aXbYbZ"));
        assert!(like(b"s3:?utObject", b"s3:PutObject"));
        assert!(!like(b"", b"x"));
    }
}
