//! The fence as a bucket policy: one statement that denies writes to everybody but the migration's own principal, put
//! among the statements that are there and taken out again. Text in, text out: nothing here talks to a store.
//!
//! Denied: every put, copy and multipart step (`PutObject*`, which covers ACL, tags, retention), every delete
//! (`DeleteObject*`), incoming replication and restores. Not denied: reads; `AbortMultipartUpload`, which only takes
//! away what never became an object; and policy changes, so that an owner who lost the migration can lift the fence.

use rehome_part::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// Begins the name of every statement that this program adds.
pub const FENCE_SID: &str = "RehomeFence";

/// How a store writes its policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// AWS and what speaks its language. The principal is an ARN (`arn:aws:iam::123456789012:user/rehome`; for an
    /// assumed role the role's own ARN), compared with `aws:PrincipalArn`; `KEY=VALUE` compares another condition key
    /// (`aws:userid=AIDA…`, or `aws:username=rehome` on servers that know no ARNs).
    Aws,
    /// AWS in China: the same with its own partition in ARNs.
    AwsChina,
    /// Huawei OBS: no condition, but `NotPrincipal`; the principal is `domain/ACCOUNT_ID:user/USER_ID`.
    Obs,
    /// Aliyun OSS and Tencent COS: their documented policies name whom they bind but have no "everybody but", so the fence
    /// has to be a command or a hook.
    NoExemption,
}

/// `existing` with the fence for `bucket` below `prefix` that exempts `principal`. Applying it twice is the same as once.
pub fn fence(
    grammar: Grammar,
    bucket: &str,
    prefix: &str,
    existing: Option<&str>,
    principal: &str,
) -> Result<String> {
    if principal.is_empty() || principal.contains(['*', '?']) {
        let text =
            format!("`{principal}` does not name one principal, so the fence would exempt more or nobody");
        return Err(unsupported(text).hint("set `principal` of this store to the migration's own identity"));
    }
    if prefix.contains(['*', '?']) || prefix.contains("${") {
        return Err(unsupported(format!(
            "the prefix `{prefix}` has characters that policies read as patterns"
        )));
    }
    let statement = match grammar {
        Grammar::Aws => aws_statement("aws", bucket, prefix, principal),
        Grammar::AwsChina => aws_statement("aws-cn", bucket, prefix, principal),
        Grammar::Obs => obs_statement(bucket, prefix, principal),
        Grammar::NoExemption => {
            return Err(unsupported("this store's policies cannot exempt one principal from a denial")
                .hint("fence with a command or a hook: `fence = { by = \"command\", … }`"));
        }
    };
    let mut policy = match existing {
        Some(text) => parse(text)?,
        None => Map::new(),
    };
    if !policy.contains_key("Version") && matches!(grammar, Grammar::Aws | Grammar::AwsChina) {
        policy.insert("Version".into(), json!("2012-10-17"));
    }
    let mut statements = statements(&policy);
    statements.retain(|other| other.get("Sid") != statement.get("Sid"));
    statements.push(statement);
    policy.insert("Statement".into(), Value::Array(statements));
    Ok(Value::Object(policy).to_string())
}

/// `existing` without the fence for `prefix`: the very same text when there is no such fence in it, `None` when no other
/// statement is left.
pub fn unfence(existing: &str, prefix: &str) -> Result<Option<String>> {
    let mut policy = parse(existing)?;
    let mut statements = statements(&policy);
    let all = statements.len();
    let sid = Value::String(sid(prefix));
    statements.retain(|other| other.get("Sid") != Some(&sid));
    if statements.len() == all {
        return Ok(Some(existing.to_owned()));
    }
    if statements.is_empty() {
        return Ok(None);
    }
    policy.insert("Statement".into(), Value::Array(statements));
    Ok(Some(Value::Object(policy).to_string()))
}

/// The principal that the first fence in an AWS policy exempts; `None` when there is no fence.
pub fn fenced_for(policy: &str) -> Option<String> {
    let policy = parse(policy).ok()?;
    let fences = |statement: &Value| {
        let ours = statement.get("Sid")?.as_str()?.starts_with(FENCE_SID);
        let tests = statement.get("Condition")?.get("StringNotEquals")?.as_object()?;
        tests.values().next()?.as_str().filter(|_| ours).map(String::from)
    };
    statements(&policy).iter().find_map(fences)
}

/// One name per prefix, so that parts that share a bucket do not lift each other's fence. Letters and digits only.
fn sid(prefix: &str) -> String {
    if prefix.is_empty() {
        return FENCE_SID.into();
    }
    let digest: String = blake3::hash(prefix.as_bytes()).to_hex().chars().take(16).collect();
    format!("{FENCE_SID}{digest}")
}

fn aws_statement(partition: &str, bucket: &str, prefix: &str, principal: &str) -> Value {
    let (key, value) = match principal.split_once('=') {
        Some((key, value)) if key.contains(':') && !key.starts_with("arn:") => (key, value),
        _ => ("aws:PrincipalArn", principal),
    };
    let mut test = Map::new();
    test.insert(key.into(), json!(value));
    json!({
        "Sid": sid(prefix),
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject*", "s3:DeleteObject*", "s3:Replicate*", "s3:RestoreObject"],
        "Resource": format!("arn:{partition}:s3:::{bucket}/{prefix}*"),
        "Condition": { "StringNotEquals": test },
    })
}

fn obs_statement(bucket: &str, prefix: &str, principal: &str) -> Value {
    json!({
        "Sid": sid(prefix),
        "Effect": "Deny",
        "NotPrincipal": { "ID": [principal] },
        "Action": ["PutObject*", "DeleteObject*", "RestoreObject"],
        "Resource": [format!("{bucket}/{prefix}*")],
    })
}

fn statements(policy: &Map<String, Value>) -> Vec<Value> {
    match policy.get("Statement") {
        Some(Value::Array(all)) => all.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    }
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(policy)) => Ok(policy),
        Ok(_) => Err(Error::permanent(ErrorKind::Corrupt, "the bucket policy is not a JSON object")),
        Err(error) => {
            Err(Error::permanent(ErrorKind::Corrupt, format!("the bucket policy is not JSON: {error}")))
        }
    }
}

fn unsupported(text: impl Into<String>) -> Error {
    Error::permanent(ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:iam::123456789012:user/rehome";
    const OTHERS: &str = r#"{"Version":"2008-10-17","Id":"x","Statement":{"Sid":"Read","Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::media/*"}}"#;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_fence_denies_writes_to_all_but_one() {
        let policy = value(&fence(Grammar::Aws, "media", "", None, ARN).unwrap());
        let statement = &policy["Statement"][0];
        assert_eq!(policy["Version"], "2012-10-17");
        assert_eq!(statement["Effect"], "Deny");
        assert_eq!(statement["Principal"], "*");
        assert_eq!(statement["Resource"], "arn:aws:s3:::media/*");
        assert_eq!(statement["Condition"]["StringNotEquals"]["aws:PrincipalArn"], ARN);
    }

    #[test]
    fn the_fence_goes_in_once_and_comes_out_alone() {
        let once = fence(Grammar::Aws, "media", "", Some(OTHERS), ARN).unwrap();
        let twice = fence(Grammar::Aws, "media", "", Some(&once), ARN).unwrap();
        assert_eq!(once, twice);
        assert_eq!(value(&once)["Version"], "2008-10-17");
        assert_eq!(fenced_for(&once).as_deref(), Some(ARN));
        let mut before = value(OTHERS);
        before["Statement"] = json!([before["Statement"]]);
        assert_eq!(value(&unfence(&once, "").unwrap().unwrap()), before);
        assert_eq!(fenced_for(OTHERS), None);
    }

    #[test]
    fn a_policy_that_was_only_the_fence_is_removed() {
        let fenced = fence(Grammar::Aws, "media", "", None, ARN).unwrap();
        assert_eq!(unfence(&fenced, "").unwrap(), None);
    }

    #[test]
    fn a_policy_without_the_fence_stays_byte_for_byte() {
        let of_another_prefix = fence(Grammar::Aws, "media", "a/", None, ARN).unwrap();
        for text in [OTHERS, r#"{ "Statement" : [] }"#, of_another_prefix.as_str()] {
            assert_eq!(unfence(text, "").unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn fences_of_two_prefixes_do_not_touch_each_other() {
        let one = fence(Grammar::AwsChina, "media", "a/", None, ARN).unwrap();
        let both = fence(Grammar::AwsChina, "media", "b/", Some(&one), ARN).unwrap();
        assert_eq!(value(&both)["Statement"].as_array().unwrap().len(), 2);
        assert_eq!(value(&both)["Statement"][1]["Resource"], "arn:aws-cn:s3:::media/b/*");
        assert_eq!(value(&unfence(&both, "b/").unwrap().unwrap()), value(&one));
    }

    #[test]
    fn other_condition_keys_and_the_obs_form() {
        let named = value(&fence(Grammar::Aws, "m", "", None, "aws:username=rehome").unwrap());
        assert_eq!(named["Statement"][0]["Condition"]["StringNotEquals"]["aws:username"], "rehome");
        let obs = value(&fence(Grammar::Obs, "m", "p/", None, "domain/1:user/2").unwrap());
        assert_eq!(obs["Statement"][0]["NotPrincipal"]["ID"][0], "domain/1:user/2");
        assert_eq!(obs["Statement"][0]["Resource"][0], "m/p/*");
    }

    #[test]
    fn what_cannot_be_fenced_is_refused() {
        for (grammar, prefix, principal) in
            [(Grammar::NoExemption, "", ARN), (Grammar::Aws, "a*", ARN), (Grammar::Aws, "", "*")]
        {
            let error = fence(grammar, "m", prefix, None, principal).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
        }
        assert_eq!(fence(Grammar::Aws, "m", "", Some("{"), ARN).unwrap_err().kind, ErrorKind::Corrupt);
    }
}
