//! What the signatures of the vendors are made of: HMAC, SHA-256, hexadecimal, percent-encoding, and the keys they take.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};

/// Who signs. Nothing of it is shown.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    /// Of temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

pub(crate) fn hmac_sha256(key: &[u8], text: &str) -> [u8; 32] {
    let mut hash = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    hash.update(text.as_bytes());
    hash.finalize().into_bytes().into()
}

pub(crate) fn sha256_hex(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Every byte but letters, digits, `-`, `.`, `_`, `~` (RFC 3986).
pub(crate) fn encoded(raw: &str) -> String {
    raw.bytes().fold(String::with_capacity(raw.len()), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte))
            }
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        text
    })
}

/// Sorted and encoded, as it is signed and as it is sent.
pub(crate) fn query(pairs: &[(&str, String)]) -> String {
    let mut all: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    all.sort();
    all.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_sorted_and_encoded_byte_by_byte() {
        let pairs = [("name", "a b/ü".to_owned()), ("RR", "@".to_owned()), ("maxitems", "1".to_owned())];
        assert_eq!(query(&pairs), "RR=%40&maxitems=1&name=a%20b%2F%C3%BC");
    }
}
