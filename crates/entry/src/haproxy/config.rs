//! HAProxy's configuration as sections, lines and words with their places: quotes, escapes, comments. It decides nothing about
//! their meaning and never changes a byte.

use crate::EntryError;
use crate::files::{self, FileChange, Original};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_FILES: usize = 500;

const SECTIONS: [&str; 18] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "program",
    "ring",
    "mailers",
    "http-errors",
    "cache",
    "fcgi-app",
    "log-forward",
    "crt-store",
    "traces",
    "namespace_list",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub span: Range<usize>,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub file: usize,
    pub words: Vec<Word>,
    /// Without its end.
    pub span: Range<usize>,
}

impl Line {
    pub fn word(&self, number: usize) -> &str {
        self.words.get(number).map_or("", |word| word.text.as_str())
    }

    pub fn texts(&self) -> Vec<&str> {
        self.words.iter().map(|word| word.text.as_str()).collect()
    }

    /// Does the line begin with these words?
    pub fn begins(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(number, word)| self.word(number) == *word)
    }

    /// Where a word stands after the first `from`.
    pub fn find(&self, from: usize, text: &str) -> Option<usize> {
        (from..self.words.len()).find(|number| self.word(*number) == text)
    }
}

#[derive(Debug, Clone)]
pub struct Section {
    pub head: Line,
    pub lines: Vec<Line>,
    /// The `defaults` section in force, as its number.
    pub defaults: Option<usize>,
}

impl Section {
    pub fn kind(&self) -> &str {
        self.head.word(0)
    }

    pub fn name(&self) -> &str {
        self.head.word(1)
    }

    pub fn has_servers(&self) -> bool {
        matches!(self.kind(), "backend" | "listen")
    }

    pub fn has_binds(&self) -> bool {
        matches!(self.kind(), "frontend" | "listen")
    }

    /// `server NAME ADDRESS …`
    pub fn servers(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.word(0) == "server" && line.words.len() > 2)
    }
}

#[derive(Debug)]
pub struct Config {
    pub files: Vec<Original>,
    pub sections: Vec<Section>,
    /// Lines of `.if` and its kin: what they hold may or may not be in force.
    pub conditions: Vec<Line>,
}

impl Config {
    /// Reads files, and of folders their `*.cfg`, in the order in which HAProxy does.
    ///
    /// # Errors
    /// When a file cannot be read or a quote is not closed.
    pub fn read(paths: &[PathBuf], changes: &[FileChange]) -> Result<Self, EntryError> {
        let mut config = Self { files: Vec::new(), sections: Vec::new(), conditions: Vec::new() };
        for path in all_files(paths)? {
            let mut original = files::read(&path)?;
            if let Some(change) = changes.iter().find(|change| change.path == original.real) {
                original.bytes.clone_from(&change.after);
            }
            let number = config.files.len();
            config.parse(number, &original)?;
            config.files.push(original);
        }
        config.find_defaults();
        Ok(config)
    }

    fn parse(&mut self, file: usize, original: &Original) -> Result<(), EntryError> {
        let mut at = 0;
        for raw in original.bytes.split(|byte| *byte == b'\n') {
            let length = raw.strip_suffix(b"\r").unwrap_or(raw).len();
            let span = at..at + length;
            at += raw.len() + 1;
            let words = words(raw.get(..length).unwrap_or_default(), span.start).map_err(|what| {
                let place = place(original, span.start);
                EntryError::unfit(format!("{place}: {what}"), "see what `haproxy -c` says of it")
            })?;
            let line = Line { file, words, span };
            match line.word(0) {
                "" => {}
                first if first.starts_with('.') => self.conditions.push(line),
                first if SECTIONS.contains(&first) => {
                    self.sections.push(Section { head: line, lines: Vec::new(), defaults: None });
                }
                _ => match self.sections.last_mut() {
                    Some(section) => section.lines.push(line),
                    None => {
                        let place = place(original, line.span.start);
                        let what = format!("{place}: `{}` stands in no section", line.word(0));
                        return Err(EntryError::unfit(what, "see what `haproxy -c` says of it"));
                    }
                },
            }
        }
        Ok(())
    }

    /// The last one before, or the one that is named by `from`.
    fn find_defaults(&mut self) {
        let mut last = None;
        for number in 0..self.sections.len() {
            let section = &self.sections[number];
            let named = section.head.find(1, "from").map(|at| section.head.word(at + 1).to_owned());
            let found = match named {
                Some(name) => {
                    self.sections.iter().position(|other| other.kind() == "defaults" && other.name() == name)
                }
                None if section.kind() == "defaults" => None,
                None => last,
            };
            if section.kind() == "defaults" {
                last = Some(number);
            }
            self.sections[number].defaults = found;
        }
    }

    pub fn place(&self, line: &Line) -> String {
        self.files.get(line.file).map_or_else(String::new, |file| place(file, line.span.start))
    }

    /// The line that is in force in a section: its own last one, or that of its `defaults`.
    pub fn setting<'c>(&'c self, section: &'c Section, begin: &[&str]) -> Option<&'c Line> {
        let mut section = Some(section);
        for _ in 0..8 {
            let now = section?;
            if let Some(found) = now.lines.iter().rfind(|line| line.begins(begin)) {
                return Some(found);
            }
            section = now.defaults.and_then(|number| self.sections.get(number));
        }
        None
    }

    pub fn global(&self, begin: &[&str]) -> Option<&Line> {
        let sections = self.sections.iter().filter(|section| section.kind() == "global");
        sections.flat_map(|section| &section.lines).rfind(|line| line.begins(begin))
    }
}

fn place(original: &Original, at: usize) -> String {
    let line = original.bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    format!("{}:{line}", original.named.display())
}

pub(super) fn all_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, EntryError> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(files::failed(path))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_config(path))
            .collect();
        inside.sort();
        all.extend(inside);
    }
    match all.len() {
        0 => Err(EntryError::unfit("there is no configuration file", "name it with --config")),
        1..=MAX_FILES => Ok(all),
        _ => Err(EntryError::unfit("the configuration has too many files", "name them with --config")),
    }
}

fn is_config(path: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    !is_hidden && path.is_file() && path.extension().is_some_and(|end| end == "cfg")
}

/// Blanks part words, unless they are quoted or escaped; `#` begins a comment.
fn words(line: &[u8], offset: usize) -> Result<Vec<Word>, &'static str> {
    let mut words = Vec::new();
    let (mut text, mut begin, mut quote) = (Vec::new(), None, None);
    let mut at = 0;
    while let Some(byte) = line.get(at) {
        match (quote, byte) {
            (None, b' ' | b'\t') => {
                if let Some(begin) = begin.take() {
                    words.push(word(&mut text, begin..at, offset));
                }
            }
            (None, b'#') => break,
            (None, b'"' | b'\'') => {
                quote = Some(*byte);
                begin.get_or_insert(at);
            }
            (Some(open), byte) if *byte == open => quote = None,
            (None | Some(b'"'), b'\\') => {
                begin.get_or_insert(at);
                at += 1;
                text.push(line.get(at).copied().unwrap_or(b'\\'));
            }
            (_, byte) => {
                begin.get_or_insert(at);
                text.push(*byte);
            }
        }
        at += 1;
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    if let Some(begin) = begin {
        words.push(word(&mut text, begin..at.min(line.len()), offset));
    }
    Ok(words)
}

fn word(text: &mut Vec<u8>, span: Range<usize>, offset: usize) -> Word {
    let text = String::from_utf8_lossy(&std::mem::take(text)).into_owned();
    Word { text, span: span.start + offset..span.end + offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_the_bytes_are_nothing_breaks(line in "[a-z #\"'\\\\\u{e9}\t]{0,40}") {
            for word in words(line.as_bytes(), 7).unwrap_or_default() {
                prop_assert!(word.span.start >= 7 && word.span.end <= line.len() + 7);
            }
        }
    }

    fn texts(line: &str) -> Vec<String> {
        words(line.as_bytes(), 0).unwrap().into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_are_read_as_haproxy_reads_them() {
        assert_eq!(texts("  server a 1.2.3.4:80 # no"), ["server", "a", "1.2.3.4:80"]);
        assert_eq!(texts("a\\ b 'c # \"d' \"e ${F} \\\" g\"h"), ["a b", "c # \"d", "e ${F} \" gh"]);
        assert_eq!(texts("# all"), Vec::<String>::new());
        assert_eq!(texts("x ''"), ["x", ""]);
        assert!(words(b"a 'b", 0).is_err());
    }

    #[test]
    fn sections_have_their_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("haproxy.cfg");
        let text = "global\n  maxconn 9\ndefaults one\n  timeout server 5s\ndefaults\r\n  timeout server 7s\r\n\
                    backend a from one\n  server s 1.2.3.4:80\nbackend b\n  mode http\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::read(&[path], &[]).unwrap();
        let timeout = |name: &str| {
            let section = config.sections.iter().find(|section| section.name() == name).unwrap();
            config.setting(section, &["timeout", "server"]).unwrap().word(2).to_owned()
        };
        assert_eq!((timeout("a").as_str(), timeout("b").as_str()), ("5s", "7s"));
        let server = config.sections[3].servers().next().unwrap();
        assert_eq!(&text.as_bytes()[server.words[2].span.clone()], b"1.2.3.4:80");
        assert!(config.place(server).ends_with("haproxy.cfg:8"));
    }
}
