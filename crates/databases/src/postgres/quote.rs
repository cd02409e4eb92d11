//! Names as SQL wants them. Values are never put into a statement: they are parameters.

use std::fmt::Write;

/// A name in double quotes.
pub(super) fn name(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('"');
    for character in name.chars() {
        if character == '"' {
            quoted.push('"');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

/// Names with commas between.
pub(super) fn names<'a>(all: impl IntoIterator<Item = &'a str>) -> String {
    let mut list = String::new();
    for one in all {
        let comma = if list.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(list, "{comma}{}", name(one));
    }
    list
}

/// A text in single quotes, for statements that take no parameters.
pub(super) fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 3);
    // With a backslash in it, what it means depends on a setting, unless it is said.
    if text.contains('\\') {
        quoted.push('E');
    }
    quoted.push('\'');
    for character in text.chars() {
        if matches!(character, '\'' | '\\') {
            quoted.push(character);
        }
        quoted.push(character);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(names(["order", "we\"ird; --"]), r#""order", "we""ird; --""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }
}
