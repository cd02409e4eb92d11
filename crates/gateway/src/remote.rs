//! The control protocol over TLS, for a gateway on another machine than the engine: both ends. The gateway shows its
//! certificate, the caller its secret; nobody is believed before both. Knows nothing of what is said.

use crate::config::{GatewayError, trusted};
use crate::limits::Entrance;
use crate::tls::{Certificates, WEB};
use rehome_spec::Remote;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// A caller that has not shown TLS after this long is sent away.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The gateway's end: bound, with its certificate read.
pub(crate) struct Door {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub address: SocketAddr,
    /// Read again like those of the services.
    pub certificates: Arc<Certificates>,
}

impl Door {
    /// # Errors
    /// A certificate that cannot be used, an address in use.
    pub async fn open(remote: &Remote, entrance: Arc<Entrance>) -> Result<Self, GatewayError> {
        let sources = vec![remote.tls.clone()];
        let opened = tokio::task::spawn_blocking(move || Certificates::open(sources, entrance)).await;
        let certificates = opened.map_err(|error| GatewayError::Config(error.to_string()))??;
        let acceptor = certificates.acceptor(WEB)?;
        let listen = remote.listen.as_ref().unwrap_or(&remote.address).clone();
        let failed =
            |source| GatewayError::Listen { what: "the engine".into(), address: listen.clone(), source };
        let listener = TcpListener::bind(&listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, acceptor, address, certificates })
    }

    pub async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// TLS with a caller, or an error in time.
pub(crate) async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> io::Result<server::TlsStream<TcpStream>> {
    tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The caller's end: where the gateway is and whom to believe.
#[derive(Clone)]
pub struct RemoteGateway {
    address: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for RemoteGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteGateway").field(&self.address).finish()
    }
}

impl RemoteGateway {
    /// Reads `ca`; connects to nothing.
    ///
    /// # Errors
    /// An address without a host, or nobody to believe.
    pub fn new(address: &str, ca: Option<&Path>) -> Result<Self, GatewayError> {
        let wrong = |text: String| GatewayError::Config(format!("the gateway at {address}: {text}"));
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| wrong(error.to_string()))?;
        let roots = trusted(ca, "ca").map_err(wrong)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address: address.to_owned(), name, tls: Arc::new(tls) })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// # Errors
    /// Nobody answers there, or whoever answers shows a certificate that is not believed.
    pub(crate) async fn connect(&self) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await
    }
}
