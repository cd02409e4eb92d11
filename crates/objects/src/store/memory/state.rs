//! What a [`super::MemoryStore`] keeps: objects, uploads under way, the policy. No fault is known here.

use crate::store::{Attributes, Checksums, Upload, UploadedPart};
use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct State {
    pub exists: bool,
    pub objects: BTreeMap<String, Object>,
    pub uploads: BTreeMap<String, Pending>,
    pub policy: Option<String>,
    pub room_bytes: Option<u64>,
    pub last_upload: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Object {
    pub content: Bytes,
    pub attributes: Attributes,
    pub etag: String,
    pub modified: i64,
    crc64nvme: u64,
}

/// A multipart upload under way.
#[derive(Debug)]
pub(super) struct Pending {
    key: String,
    attributes: Attributes,
    begun: i64,
    parts: BTreeMap<u32, (String, Bytes)>,
}

impl Object {
    pub fn new(content: Bytes, attributes: Attributes) -> Self {
        let etag = hex(&Md5::digest(&content));
        Self::with_etag(content, attributes, etag)
    }

    fn with_etag(content: Bytes, attributes: Attributes, etag: String) -> Self {
        let crc64nvme = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
        Self { content, attributes, etag, modified: now_millis(), crc64nvme }
    }

    pub fn size(&self) -> u64 {
        self.content.len() as u64
    }

    pub fn checksums(&self, etag_is_md5: bool) -> Checksums {
        let md5 = Some(self.etag.clone()).filter(|etag| etag_is_md5 && etag.len() == 32);
        Checksums { md5, crc64nvme: Some(self.crc64nvme), ..Checksums::default() }
    }
}

impl State {
    pub fn begin_upload(&mut self, key: &str, attributes: Attributes) -> String {
        self.last_upload += 1;
        let id = format!("upload-{}", self.last_upload);
        let pending = Pending { key: key.into(), attributes, begun: now_millis(), parts: BTreeMap::new() };
        self.uploads.insert(id.clone(), pending);
        id
    }

    pub fn upload(&mut self, key: &str, id: &str) -> Result<&mut Pending, String> {
        self.uploads
            .get_mut(id)
            .filter(|pending| pending.key == key)
            .ok_or_else(|| format!("no upload {id} of {key}"))
    }

    pub fn upload_bytes(&self) -> u64 {
        self.uploads.values().flat_map(|p| p.parts.values()).map(|(_, content)| content.len() as u64).sum()
    }

    pub fn open_uploads(&self) -> Vec<Upload> {
        let upload = |(id, p): (&String, &Pending)| Upload {
            key: p.key.clone(),
            id: id.clone(),
            begun: Some(p.begun),
        };
        self.uploads.iter().map(upload).collect()
    }
}

impl Pending {
    pub fn add(&mut self, number: u32, content: Bytes) -> UploadedPart {
        let part = UploadedPart { number, etag: hex(&Md5::digest(&content)), size: content.len() as u64 };
        self.parts.insert(number, (part.etag.clone(), content));
        part
    }

    pub fn parts(&self) -> Vec<UploadedPart> {
        let part = |(number, (etag, content)): (&u32, &(String, Bytes))| UploadedPart {
            number: *number,
            etag: etag.clone(),
            size: content.len() as u64,
        };
        self.parts.iter().map(part).collect()
    }

    /// The whole object of the parts named, in ascending order; the upload itself stays until it is removed.
    pub fn assemble(&self, parts: &[UploadedPart], smallest: u64) -> Result<Object, String> {
        let mut content = BytesMut::new();
        let mut digests = Md5::new();
        let mut last = 0;
        for (index, part) in parts.iter().enumerate() {
            let kept = self.parts.get(&part.number).filter(|(etag, _)| *etag == part.etag);
            let Some((_, bytes)) = kept else { return Err(format!("part {} is not there", part.number)) };
            if part.number <= last {
                return Err("the parts are not in ascending order".into());
            }
            if index + 1 < parts.len() && (bytes.len() as u64) < smallest {
                return Err(format!("part {} is below the smallest size", part.number));
            }
            last = part.number;
            content.extend_from_slice(bytes);
            digests.update(Md5::digest(bytes));
        }
        if parts.is_empty() {
            return Err("an upload needs at least one part".into());
        }
        let etag = format!("{}-{}", hex(&digests.finalize()), parts.len());
        Ok(Object::with_etag(content.freeze(), self.attributes.clone(), etag))
    }
}

fn now_millis() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
