//! Everything that can be said about a migration file without leaving it: syntax, structure, values, and how they fit
//! together. It works on the tree, not on the shapes, so that one mistake does not hide the others.

mod listeners;
mod rules;
mod structure;
mod values;

use crate::problem::Raw;
use crate::schema::Shape;
use crate::tree::Node;

/// All problems, in no order.
pub(crate) fn check(text: &str) -> Vec<Raw> {
    let document = match toml_edit::Document::parse(text) {
        Ok(document) => document,
        Err(error) => return vec![syntax(text, &error)],
    };
    let root = Node::of(&document);
    let mut found = Vec::new();
    structure::check(Shape::root(), &root, &mut found);
    rules::check(&root, &mut found);
    found
}

fn syntax(text: &str, error: &toml_edit::TomlError) -> Raw {
    let mut lines = error.message().lines();
    let first = lines.next().unwrap_or("this is not TOML");
    let expected: Vec<&str> = lines.collect();
    // At the end of the file there is nothing to point at but the last character.
    let end = text.trim_end().len();
    let span = error.span().unwrap_or(end..end);
    let span = if span.start >= end { end.saturating_sub(1)..end } else { span };
    let problem = Raw::error(&span, format!("not valid TOML: {}", first));
    match expected.as_slice() {
        [] if first.contains("duplicate") => {
            problem.hint("a key, and a `[table]`, can be written once; take one of the two out")
        }
        [] if first.contains("invalid") && first.contains("string") => {
            problem.hint("close the text with the quote it began with")
        }
        [] => problem
            .hint("strings stand in quotes, lists in brackets: `name = \"media\"`, `uses = [\"media\"]`"),
        expected => problem.hint(expected.join("; ")),
    }
}

/// Has the table this key, or one that was meant to be it? What is misspelt is reported once, not as missing as well.
fn is_there_or_meant(node: &Node, key: &str) -> bool {
    node.entries().iter().any(|entry| nearest(&entry.key, [key]).is_some())
}

/// The nearest of `candidates` that a slip of the fingers explains.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let lower = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_slips_are_taken_for_a_word() {
        let keys = ["url", "access_key", "secret_key", "region"];
        assert_eq!(nearest("acess_key", keys), Some("access_key"));
        assert_eq!(nearest("access-key", keys), Some("access_key"));
        assert_eq!(nearest("Region", keys), Some("region"));
        assert_eq!(nearest("ulr", keys), Some("url"));
        assert_eq!(nearest("bucket", keys), None);
    }
}
