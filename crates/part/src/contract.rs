//! The contract suite every driver of a part passes.
