//! What differs between services that speak the S3 protocol, as one table. Code asks the table, never for a vendor.
//!
//! OSS, COS and OBS are driven through the S3-compatible endpoints their vendors document, with AWS signatures: what only
//! their own protocols can do (OSS tags, COS and OSS bucket policies, OBS object tagging) is not done here. Nothing in this
//! table was ever tried against the real service, so `met_vendor` is false for every row.

use crate::store::policy::Grammar;
use crate::store::{Capabilities, PartLimits};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Which listing call to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// `list-type=2` with `start-after` and continuation tokens.
    Second,
    /// The first version, with `marker`: where the second is not documented.
    First,
}

/// Which checksum goes along with what is written. None of them ever makes the body `aws-chunked`: several services reject
/// trailers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// `x-amz-checksum-crc64nvme` on puts, and on parts of uploads that were begun with that algorithm.
    Crc64Nvme,
    /// The same on puts only, given up for good once the server refuses it.
    Crc64NvmeOnPut,
    None,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Dialect {
    pub name: &'static str,
    pub listing: Listing,
    pub checksum: Checksum,
    /// Ask for stored checksums with `x-amz-checksum-mode`.
    pub asks_for_checksums: bool,
    /// The answer header that has the CRC-64/XZ (ECMA) of the whole object as a decimal number.
    pub crc64xz_header: Option<&'static str>,
    /// User metadata in answers begins with one of these; written is always the first.
    pub metadata_prefixes: &'static [&'static str],
    pub etag_is_md5: bool,
    /// `If-Match` and `If-None-Match: *` on puts are documented. (They are sent either way.)
    pub conditional_put: bool,
    /// Open multipart uploads can be listed.
    pub lists_uploads: bool,
    pub policy: bool,
    pub grammar: Grammar,
    /// A new bucket is told its region in the body.
    pub names_location: bool,
    /// The bucket goes into the host name unless the endpoint is an address.
    pub virtual_host: bool,
    /// Content that has `Content-Encoding: gzip` is unpacked on the way unless the client says it takes gzip.
    pub unpacks_gzip: bool,
    pub max_put: u64,
    pub max_object: u64,
    pub parts: PartLimits,
}

const PARTS: PartLimits = PartLimits { smallest: 5 * MIB, largest: 5 * GIB, count: 10_000 };

pub const AWS: Dialect = Dialect {
    name: "aws",
    listing: Listing::Second,
    checksum: Checksum::Crc64Nvme,
    asks_for_checksums: true,
    crc64xz_header: None,
    metadata_prefixes: &["x-amz-meta-"],
    etag_is_md5: true,
    conditional_put: true,
    lists_uploads: true,
    policy: true,
    grammar: Grammar::Aws,
    names_location: true,
    virtual_host: true,
    unpacks_gzip: false,
    max_put: 5 * GIB,
    max_object: 50_000 * GIB,
    parts: PARTS,
};

pub const AWS_CHINA: Dialect = Dialect { name: "aws-cn", grammar: Grammar::AwsChina, ..AWS };

/// Any other server: what AWS does, without relying on the newer parts of it.
pub const GENERIC: Dialect = Dialect {
    name: "generic",
    checksum: Checksum::Crc64NvmeOnPut,
    conditional_put: false,
    virtual_host: false,
    max_object: 5 * TIB,
    ..AWS
};

pub const OSS: Dialect = Dialect {
    name: "oss",
    checksum: Checksum::None,
    asks_for_checksums: false,
    crc64xz_header: Some("x-oss-hash-crc64ecma"),
    metadata_prefixes: &["x-amz-meta-", "x-oss-meta-"],
    conditional_put: false,
    lists_uploads: false,
    policy: false,
    grammar: Grammar::NoExemption,
    names_location: false,
    max_object: 48 * TIB + 800 * GIB,
    parts: PartLimits { smallest: 100 << 10, ..PARTS },
    ..AWS
};

pub const COS: Dialect = Dialect {
    name: "cos",
    listing: Listing::First,
    checksum: Checksum::None,
    asks_for_checksums: false,
    crc64xz_header: Some("x-cos-hash-crc64ecma"),
    metadata_prefixes: &["x-amz-meta-", "x-cos-meta-"],
    conditional_put: false,
    policy: false,
    grammar: Grammar::NoExemption,
    names_location: false,
    max_object: 48 * TIB + 800 * GIB,
    parts: PartLimits { smallest: MIB, ..PARTS },
    ..AWS
};

pub const OBS: Dialect = Dialect {
    name: "obs",
    listing: Listing::First,
    checksum: Checksum::None,
    asks_for_checksums: false,
    metadata_prefixes: &["x-amz-meta-", "x-obs-meta-"],
    conditional_put: false,
    policy: false,
    grammar: Grammar::Obs,
    max_object: 48 * TIB + 800 * GIB,
    parts: PartLimits { smallest: 100 << 10, ..PARTS },
    ..AWS
};

/// Google Cloud Storage through its XML API with an HMAC key.
pub const GCS: Dialect = Dialect {
    name: "gcs",
    checksum: Checksum::None,
    asks_for_checksums: false,
    metadata_prefixes: &["x-amz-meta-", "x-goog-meta-"],
    conditional_put: false,
    policy: false,
    grammar: Grammar::NoExemption,
    names_location: false,
    virtual_host: false,
    unpacks_gzip: true,
    max_put: 5 * TIB,
    max_object: 5 * TIB,
    ..AWS
};

impl Dialect {
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            sorted_listing: true,
            etag_is_md5: self.etag_is_md5,
            user_metadata: true,
            content_headers: true,
            conditional_put: self.conditional_put,
            // Where a server ignores the condition the driver compares the tag it got.
            conditional_get: true,
            multipart: Some(self.parts),
            max_put: self.max_put,
            max_object: self.max_object,
            policy: self.policy,
            free_keys: true,
            met_vendor: false,
        }
    }
}
