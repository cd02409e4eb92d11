//! The server's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding: a client proves that it knows its password. Keeps no
//! password: only what it is checked against.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub(super) const MECHANISM: &str = "SCRAM-SHA-256";
/// Of a client's message.
const MOST: usize = 4_096;

/// What a password is checked against.
#[derive(Clone)]
pub(super) struct Verifier {
    salt: Vec<u8>,
    iterations: u32,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// Takes as long as making one does: some milliseconds.
    pub fn of(password: &str) -> Self {
        // `SCRAM-SHA-256$iterations:salt$stored:server`
        let text = postgres_protocol::password::scram_sha_256(password.as_bytes());
        let mut parts = text.split(['$', ':']).skip(1);
        let mut part = || parts.next().unwrap_or_default();
        let iterations = part().parse().unwrap_or_default();
        let mut bytes = || BASE64.decode(part()).unwrap_or_default();
        Self { salt: bytes(), iterations, stored_key: bytes(), server_key: bytes() }
    }

    /// For a user who does not exist: looks like anybody's, the same at every try, and no password is right.
    pub fn of_nobody(user: &[u8], secret: &[u8]) -> Self {
        let mut salt = sign(secret, user);
        salt.truncate(16);
        Self { salt, iterations: 4_096, stored_key: Vec::new(), server_key: Vec::new() }
    }
}

/// After the first answer.
pub(super) struct Exchange {
    verifier: Verifier,
    /// What the client's last message must repeat of its first.
    header: Vec<u8>,
    nonce: String,
    /// `client-first-message-bare,server-first-message`
    so_far: String,
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Answers the client's first message. `nonce`: our half of it, fresh.
pub(super) fn begin(verifier: Verifier, first: &[u8], nonce: &str) -> Option<(Exchange, String)> {
    let first = std::str::from_utf8(first).ok().filter(|text| text.len() <= MOST)?;
    // No channel binding: `n` does not have it, `y` thinks that we do not. No other identity than its own.
    let bare = first.strip_prefix("n,,").or_else(|| first.strip_prefix("y,,"))?;
    let header = first.strip_suffix(bare)?.as_bytes().to_vec();
    let mut attributes = bare.split(',');
    attributes.next()?.strip_prefix("n=")?;
    let theirs = attributes.next()?.strip_prefix("r=").filter(|nonce| !nonce.is_empty())?;
    let nonce = format!("{theirs}{nonce}");
    let answer = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
    let so_far = format!("{bare},{answer}");
    Some((Exchange { verifier, header, nonce, so_far }, answer))
}

impl Exchange {
    /// Checks the client's last message, and gives the one that proves that we know the password, too. `None`: it does not know it.
    pub fn finish(self, last: &[u8]) -> Option<String> {
        let last = std::str::from_utf8(last).ok().filter(|text| text.len() <= MOST)?;
        let (without_proof, proof) = last.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let repeated = BASE64.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        if repeated != self.header || nonce != self.nonce {
            return None;
        }
        let text = format!("{},{without_proof}", self.so_far);
        let signature = sign(&self.verifier.stored_key, text.as_bytes());
        let proof = BASE64.decode(proof).ok().filter(|proof| proof.len() == signature.len())?;
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(one, other)| one ^ other).collect();
        let is_known = Sha256::digest(&client_key)[..] == self.verifier.stored_key[..];
        is_known.then(|| format!("v={}", BASE64.encode(sign(&self.verifier.server_key, text.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    /// A client of PostgreSQL's own library with this password; true when both sides are content.
    fn comes_in(verifier: Verifier, password: &[u8]) -> bool {
        let mut client = ScramSha256::new(password, ChannelBinding::unsupported());
        let (exchange, answer) = begin(verifier, client.message(), "ours").unwrap();
        client.update(answer.as_bytes()).unwrap();
        let Some(last) = exchange.finish(client.message()) else { return false };
        client.finish(last.as_bytes()).unwrap();
        true
    }

    #[test]
    fn the_right_password_comes_in_and_no_other() {
        let verifier = Verifier::of("correct horse");
        assert!(comes_in(verifier.clone(), b"correct horse"));
        assert!(!comes_in(verifier, b"correct house"));
        assert!(comes_in(Verifier::of("pässwort€"), "pässwort€".as_bytes()));
    }

    proptest::proptest! {
        #[test]
        fn a_guess_never_comes_in(first in "(n|y),,n=[a-z]{0,4},r=[ -~]{0,20}", last in "c=[A-Za-z0-9=]{0,8},r=[ -~]{0,24},p=[A-Za-z0-9+/=]{0,48}") {
            if let Some((exchange, _)) = begin(Verifier::of_nobody(b"x", b"y"), first.as_bytes(), "ours") {
                proptest::prop_assert!(exchange.finish(last.as_bytes()).is_none());
            }
        }
    }

    #[test]
    fn nobody_has_no_password() {
        assert!(!comes_in(Verifier::of_nobody(b"mallory", b"secret"), b""));
        let again = Verifier::of_nobody(b"mallory", b"secret");
        assert_eq!(again.salt, Verifier::of_nobody(b"mallory", b"secret").salt, "a second try looks alike");
    }

    #[test]
    fn what_is_no_message_of_it_is_refused() {
        for first in
            ["", "n,,", "n,,n=,r=", "p=tls-server-end-point,,n=,r=x", "n,a=other,n=,r=x", "n,,m=x,r=y"]
        {
            assert!(begin(Verifier::of("x"), first.as_bytes(), "ours").is_none(), "{first}");
        }
        for last in ["", ",p=", "c=biws,r=xours,p=", "c=biws,r=other,p=AAAA", "c=eSws,r=xours,p=AAAA"] {
            let (exchange, _) = begin(Verifier::of("x"), b"n,,n=,r=x", "ours").unwrap();
            assert!(exchange.finish(last.as_bytes()).is_none(), "{last}");
        }
    }
}
