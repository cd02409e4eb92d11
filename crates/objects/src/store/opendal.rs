//! Azure Blob Storage and Google Cloud Storage with their own signatures, through OpenDAL.

use super::address::Address;
use super::s3::S3Store;
use rehome_part::{Error, ErrorKind, Result};

pub(super) fn azblob(address: &Address) -> Result<S3Store> {
    Err(Error::permanent(ErrorKind::Unsupported, format!("{address}")))
}
pub(super) fn gcs(address: &Address) -> Result<S3Store> {
    Err(Error::permanent(ErrorKind::Unsupported, format!("{address}")))
}
