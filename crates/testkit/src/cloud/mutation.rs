//! The journal of one cloud as the checker reads it: every object that was written or removed, by whom and when.

use super::Principal;
use super::record::{LOG, Record, each};
use std::fs::File;
use std::io;
use std::path::Path;

/// One change of an object that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// The position in the change feed.
    pub position: u64,
    /// [`crate::monotonic_nanos`] at the commit.
    pub nanos: u64,
    pub principal: Principal,
    pub operation: Operation,
    pub bucket: String,
    pub key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Put,
    Delete,
}

/// All mutations of the cloud in `directory` (its [`super::S3Config::directory`]), in order; also while it runs.
pub fn read_mutations(directory: &Path) -> io::Result<Vec<Mutation>> {
    let mut mutations = Vec::new();
    each(&File::open(directory.join(LOG))?, |record| {
        let mutation = match record {
            Record::Put { position, nanos, by, bucket, key, .. } => {
                Mutation { position, nanos, principal: by, operation: Operation::Put, bucket, key }
            }
            Record::Delete { position, nanos, by, bucket, key, .. } => {
                Mutation { position, nanos, principal: by, operation: Operation::Delete, bucket, key }
            }
            _ => return Ok(()),
        };
        mutations.push(mutation);
        Ok(())
    })?;
    Ok(mutations)
}
