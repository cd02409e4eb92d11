//! Tencent's signature, version 3 (TC3-HMAC-SHA256), of a POST with a JSON body.

use crate::dns::signature::{Credentials, hex, hmac_sha256, sha256_hex};
use jiff::Timestamp;

pub(super) const CONTENT_TYPE: &str = "application/json; charset=utf-8";

/// The value of `authorization`; signed are `content-type` and `host`.
pub(super) fn authorization(
    host: &str,
    service: &str,
    payload: &[u8],
    now: Timestamp,
    credentials: &Credentials,
) -> String {
    const NAMES: &str = "content-type;host";
    let lines = format!("content-type:{CONTENT_TYPE}\nhost:{host}\n");
    let canonical = format!("POST\n/\n\n{lines}\n{NAMES}\n{}", sha256_hex(payload));
    let day = now.strftime("%Y-%m-%d").to_string();
    let scope = format!("{day}/{service}/tc3_request");
    let text = format!("TC3-HMAC-SHA256\n{}\n{scope}\n{}", now.as_second(), sha256_hex(canonical.as_bytes()));
    let first = hmac_sha256(format!("TC3{}", credentials.secret_key).as_bytes(), &day);
    let key = [service, "tc3_request"].iter().fold(first, |key, step| hmac_sha256(&key, step));
    let signature = hex(&hmac_sha256(&key, &text));
    let id = &credentials.access_key;
    format!("TC3-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={NAMES}, Signature={signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            access_key: "AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE".into(),
            secret_key: "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE".into(),
            session_token: None,
        }
    }

    /// The example that Tencent publishes with the description of its signature.
    #[test]
    fn published_signature() {
        let payload =
            br#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#;
        let now = Timestamp::from_second(1_551_113_065).unwrap();
        let value = authorization("cvm.tencentcloudapi.com", "cvm", payload, now, &credentials());
        assert_eq!(
            value,
            "TC3-HMAC-SHA256 Credential=AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE/2019-02-25/cvm/tc3_request, \
             SignedHeaders=content-type;host, \
             Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
        );
    }

    /// Computed apart from this code with Python's `hashlib` and `hmac`.
    #[test]
    fn signature_for_dnspod() {
        let payload = r#"{"Domain":"example.com","RecordLine":"默认"}"#;
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let value =
            authorization("dnspod.tencentcloudapi.com", "dnspod", payload.as_bytes(), now, &credentials());
        assert!(
            value.ends_with("Signature=f09df37504bea92944303d9cd55bd8ce71c02fa243a66c5eb679955ebbf6abea"),
            "{value}"
        );
    }
}
