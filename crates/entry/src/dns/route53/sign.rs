//! AWS Signature Version 4 for Route 53: one region for the whole world (or for China), the payload always signed.

use crate::dns::signature::{Credentials, hex, hmac_sha256, sha256_hex};
use jiff::Timestamp;

pub(super) struct Call<'a> {
    pub method: &'a str,
    pub host: &'a str,
    /// Nothing in it needs encoding.
    pub path: &'a str,
    /// Sorted and encoded.
    pub query: &'a str,
    pub payload: &'a [u8],
    pub region: &'a str,
    pub now: Timestamp,
}

/// The headers to send; `host` is among the signed ones and not among these.
pub(super) fn headers(call: &Call<'_>, credentials: &Credentials) -> Vec<(&'static str, String)> {
    let time = call.now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = call.now.strftime("%Y%m%d").to_string();
    let mut headers = vec![("x-amz-date", time.clone())];
    if let Some(token) = &credentials.session_token {
        headers.push(("x-amz-security-token", token.clone()));
    }
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = format!("host;{}", names.join(";"));
    let Call { method, host, path, query, .. } = call;
    let payload = sha256_hex(call.payload);
    let canonical = format!("{method}\n{path}\n{query}\nhost:{host}\n{lines}\n{names}\n{payload}");
    let scope = format!("{day}/{}/route53/aws4_request", call.region);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
    let first = hmac_sha256(format!("AWS4{}", credentials.secret_key).as_bytes(), &day);
    let key =
        [call.region, "route53", "aws4_request"].iter().fold(first, |key, step| hmac_sha256(&key, step));
    let signature = hex(&hmac_sha256(&key, &text));
    let id = &credentials.access_key;
    let value =
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    headers.push(("authorization", value));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::signature::query;

    /// Against what botocore 1.44 signs for the same requests at the same second.
    #[test]
    fn signatures_of_botocore() {
        let path = "/2013-04-01/hostedzone/Z123/rrset";
        let by_name = [("name", "shop.example.com".to_owned()), ("maxitems", "100".to_owned())];
        let mut next_page = by_name.to_vec();
        next_page.extend([("type", "A".to_owned()), ("identifier", "blue / green".to_owned())]);
        for (method, query, payload, token, signature) in [
            (
                "GET",
                query(&by_name),
                "",
                None,
                "19df4ae257ab9858c07e61a9d9270a5155bc39c5d9505d42f7b515d86b797842",
            ),
            (
                "POST",
                String::new(),
                "<a/>",
                Some("token/+="),
                "6aba8404f58d94fa08d9c39e4ce9652c060ee4fcde9a386b5786d11f5df82486",
            ),
            (
                "GET",
                query(&next_page),
                "",
                None,
                "ed0d8f545f6d4d84ece93842ed33e9458e32256748dd8761c451f0def78f3f38",
            ),
        ] {
            let credentials = Credentials {
                access_key: "AKIDEXAMPLE".into(),
                secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
                session_token: token.map(Into::into),
            };
            let call = Call {
                method,
                host: "route53.amazonaws.com",
                path,
                query: &query,
                payload: payload.as_bytes(),
                region: "us-east-1",
                now: "2026-01-02T03:04:05Z".parse().unwrap(),
            };
            let (_, value) = headers(&call, &credentials).pop().unwrap();
            assert_eq!(value.rsplit_once("Signature=").unwrap().1, signature, "{query}");
        }
    }
}
