//! The XML of answers and requests: what is taken out of an answer, and no more. Answers are bounded by the caller.

use crate::store::{Entry, Upload, UploadedPart};
use quick_xml::Reader;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::Event;
use rehome_part::{Error, ErrorKind, Result};
use std::fmt::Write;

/// One element's beginning or end. At the end, `text` is what the element held directly.
pub enum Node<'a> {
    Open(&'a str),
    Close(&'a str, &'a str),
}

/// Walks through a document.
///
/// # Errors
/// `Corrupt` when it is no XML.
pub fn walk(document: &str, mut visit: impl FnMut(Node<'_>)) -> Result<()> {
    let mut reader = Reader::from_str(document);
    let mut text = String::new();
    let broken = |what: String| Error::temporary(ErrorKind::Corrupt, format!("the answer is no XML: {what}"));
    loop {
        match reader.read_event().map_err(|error| broken(error.to_string()))? {
            Event::Start(start) => {
                text.clear();
                visit(Node::Open(start.local_name().as_ref()));
            }
            Event::End(end) => {
                visit(Node::Close(end.local_name().as_ref(), &text));
                text.clear();
            }
            Event::Empty(element) => {
                visit(Node::Open(element.local_name().as_ref()));
                visit(Node::Close(element.local_name().as_ref(), ""));
            }
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref() {
                Ok(Some(character)) => text.push(character),
                Ok(None) => {
                    let name: &str = &reference;
                    text.push_str(
                        resolve_predefined_entity(name).ok_or_else(|| broken(format!("&{name};")))?,
                    );
                }
                Err(error) => return Err(broken(error.to_string())),
            },
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

/// # Errors
/// `Unsupported` when the answer is another document: some servers ignore what they do not know in a query and answer
/// something else.
fn expect_root(document: &str, wanted: &str) -> Result<()> {
    let mut root = None;
    walk(document, |node| {
        if let Node::Open(name) = node {
            root.get_or_insert_with(|| name.to_owned());
        }
    })?;
    match root {
        Some(name) if name == wanted => Ok(()),
        other => {
            let found = other.unwrap_or_default();
            let text = format!("the server answered `{found}` where `{wanted}` was asked for");
            Err(Error::permanent(ErrorKind::Unsupported, text))
        }
    }
}

/// An `<Error>` answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub region: Option<String>,
    pub endpoint: Option<String>,
}

/// `None` when the document is no error (also when it is no XML).
pub fn failure(document: &str) -> Option<Failure> {
    let mut failure = Failure::default();
    let mut root = None;
    let walked = walk(document, |node| match node {
        Node::Open(name) => {
            root.get_or_insert_with(|| name == "Error");
        }
        Node::Close("Code", text) => failure.code = text.into(),
        Node::Close("Message", text) => failure.message = text.into(),
        Node::Close("Region", text) => failure.region = Some(text.into()),
        Node::Close("Endpoint", text) => failure.endpoint = Some(text.into()),
        Node::Close(..) => {}
    });
    (walked.is_ok() && root == Some(true)).then_some(failure)
}

/// One page of a listing; keys as the store has them.
#[derive(Debug, Default)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub truncated: bool,
    pub token: Option<String>,
    pub marker: Option<String>,
}

pub fn page(document: &str) -> Result<Page> {
    let mut page = Page::default();
    let mut entry = None;
    let mut encoded = false;
    let mut is_listing = None;
    walk(document, |node| match node {
        Node::Open("Contents") => entry = Some(empty_entry()),
        Node::Open(name) => _ = is_listing.get_or_insert_with(|| name == "ListBucketResult"),
        Node::Close("Contents", _) => page.entries.extend(entry.take()),
        Node::Close("EncodingType", text) => encoded = text.eq_ignore_ascii_case("url"),
        Node::Close("IsTruncated", text) => page.truncated = text == "true",
        Node::Close("NextContinuationToken", text) => page.token = Some(text.into()),
        Node::Close("NextMarker", text) => page.marker = Some(text.into()),
        Node::Close(name, text) => {
            if let Some(entry) = &mut entry {
                match name {
                    "Key" => entry.key = text.into(),
                    "Size" => entry.size = text.parse().unwrap_or(u64::MAX),
                    "ETag" => entry.etag = Some(text.trim_matches('"').into()),
                    "LastModified" => entry.modified = millis(text),
                    _ => {}
                }
            }
        }
    })?;
    if is_listing != Some(true) {
        return Err(Error::permanent(
            ErrorKind::Unsupported,
            "the server answered no listing where one was asked for",
        ));
    }
    if let Some(entry) = page.entries.iter().find(|entry| entry.size == u64::MAX) {
        let text = format!("the listing has no size for `{}`", entry.key);
        return Err(Error::temporary(ErrorKind::Corrupt, text));
    }
    if encoded {
        for entry in &mut page.entries {
            if entry.key.contains(['%', '+']) {
                entry.key = decoded(&entry.key)?;
            }
        }
        page.marker = page.marker.as_deref().map(decoded).transpose()?;
    }
    Ok(page)
}

fn empty_entry() -> Entry {
    Entry { key: String::new(), size: u64::MAX, etag: None, modified: None }
}

/// One page of the parts of an upload.
#[derive(Debug, Default)]
pub struct Parts {
    pub parts: Vec<UploadedPart>,
    /// The number to go on after.
    pub next: Option<String>,
}

pub fn parts(document: &str) -> Result<Parts> {
    expect_root(document, "ListPartsResult")?;
    let mut answer = Parts::default();
    let mut part = None;
    let mut truncated = false;
    let mut next = None;
    walk(document, |node| match node {
        Node::Open("Part") => part = Some(UploadedPart { number: 0, etag: String::new(), size: 0 }),
        Node::Open(_) => {}
        Node::Close("Part", _) => answer.parts.extend(part.take()),
        Node::Close("IsTruncated", text) => truncated = text == "true",
        Node::Close("NextPartNumberMarker", text) => next = Some(text.to_owned()),
        Node::Close(name, text) => {
            if let Some(part) = &mut part {
                match name {
                    "PartNumber" => part.number = text.parse().unwrap_or(0),
                    "ETag" => part.etag = text.trim_matches('"').into(),
                    "Size" => part.size = text.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
    })?;
    answer.parts.retain(|part| part.number > 0 && !part.etag.is_empty());
    answer.next = next.filter(|_| truncated);
    Ok(answer)
}

/// One page of the open uploads of a bucket.
#[derive(Debug, Default)]
pub struct Uploads {
    pub uploads: Vec<Upload>,
    /// Key and id to go on after.
    pub next: Option<(String, String)>,
}

pub fn uploads(document: &str) -> Result<Uploads> {
    expect_root(document, "ListMultipartUploadsResult")?;
    let mut answer = Uploads::default();
    let (mut upload, mut truncated, mut encoded) = (None, false, false);
    let (mut next_key, mut next_id) = (String::new(), String::new());
    walk(document, |node| match node {
        Node::Open("Upload") => upload = Some(Upload { key: String::new(), id: String::new(), begun: None }),
        Node::Open(_) => {}
        Node::Close("Upload", _) => answer.uploads.extend(upload.take()),
        Node::Close("EncodingType", text) => encoded = text.eq_ignore_ascii_case("url"),
        Node::Close("IsTruncated", text) => truncated = text == "true",
        Node::Close("NextKeyMarker", text) => next_key = text.into(),
        Node::Close("NextUploadIdMarker", text) => next_id = text.into(),
        Node::Close(name, text) => {
            if let Some(upload) = &mut upload {
                match name {
                    "Key" => upload.key = text.into(),
                    "UploadId" => upload.id = text.into(),
                    "Initiated" => upload.begun = millis(text),
                    _ => {}
                }
            }
        }
    })?;
    if encoded {
        next_key = decoded(&next_key)?;
        for upload in &mut answer.uploads {
            upload.key = decoded(&upload.key)?;
        }
    }
    answer.next = truncated.then_some((next_key, next_id));
    Ok(answer)
}

/// The text of the first element of that name.
pub fn element(document: &str, wanted: &str) -> Result<Option<String>> {
    let mut found = None;
    walk(document, |node| {
        if let Node::Close(name, text) = node
            && name == wanted
            && found.is_none()
        {
            found = Some(text.to_owned());
        }
    })?;
    Ok(found)
}

/// The body that completes an upload.
pub fn completion(parts: &[UploadedPart]) -> String {
    let mut text = String::with_capacity(64 + parts.len() * 96);
    text.push_str("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "<Part><PartNumber>{}</PartNumber><ETag>&quot;{}&quot;</ETag></Part>",
            part.number,
            escape(part.etag.as_str())
        );
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

/// The body that creates a bucket in a region.
pub fn location(region: &str) -> String {
    format!(
        "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
        escape(region)
    )
}

/// Keys in listings are encoded like forms: `+` is a space, a plus is `%2B`.
fn decoded(text: &str) -> Result<String> {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
    decoded.map(String::from).map_err(|_| {
        let text = format!("the key `{text}` is not UTF-8");
        Error::permanent(ErrorKind::Unsupported, text)
    })
}

fn millis(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_encoded_keys() {
        let document = r#"<?xml version="1.0"?><ListBucketResult xmlns="x"><Name>b</Name><Prefix/>
            <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <NextContinuationToken>t&amp;&#x20;=</NextContinuationToken>
            <Contents><Key>a+b%2Bc%25/%E2%80%A6</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>
              <ETag>&quot;abc&quot;</ETag><Size>7</Size><Owner><ID>me</ID></Owner></Contents>
            <Contents><Key>plain</Key><ETag>"d"</ETag><Size>0</Size></Contents></ListBucketResult>"#;
        let page = page(document).unwrap();
        assert_eq!(page.entries[0].key, "a b+c%/…");
        assert_eq!(page.entries[0].etag.as_deref(), Some("abc"));
        assert_eq!(page.entries[0].modified, Some(1_767_323_045_678));
        assert_eq!((page.entries[1].key.as_str(), page.entries[1].size), ("plain", 0));
        assert_eq!(page.token.as_deref(), Some("t& ="));
        assert!(page.truncated);
    }

    #[test]
    fn a_page_that_is_not_encoded_stays_as_it_is() {
        let document = "<ListBucketResult><Contents><Key>a+b%20 &lt;&#13;</Key><Size>1</Size></Contents></ListBucketResult>";
        assert_eq!(page(document).unwrap().entries[0].key, "a+b%20 <\r");
    }

    #[test]
    fn errors_are_told_from_answers() {
        let text = "<Error><Code>SlowDown</Code><Message>later</Message></Error>";
        let failure = failure(text).unwrap();
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("SlowDown", "later"));
        assert_eq!(
            super::failure("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"),
            None
        );
        assert_eq!(super::failure("<html><body>busy"), None);
        assert!(
            page("<ListBucketResult><Contents>").is_ok_and(|page| page.entries.is_empty())
                || page("<a").is_err()
        );
    }

    #[test]
    fn parts_and_uploads() {
        let document = "<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>\
            <Part><PartNumber>1</PartNumber><ETag>\"e\"</ETag><Size>5</Size></Part></ListPartsResult>";
        let answer = parts(document).unwrap();
        assert_eq!(answer.parts, [UploadedPart { number: 1, etag: "e".into(), size: 5 }]);
        assert_eq!(answer.next.as_deref(), Some("1"));
        let document = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key>\
            <UploadId>u</UploadId><Initiated>1970-01-01T00:00:01Z</Initiated></Upload></ListMultipartUploadsResult>";
        let answer = uploads(document).unwrap();
        assert_eq!(answer.uploads, [Upload { key: "k".into(), id: "u".into(), begun: Some(1_000) }]);
        assert_eq!(answer.next, None);
    }

    #[test]
    fn completion_escapes_tags() {
        let parts = [UploadedPart { number: 3, etag: "a<&".into(), size: 1 }];
        assert!(completion(&parts).contains("<PartNumber>3</PartNumber><ETag>&quot;a&lt;&amp;&quot;</ETag>"));
    }
}
