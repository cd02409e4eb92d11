//! Puts the parts of an upload together: no byte is copied, the object takes the parts' pieces over.

use super::intake::{compare, hex};
use super::record::{Meta, Sums};
use super::store::{Object, Upload};
use crate::moment::wall_millis;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};
use s3s::dto::CompletedPart;
use s3s::{S3Result, s3_error};
use std::sync::Arc;

/// Every part but the last is at least this big.
const SMALLEST_PART: u64 = 5 << 20;

/// The finished object; `expected` are checksums of the whole content the client sent with the completion.
pub(super) fn assemble(
    upload: &Upload,
    listed: &[CompletedPart],
    expected: &Sums,
    size: Option<i64>,
) -> S3Result<Object> {
    let parts = chosen(upload, listed)?;
    let mut digest = Md5::new();
    let mut pieces = Vec::new();
    let mut total = 0;
    for part in &parts {
        digest.update(unhex(&part.meta.etag));
        pieces.extend(part.pieces.iter().cloned());
        total += part.meta.size;
    }
    if size.is_some_and(|size| u64::try_from(size).ok() != Some(total)) {
        return Err(s3_error!(
            InvalidRequest,
            "the parts make {total} bytes, not what x-amz-mp-object-size says"
        ));
    }
    let sums = combined(&parts);
    compare(&whole_content_only(expected), &sums)?;
    let meta = Meta {
        size: total,
        etag: format!("{}-{}", hex(&digest.finalize()), parts.len()),
        modified_ms: wall_millis(),
        attributes: upload.attributes.clone(),
        sums,
        pieces: pieces.iter().map(|piece| (piece.number, piece.bytes)).collect(),
    };
    Ok(Object { meta, pieces })
}

fn chosen<'a>(upload: &'a Upload, listed: &[CompletedPart]) -> S3Result<Vec<&'a Arc<Object>>> {
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload ends with at least one part"));
    }
    let mut parts: Vec<&Arc<Object>> = Vec::new();
    let mut before = 0;
    for wanted in listed {
        let number = wanted.part_number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        if number <= before {
            return Err(s3_error!(InvalidPartOrder));
        }
        before = number;
        let part = upload
            .parts
            .get(&number)
            .ok_or_else(|| s3_error!(InvalidPart, "part {number} was not uploaded"))?;
        if wanted.e_tag.as_ref().is_some_and(|tag| tag.value() != part.meta.etag) {
            return Err(s3_error!(InvalidPart, "part {number} has another tag"));
        }
        parts.push(part);
    }
    let (_, but_last) = parts.split_last().unwrap_or((&parts[0], &[]));
    if but_last.iter().any(|part| part.meta.size < SMALLEST_PART) {
        return Err(s3_error!(EntityTooSmall));
    }
    Ok(parts)
}

/// A checksum of checksums (`…-3`) says nothing about the whole content.
fn whole_content_only(sums: &Sums) -> Sums {
    let whole = |sum: &Option<String>| sum.clone().filter(|sum| !sum.contains('-'));
    Sums {
        crc64nvme: whole(&sums.crc64nvme),
        crc32: whole(&sums.crc32),
        crc32c: whole(&sums.crc32c),
        sha1: None,
        sha256: None,
    }
}

/// CRCs of the whole content from the CRCs of the parts, where every part has one.
fn combined(parts: &[&Arc<Object>]) -> Sums {
    let over = |algorithm: CrcAlgorithm, width: usize, of: fn(&Sums) -> &Option<String>| {
        let mut whole: Option<u64> = None;
        for part in parts {
            let crc = number(of(&part.meta.sums).as_deref()?)?;
            whole = Some(match whole {
                None => crc,
                Some(before) => crc_fast::checksum_combine(algorithm, before, crc, part.meta.size),
            });
        }
        whole.map(|crc| BASE64_STANDARD.encode(&crc.to_be_bytes()[8 - width..]))
    };
    Sums {
        crc64nvme: over(CrcAlgorithm::Crc64Nvme, 8, |sums| &sums.crc64nvme),
        crc32: over(CrcAlgorithm::Crc32IsoHdlc, 4, |sums| &sums.crc32),
        crc32c: over(CrcAlgorithm::Crc32Iscsi, 4, |sums| &sums.crc32c),
        sha1: None,
        sha256: None,
    }
}

fn number(base64: &str) -> Option<u64> {
    let bytes = BASE64_STANDARD.decode(base64).ok()?;
    (bytes.len() <= 8).then(|| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn unhex(text: &str) -> Vec<u8> {
    let digit =
        |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
