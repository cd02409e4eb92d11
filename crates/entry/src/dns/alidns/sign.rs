//! Aliyun's signature, version 3 (ACS3-HMAC-SHA256), of a call whose parameters all stand in the query.

use crate::dns::signature::{Credentials, hex, hmac_sha256, sha256_hex};
use jiff::Timestamp;

pub(super) struct Call<'a> {
    pub host: &'a str,
    pub action: &'a str,
    pub version: &'a str,
    /// Sorted and encoded.
    pub query: &'a str,
    /// Never used twice.
    pub nonce: &'a str,
    pub now: Timestamp,
}

/// The headers to send, `authorization` last; `host` is among the signed ones and not among these.
pub(super) fn headers(call: &Call<'_>, credentials: &Credentials) -> Vec<(&'static str, String)> {
    let payload = sha256_hex(b"");
    let mut headers = vec![
        ("x-acs-action", call.action.to_owned()),
        ("x-acs-content-sha256", payload.clone()),
        ("x-acs-date", call.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    ];
    // In the order of their names, as they are signed.
    if let Some(token) = &credentials.session_token {
        headers.push(("x-acs-security-token", token.clone()));
    }
    headers.push(("x-acs-signature-nonce", call.nonce.to_owned()));
    headers.push(("x-acs-version", call.version.to_owned()));
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = format!("host;{}", names.join(";"));
    let canonical = format!("POST\n/\n{}\nhost:{}\n{lines}\n{names}\n{payload}", call.query, call.host);
    let text = format!("ACS3-HMAC-SHA256\n{}", sha256_hex(canonical.as_bytes()));
    let signature = hex(&hmac_sha256(credentials.secret_key.as_bytes(), &text));
    let key = &credentials.access_key;
    let value = format!("ACS3-HMAC-SHA256 Credential={key},SignedHeaders={names},Signature={signature}");
    headers.push(("authorization", value));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::signature::query;

    fn signature(call: &Call<'_>, session_token: Option<&str>) -> String {
        let credentials = Credentials {
            access_key: "YourAccessKeyId".into(),
            secret_key: "YourAccessKeySecret".into(),
            session_token: session_token.map(Into::into),
        };
        let (_, value) = headers(call, &credentials).pop().unwrap();
        value.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The example that Aliyun publishes with the description of its signature: keys, nonce, time and result.
    #[test]
    fn published_signature() {
        let pairs = [
            ("RegionId", "cn-shanghai".to_owned()),
            ("ImageId", "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd".to_owned()),
        ];
        let call = Call {
            host: "ecs.cn-shanghai.aliyuncs.com",
            action: "RunInstances",
            version: "2014-05-26",
            query: &query(&pairs),
            nonce: "3156853299f313e23d1673dc12e1703d",
            now: "2023-10-26T10:22:32Z".parse().unwrap(),
        };
        assert_eq!(
            signature(&call, None),
            "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    /// Computed apart from this code with Python's `hashlib` and `hmac`: a token, and characters that are encoded.
    #[test]
    fn signature_with_a_token() {
        let pairs = [
            ("DomainName", "example.com".to_owned()),
            ("RR", "@".to_owned()),
            ("Type", "AAAA".to_owned()),
            ("Value", "2001:db8::1".to_owned()),
            ("TTL", "600".to_owned()),
        ];
        let call = Call {
            host: "alidns.aliyuncs.com",
            action: "AddDomainRecord",
            version: "2015-01-09",
            query: &query(&pairs),
            nonce: "0123456789abcdef",
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        assert_eq!(
            signature(&call, Some("token/+=")),
            "ff7f19640d693f72bb7ca922711aa48a8a0e399f6248e255d3bab251a613f3dc"
        );
    }
}
