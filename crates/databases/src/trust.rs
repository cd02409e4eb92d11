//! Which servers are believed, for every engine alike: rustls, verified, by the system's authorities or those of a file alone.

use crate::address::{Address, Tls};
use rehome_part::{Error, ErrorKind};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Whom we believe: the system's authorities, or those of a file alone.
pub(crate) fn authorities(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let Some(path) = file else { return Ok(rustls_native_certs::load_native_certs().certs) };
    let unreadable = |why: &dyn std::fmt::Display| {
        Error::permanent(ErrorKind::Other, format!("sslrootcert {}: {why}", path.display()))
    };
    let all = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| unreadable(&error))?;
    if all.is_empty() { Err(unreadable(&"no certificate is in it")) } else { Ok(all) }
}

/// How a server is proven, for those who speak to it themselves; `None` where its address says without TLS.
///
/// # Errors
/// The file of authorities cannot be used.
pub fn trusted_by(address: &Address) -> Result<Option<Arc<ClientConfig>>, Error> {
    match &address.tls {
        Tls::Off => Ok(None),
        Tls::Verified { authorities } => trust(authorities.as_deref()).map(|trusted| Some(Arc::new(trusted))),
    }
}

/// The same as a client of rustls wants it.
pub(crate) fn trust(file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let (added, _passed_over) = roots.add_parsable_certificates(authorities(file)?);
    if let Some(path) = file.filter(|_| added == 0) {
        let text = format!("sslrootcert {}: no certificate in it makes sense", path.display());
        return Err(Error::permanent(ErrorKind::Other, text));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
