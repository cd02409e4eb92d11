//! What a gateway is started with, checked once before anything listens, and why it may refuse to start.
//! Never holds a secret in a `Debug` form.

use crate::limits::Patience;
use crate::pgbouncer::PgBouncer;
use crate::postgres::FrontDoor;
use crate::upstream::Dialing;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use rehome_spec::{Hold, Remote, Service, UpstreamHttp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything a gateway needs; nothing is read from the environment.
#[derive(Clone)]
pub struct Config {
    /// The gateway's name in statuses, logs and the `Via` header; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Folder of the epoch file; made with mode 0700. One process at a time may use it.
    pub state_dir: PathBuf,
    /// The control socket; made with mode 0600.
    pub control: PathBuf,
    /// Shown by whoever speaks on the control socket.
    pub secret: String,
    /// The same control over TLS, for an engine on another machine.
    pub remote: Option<Remote>,
    pub services: Vec<Service>,
    /// Those that this gateway drives; their clients never come here.
    pub bouncers: Vec<PgBouncer>,
    /// Doors for clients of databases.
    pub front_doors: Vec<FrontDoor>,
    /// Bounds of what may wait while writes are held.
    pub hold: Hold,
    /// One JSON line per request is appended here.
    pub access_log: Option<PathBuf>,
    /// Where `GET /metrics` is answered (Prometheus text).
    pub metrics: Option<SocketAddr>,
    /// How long clients may take over things.
    pub patience: Patience,
    /// Test instruments that break the gateway on purpose; empty outside tests. See [`Sabotage`].
    pub sabotage: Vec<String>,
}

impl Config {
    /// A configuration with the default bounds and no log, metrics or sabotage.
    pub fn new(
        name: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        control: impl Into<PathBuf>,
        secret: impl Into<String>,
        services: Vec<Service>,
    ) -> Self {
        Self {
            name: name.into(),
            state_dir: state_dir.into(),
            control: control.into(),
            secret: secret.into(),
            remote: None,
            services,
            bouncers: Vec::new(),
            front_doors: Vec::new(),
            hold: Hold::default(),
            access_log: None,
            metrics: None,
            patience: Patience::default(),
            sabotage: Vec::new(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("state_dir", &self.state_dir)
            .field("control", &self.control)
            .field("secret", &"(not shown)")
            .field("remote", &self.remote.as_ref().map(|remote| &remote.address))
            .field("services", &self.services)
            .field("bouncers", &self.bouncers)
            .field("front_doors", &self.front_doors)
            .field("hold", &self.hold)
            .field("access_log", &self.access_log)
            .field("metrics", &self.metrics)
            .field("patience", &self.patience)
            .field("sabotage", &self.sabotage)
            .finish()
    }
}

/// Ways to break the promise of a single send, for the checks that must notice it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// `release-twice`: every write that was held is sent to its upstream twice.
    pub release_twice: bool,
    /// `release-both`: writes that were held go to both sides in turn.
    pub release_both: bool,
}

impl Sabotage {
    /// # Errors
    /// A name that is not known.
    pub fn parse(names: &[String]) -> Result<Self, GatewayError> {
        let mut sabotage = Self::default();
        for name in names {
            match name.as_str() {
                "release-twice" => sabotage.release_twice = true,
                "release-both" => sabotage.release_both = true,
                _ => return Err(GatewayError::Config(format!("unknown sabotage `{name}`"))),
            }
        }
        Ok(sabotage)
    }

    pub(crate) fn any(self) -> bool {
        self.release_twice || self.release_both
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration cannot work; the text says what to change.
    #[error("{0}")]
    Config(String),
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen { what: String, address: String, source: std::io::Error },
    #[error("cannot open the control socket {path}: {text}")]
    Control { path: PathBuf, text: String },
    /// Another process uses this state folder, or it cannot be used.
    #[error("cannot use the state folder {path}: {text}")]
    State { path: PathBuf, text: String },
    /// The epoch file cannot be believed. Starting without it could send writes to the wrong side.
    #[error(
        "the epoch file {path} is damaged ({text}); restore it, or remove it once you know who owns the writes"
    )]
    DamagedState { path: PathBuf, text: String },
    #[error("cannot write the access log {path}: {source}")]
    AccessLog { path: PathBuf, source: std::io::Error },
}

/// One upstream address, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// `host:port`, as the `Host` of requests that the gateway makes by itself.
    pub authority: String,
    pub host: String,
    pub port: u16,
    /// https
    pub secure: bool,
}

impl Upstream {
    pub fn parse(service: &str, key: &str, text: &str) -> Result<Self, GatewayError> {
        let wrong = |why: &str| {
            GatewayError::Config(format!(
                "service `{service}`: {key} = \"{text}\" {why}, like \"http://10.0.0.5:8000\""
            ))
        };
        let uri: http::Uri = text.parse().map_err(|_| wrong("is not an address: write one"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("must begin with http:// or https://: write one")),
        };
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("has a path: write only scheme, host and port"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("has no host: write one"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("holds a user name: write one without"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("has no host: write one"));
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { authority: authority.to_string(), host, port, secure })
    }
}

/// A service's settings in the form the request path uses.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub name: String,
    /// The addresses of each side; the first one is there always.
    pub source: Vec<Upstream>,
    pub target: Vec<Upstream>,
    pub dialing: Dialing,
    pub health: Option<PathAndQuery>,
    pub reads: Vec<http::Method>,
    pub clients: Vec<crate::split::KeySource>,
    pub max_staleness: Duration,
    pub upstream_idle: Duration,
    pub upstream_timeout: Duration,
    /// In bytes.
    pub max_body: Option<u64>,
    pub shadow: rehome_spec::Shadow,
}

impl Plan {
    /// The form in which the upstream's version of HTTP wants a request's address: the path alone, or all of it.
    pub fn upstream_uri(&self, path: Option<PathAndQuery>, authority: Option<&str>, secure: bool) -> Uri {
        let scheme = if secure { "https" } else { "http" };
        let path_only = || path.clone().map_or_else(Uri::default, Uri::from);
        let Some(authority) = authority.filter(|_| self.dialing.http == UpstreamHttp::Two) else {
            return path_only();
        };
        let whole = Uri::builder().scheme(scheme).authority(authority);
        whole
            .path_and_query(path.as_ref().map_or("/", PathAndQuery::as_str))
            .build()
            .unwrap_or_else(|_| path_only())
    }

    pub fn check(service: &Service) -> Result<Self, GatewayError> {
        let name = &service.name;
        let wrong = |text: String| GatewayError::Config(format!("service `{name}`: {text}"));
        let method = |text: &String| {
            http::Method::from_bytes(text.as_bytes())
                .map_err(|_| wrong(format!("`{text}` in reads is not a method")))
        };
        let reads = service.reads.iter().map(method).collect::<Result<_, _>>()?;
        let clients = service.clients.iter().map(|key| crate::split::KeySource::parse(&key.0).map_err(wrong));
        let health = match &service.health {
            Some(path) if path.starts_with('/') => {
                Some(path.parse().map_err(|_| wrong(format!("health = \"{path}\" is not a path")))?)
            }
            Some(path) => return Err(wrong(format!("health = \"{path}\" must begin with /"))),
            None => None,
        };
        let source = addresses(name, "source", &service.source, &service.source_peers)?;
        let target = addresses(name, "target", &service.target, &service.target_peers)?;
        Ok(Self {
            name: name.clone(),
            dialing: dialing(service, source.iter().chain(&target).any(|upstream| upstream.secure))?,
            source,
            target,
            health,
            reads,
            clients: clients.collect::<Result<_, _>>()?,
            max_staleness: service.max_staleness.0,
            upstream_idle: service.upstream_idle.0,
            upstream_timeout: service.upstream_timeout.0,
            max_body: service.max_body.map(|size| size.0),
            shadow: service.shadow.clone(),
        })
    }
}

fn addresses(name: &str, key: &str, first: &str, peers: &[String]) -> Result<Vec<Upstream>, GatewayError> {
    let peers = peers.iter().map(|peer| Upstream::parse(name, &format!("{key}_peers"), peer));
    std::iter::once(Upstream::parse(name, key, first)).chain(peers).collect()
}

/// How a service's addresses are spoken to; certificates are read only where TLS is `wanted`.
fn dialing(service: &Service, wanted: bool) -> Result<Dialing, GatewayError> {
    let http = service.upstream_http;
    if !wanted {
        return Ok(Dialing { http, tls: None });
    }
    let wrong = |text: String| GatewayError::Config(format!("service `{}`: {text}", service.name));
    let roots = trusted(service.upstream_ca.as_deref(), "upstream_ca").map_err(wrong)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = match http {
        UpstreamHttp::One => vec![b"http/1.1".to_vec()],
        UpstreamHttp::Two => vec![b"h2".to_vec()],
    };
    Ok(Dialing { http, tls: Some(Arc::new(tls)) })
}

/// Whom the system believes, and whoever the file `ca` names. `key` is what the file is called where it was asked for.
pub(crate) fn trusted(ca: Option<&Path>, key: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca {
        let shown = path.display();
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| format!("{key} {shown}: {error}"))?;
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(format!("{key} {shown} holds no certificate that can be used"));
        }
    }
    if roots.is_empty() {
        return Err(format!(
            "TLS is wanted and this system trusts nobody: install its CA certificates, or name `{key}`"
        ));
    }
    Ok(roots)
}

/// Checks all of the configuration that can be checked without touching anything.
pub(crate) fn check(config: &Config) -> Result<Vec<Plan>, GatewayError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if config.name.is_empty() || !config.name.chars().all(usable) {
        return Err(GatewayError::Config(
            "the gateway's name must be letters, digits, `-`, `_` or `.`".into(),
        ));
    }
    if config.secret.is_empty() {
        return Err(GatewayError::Config("the gateway needs a secret for its control socket".into()));
    }
    if config.services.is_empty() && config.bouncers.is_empty() && config.front_doors.is_empty() {
        return Err(GatewayError::Config("the gateway has no service: add a [[services]] table".into()));
    }
    for (index, service) in config.services.iter().enumerate() {
        if config.services.iter().take(index).any(|other| other.name == service.name) {
            return Err(GatewayError::Config(format!("two services are called `{}`", service.name)));
        }
    }
    Sabotage::parse(&config.sabotage)?;
    config.services.iter().map(Plan::check).collect()
}

/// The authority of a request in a form that can go into a `Host` header.
pub(crate) fn host_value(authority: &Authority) -> Option<http::HeaderValue> {
    let text = authority.as_str();
    let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
    http::HeaderValue::from_str(host).ok()
}
