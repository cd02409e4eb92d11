//! "They ask": while the lease is over and the decision is unknown, this asks every socket that the engine named, about ten
//! times a second, until somebody says who owns the next epoch. Never concludes anything from silence.

use crate::client::say;
use crate::control::{Answer, Hello, Question, VERSION};
use crate::core::{Asking, Core};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// How often the lease is looked at, and the first pause between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs for the life of the gateway.
pub(crate) async fn ask_when_in_doubt(core: Arc<Core>) {
    let mut pause = PAUSE;
    loop {
        match core.question().await {
            Some(asking) if ask_everybody(&core, &asking).await => pause = PAUSE,
            Some(_) => pause = (pause * 5 / 4).min(LONGEST_PAUSE),
            None => pause = PAUSE,
        }
        tokio::time::sleep(pause).await;
    }
}

/// True when the decision came.
async fn ask_everybody(core: &Core, asking: &Asking) -> bool {
    for socket in &asking.sockets {
        let answer = tokio::time::timeout(PATIENCE, ask(core, asking, socket)).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Answer::Settled { epoch, owner, token }) => match core.settle(epoch, owner, token).await {
                Ok(()) => return true,
                Err((why, text)) => tracing::warn!(?why, text, "the decision that was told is not accepted"),
            },
            Ok(Answer::Undecided) => {}
            Ok(Answer::Refused { why, text }) => {
                tracing::warn!(?why, text, ?socket, "the question was refused")
            }
            Err(error) => tracing::debug!(%error, ?socket, "nobody to ask"),
        }
    }
    false
}

async fn ask(core: &Core, asking: &Asking, socket: &Path) -> io::Result<Answer> {
    let mut connection = BufReader::new(UnixStream::connect(socket).await?);
    let hello = Hello {
        version: VERSION,
        secret: asking.secret.clone(),
        who: format!("gateway {} pid {}", core.name, std::process::id()),
    };
    let mut hello = serde_json::to_vec(&hello)?;
    hello.push(b'\n');
    connection.write_all(&hello).await?;
    let mut question =
        serde_json::to_vec(&Question::Decision { run: asking.run.clone(), epoch: asking.epoch })?;
    question.push(b'\n');
    Ok(serde_json::from_slice(&say(&mut connection, &question).await?)?)
}
