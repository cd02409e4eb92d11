//! Attributes, sizes and checksums as headers, both ways. A value that no header can carry is refused by name; what an
//! answer has and the [`Attributes`] do not is listed in `not_carried`.

use super::dialect::Dialect;
use crate::store::{Attributes, Checksums, Meta};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use rehome_part::{Error, ErrorKind, Result};

const CHECKSUM_CRC64NVME: HeaderName = HeaderName::from_static("x-amz-checksum-crc64nvme");
const CHECKSUM_CRC32C: HeaderName = HeaderName::from_static("x-amz-checksum-crc32c");
const CHECKSUM_TYPE: &str = "x-amz-checksum-type";
const ENCRYPTION: &str = "x-amz-server-side-encryption";
const CUSTOMER_KEY: &str = "x-amz-server-side-encryption-customer-algorithm";

/// Headers that say something this driver does not carry, and how it is called in the list of losses.
const NOT_CARRIED: [(&str, &str); 6] = [
    ("x-amz-tagging-count", "tags"),
    ("x-amz-object-lock-mode", "object lock"),
    ("x-amz-object-lock-legal-hold", "legal hold"),
    ("x-amz-website-redirect-location", "website redirect"),
    ("x-amz-missing-meta", "user metadata that the store cannot put into headers"),
    ("x-amz-server-side-encryption-customer-algorithm", "encryption with the customer's key"),
];

/// # Errors
/// `Unsupported` for a value or a name that cannot be a header.
pub fn write_attributes(headers: &mut HeaderMap, attributes: &Attributes, dialect: &Dialect) -> Result<()> {
    let Attributes {
        content_type,
        content_encoding,
        content_language,
        content_disposition,
        cache_control,
        expires,
        user,
        not_carried: _,
    } = attributes;
    let fixed = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_ENCODING, content_encoding),
        (header::CONTENT_LANGUAGE, content_language),
        (header::CONTENT_DISPOSITION, content_disposition),
        (header::CACHE_CONTROL, cache_control),
        (header::EXPIRES, expires),
    ];
    for (name, text) in fixed {
        if let Some(text) = text {
            let value = header_value(name.as_str(), text)?;
            headers.insert(name, value);
        }
    }
    for (name, text) in user {
        let full = format!("{}{name}", dialect.metadata_prefixes[0]);
        let key = HeaderName::from_bytes(full.as_bytes())
            .map_err(|_| unsupported(format!("the user metadata name `{name}` cannot be a header")))?;
        headers.insert(key, header_value(name, text)?);
    }
    Ok(())
}

fn header_value(name: &str, text: &str) -> Result<HeaderValue> {
    if text.trim() != text {
        return Err(unsupported(format!("the value of `{name}` begins or ends with a space")));
    }
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| unsupported(format!("the value of `{name}` has characters that no header can carry")))
}

fn unsupported(text: String) -> Error {
    Error::permanent(ErrorKind::Unsupported, text)
}

pub fn checksum(headers: &mut HeaderMap, crc64nvme: u64) {
    let text = STANDARD.encode(crc64nvme.to_be_bytes());
    headers.insert(CHECKSUM_CRC64NVME, HeaderValue::from_str(&text).expect("base64 is plain ASCII"));
}

pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .filter(|text| !text.is_empty())
}

/// The tag without quotes.
pub fn etag(headers: &HeaderMap) -> Option<String> {
    text(headers, "etag").map(|text| text.trim_start_matches("W/").trim_matches('"').to_owned())
}

/// The meta of a whole object from the answer to a HEAD or GET; `whole` is false for the answer to a part of it.
pub fn meta(headers: &HeaderMap, size: u64, whole: bool, dialect: &Dialect) -> Meta {
    let modified = text(headers, "last-modified")
        .and_then(|text| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok())
        .map(jiff::Timestamp::as_millisecond);
    Meta {
        size,
        etag: etag(headers),
        modified,
        attributes: attributes(headers, dialect),
        checksums: checksums(headers, whole, dialect),
    }
}

/// Checksums of the whole content. Composite ones (a checksum of the parts' checksums) are none of those.
pub fn checksums(headers: &HeaderMap, whole: bool, dialect: &Dialect) -> Checksums {
    let mut found = Checksums::default();
    if let Some(name) = dialect.crc64xz_header {
        found.crc64xz = text(headers, name).and_then(|text| text.parse().ok());
    }
    let encrypted = text(headers, ENCRYPTION).is_some_and(|kind| kind.starts_with("aws:"))
        || headers.contains_key(CUSTOMER_KEY);
    if dialect.etag_is_md5 && !encrypted {
        found.md5 = etag(headers)
            .filter(|tag| tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .map(|tag| tag.to_ascii_lowercase());
    }
    let composite =
        text(headers, CHECKSUM_TYPE).is_some_and(|kind| !kind.eq_ignore_ascii_case("FULL_OBJECT"));
    if whole && !composite {
        let decode = |name: &HeaderName| STANDARD.decode(text(headers, name.as_str())?).ok();
        found.crc64nvme = decode(&CHECKSUM_CRC64NVME).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        found.crc32c = decode(&CHECKSUM_CRC32C).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    }
    found
}

fn attributes(headers: &HeaderMap, dialect: &Dialect) -> Attributes {
    let owned = |name: &str| text(headers, name).map(String::from);
    let mut found = Attributes {
        content_type: owned("content-type"),
        content_encoding: owned("content-encoding").and_then(|text| without_chunked(&text)),
        content_language: owned("content-language"),
        content_disposition: owned("content-disposition"),
        cache_control: owned("cache-control"),
        expires: owned("expires"),
        ..Attributes::default()
    };
    for (name, value) in headers {
        let name = name.as_str();
        let Some(user) = dialect.metadata_prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)) else {
            continue;
        };
        match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => _ = found.user.insert(user.to_owned(), text.to_owned()),
            Err(_) => found.not_carried.push(format!("user metadata `{user}` (not UTF-8)")),
        }
    }
    for (name, what) in NOT_CARRIED {
        if text(headers, name).is_some_and(|text| text != "0" && text != "OFF") {
            found.not_carried.push(what.to_owned());
        }
    }
    if let Some(class) = text(headers, "x-amz-storage-class").filter(|class| *class != "STANDARD") {
        found.not_carried.push(format!("storage class {class}"));
    }
    found
}

/// Some servers keep the transfer's own `aws-chunked` as if it were the content's.
fn without_chunked(text: &str) -> Option<String> {
    if !text.contains("aws-chunked") {
        return Some(text.to_owned());
    }
    let kept: Vec<&str> = text.split(',').map(str::trim).filter(|token| *token != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::dialect;
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, text)| (HeaderName::from_static(name), HeaderValue::from_str(text).unwrap()))
            .collect()
    }

    #[test]
    fn attributes_go_out_and_come_back() {
        let sent = Attributes {
            content_type: Some("text/plain".into()),
            cache_control: Some("no-cache".into()),
            user: [("mtime".to_owned(), "1.5".to_owned()), ("näh".to_owned(), "x".to_owned())].into(),
            ..Attributes::default()
        };
        let mut headers = HeaderMap::new();
        assert_eq!(
            write_attributes(&mut headers, &sent, &dialect::AWS).unwrap_err().kind,
            ErrorKind::Unsupported
        );
        let sent = Attributes { user: [("mtime".to_owned(), "1.5 …".to_owned())].into(), ..sent };
        let mut headers = HeaderMap::new();
        write_attributes(&mut headers, &sent, &dialect::AWS).unwrap();
        assert_eq!(attributes(&headers, &dialect::AWS), sent);
        let spaced = Attributes { expires: Some(" x".into()), ..Attributes::default() };
        assert!(write_attributes(&mut headers, &spaced, &dialect::AWS).is_err());
    }

    #[test]
    fn checksums_of_the_whole_object_only() {
        let digest = "d41d8cd98f00b204e9800998ecf8427e";
        let headers =
            map(&[("etag", &format!("\"{digest}\"")), ("x-amz-checksum-crc64nvme", "AAAAAAAAAAE=")]);
        let found = checksums(&headers, true, &dialect::AWS);
        assert_eq!((found.md5.as_deref(), found.crc64nvme), (Some(digest), Some(1)));
        assert_eq!(checksums(&headers, false, &dialect::AWS).crc64nvme, None);
        let composite =
            map(&[("etag", "\"x-2\""), ("x-amz-checksum-crc32c", "AAAAAQ=="), (CHECKSUM_TYPE, "COMPOSITE")]);
        assert_eq!(checksums(&composite, true, &dialect::AWS), Checksums::default());
        let encrypted = map(&[("etag", digest), (ENCRYPTION, "aws:kms")]);
        assert_eq!(checksums(&encrypted, true, &dialect::AWS), Checksums::default());
        let oss = map(&[("x-oss-hash-crc64ecma", "18446744073709551615")]);
        assert_eq!(checksums(&oss, false, &dialect::OSS).crc64xz, Some(u64::MAX));
    }

    #[test]
    fn losses_are_named() {
        let headers = map(&[
            ("x-amz-tagging-count", "2"),
            ("x-amz-storage-class", "GLACIER"),
            ("content-encoding", "aws-chunked,gzip"),
            ("x-oss-meta-a", "b"),
        ]);
        let found = attributes(&headers, &dialect::OSS);
        assert_eq!(found.not_carried, ["tags", "storage class GLACIER"]);
        assert_eq!(found.content_encoding.as_deref(), Some("gzip"));
        assert_eq!(found.user["a"], "b");
    }
}
