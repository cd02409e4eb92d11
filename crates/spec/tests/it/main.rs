//! The migration file from outside: files that are right, files that are wrong and what is said of them, and any bytes.

mod any_bytes;
mod bad_files;
mod good_files;
mod schema;
