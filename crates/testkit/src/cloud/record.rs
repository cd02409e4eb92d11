//! The log of one cloud: every change as one line of JSON, appended before it takes effect and read back at start.
//! It is at once the index on disk, the change feed, and the journal the checker reads.

use super::Principal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

pub(super) const LOG: &str = "mutations.log";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Record {
    Bucket {
        name: String,
        created_ms: i64,
    },
    DropBucket {
        name: String,
    },
    Policy {
        bucket: String,
        text: Option<String>,
    },
    Put {
        position: u64,
        nanos: u64,
        by: Principal,
        bucket: String,
        key: String,
        object: Meta,
        /// The multipart upload that ends with this put.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upload: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
    },
    Delete {
        position: u64,
        nanos: u64,
        by: Principal,
        bucket: String,
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
    },
    Begin {
        id: String,
        by: Principal,
        bucket: String,
        key: String,
        begun_ms: i64,
        attributes: Attributes,
        algorithm: Option<String>,
    },
    Part {
        id: String,
        number: u32,
        object: Meta,
    },
    Abort {
        id: String,
    },
}

/// All that is known of an object (or of a part of an upload) besides its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub size: u64,
    pub etag: String,
    pub modified_ms: i64,
    #[serde(default)]
    pub attributes: Attributes,
    #[serde(default)]
    pub sums: Sums,
    /// Number and size of every piece of content.
    pub pieces: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// RFC 3339, as the S3 library keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<s3s::dto::Timestamp>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, String>,
}

/// Checksums of the whole content, in base64 as S3 speaks them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sums {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc64nvme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The open log. Only one process has it open at a time.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    length: u64,
    sync: bool,
    broken: bool,
}

impl Log {
    /// Reads what is there, hands every record to `seen`, cuts off a line that a kill left unfinished, and opens for more.
    pub(super) fn open(folder: &Path, sync: bool, mut seen: impl FnMut(Record)) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(folder.join(LOG))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another server has this folder open"))?;
        let length = each(&file, |record| {
            seen(record);
            Ok(())
        })?;
        file.set_len(length)?;
        Ok(Self { file, length, sync, broken: false })
    }

    /// After an error nothing of the record is in the log.
    pub(super) fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the log cannot be written any more"));
        }
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let written =
            self.file.write_all(&line).and_then(|()| if self.sync { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => self.length += line.len() as u64,
            Err(_) => self.broken = self.file.set_len(self.length).is_err(),
        }
        written
    }
}

/// Reads record by record; returns where the last whole line ends.
pub(super) fn each(file: &File, mut seen: impl FnMut(Record) -> io::Result<()>) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    let mut length = 0;
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok(length);
        }
        let record = serde_json::from_slice(&line)
            .map_err(|error| io::Error::other(format!("the log is damaged at byte {length}: {error}")))?;
        seen(record)?;
        length += read as u64;
    }
}
