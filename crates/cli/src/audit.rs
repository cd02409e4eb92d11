//! One line per command, appended to `audit.jsonl` beside the runs: who, when, what, and how it ended. No secret can be in
//! it, because no argument ever is one.

use crate::paths;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Who gives the commands: the user's name as the system knows it, and the machine's.
pub fn actor() -> String {
    let user = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}")
}

/// Appends one line; a full or read-only disk must not stop a command, so failing here is a warning in the log only.
pub fn record(home: &Path, word: &str, exit_code: u8) {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let line = json!({
        "at": jiff::Timestamp::now().to_string(), "actor": actor(), "pid": std::process::id(),
        "command": word, "arguments": arguments, "exit_code": exit_code,
    });
    let appended = paths::private_folder(home).map_err(|error| error.text).and_then(|()| {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(home.join("audit.jsonl"))
            .map_err(|error| error.to_string())?;
        // One write call per line: lines of two processes do not mix.
        file.write_all(format!("{line}\n").as_bytes()).map_err(|error| error.to_string())
    });
    if let Err(error) = appended {
        tracing::warn!("no audit line written: {error}");
    }
}
