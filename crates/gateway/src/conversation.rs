//! One conversation on the control socket, line by line: who may speak, what was asked, what is answered. Bounds every line and
//! every silence; knows neither sockets nor what a request does.

use crate::client::read_line;
use crate::control::{Hello, Refusal, Request, Response, VERSION};
use crate::grant::Refused;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

const GREETING: Duration = Duration::from_secs(5);
/// A caller that says nothing for so long is sent away; a client connects again by itself.
const IDLE: Duration = Duration::from_secs(300);
const SEND: Duration = Duration::from_secs(5);

/// Speaks with one caller until it leaves: the greeting, then each request is handed to `handle` and answered. `stream` is the
/// control socket's, or bytes in memory: the fuzz target `control_protocol` speaks here without a network.
///
/// # Errors
/// The stream broke, or the caller took too long. What a caller says wrongly is answered, not an error.
pub async fn converse<S, F, A>(stream: S, secret: &str, handle: F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    let mut connection = BufReader::new(stream);
    let Some(line) = timed(GREETING, read_line(&mut connection)).await? else { return Ok(()) };
    let who = match greet(&line, secret) {
        Ok(who) => who,
        Err((why, text)) => {
            tracing::warn!(?why, "a greeting on the control socket was refused");
            return answer(&mut connection, &Response::Refused { why, text }).await;
        }
    };
    tracing::debug!(who, "control connection");
    answer(&mut connection, &Response::Done).await?;
    loop {
        let line = match timed(IDLE, read_line(&mut connection)).await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let text = error.to_string();
                return answer(&mut connection, &Response::Refused { why: Refusal::BadRequest, text }).await;
            }
            Err(error) => return Err(error),
        };
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => handle(request).await,
            Err(error) => Response::Refused { why: Refusal::BadRequest, text: shorten(&error) },
        };
        if let Response::Refused { why, text } = &response {
            tracing::info!(who, ?why, text, "refused");
        }
        answer(&mut connection, &response).await?;
    }
}

async fn timed<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut BufReader<S>,
    response: &Response,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    let stream = connection.get_mut();
    timed(SEND, async {
        stream.write_all(&line).await?;
        stream.flush().await
    })
    .await
}

/// The caller's name, shortened.
fn greet(line: &[u8], secret: &str) -> Result<String, Refused> {
    let hello: Hello = serde_json::from_slice(line).map_err(|error| {
        (Refusal::BadRequest, format!("the first line is not a greeting: {}", shorten(&error)))
    })?;
    if hello.version != VERSION {
        let text = format!("version {} was offered, this gateway speaks {VERSION}", hello.version);
        return Err((Refusal::BadVersion, text));
    }
    if !is_same(hello.secret.as_bytes(), secret.as_bytes()) {
        return Err((Refusal::BadSecret, "the secret is not the gateway's".into()));
    }
    Ok(hello.who.chars().filter(|c| !c.is_control()).take(80).collect())
}

/// The parser quotes what it did not expect, which may be as long as a line; the answer must fit into one.
fn shorten(error: &serde_json::Error) -> String {
    error.to_string().chars().take(300).collect()
}

/// Takes the same time wherever the difference is.
fn is_same(offered: &[u8], secret: &[u8]) -> bool {
    let mut difference = offered.len() ^ secret.len();
    for (index, byte) in secret.iter().enumerate() {
        let other = offered.get(index).copied().unwrap_or(0);
        difference |= usize::from(std::hint::black_box(byte ^ other));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(secret: &str, version: u32) -> Vec<u8> {
        serde_json::to_vec(&Hello { version, secret: secret.into(), who: "engine\n\u{7}1".into() }).unwrap()
    }

    #[test]
    fn only_the_secret_and_this_version_are_welcome() {
        assert_eq!(greet(&hello("s3cret", VERSION), "s3cret").unwrap(), "engine1");
        for wrong in ["", "s3cre", "s3cret1", "S3cret", "s3creT"] {
            assert_eq!(greet(&hello(wrong, VERSION), "s3cret").unwrap_err().0, Refusal::BadSecret);
        }
        assert_eq!(greet(&hello("s3cret", VERSION + 1), "s3cret").unwrap_err().0, Refusal::BadVersion);
        assert_eq!(greet(b"{}", "s3cret").unwrap_err().0, Refusal::BadRequest);
    }

    #[tokio::test]
    async fn a_long_mistake_is_not_quoted_at_length() {
        let greeting = String::from_utf8(hello("s3cret", VERSION)).unwrap();
        let word = "\\u0007".repeat(100_000);
        let lines = format!("{greeting}\n{{\"do\":\"{word}\"}}\n");
        let mut said = Vec::new();
        let spoken =
            converse(tokio::io::join(lines.as_bytes(), &mut said), "s3cret", async |_| Response::Done);
        spoken.await.unwrap();
        assert_eq!(said.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(said.len() < 4_000, "{}", said.len());
    }

    proptest! {
        #[test]
        fn nonsense_is_never_welcome(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(greet(&line, "s3cret").is_err());
        }
    }
}
