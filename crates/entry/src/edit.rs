//! Edits at places in bytes, put together at the end: everything else of a file stays as it is, byte for byte.

use crate::EntryError;
use crate::files::FileChange;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// The edits of one file.
#[derive(Debug, Default)]
pub(crate) struct Edits(BTreeMap<(usize, usize), Vec<String>>);

impl Edits {
    /// Puts `text` in the place of `span`. At an empty span texts gather, each once.
    pub(crate) fn put(&mut self, span: Range<usize>, text: impl Into<String>) {
        let texts = self.0.entry((span.start, span.end)).or_default();
        let text = text.into();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// When two edits want the same bytes for different texts.
    pub(crate) fn apply(&self, path: &Path, bytes: &[u8]) -> Result<FileChange, EntryError> {
        let mut after = Vec::with_capacity(bytes.len() + 1_024);
        let mut at = 0;
        for ((start, end), texts) in &self.0 {
            let between = bytes.get(at..*start);
            let (Some(between), true) = (between, start == end || texts.len() == 1) else {
                return Err(EntryError::unfit(
                    format!("{}: the same words would have to become two things at once", path.display()),
                    "the file is included in places that need different changes; change it by hand",
                ));
            };
            after.extend_from_slice(between);
            texts.iter().for_each(|text| after.extend_from_slice(text.as_bytes()));
            at = *end;
        }
        after.extend_from_slice(bytes.get(at..).unwrap_or_default());
        Ok(FileChange { path: path.to_owned(), before: bytes.to_vec(), after })
    }
}

/// The line around a byte, without its end.
pub(crate) fn line_around(bytes: &[u8], at: usize) -> Range<usize> {
    let before = bytes.get(..at).unwrap_or_default();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |found| found + 1);
    let after = bytes.get(at..).unwrap_or_default();
    let mut end = at + after.iter().position(|byte| *byte == b'\n').unwrap_or(after.len());
    if end > start && bytes.get(end - 1) == Some(&b'\r') && end > at {
        end -= 1;
    }
    start..end
}

/// The blanks at the beginning of a line.
pub(crate) fn indent(bytes: &[u8], line: Range<usize>) -> String {
    let line = bytes.get(line).unwrap_or_default();
    line.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).map(|byte| char::from(*byte)).collect()
}

/// `\r\n` where the file has it.
pub(crate) fn line_end(bytes: &[u8]) -> &'static str {
    let first = bytes.iter().position(|byte| *byte == b'\n');
    if first.is_some_and(|at| at > 0 && bytes.get(at - 1) == Some(&b'\r')) { "\r\n" } else { "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_touch_only_their_bytes() {
        let mut edits = Edits::default();
        edits.put(2..3, "X");
        edits.put(2..3, "X");
        edits.put(5..5, "!");
        edits.put(5..5, "?");
        edits.put(5..5, "!");
        let change = edits.apply(Path::new("a"), b"abcdefg").unwrap();
        assert_eq!(change.after, b"abXde!?fg");
        edits.put(2..3, "Y");
        assert!(edits.apply(Path::new("a"), b"abcdefg").is_err());
    }

    #[test]
    fn lines_are_found_with_their_blanks_and_ends() {
        let text = b"one\r\n\t two\r\nthree";
        assert_eq!(line_around(text, 8), 5..10);
        assert_eq!(indent(text, 5..10), "\t ");
        assert_eq!(line_end(text), "\r\n");
        assert_eq!(line_around(text, 13), 12..17);
        assert_eq!(line_end(b"x"), "\n");
    }
}
