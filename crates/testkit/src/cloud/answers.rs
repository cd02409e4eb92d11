//! How the S3 operations read conditions and headers, and how they tell what the store holds. Translation only.

use super::Principal;
use super::intake::compare;
use super::record::{Attributes, Meta, Sums};
use super::store::Upload;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn line(key: String, meta: &Meta) -> s3s::dto::Object {
    s3s::dto::Object {
        key: Some(key),
        size: Some(signed(meta.size)),
        e_tag: Some(ETag::Strong(meta.etag.clone())),
        last_modified: Some(time(meta.modified_ms)),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Default::default()
    }
}

/// S3 counts in signed numbers; nothing here comes near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from(moment(millis))
}

fn moment(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// HTTP dates know whole seconds only.
fn whole_seconds(timestamp: &Timestamp) -> i64 {
    s3s_time(timestamp)
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn s3s_time(timestamp: &Timestamp) -> SystemTime {
    let mut text = Vec::new();
    let written = timestamp.format(TimestampFormat::EpochSeconds, &mut text);
    let seconds =
        written.ok().and_then(|()| String::from_utf8(text).ok()).and_then(|text| text.parse::<f64>().ok());
    UNIX_EPOCH + Duration::from_secs_f64(seconds.unwrap_or(0.0).max(0.0))
}

/// The conditions of a read; 412 or 304 when they do not hold.
pub(super) struct ReadConditions<'a> {
    pub if_match: &'a Option<ETagCondition>,
    pub if_none_match: &'a Option<ETagCondition>,
    pub if_modified_since: &'a Option<Timestamp>,
    pub if_unmodified_since: &'a Option<Timestamp>,
}

impl ReadConditions<'_> {
    pub(super) fn check(&self, meta: &Meta) -> S3Result {
        let same = |condition: &ETagCondition| condition.as_etag().is_none_or(|tag| tag.value() == meta.etag);
        let modified = meta.modified_ms / 1_000;
        if let Some(condition) = self.if_match {
            if !same(condition) {
                return Err(s3_error!(PreconditionFailed));
            }
        } else if self.if_unmodified_since.as_ref().is_some_and(|since| modified > whole_seconds(since)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if let Some(condition) = self.if_none_match {
            if same(condition) {
                return Err(not_modified(meta));
            }
        } else if self.if_modified_since.as_ref().is_some_and(|since| modified <= whole_seconds(since)) {
            return Err(not_modified(meta));
        }
        Ok(())
    }
}

fn not_modified(meta: &Meta) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    error.set_status_code(http::StatusCode::NOT_MODIFIED);
    if let Ok(tag) = format!("\"{}\"", meta.etag).parse() {
        error.set_headers([(http::header::ETAG, tag)].into_iter().collect());
    }
    error
}

macro_rules! attributes {
    ($input:ident) => {
        Attributes {
            content_type: $input.content_type.take(),
            content_encoding: $input.content_encoding.take(),
            content_language: $input.content_language.take(),
            content_disposition: $input.content_disposition.take(),
            cache_control: $input.cache_control.take(),
            expires: $input.expires.take(),
            user: $input.metadata.take().unwrap_or_default().into_iter().collect(),
        }
    };
}

/// The headers that GET and HEAD have in common.
macro_rules! describe {
    ($output:ident, $meta:expr, $with_sums:expr) => {{
        let meta: &Meta = $meta;
        let attributes = meta.attributes.clone();
        $output.accept_ranges = Some("bytes".into());
        $output.e_tag = Some(ETag::Strong(meta.etag.clone()));
        $output.last_modified = Some(time(meta.modified_ms));
        $output.content_type = Some(attributes.content_type.unwrap_or_else(|| "binary/octet-stream".into()));
        $output.content_encoding = attributes.content_encoding;
        $output.content_language = attributes.content_language;
        $output.content_disposition = attributes.content_disposition;
        $output.cache_control = attributes.cache_control;
        $output.expires = attributes.expires;
        $output.metadata = (!attributes.user.is_empty()).then(|| attributes.user.into_iter().collect());
        if $with_sums {
            tell_sums!($output, meta.sums);
            $output.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        }
    }};
}

macro_rules! tell_sums {
    ($output:ident, $sums:expr) => {{
        let sums: Sums = $sums.clone();
        $output.checksum_crc64nvme = sums.crc64nvme;
        $output.checksum_crc32 = sums.crc32;
        $output.checksum_crc32c = sums.crc32c;
        $output.checksum_sha1 = sums.sha1;
        $output.checksum_sha256 = sums.sha256;
    }};
}

macro_rules! sums {
    ($input:ident) => {
        Sums {
            crc64nvme: $input.checksum_crc64nvme.take(),
            crc32: $input.checksum_crc32.take(),
            crc32c: $input.checksum_crc32c.take(),
            sha1: $input.checksum_sha1.take(),
            sha256: $input.checksum_sha256.take(),
        }
    };
}

/// S3's own limit on user metadata, names and values together.
pub(super) fn check_attributes(attributes: &Attributes) -> S3Result {
    let bytes: usize = attributes.user.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > 2_048 { Err(s3_error!(MetadataTooLarge)) } else { Ok(()) }
}

pub(super) fn trailer_names(headers: &http::HeaderMap) -> String {
    let names = headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok());
    names.collect::<Vec<_>>().join(",").to_ascii_lowercase()
}

/// The part of the content a range header means, as S3 reads it.
pub(super) fn resolve(range: Option<Range>, size: u64) -> S3Result<(std::ops::Range<u64>, Option<String>)> {
    let Some(range) = range else { return Ok((0..size, None)) };
    let part = range.check(size).map_err(|_| s3_error!(InvalidRange))?;
    let text = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
    Ok((part, Some(text)))
}

/// A part's checksum that the client repeats at the end must be the one that was stored.
pub(super) fn check_listed_part(upload: &Upload, wanted: &CompletedPart) -> S3Result {
    let number = wanted.part_number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    let Some(part) = upload.parts.get(&number) else { return Ok(()) }; // refused by what follows
    let told = Sums {
        crc64nvme: wanted.checksum_crc64nvme.clone(),
        crc32: wanted.checksum_crc32.clone(),
        crc32c: wanted.checksum_crc32c.clone(),
        sha1: wanted.checksum_sha1.clone(),
        sha256: wanted.checksum_sha256.clone(),
    };
    compare(&told, &part.meta.sums).map_err(|_| s3_error!(InvalidPart, "part {number} has another checksum"))
}

pub(super) fn tell_part(number: u32, meta: &Meta) -> Part {
    let mut part = Part {
        part_number: i32::try_from(number).ok(),
        size: Some(signed(meta.size)),
        e_tag: Some(ETag::Strong(meta.etag.clone())),
        last_modified: Some(time(meta.modified_ms)),
        ..Default::default()
    };
    tell_sums!(part, meta.sums);
    part
}

pub(super) fn tell_upload(key: String, id: &str, begun_ms: i64, by: Principal) -> MultipartUpload {
    let who = match by {
        Principal::Application => "application",
        Principal::Migration => "migration",
    };
    MultipartUpload {
        key: Some(key),
        upload_id: Some(id.into()),
        initiated: Some(time(begun_ms)),
        initiator: Some(Initiator { id: Some(who.into()), display_name: Some(who.into()) }),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        ..Default::default()
    }
}

pub(super) use {attributes, describe, sums, tell_sums};
