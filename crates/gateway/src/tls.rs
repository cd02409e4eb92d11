//! TLS at a listener: the certificates of its services, chosen by the name a client asks for, read again while it runs. A bad new
//! pair never replaces a good one. Key text is dropped as soon as it is parsed, and has no `Debug` form.

use crate::config::GatewayError;
use crate::limits::Entrance;
use rehome_spec::Certificate;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;
use tokio_rustls::TlsAcceptor;

/// A file of certificates larger than this is none.
const MAX_CHAIN_BYTES: u64 = 1 << 20;
const HTTP2: &[u8] = b"h2";
/// Of the web. The last is what `curl --http1.0` offers, and nothing else with it.
pub(crate) const WEB: &[&[u8]] = &[HTTP2, b"http/1.1", b"http/1.0"];

/// All certificates of one listener.
#[derive(Debug)]
pub(crate) struct Certificates {
    sources: Vec<Certificate>,
    present: RwLock<Arc<Chosen>>,
    /// What the files were like when they were last read; one reading at a time.
    stamps: Mutex<Vec<Stamp>>,
    entrance: Arc<Entrance>,
}

/// Modification time, length and number of a file; `None` where there is none.
type Stamp = [Option<(SystemTime, u64, u64)>; 2];

#[derive(Debug)]
struct Pair {
    key: Arc<CertifiedKey>,
    /// In small letters, wildcards with their `*.`.
    names: Vec<String>,
}

/// Pairs by the names they are good for.
#[derive(Debug)]
struct Chosen {
    pairs: Vec<Arc<Pair>>,
    by_name: HashMap<String, Vec<usize>>,
}

impl Chosen {
    fn new(pairs: Vec<Arc<Pair>>) -> Self {
        let mut by_name = HashMap::<String, Vec<usize>>::new();
        for (index, pair) in pairs.iter().enumerate() {
            for name in &pair.names {
                by_name.entry(name.clone()).or_default().push(index);
            }
        }
        Self { pairs, by_name }
    }

    /// Exact names first, then wildcards of one label, then the first certificate; among equals the first one that `fits`
    /// the client's algorithms.
    fn pick(&self, name: Option<&str>, fits: impl Fn(&CertifiedKey) -> bool) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let named = self.by_name.get(&name).or_else(|| self.by_name.get(&wildcard?));
        let named = named.into_iter().flatten().filter_map(|index| self.pairs.get(*index));
        let all: Vec<_> = named.chain(&self.pairs).collect();
        all.iter().find(|pair| fits(&pair.key)).or(all.first()).map(|pair| pair.key.clone())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let present = self.present.read().expect("no code panics while it holds this lock").clone();
        present.pick(hello.server_name(), |key| key.key.choose_scheme(hello.signature_schemes()).is_some())
    }
}

impl Certificates {
    /// Reads all of them. Blocks.
    ///
    /// # Errors
    /// The first one that cannot be used, by its file.
    pub fn open(sources: Vec<Certificate>, entrance: Arc<Entrance>) -> Result<Arc<Self>, GatewayError> {
        let stamps = sources.iter().map(stamp).collect();
        let pairs = sources.iter().map(|source| load(source).map(Arc::new).map_err(GatewayError::Config));
        let present = RwLock::new(Arc::new(Chosen::new(pairs.collect::<Result<_, _>>()?)));
        Ok(Arc::new(Self { sources, present, stamps: Mutex::new(stamps), entrance }))
    }

    /// Reads all of them again: each that is good replaces its elder, each that is not leaves it in place and is warned of.
    /// Open connections go on as they are. Blocks.
    pub fn reload(&self) {
        let mut stamps = self.stamps.lock().expect("no code panics while it holds this lock");
        // Looked at before the files: what changes meanwhile is seen the next time.
        *stamps = self.sources.iter().map(stamp).collect();
        let present = self.present.read().expect("no code panics while it holds this lock").clone();
        let renewed = self.sources.iter().zip(&present.pairs).map(|(source, elder)| match load(source) {
            Ok(pair) => {
                self.entrance.certificates_read.fetch_add(1, Ordering::Relaxed);
                Arc::new(pair)
            }
            Err(error) => {
                self.entrance.certificates_refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(error, "the certificate in use stays; mend the file");
                elder.clone()
            }
        });
        let renewed = Arc::new(Chosen::new(renewed.collect()));
        *self.present.write().expect("no code panics while it holds this lock") = renewed;
        tracing::info!(certificates = self.sources.len(), "certificates were read again");
    }

    /// [`Certificates::reload`] if a file is not what it was. Blocks.
    pub fn reload_if_changed(&self) {
        let now: Vec<Stamp> = self.sources.iter().map(stamp).collect();
        let is_new = *self.stamps.lock().expect("no code panics while it holds this lock") != now;
        if is_new {
            self.reload();
        }
    }

    /// For clients of these protocols (ALPN).
    ///
    /// # Errors
    /// When the machine gives no random numbers.
    pub fn acceptor(self: &Arc<Self>, protocols: &[&[u8]]) -> Result<TlsAcceptor, GatewayError> {
        let failed = |error: rustls::Error| GatewayError::Config(format!("TLS cannot be set up: {error}"));
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config.ticketer = ring::Ticketer::new().map_err(failed)?;
        // No early data: it can be replayed, and a write must not be.
        config.max_early_data_size = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Did both ends settle on HTTP/2? A client that offers no protocol speaks HTTP/1.1.
pub(crate) fn is_http2<S>(stream: &tokio_rustls::server::TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

fn stamp(source: &Certificate) -> Stamp {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    [of(&source.chain), source.key.0.strip_prefix("file:").and_then(|path| of(Path::new(path)))]
}

/// The texts name files, never what is in them.
fn load(source: &Certificate) -> Result<Pair, String> {
    let file = source.chain.display();
    let text =
        read_chain(&source.chain).map_err(|error| format!("cannot read the certificate {file}: {error}"))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate {file} is not PEM: {error}"))?;
    let Some(first) = chain.first() else {
        return Err(format!("{file} holds no certificate: a PEM file with `BEGIN CERTIFICATE` is needed"));
    };
    let names =
        names(first).map_err(|error| format!("the first certificate in {file} is not one: {error}"))?;
    let key = source.key.resolve().map_err(|error| format!("the key of {file} cannot be had: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| {
        format!("the key of {file} ({}) is no private key in PEM without a password", source.key.0)
    })?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        format!("the key ({}) does not serve the certificate {file}: {error}", source.key.0)
    })?;
    Ok(Pair { key: Arc::new(key), names })
}

fn read_chain(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    // A pipe nobody writes to would block the opening for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_CHAIN_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Only to choose among our own certificates: whether a name is good for one is the client's to verify.
fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, webpki::Error> {
    let parsed = webpki::EndEntityCert::try_from(certificate)?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_spec::Secret;
    use std::path::PathBuf;

    /// Writes a new self-signed certificate for these names.
    fn write(folder: &Path, file: &str, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (chain, key) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        std::fs::write(&chain, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Certificate { chain, key: Secret(format!("file:{}", key.display())) }
    }

    fn open(sources: &[Certificate]) -> Result<Arc<Certificates>, String> {
        Certificates::open(sources.to_vec(), Arc::default()).map_err(|error| error.to_string())
    }

    fn picked(certificates: &Certificates, name: Option<&str>) -> usize {
        let present = certificates.present.read().unwrap().clone();
        let key = present.pick(name, |_| true).unwrap();
        present.pairs.iter().position(|pair| Arc::ptr_eq(&pair.key, &key)).unwrap()
    }

    #[test]
    fn the_name_chooses_exact_then_wildcard_then_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = open(&[
            write(folder.path(), "first", &["first.example"]),
            write(folder.path(), "wild", &["*.shop.example"]),
            write(folder.path(), "exact", &["api.shop.example", "shop.example"]),
        ])
        .unwrap();
        for (name, wanted) in [
            (Some("first.example"), 0),
            (Some("www.shop.example"), 1),
            (Some("API.shop.example"), 2),
            (Some("shop.example"), 2),
            (Some("a.b.shop.example"), 0),
            (Some("other.example"), 0),
            (Some("localhost"), 0),
            (None, 0),
        ] {
            assert_eq!(picked(&certificates, name), wanted, "{name:?}");
        }
    }

    #[test]
    fn a_certificate_whose_algorithm_the_client_lacks_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let certificates =
            open(&[write(folder.path(), "a", &["a.example"]), write(folder.path(), "b", &["a.example"])])
                .unwrap();
        let present = certificates.present.read().unwrap().clone();
        let first = present.pairs[0].key.clone();
        let second = present.pick(Some("a.example"), |key| !std::ptr::eq(key, Arc::as_ptr(&first))).unwrap();
        assert!(Arc::ptr_eq(&second, &present.pairs[1].key));
    }

    #[test]
    fn a_bad_new_pair_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let sources = [write(folder.path(), "a", &["a.example"]), write(folder.path(), "b", &["b.example"])];
        let certificates = open(&sources).unwrap();
        let before = certificates.present.read().unwrap().clone();
        std::fs::write(&sources[0].chain, "nothing").unwrap();
        write(folder.path(), "b", &["new.example"]);
        certificates.reload_if_changed();
        let after = certificates.present.read().unwrap().clone();
        assert!(Arc::ptr_eq(&before.pairs[0].key, &after.pairs[0].key));
        assert_eq!(after.pairs[1].names, ["new.example"]);
        let counts = &certificates.entrance;
        let counts = (
            counts.certificates_read.load(Ordering::Relaxed),
            counts.certificates_refused.load(Ordering::Relaxed),
        );
        assert_eq!(counts, (1, 1));
        certificates.reload_if_changed();
        assert_eq!(
            certificates.entrance.certificates_refused.load(Ordering::Relaxed),
            1,
            "nothing changed since"
        );
    }

    #[test]
    fn what_cannot_be_used_is_said_by_its_file_and_without_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let good = write(folder.path(), "good", &["a.example"]);
        let other = write(folder.path(), "other", &["a.example"]);
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for (chain, key, text) in [
            (folder.path().join("none.pem"), good.key.clone(), "cannot read the certificate"),
            (folder.path().to_owned(), good.key.clone(), "not a regular file"),
            (empty.clone(), good.key.clone(), "holds no certificate"),
            (good.chain.clone(), Secret(format!("file:{}", empty.display())), "cannot be had"),
            (good.chain.clone(), Secret(format!("file:{}", good.chain.display())), "no private key in PEM"),
            (good.chain.clone(), other.key, "does not serve the certificate"),
        ] {
            let error = open(&[Certificate { chain: chain.clone(), key }]).unwrap_err();
            assert!(error.contains(text) && error.contains(&chain.display().to_string()), "{error}");
            assert!(!error.contains("BEGIN PRIVATE"), "{error}");
        }
    }

    #[test]
    fn no_key_is_in_a_debug_form() {
        let folder = tempfile::tempdir().unwrap();
        let source = write(folder.path(), "a", &["a.example"]);
        let key =
            std::fs::read_to_string(PathBuf::from(source.key.0.strip_prefix("file:").unwrap())).unwrap();
        let shown = format!("{:?}", open(&[source]).unwrap());
        assert!(key.lines().all(|line| line.starts_with("---") || !shown.contains(line)), "{shown}");
    }
}
