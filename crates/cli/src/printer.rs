//! The only writer of stdout (data) and stderr (talk). Colour never carries meaning by itself.

use crate::exit::CliError;
use clap::ValueEnum;
use serde::Serialize;
use std::io::{IsTerminal, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug)]
pub struct Printer {
    pub json: bool,
    pub colored: bool,
    /// stdout is a terminal, and a live view may be drawn on it.
    pub live: bool,
}

pub mod style {
    use anstyle::{AnsiColor, Style};
    pub const GOOD: Style = AnsiColor::Green.on_default();
    pub const BAD: Style = AnsiColor::Red.on_default().bold();
    pub const WARN: Style = AnsiColor::Yellow.on_default();
    pub const HINT: Style = AnsiColor::Cyan.on_default();
    pub const DIM: Style = Style::new().dimmed();
    pub const BOLD: Style = Style::new().bold();
}

impl Printer {
    pub fn new(json: bool, color: Color) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && wanted,
        };
        Self { json, colored, live: terminal && wanted && !json }
    }

    /// A line of data.
    pub fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A reader that went away (`rehome runs | head -1`) is not our failure.
        let _ = if self.colored {
            writeln!(out, "{text}")
        } else {
            writeln!(out, "{}", anstream::adapter::strip_str(text))
        };
        let _ = out.flush();
    }

    /// One JSON document or one line of a JSON stream.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => {
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "{text}");
                let _ = out.flush();
            }
            Err(error) => self.talk(&format!("warning: cannot show as JSON: {error}")),
        }
    }

    /// A line of talk.
    pub fn talk(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let colored = self.colored && std::io::stderr().is_terminal();
        let _ = if colored {
            writeln!(err, "{text}")
        } else {
            writeln!(err, "{}", anstream::adapter::strip_str(text))
        };
    }

    pub fn hint(&self, text: &str) {
        self.talk(&format!("{}hint:{} {text}", style::HINT, style::HINT.render_reset()));
    }

    pub fn warning(&self, text: &str) {
        self.talk(&format!("{}warning:{} {text}", style::WARN, style::WARN.render_reset()));
    }

    pub fn error(&self, error: &CliError) {
        if self.json {
            self.json(&serde_json::json!({
                "type": "error", "exit_code": error.exit.code(), "message": error.text, "hints": error.hints,
            }));
        }
        if error.rendered {
            self.talk(&error.text);
        } else {
            self.talk(&format!("{}error:{} {}", style::BAD, style::BAD.render_reset(), error.text));
        }
        for hint in &error.hints {
            self.hint(hint);
        }
    }

    /// Asks a question that must be answered with `yes`. Without a terminal nothing is asked and the answer is no.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        let refused = |text: &str| CliError::new(crate::exit::Exit::Confirmation, text);
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(refused(
                "a confirmation is needed and there is no terminal to ask on; nothing changed",
            )
            .hint("look at what it will do, then add `--yes`"));
        }
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "{question} Type `yes` to go on: ");
        let _ = err.flush();
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        if read.is_ok() && answer.trim() == "yes" {
            Ok(())
        } else {
            Err(refused("not confirmed; nothing changed"))
        }
    }
}

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `12.3 MiB`
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 || unit == "TiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit always returns")
}

/// `340 ms`, `12.4 s`, `3 min 20 s`, `5 h 12 min`
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s.max(0.0) * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        _ if whole < 3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ if whole < 172_800 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_like_a_person_writes_them() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(12 * 1024 * 1024 + 300 * 1024), "12.3 MiB");
        assert_eq!(span(0.34), "340 ms");
        assert_eq!(span(12.44), "12.4 s");
        assert_eq!(span(200.0), "3 min 20 s");
        assert_eq!(span(18_720.0), "5 h 12 min");
    }
}
