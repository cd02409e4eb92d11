mod lexer;
mod survey;
mod tree;
pub use tree::Tree;
