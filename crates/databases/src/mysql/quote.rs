//! Names as SQL wants them. Values are parameters, but where no statement takes any.

/// A name in backquotes.
pub(super) fn name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Names with commas between.
pub(super) fn names<'a>(all: impl IntoIterator<Item = &'a str>) -> String {
    all.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// A text, for statements that take no parameters. Right in every mode but `NO_BACKSLASH_ESCAPES`, which no session here has.
pub(super) fn text(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for character in text.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\0' => quoted.push_str("\\0"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// An account.
pub(super) fn account(user: &str, host: &str) -> String {
    format!("{}@{}", text(user), text(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_its_quotes() {
        assert_eq!(names(["order", "we`ird; --"]), "`order`, `we``ird; --`");
        assert_eq!(text(r"it's \"), r"'it''s \\'");
        assert_eq!(account("app", "%"), "'app'@'%'");
    }
}
