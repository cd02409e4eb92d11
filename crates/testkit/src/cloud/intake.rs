//! Takes the body of a write in: content to disk, tag and checksums on the way, and compares them with what the client sent.

use super::content::Writer;
use super::record::{Attributes, Meta, Sums};
use super::store::{Object, Store, out_of_space, storage_failed};
use crate::moment::wall_millis;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use md5::{Digest, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::dto::StreamingBlob;
use s3s::{S3ErrorCode, S3Result, TrailingHeaders, s3_error};
use std::fmt::Write as _;

/// What the client said about the content it sends.
#[derive(Debug, Default)]
pub(super) struct Announced {
    pub content_md5: Option<String>,
    pub sums: Sums,
    /// Checksums that come after the body.
    pub trailers: Option<TrailingHeaders>,
    /// Names of headers in `x-amz-trailer`, lower case.
    pub trailer_names: String,
    /// `x-amz-sdk-checksum-algorithm`: a checksum the client would like to have.
    pub algorithm: Option<String>,
}

impl Announced {
    fn wants(&self, name: &str, sent: Option<&String>) -> bool {
        sent.is_some()
            || self.trailer_names.contains(&format!("x-amz-checksum-{name}"))
            || self.algorithm.as_deref().is_some_and(|algorithm| algorithm.eq_ignore_ascii_case(name))
    }

    /// The checksums of headers and trailers together, once the body has been read.
    fn sums(self) -> Sums {
        let mut sums = self.sums;
        if let Some(trailers) = self.trailers.and_then(|trailers| trailers.take()) {
            let take = |name: &str, into: &mut Option<String>| {
                if let Some(value) = trailers.get(name).and_then(|value| value.to_str().ok()) {
                    *into = Some(value.to_string());
                }
            };
            take("x-amz-checksum-crc64nvme", &mut sums.crc64nvme);
            take("x-amz-checksum-crc32", &mut sums.crc32);
            take("x-amz-checksum-crc32c", &mut sums.crc32c);
            take("x-amz-checksum-sha1", &mut sums.sha1);
            take("x-amz-checksum-sha256", &mut sums.sha256);
        }
        sums
    }
}

/// Hashes and writes a body. The object has no attributes yet.
pub(super) async fn receive(
    store: &Store,
    body: Option<StreamingBlob>,
    announced: Announced,
    attributes: Attributes,
    every_part_needs_crc64: bool,
) -> S3Result<Object> {
    let damage = store.faults.next_write_is_damaged();
    let mut intake = Intake {
        writer: store.contents.write().map_err(storage_failed)?,
        md5: Md5::new(),
        sums: ChecksumHasher {
            crc32: announced.wants("crc32", announced.sums.crc32.as_ref()).then(Default::default),
            crc32c: announced.wants("crc32c", announced.sums.crc32c.as_ref()).then(Default::default),
            sha1: announced.wants("sha1", announced.sums.sha1.as_ref()).then(Default::default),
            sha256: announced.wants("sha256", announced.sums.sha256.as_ref()).then(Default::default),
            crc64nvme: Some(Default::default()),
        },
        size: 0,
    };
    let mut stream = body;
    while let Some(chunk) = match &mut stream {
        Some(stream) => stream.next().await,
        None => None,
    } {
        let mut chunk = chunk.map_err(|error| broken_body(&error))?;
        if store.contents.used_bytes().saturating_add(chunk.len() as u64) > store.faults.capacity_bytes() {
            return Err(out_of_space());
        }
        if damage && intake.size == 0 {
            chunk = damaged(&chunk);
        }
        intake.take(&chunk)?;
    }
    let content_md5 = announced.content_md5.clone();
    let (md5, computed, size, writer) = intake.finish();
    let expected = announced.sums();
    if !damage {
        compare_md5(content_md5.as_deref(), &md5)?;
        compare(&expected, &computed)?;
    }
    let piece = writer.finish(store.syncs()).map_err(storage_failed)?;
    let meta = Meta {
        size,
        etag: hex(&md5),
        modified_ms: wall_millis(),
        attributes,
        sums: kept(&expected, computed, every_part_needs_crc64),
        pieces: vec![(piece.number, piece.bytes)],
    };
    Ok(Object { meta, pieces: vec![piece] })
}

struct Intake {
    writer: Writer,
    md5: Md5,
    sums: ChecksumHasher,
    size: u64,
}

impl Intake {
    fn take(&mut self, chunk: &Bytes) -> S3Result {
        self.md5.update(chunk);
        self.sums.update(chunk);
        self.size += chunk.len() as u64;
        self.writer.append(chunk).map_err(storage_failed)
    }

    fn finish(self) -> (Vec<u8>, Sums, u64, Writer) {
        let sums = self.sums.finalize();
        let sums = Sums {
            crc64nvme: sums.checksum_crc64nvme,
            crc32: sums.checksum_crc32,
            crc32c: sums.checksum_crc32c,
            sha1: sums.checksum_sha1,
            sha256: sums.checksum_sha256,
        };
        (self.md5.finalize().to_vec(), sums, self.size, self.writer)
    }
}

/// A body whose hash or chunk signature is not the signed one is told apart from one that ended early.
fn broken_body(error: &s3s::StdError) -> s3s::S3Error {
    let text = error.to_string();
    tracing::debug!(text, "body broke off");
    let lower = text.to_ascii_lowercase();
    if lower.contains("sha256mismatch") || lower.contains("signaturemismatch") {
        let code = S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
        let mut error = s3s::S3Error::with_message(code, text);
        error.set_status_code(http::StatusCode::BAD_REQUEST);
        return error;
    }
    s3s::S3Error::with_message(S3ErrorCode::IncompleteBody, text)
}

fn damaged(chunk: &Bytes) -> Bytes {
    let mut bytes = chunk.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x20;
    }
    bytes.into()
}

fn compare_md5(announced: Option<&str>, md5: &[u8]) -> S3Result {
    let Some(announced) = announced else { return Ok(()) };
    match BASE64_STANDARD.decode(announced) {
        Ok(bytes) if bytes.len() == 16 && bytes == md5 => Ok(()),
        Ok(bytes) if bytes.len() == 16 => Err(s3_error!(BadDigest, "Content-MD5 does not match")),
        _ => Err(s3_error!(InvalidDigest, "Content-MD5 is not one")),
    }
}

/// Every checksum that was announced must be the computed one.
pub(super) fn compare(expected: &Sums, computed: &Sums) -> S3Result {
    let pairs = [
        ("crc64nvme", &expected.crc64nvme, &computed.crc64nvme),
        ("crc32", &expected.crc32, &computed.crc32),
        ("crc32c", &expected.crc32c, &computed.crc32c),
        ("sha1", &expected.sha1, &computed.sha1),
        ("sha256", &expected.sha256, &computed.sha256),
    ];
    for (name, expected, computed) in pairs {
        if expected.is_some() && expected != computed {
            return Err(s3_error!(BadDigest, "x-amz-checksum-{name} does not match"));
        }
    }
    Ok(())
}

/// S3 keeps the checksum the client chose, and CRC64NVME when it chose none.
fn kept(expected: &Sums, computed: Sums, every_part_needs_crc64: bool) -> Sums {
    let chosen = Sums { crc64nvme: None, ..computed.clone() };
    let chose_other = chosen != Sums::default();
    if chose_other && expected.crc64nvme.is_none() && !every_part_needs_crc64 { chosen } else { computed }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}
