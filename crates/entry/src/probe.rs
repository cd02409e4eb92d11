//! Asks an entry over HTTP, as a user would, whether a request goes through the gateway. It proves a path, never an identity: it
//! asks a server of this machine, so certificates are not verified.

use crate::change::Seen;
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_ID: &str = "x-request-id";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One way to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub place: Place,
    pub secure: bool,
    /// HTTP/2 without TLS: such a port speaks nothing else.
    pub prior_knowledge: bool,
    /// The port wants a PROXY header.
    pub proxy_header: bool,
    pub host: String,
    pub path: String,
}

impl Question {
    pub(crate) fn route(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        let at = match &self.place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(path) => path.display().to_string(),
        };
        format!("{scheme}://{}{} at {at}", self.host, self.path)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Sends one request, or two where one does not tell.
pub(crate) async fn ask(question: &Question) -> Seen {
    let first = asked(question).await;
    let through_gateway = match &first {
        Ok(answer) if answer.via && answer.is_fresh => true,
        // Somebody on the way sets ids of his own, or a cache answered: an id that comes twice is a cache's.
        Ok(answer) if answer.via => match asked(question).await {
            Ok(second) => second.via && answer.id.is_some() && second.id != answer.id,
            Err(_) => false,
        },
        _ => false,
    };
    Seen { route: question.route(), answer: first.map(|answer| answer.status), through_gateway }
}

struct Answer {
    status: u16,
    via: bool,
    is_fresh: bool,
    id: Option<String>,
}

async fn asked(question: &Question) -> Result<Answer, String> {
    match tokio::time::timeout(PATIENCE, exchange(question)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

async fn exchange(question: &Question) -> Result<Answer, String> {
    let mut stream: Box<dyn Stream> = match &question.place {
        Place::Tcp(address) => Box::new(TcpStream::connect(address).await.map_err(say)?),
        Place::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(say)?),
    };
    if question.proxy_header {
        stream.write_all(b"PROXY UNKNOWN\r\n").await.map_err(say)?;
    }
    if question.secure {
        stream = Box::new(encrypted(stream, &question.host).await?);
    }
    let id = fresh_id()?;
    let path = if question.path.starts_with('/') { &question.path } else { "/" };
    let target = match question.prior_knowledge {
        true => format!("http://{}{path}", question.host),
        false => path.to_owned(),
    };
    let request = Request::get(target)
        .header(header::USER_AGENT, "rehome")
        .header(header::CACHE_CONTROL, "no-cache")
        .header(REQUEST_ID, &id);
    let request = match question.prior_knowledge {
        true => request,
        false => request.header(header::HOST, &question.host).header(header::CONNECTION, "close"),
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(say)?;
    let (status, headers) = send(stream, request, question.prior_knowledge).await?;
    let answered = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_fresh = answered.as_deref() == Some(id.as_str());
    Ok(Answer { status, via: came_through(&headers), is_fresh, id: answered })
}

async fn send(
    stream: Box<dyn Stream>,
    request: Request<Empty<Bytes>>,
    prior_knowledge: bool,
) -> Result<(u16, HeaderMap), String> {
    let stream = TokioIo::new(stream);
    // The body is of no interest: dropping the connection ends it.
    let response = if prior_knowledge {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.map_err(say)?;
        let line = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        line.abort();
        response
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(say)?;
        let line = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        line.abort();
        response
    };
    let response = response.map_err(say)?;
    Ok((response.status().as_u16(), response.headers().clone()))
}

/// RFC 9110 section 7.6.3: `1.1 rehome` as one of the list. What the gateway answers by itself says what became of the request.
fn came_through(headers: &HeaderMap) -> bool {
    if headers.contains_key("rehome-outcome") {
        return true;
    }
    let lines = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| item.split_whitespace().nth(1) == Some("rehome"))
}

fn fresh_id() -> Result<String, String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(say)?;
    Ok(bytes.iter().fold("rehome-proof-".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn encrypted(stream: Box<dyn Stream>, host: &str) -> Result<impl Stream + use<>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(say)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = ServerName::try_from(name.to_owned()).or_else(|_| ServerName::try_from("localhost"));
    let name = name.map_err(say)?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(say)
}

/// Believes every certificate; see the top of this file.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
