//! Lines of a migration file, fit to be shown: plain-text secrets covered, control characters and tabs replaced, long
//! lines cut around the caret. It works on text alone, since it is needed most when the file does not parse.

use std::ops::Range;
use unicode_width::UnicodeWidthChar;

/// What stands where a secret stood.
const COVER: char = '…';

pub(super) struct Shown {
    pub text: String,
    /// In columns of a terminal.
    pub caret: Range<usize>,
}

/// `before` is the file up to the caret, `line` the line it is in, `caret` its place there in characters.
pub(super) fn show(before: &str, line: &str, caret: Range<usize>, width: usize) -> Shown {
    let inside_block = ["\"\"\"", "'''"].iter().any(|quotes| before.matches(quotes).count() % 2 == 1);
    if inside_block || belongs_to_a_secret(before, line) {
        // A line of a text that goes over several lines: nobody can tell what it belongs to.
        return Shown { text: COVER.to_string(), caret: 0..1 };
    }
    let covered = cover(line);
    let start = covered.iter().position(|(from, _)| *from >= caret.start).unwrap_or(covered.len());
    let end = covered.iter().position(|(from, _)| *from >= caret.end).unwrap_or(covered.len()).max(start + 1);
    let first = if end <= width { 0 } else { start.saturating_sub(width / 3) };
    let mut text = String::new();
    let (mut caret_start, mut caret_end) = (None, 0);
    let mut column = 0;
    if first > 0 {
        text.push(COVER);
        column += 1;
    }
    for (index, (_, character)) in covered.iter().enumerate().skip(first).take(width) {
        if index == start {
            caret_start = Some(column);
        }
        for shown in display(*character) {
            text.push(shown);
            column += shown.width().unwrap_or(0);
        }
        if index < end {
            caret_end = column;
        }
    }
    if covered.len() > first + width {
        text.push(COVER);
    }
    let caret_start = caret_start.unwrap_or(column);
    Shown { text, caret: caret_start..caret_end.max(caret_start + 1) }
}

/// Is this a line without a key of its own, after one whose key names a secret?
fn belongs_to_a_secret(before: &str, line: &str) -> bool {
    let has_key = line.contains('=') && !line.trim_start().starts_with(is_quote);
    let mut lines = before.lines().rev();
    if !before.ends_with('\n') {
        // `before` ends inside the line itself.
        lines.next();
    }
    let owner = lines.find(|line| line.contains('=') || line.trim_start().starts_with('['));
    let key = owner.and_then(|owner| owner.rsplit_once('=').map(|(before, _)| before));
    !has_key && key.is_some_and(|key| key.split(|c: char| !is_word(c)).any(names_a_secret))
}

fn display(character: char) -> impl Iterator<Item = char> {
    let (shown, times) = if character == '\t' { (' ', 4) } else { (visible(character), 1) };
    std::iter::repeat_n(shown, times)
}

/// The character, unless a terminal would do something with it: control it, or change the direction of the text.
pub(crate) fn visible(character: char) -> char {
    match character {
        c if c.is_control() => '\u{fffd}',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
            '\u{fffd}'
        }
        c => c,
    }
}

/// The text with the user and password of an address covered.
pub(crate) fn without_password(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    match password_in_address(&characters) {
        None => text.to_owned(),
        Some(hidden) => {
            let (before, after) = (&characters[..hidden.start], &characters[hidden.end..]);
            before.iter().copied().chain([COVER]).chain(after.iter().copied()).collect()
        }
    }
}

/// A key whose value is not shown unless it is a reference.
fn names_a_secret(key: &str) -> bool {
    const WORDS: [&str; 7] = ["key", "secret", "token", "pass", "password", "credential", "auth"];
    let key = key.to_ascii_lowercase();
    // Slips of the fingers must not uncover anything.
    let near = |part: &str| WORDS.iter().any(|word| part.len() > 1 && strsim::osa_distance(part, word) <= 1);
    WORDS.iter().any(|word| key.contains(word)) || key.split(['_', '-', '.']).any(near)
}

pub(crate) fn is_reference(text: &str) -> bool {
    ["env:", "file:", "cmd:"].iter().any(|scheme| text.starts_with(scheme))
}

/// The characters of the line with the place each came from; secrets replaced by one [`COVER`].
fn cover(line: &str) -> Vec<(usize, char)> {
    let characters: Vec<char> = line.chars().collect();
    let mut out = Vec::with_capacity(characters.len());
    let mut at = 0;
    while at < characters.len() {
        let next = if is_word(characters[at]) {
            word(&characters, at, &mut out)
        } else if is_quote(characters[at]) {
            string(&characters, at, &mut out)
        } else {
            out.push((at, characters[at]));
            at + 1
        };
        at = next;
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'')
}

/// The place just past the string that begins at `at`, its quotes included; the end of the line when it is not closed.
fn end_of_string(characters: &[char], at: usize) -> usize {
    let quote = characters[at];
    let triple = characters[at..].starts_with(&[quote; 3]);
    let closing = vec![quote; if triple { 3 } else { 1 }];
    let mut end = at + closing.len();
    while end < characters.len() && !characters[end..].starts_with(&closing) {
        end += if quote == '"' && characters[end] == '\\' { 2 } else { 1 };
    }
    (end + closing.len()).min(characters.len())
}

fn push(characters: &[char], range: Range<usize>, out: &mut Vec<(usize, char)>) {
    out.extend(range.map(|at| (at, characters[at])));
}

/// A word and, if it names a secret, the value after it.
fn word(characters: &[char], at: usize, out: &mut Vec<(usize, char)>) -> usize {
    let end = (at..characters.len()).find(|at| !is_word(characters[*at])).unwrap_or(characters.len());
    push(characters, at..end, out);
    let name: String = characters[at..end].iter().collect();
    value_of(&name, characters, end, out)
}

/// A quoted text, which may be a key itself; passwords inside addresses are covered.
fn string(characters: &[char], at: usize, out: &mut Vec<(usize, char)>) -> usize {
    let end = end_of_string(characters, at);
    let inside: String = characters[at + 1..end.max(at + 1)].iter().collect();
    match password_in_address(&characters[at..end]) {
        Some(hidden) => {
            push(characters, at..at + hidden.start, out);
            out.push((at + hidden.start, COVER));
            push(characters, at + hidden.end..end, out);
        }
        None => push(characters, at..end, out),
    }
    value_of(inside.trim_end_matches(['"', '\'']), characters, end, out)
}

/// In `…://user:password@host…`: the place between `://` and `@`. A password may hold a `/`, so with a `:` the last `@` counts.
fn password_in_address(characters: &[char]) -> Option<Range<usize>> {
    let start = characters.windows(3).position(|three| three == [':', '/', '/'])? + 3;
    let rest = &characters[start..];
    let authority = rest.iter().position(|c| matches!(c, '/' | '?' | '#')).unwrap_or(rest.len());
    let last = rest.iter().rposition(|c| *c == '@')?;
    let at =
        if rest[..last].contains(&':') { last } else { rest[..authority].iter().rposition(|c| *c == '@')? };
    (at > 0).then_some(start..start + at)
}

/// Covers what follows a key called `name`, if that is a secret; gives the place to go on from.
fn value_of(name: &str, characters: &[char], after: usize, out: &mut Vec<(usize, char)>) -> usize {
    if !names_a_secret(name) {
        return after;
    }
    let mut at = after;
    let mut assigned = false;
    while at < characters.len() && (characters[at].is_whitespace() || matches!(characters[at], '=' | ':')) {
        assigned |= !characters[at].is_whitespace();
        at += 1;
    }
    if at >= characters.len() {
        return after;
    }
    let end = match characters[at] {
        quote if is_quote(quote) => end_of_string(characters, at),
        '[' | '{' => characters.len(),
        _ if assigned => (at..characters.len())
            .find(|at| matches!(characters[*at], ',' | '}' | ']'))
            .unwrap_or(characters.len()),
        _ => return after,
    };
    let value: String = characters[at..end].iter().collect();
    let inside = value.trim_matches(['"', '\'']);
    // What only begins like a reference may be a secret with a prefix.
    if inside.is_empty() || crate::secret::check_reference(inside).is_ok() {
        push(characters, after..end, out);
    } else {
        push(characters, after..at, out);
        out.push((at, COVER));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(line: &str) -> String {
        cover(line).into_iter().map(|(_, character)| character).collect()
    }

    #[test]
    fn plain_secrets_are_covered_wherever_they_stand() {
        for (line, shown) in [
            (r#"secret_key = "hunter2""#, "secret_key = …"),
            (r#"secret_key = "hunter2"#, "secret_key = …"),
            (r#"secret_key = 'hun"ter2' # c"#, "secret_key = … # c"),
            (r#"secret_key = "hun\"ter2", a = 1"#, "secret_key = …, a = 1"),
            ("secret_key = hunter2", "secret_key = …"),
            ("secret_key = hunter2, a = 1 }", "secret_key = …, a = 1 }"),
            (r#"secret_key "hunter2""#, "secret_key …"),
            (r#"secret-key: hunter2"#, "secret-key: …"),
            (r#""secret_key" = "hunter2""#, r#""secret_key" = …"#),
            (
                r#"source = { url = "s3://b", access_key = "AK", token = "env:T" }"#,
                r#"source = { url = "s3://b", access_key = …, token = "env:T" }"#,
            ),
            (r#"url = "https://me:hunter2@host/x""#, r#"url = "https://…@host/x""#),
            (r#"# password = "hunter2""#, "# password = …"),
            (r#"secret_key = """hunter2""" # c"#, "secret_key = … # c"),
            (r#"secret_key = """hunter2"#, "secret_key = …"),
            (r#"acess_ky = "hunter2""#, "acess_ky = …"),
            (r#"url = "s3://me:hun/ter2@bucket""#, r#"url = "s3://…@bucket""#),
        ] {
            assert_eq!(covered(line), shown);
        }
    }

    #[test]
    fn references_and_ordinary_values_stay() {
        for line in [
            r#"secret_key = "env:KEY""#,
            r#"url = "s3://b/c@d""#,
            "max_pause = \"2s\"",
            "[[objects]]",
            r#"token = """#,
        ] {
            assert_eq!(covered(line), line);
        }
    }

    #[test]
    fn the_caret_follows_what_was_covered() {
        let shown = show("", r#"secret_key = "hunter2", acess = 1"#, 24..29, 100);
        assert_eq!(shown.text, "secret_key = …, acess = 1");
        assert_eq!(shown.caret, 16..21);
    }

    #[test]
    fn long_lines_are_cut_and_control_characters_replaced() {
        let line = format!("a = \"{}\"\tx\u{1b}[31m", "b".repeat(500));
        let shown = show("", &line, 507..508, 60);
        assert_eq!(shown.text.chars().next(), Some(COVER));
        assert!(shown.text.chars().count() < 80 && !shown.text.contains('\u{1b}'), "{}", shown.text);
    }
}
