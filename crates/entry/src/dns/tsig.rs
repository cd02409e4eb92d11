//! The key that a name server and we share, and what a server means when it does not take it. The secret is shown nowhere.

use crate::EntryError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::rr::rdata::tsig::{TSIG, TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, TSigner};
use std::fmt;

/// How far two clocks may be apart, in seconds; the number everybody uses.
const FUDGE: u16 = 300;

#[derive(Clone)]
pub struct Key {
    pub(crate) signer: TSigner,
    name: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Key {
    /// `secret` in base64, as `tsig-keygen` writes it.
    ///
    /// # Errors
    /// When one of the three is not what it should be; the text never holds the secret.
    pub fn new(name: &str, algorithm: &str, secret: &str) -> Result<Self, EntryError> {
        let hint = "take all three from the server's `key` block: name, algorithm, secret";
        let wrong = |what: &str| EntryError::unfit(what, hint);
        let wire = Name::from_ascii(name.trim())
            .ok()
            .filter(|name| !name.is_root() && name.num_labels() > 0)
            .ok_or_else(|| wrong("the name of the TSIG key is no name"))?;
        let algorithm = match algorithm.trim().trim_end_matches('.').to_ascii_lowercase().as_str() {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            _ => return Err(wrong("the TSIG algorithm is none of hmac-sha256, hmac-sha384, hmac-sha512")),
        };
        let bytes = STANDARD
            .decode(secret.trim())
            .ok()
            .filter(|bytes| !bytes.is_empty())
            .ok_or_else(|| wrong("the secret of the TSIG key is not base64"))?;
        let signer =
            TSigner::new(bytes, algorithm, wire, FUDGE).map_err(|_| wrong("the TSIG key cannot be used"))?;
        Ok(Self { signer, name: name.trim().trim_end_matches('.').to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the error in the signature of an answer means; `None` when there is none. `now`: seconds since 1970.
    pub(crate) fn explain(&self, tsig: &TSIG, now: u64) -> Option<String> {
        let name = &self.name;
        Some(match tsig.error? {
            TsigError::BadKey => format!("it has no key `{name}` with this algorithm (BADKEY)"),
            TsigError::BadSig => format!("the secret of the key `{name}` is not the one it has (BADSIG)"),
            TsigError::BadTime => {
                let theirs =
                    tsig.other.iter().fold(0u64, |time, byte| time.wrapping_shl(8) | u64::from(*byte));
                let apart = theirs.abs_diff(now);
                let which = if theirs > now { "behind" } else { "ahead of" };
                format!(
                    "this machine's clock is {apart} s {which} the server's (BADTIME): set it, then try again"
                )
            }
            TsigError::BadTrunc => "it does not take a signature of this length (BADTRUNC)".into(),
            TsigError::Unknown(code) => format!("it does not take the signature (TSIG error {code})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_checked_and_never_shown() {
        let good = Key::new("move.", "hmac-sha256", "aHVudGVyMg==").unwrap();
        assert_eq!(format!("{good:?}"), "Key { name: \"move\", .. }");
        for (name, algorithm, secret) in [
            ("", "hmac-sha256", "aHVudGVyMg=="),
            ("move", "hmac-md5", "aHVudGVyMg=="),
            ("move", "hmac-sha256", "hunter2!"),
            ("move", "hmac-sha256", ""),
        ] {
            let error = Key::new(name, algorithm, secret).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
