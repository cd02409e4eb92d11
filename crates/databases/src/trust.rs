//! Which servers are believed, for every engine alike: rustls, verified, by the system's authorities or those of a file alone.

use rehome_part::{Error, ErrorKind};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Whom we believe: the system's authorities, or those of a file alone.
pub(crate) fn trust(authorities: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let unreadable = |why: &dyn std::fmt::Display| {
                Error::permanent(ErrorKind::Other, format!("sslrootcert {}: {why}", path.display()))
            };
            let all = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
            for certificate in all {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
            if roots.is_empty() {
                return Err(unreadable(&"no certificate is in it"));
            }
        }
        None => {
            let (_added, _passed_over) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
