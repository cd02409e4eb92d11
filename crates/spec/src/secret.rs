//! Secrets by reference: looked up the moment somebody asks for that one, never cached, never shown.
//! No error and no `Debug` form holds a secret, nor what a program printed.

use crate::Secret;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A secret longer than this is none.
const MAX_BYTES: u64 = 64 << 10;
/// How long a program may take to tell a secret.
const PROGRAM_TIME: Duration = Duration::from_secs(10);
/// How often a program that closed its output is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// A secret itself. It has no `Display`, and its `Debug` form is a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// The secret, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// Why a secret cannot be had. The texts name the reference, never the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The reference itself is wrong; nothing was looked up.
    #[error("{0}")]
    BadReference(String),
    #[error("the environment variable {0} is not set")]
    NotSet(String),
    #[error("cannot read the secret file {path}: {why}")]
    Unreadable { path: String, why: String },
    #[error("cannot get a secret from `{program}`: {why}")]
    Program { program: String, why: String },
    /// It is there, and it is empty, too long, not text, or more than one line.
    #[error("the secret in {reference} {why}")]
    Unfit { reference: String, why: &'static str },
}

/// What [`Secret::check`] learned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretCheck {
    /// It can be had, but something about it should be mended.
    pub warning: Option<String>,
}

enum Reference<'a> {
    Variable(&'a str),
    File(&'a str),
    Program(Vec<String>),
}

/// Is this a well-formed reference? Nothing is looked up.
pub(crate) fn check_reference(text: &str) -> Result<(), String> {
    reference(text).map(drop)
}

fn reference(text: &str) -> Result<Reference<'_>, String> {
    if let Some(name) = text.strip_prefix("env:") {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        return match name {
            "" => Err("`env:` names no variable".into()),
            // What stands here may be the secret itself, so it is not shown.
            name if !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) => {
                Err("what follows `env:` is not the name of a variable".into())
            }
            name => Ok(Reference::Variable(name)),
        };
    }
    if let Some(path) = text.strip_prefix("file:") {
        return match path {
            "" => Err("`file:` names no file".into()),
            path if path.starts_with("~") => Err("`~` is not expanded here: write the whole path".into()),
            path if path.contains('\0') => Err("a path cannot hold a zero byte".into()),
            path => Ok(Reference::File(path)),
        };
    }
    if let Some(command) = text.strip_prefix("cmd:") {
        let words = split(command)?;
        return match words.first().map(String::as_str) {
            None | Some("") => Err("`cmd:` names no program".into()),
            Some(_) => Ok(Reference::Program(words)),
        };
    }
    Err("this is no reference to a secret".into())
}

/// Words as a shell would split them, and nothing else a shell does: quotes and `\` only.
fn split(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match c {
            '\0' => return Err("a command cannot hold a zero byte".into()),
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        None => return Err("a quote in the command is not closed".into()),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => text.extend(characters.next()),
                        Some(inside) => text.push(inside),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

impl Secret {
    /// Looks the secret up: reads the variable or file, or runs the program (without a shell, for at most 10 s).
    /// Blocks; a line end after the secret is not part of it.
    ///
    /// # Errors
    /// When the reference is wrong or there is no such secret; the text never holds the secret.
    pub fn resolve(&self) -> Result<SecretText, SecretError> {
        match reference(&self.0).map_err(SecretError::BadReference)? {
            Reference::Variable(name) => match std::env::var_os(name) {
                None => Err(SecretError::NotSet(name.to_owned())),
                Some(value) => fit(value.into_encoded_bytes(), format!("the variable {name}")),
            },
            Reference::File(path) => fit(read_file(path)?, format!("the file {path}")),
            Reference::Program(words) => {
                let name = words[0].clone();
                fit(run(&words, PROGRAM_TIME)?, format!("the output of `{name}`"))
            }
        }
    }

    /// Can it be had? Looks it up, forgets it, and says what should be mended.
    ///
    /// # Errors
    /// As [`Secret::resolve`].
    pub fn check(&self) -> Result<SecretCheck, SecretError> {
        self.resolve()?;
        let Ok(Reference::File(path)) = reference(&self.0) else { return Ok(SecretCheck::default()) };
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.mode() & 0o777);
        let warning = (mode & 0o077 != 0)
            .then(|| format!("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`"));
        Ok(SecretCheck { warning })
    }
}

fn fit(bytes: Vec<u8>, reference: String) -> Result<SecretText, SecretError> {
    let unfit = |why| Err(SecretError::Unfit { reference: reference.clone(), why });
    if bytes.len() as u64 > MAX_BYTES {
        return unfit("is longer than 64 KiB");
    }
    let Ok(text) = String::from_utf8(bytes) else { return unfit("is not UTF-8 text") };
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.trim().is_empty() {
        return unfit("is empty");
    }
    // A private key in PEM has lines, and says so in the first.
    let is_pem = text.starts_with("-----BEGIN ");
    if text.contains(|c: char| c.is_control() && !(is_pem && matches!(c, '\n' | '\r'))) {
        return unfit("is more than one line, or holds control characters");
    }
    Ok(SecretText(text.to_owned()))
}

fn read_file(path: &str) -> Result<Vec<u8>, SecretError> {
    let failed = |why: String| SecretError::Unreadable { path: path.to_owned(), why };
    // A pipe nobody writes to would block the opening for ever.
    let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("it is not a regular file".into()));
    }
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    Ok(bytes)
}

/// Runs a program in a process group of its own and gives its output; ends all of the group at the time limit.
fn run(words: &[String], limit: Duration) -> Result<Vec<u8>, SecretError> {
    let failed = |why: String| SecretError::Program { program: words[0].clone(), why };
    let deadline = Instant::now() + limit;
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let output = read_until(&mut child, deadline);
    let ended = output.is_some() && wait_until(&mut child, deadline);
    if !ended {
        kill_group(&child);
    }
    // Killed or ended: it is reaped here in any case.
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    match (ended, status.success(), output) {
        (true, true, Some(bytes)) => Ok(bytes),
        (true, ..) => Err(failed(format!("it failed ({status}); run it by hand to see why"))),
        (false, ..) => Err(failed(format!("it did not end within {} s", limit.as_secs_f64()))),
    }
}

/// All output up to the size limit; `None` when the output is still open at the deadline.
fn read_until(child: &mut Child, deadline: Instant) -> Option<Vec<u8>> {
    let stdout = child.stdout.take()?;
    let (send, receive) = mpsc::channel();
    // Ends with the program's output, at the latest when its group was killed.
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = stdout.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        let _ = send.send(result.map(|_| bytes));
    });
    receive.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?.ok()
}

fn wait_until(child: &mut Child, deadline: Instant) -> bool {
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) | Err(_) => return false,
        }
    }
}

fn kill_group(child: &Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        // It may have ended in between; there is nothing left to do then.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(text: &str) -> Secret {
        Secret(text.into())
    }

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let words = |text| split(text).map(|words| words.join("|"));
        assert_eq!(
            words("pass show 'my key' \"a \\\"b\\\"\" c\\ d"),
            Ok("pass|show|my key|a \"b\"|c d".into())
        );
        assert_eq!(words("  a   '' b "), Ok("a||b".into()));
        assert_eq!(words("a $HOME;b|c"), Ok("a|$HOME;b|c".into()));
        assert!(split("a 'b").is_err());
    }

    #[test]
    fn a_variable_is_read_and_a_missing_one_named() {
        assert_eq!(
            secret("env:PATH").resolve().expect("PATH is set").expose(),
            std::env::var("PATH").expect("set")
        );
        let missing = secret("env:REHOME_TEST_NOT_SET").resolve().expect_err("not set");
        assert_eq!(missing.to_string(), "the environment variable REHOME_TEST_NOT_SET is not set");
    }

    #[test]
    fn a_file_loses_its_line_end_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secret");
        for (content, wanted) in [("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), (" a b ", " a b ")] {
            std::fs::write(&path, content).expect("write");
            let found = secret(&format!("file:{}", path.display())).resolve().expect("resolves");
            assert_eq!(found.expose(), wanted);
        }
        let key = "-----BEGIN PRIVATE KEY-----\r\nMC4=\n-----END PRIVATE KEY-----";
        std::fs::write(&path, format!("{key}\n")).unwrap();
        assert_eq!(
            secret(&format!("file:{}", path.display())).resolve().unwrap().expose(),
            key,
            "a key has lines"
        );
        for content in ["", "\n", "two\nlines\n", "bell\u{7}", &"x".repeat(70_000)] {
            std::fs::write(&path, content).expect("write");
            let error = secret(&format!("file:{}", path.display())).resolve().expect_err("unfit");
            assert!(matches!(error, SecretError::Unfit { .. }), "{error}");
        }
        std::fs::write(&path, [0xff, 0xfe]).expect("write");
        assert!(secret(&format!("file:{}", path.display())).resolve().is_err());
        assert!(secret(&format!("file:{}", folder.path().display())).resolve().is_err());
    }

    #[test]
    fn check_warns_of_a_file_that_others_can_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, "hunter2").expect("write");
        let reference = secret(&format!("file:{}", path.display()));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("chmod");
        let warning = reference.check().expect("resolves").warning.expect("warns");
        assert!(warning.contains("0644") && !warning.contains("hunter2"), "{warning}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
        assert_eq!(reference.check(), Ok(SecretCheck::default()));
    }

    #[test]
    fn a_program_tells_a_secret_without_a_shell() {
        assert_eq!(secret("cmd:printf '%s\\n' 'a; b'").resolve().expect("resolves").expose(), "a; b");
        // A program that reads its input gets none.
        assert!(matches!(secret("cmd:cat").resolve(), Err(SecretError::Unfit { .. })));
    }

    #[test]
    fn a_program_that_fails_shows_nothing_of_what_it_said() {
        let error =
            secret("cmd:sh -c 'echo hunter2; echo hunter2 >&2; exit 3'").resolve().expect_err("fails");
        let text = format!("{error} {error:?}");
        assert!(text.contains("exit status: 3") && !text.contains("hunter2"), "{text}");
        assert!(matches!(secret("cmd:/nonexistent/program").resolve(), Err(SecretError::Program { .. })));
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let folder = tempfile::tempdir().expect("folder");
        let pid_file = folder.path().join("pid");
        // The grandchild keeps the output open after its parent is gone.
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let words = ["sh".to_owned(), "-c".to_owned(), script];
        let begun = Instant::now();
        // Long enough for the shell to have written the pid even on a busy machine.
        let error = run(&words, Duration::from_secs(2)).expect_err("ended");
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        let pid = std::fs::read_to_string(&pid_file).expect("pid").trim().to_owned();
        let gone = || {
            // Killed and perhaps not reaped yet: a zombie (`Z`) runs no more.
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the grandchild lives on");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn bad_references_are_told_without_their_text() {
        for text in [
            "hunter2",
            "env:",
            "env:hunter 2",
            "env:2hunter",
            "file:",
            "file:~/hunter2",
            "cmd:",
            "cmd:'hunter2",
            "cmd:''",
        ] {
            let error = secret(text).resolve().expect_err(text);
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
        assert_eq!(format!("{:?}", SecretText("hunter2".into())), "SecretText(…)");
    }
}
