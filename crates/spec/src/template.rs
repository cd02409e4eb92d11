//! The commented file that `rehome init` writes. It is a whole migration file that passes every check.

/// A migration of one bucket behind one service, every key explained.
pub const TEMPLATE: &str = include_str!("template.toml");

/// [`TEMPLATE`] under another name. The name must be one a migration can have; it is not checked here.
pub fn template(name: &str) -> String {
    TEMPLATE.replacen("name = \"shop\"", &format!("name = \"{name}\""), 1)
}
