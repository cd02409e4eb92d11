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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(names(["order", "we\"ird; --"]), r#""order", "we""ird; --""#);
    }
}
