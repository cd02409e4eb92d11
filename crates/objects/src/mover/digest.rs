//! Checksums of content on its way: computed once per piece, joined across pieces, compared with what a store reports.
//! Only kinds that both ends know are compared; MD5 (slow, not joinable) only when nothing else is reported.

use crate::store::Checksums;
use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc64Nvme, Crc64Xz};
use md5::{Digest as _, Md5};

/// The joinable checksums of a run of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub length: u64,
    pub crc64nvme: u64,
    pub crc64xz: u64,
    pub crc32c: u32,
}

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self {
            length: content.len() as u64,
            crc64nvme: crc_fast::checksum(Crc64Nvme, content),
            crc64xz: crc_fast::checksum(Crc64Xz, content),
            crc32c: crc32(crc_fast::checksum(Crc32Iscsi, content)),
        }
    }

    /// The digest of `self`'s bytes followed by `next`'s.
    pub fn join(&self, next: &Self) -> Self {
        if self.length == 0 {
            return *next;
        }
        let join =
            |algorithm, first, second| crc_fast::checksum_combine(algorithm, first, second, next.length);
        Self {
            length: self.length + next.length,
            crc64nvme: join(Crc64Nvme, self.crc64nvme, next.crc64nvme),
            crc64xz: join(Crc64Xz, self.crc64xz, next.crc64xz),
            crc32c: crc32(join(Crc32Iscsi, self.crc32c.into(), next.crc32c.into())),
        }
    }

    pub fn checksums(&self) -> Checksums {
        Checksums {
            md5: None,
            crc64nvme: Some(self.crc64nvme),
            crc64xz: Some(self.crc64xz),
            crc32c: Some(self.crc32c),
        }
    }
}

fn crc32(value: u64) -> u32 {
    u32::try_from(value).expect("a 32-bit CRC has 32 bits")
}

/// Does whole content in memory agree with what a store reports? `None` when the store reports nothing.
pub(crate) fn agrees(content: &[u8], reported: &Checksums) -> Option<bool> {
    if let Some(expected) = reported.crc64nvme {
        return Some(crc_fast::checksum(Crc64Nvme, content) == expected);
    }
    if let Some(expected) = reported.crc64xz {
        return Some(crc_fast::checksum(Crc64Xz, content) == expected);
    }
    if let Some(expected) = reported.crc32c {
        return Some(crc32(crc_fast::checksum(Crc32Iscsi, content)) == expected);
    }
    reported.md5.as_ref().map(|expected| &md5_hex(content) == expected)
}

pub(crate) fn md5_hex(content: &[u8]) -> String {
    hex(&Md5::digest(content))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Is this tag a plain MD5 of the content?
pub(crate) fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let digest = Digest::of(b"123456789");
        assert_eq!(digest.crc64nvme, 0xae8b_1486_0a79_9888);
        assert_eq!(digest.crc64xz, 0x995d_c9bb_df19_39fa);
        assert_eq!(digest.crc32c, 0xe306_9283);
        assert_eq!(md5_hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn joined_pieces_equal_the_whole() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut joined = Digest::default();
        for piece in content.chunks(77_777) {
            joined = joined.join(&Digest::of(piece));
        }
        assert_eq!(joined, Digest::of(&content));
        assert_eq!(Digest::default().join(&Digest::of(b"")), Digest::of(b""));
    }

    #[test]
    fn every_reported_kind_can_refuse() {
        let good = Checksums { md5: Some(md5_hex(b"abc")), ..Digest::of(b"abc").checksums() };
        let kinds = [
            Checksums { md5: good.md5.clone(), ..Checksums::default() },
            Checksums { crc64nvme: good.crc64nvme, ..Checksums::default() },
            Checksums { crc64xz: good.crc64xz, ..Checksums::default() },
            Checksums { crc32c: good.crc32c, ..Checksums::default() },
        ];
        for kind in kinds {
            assert_eq!(agrees(b"abc", &kind), Some(true));
            assert_eq!(agrees(b"abd", &kind), Some(false));
        }
        assert_eq!(agrees(b"abc", &Checksums::default()), None);
    }
}
