mod lexer;
mod plan;
mod settings;
mod survey;
mod tree;
pub use plan::{Plan, Route};
pub use tree::Tree;
