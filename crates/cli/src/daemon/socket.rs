//! The run's unix socket: 0600 in a 0700 folder, a secret in the first line, short lines, few connections. Gateways ask here for
//! the decision, commands give their orders here.

use super::wire::{Order, Reply};
use crate::exit::{CliError, with_path};
use crate::paths::reachable_socket;
use async_trait::async_trait;
use rehome_gateway::control::{self, Answer, Hello, Question, Refusal};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Who answers on the socket.
#[async_trait]
pub trait Answering: Send + Sync + 'static {
    async fn question(&self, question: Question) -> Answer;
    async fn order(&self, order: Order) -> Reply;
}

const CONNECTIONS: usize = 64;
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
const IDLE_DEADLINE: Duration = Duration::from_secs(600);
const MAX_LINE: u64 = 64 << 10;

/// Listens until `stop` fires. A socket file left by a dead process is replaced; one that answers belongs to a living engine.
pub async fn listen(
    path: &Path,
    secret: String,
    who: Arc<dyn Answering>,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let (short, _folder) = reachable_socket(path).map_err(with_path(path))?;
    if UnixStream::connect(&short).await.is_ok() {
        return Err(CliError::failed(format!("another process answers on {}", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(with_path(path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&short).map_err(with_path(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(with_path(path))?;
    let path = path.to_owned();
    tokio::spawn(async move {
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors: give the others a moment to finish.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else { continue };
            let (secret, who) = (secret.clone(), Arc::clone(&who));
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &secret, who.as_ref()).await {
                    tracing::debug!("control connection ended: {error}");
                }
                drop(seat);
            });
        }
        // Whoever comes next must not find a socket that nobody answers.
        let _ = std::fs::remove_file(&path);
    });
    Ok(())
}

async fn line(stream: &mut BufReader<UnixStream>, deadline: Duration) -> std::io::Result<Option<String>> {
    let mut text = Vec::new();
    let mut limited = (&mut *stream).take(MAX_LINE);
    let read = tokio::time::timeout(deadline, limited.read_until(b'\n', &mut text)).await??;
    if read == 0 {
        return Ok(None);
    }
    if text.last() != Some(&b'\n') {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "line too long or torn"));
    }
    String::from_utf8(text)
        .map(Some)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

async fn say(stream: &mut BufReader<UnixStream>, value: &impl serde::Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await
}

async fn converse(stream: UnixStream, secret: &str, who: &dyn Answering) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let hello: Option<Hello> =
        line(&mut stream, HELLO_DEADLINE).await?.and_then(|text| serde_json::from_str(&text).ok());
    let refusal = match &hello {
        Some(hello) if hello.version != control::VERSION => {
            Some((Refusal::BadVersion, "another version of the protocol"))
        }
        // blake3's comparison takes the same time wherever the difference is.
        Some(hello) if blake3::hash(hello.secret.as_bytes()) == blake3::hash(secret.as_bytes()) => None,
        _ => Some((Refusal::BadSecret, "wrong secret")),
    };
    if let Some((why, text)) = refusal {
        return say(&mut stream, &Answer::Refused { why, text: text.into() }).await;
    }
    while let Some(text) = line(&mut stream, IDLE_DEADLINE).await? {
        if let Ok(question) = serde_json::from_str::<Question>(&text) {
            let answer = who.question(question).await;
            say(&mut stream, &answer).await?;
        } else {
            let reply = match serde_json::from_str::<Order>(&text) {
                Ok(order) => who.order(order).await,
                Err(error) => Reply::Refused {
                    exit_code: 2,
                    text: format!("not understood: {error}"),
                    hints: Vec::new(),
                },
            };
            say(&mut stream, &reply).await?;
        }
    }
    Ok(())
}
