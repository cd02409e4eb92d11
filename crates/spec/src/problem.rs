//! What is wrong with a migration file, and how it is shown: the line, a caret, what to write instead.
//! A problem keeps only the masked line it points at, so that no plain-text secret leaves with it.

mod mask;

use mask::Shown;
pub(crate) use mask::is_reference;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// At most so many problems are shown; the rest is counted.
const SHOWN_PROBLEMS: usize = 30;
/// Of a long line only so many characters around the caret are shown.
const SHOWN_COLUMNS: usize = 110;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The file cannot be used.
    Error,
    /// The file can be used; a person should know.
    Warning,
}

/// One thing found in a migration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub level: Level,
    /// What is wrong, without a full stop.
    pub text: String,
    /// What to do, one line each.
    pub hints: Vec<String>,
    /// Where; `None` when it is about the file as a whole.
    pub at: Option<Spot>,
}

/// A place in the file, with the line to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    shown: String,
    caret: Range<usize>,
}

/// A finding before it is brought to its line.
#[derive(Clone)]
pub(crate) struct Raw {
    pub level: Level,
    pub span: Option<Range<usize>>,
    pub text: String,
    pub hints: Vec<String>,
}

impl Raw {
    pub fn error(span: &Range<usize>, text: impl Into<String>) -> Self {
        Self { level: Level::Error, span: Some(span.clone()), text: text.into(), hints: Vec::new() }
    }

    pub fn warning(span: &Range<usize>, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(span, text) }
    }

    pub fn whole_file(text: impl Into<String>) -> Self {
        Self { level: Level::Error, span: None, text: text.into(), hints: Vec::new() }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub fn place(self, file: &str) -> Problem {
        let at = self.span.map(|span| Spot::find(file, &span));
        Problem { level: self.level, text: self.text, hints: self.hints, at }
    }
}

impl Spot {
    fn find(file: &str, span: &Range<usize>) -> Self {
        let start = floor(file, span.start);
        let end = floor(file, span.end).max(start);
        let before = file.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = file.get(line_start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let line_end = line_start + line.len();
        let column = characters(file, line_start..start);
        let width = characters(file, start..end.min(line_end).max(start)).max(1);
        let Shown { text, caret } = mask::show(before, line, column..column + width, SHOWN_COLUMNS);
        Self { line: before.matches('\n').count() + 1, column: column + 1, shown: text, caret }
    }
}

fn characters(file: &str, range: Range<usize>) -> usize {
    file.get(range).map_or(0, |text| text.chars().count())
}

/// The nearest place at or before `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A migration file that cannot be used: everything that is wrong with it, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    pub(crate) name: String,
    pub(crate) problems: Vec<Problem>,
}

impl SpecError {
    pub(crate) fn one(name: &str, problem: Raw) -> Self {
        Self { name: name.into(), problems: vec![problem.place("")] }
    }

    /// Errors first to last, warnings among them.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// For people, ending with a newline. `color`: with ANSI colours, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let mut out = render(&self.problems, &self.name, color);
        let errors = self.problems.iter().filter(|problem| problem.level == Level::Error).count();
        if errors > 1 {
            let paint = Paint(color);
            out.push_str(&format!("\n{}: {errors} errors in {}\n", paint.level(Level::Error), self.name));
        }
        out
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for SpecError {}

/// Renders problems of the file `name`, with an empty line between them.
pub(crate) fn render(problems: &[Problem], name: &str, color: bool) -> String {
    let mut out = String::new();
    for (index, problem) in problems.iter().take(SHOWN_PROBLEMS).enumerate() {
        if index > 0 {
            out.push('\n');
        }
        problem.render_to(&mut out, name, Paint(color));
    }
    if problems.len() > SHOWN_PROBLEMS {
        out.push_str(&format!("\n… and {} more\n", problems.len() - SHOWN_PROBLEMS));
    }
    out
}

impl Problem {
    fn render_to(&self, out: &mut String, name: &str, paint: Paint) {
        out.push_str(&format!("{}{}\n", paint.level(self.level), paint.bold(&format!(": {}", self.text))));
        match &self.at {
            None => out.push_str(&format!("  {} {name}\n", paint.dim("-->"))),
            Some(spot) => spot.render_to(out, name, self.level, paint),
        }
        for hint in &self.hints {
            out.push_str(&format!("{}: {hint}\n", paint.hint()));
        }
    }
}

impl Spot {
    fn render_to(&self, out: &mut String, name: &str, level: Level, paint: Paint) {
        let number = self.line.to_string();
        let gap = " ".repeat(number.len());
        let carets = "^".repeat(self.caret.len().max(1));
        let indent = " ".repeat(self.caret.start);
        let bar = paint.dim("|");
        out.push_str(&format!("{gap}{} {name}:{}:{}\n", paint.dim("-->"), self.line, self.column));
        out.push_str(&format!("{gap} {bar}\n"));
        out.push_str(&format!("{} {bar} {}\n", paint.dim(&number), self.shown));
        out.push_str(&format!("{gap} {bar} {indent}{}\n", paint.at(level, &carets)));
    }
}

/// Colours, or none.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn level(self, level: Level) -> String {
        match level {
            Level::Error => self.with("1;31", "error"),
            Level::Warning => self.with("1;33", "warning"),
        }
    }

    fn at(self, level: Level, text: &str) -> String {
        self.with(if level == Level::Error { "1;31" } else { "1;33" }, text)
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("34", text)
    }

    fn hint(self) -> String {
        self.with("1;36", "hint")
    }
}

/// A value of the user's inside a message: no control characters, no password of an address, not endless.
pub(crate) fn quote(text: &str) -> String {
    let covered = mask::without_password(text);
    let mut quoted: String = covered.chars().take(60).map(mask::visible).collect();
    if covered.chars().nth(60).is_some() {
        quoted.push('…');
    }
    quoted
}

/// How a path is named in messages.
pub(crate) fn name_of(path: &Path) -> String {
    path.display().to_string().chars().map(mask::visible).collect()
}
