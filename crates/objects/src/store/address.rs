//! From words to stores: `s3://bucket/prefix` and its kin, with what belongs to the address (endpoint, region, keys) from a
//! migration file, from options, or from the environment. Opening a store sends nothing.
//!
//! Everything behind the bucket is taken as it stands, byte for byte (no percent-decoding); a prefix that does not end with
//! `/` gets one, so that `s3://bucket/media` means the keys below `media/` and never those of `media2`.

use super::local::LocalStore;
use super::s3::dialect::{self, Dialect};
use super::s3::{Credentials, S3Store, Settings};
use super::{Store, opendal};
use rehome_part::{Error, ErrorKind, Result, Side};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The kinds of stores, by the scheme of their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Oss,
    Cos,
    Obs,
    Gcs,
    Azblob,
    File,
}

/// Where a store is and who asks. The keys are not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// Bucket or container; empty for a folder.
    pub bucket: String,
    /// Empty or with a `/` at its end; for a folder the folder's path.
    pub prefix: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: Option<bool>,
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
    pub session_token: Option<String>,
    /// How the user knows the keys, for hints: "access_key and secret_key of the source".
    pub credentials_name: String,
    pub side: Option<Side>,
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, region, path_style, credentials_name, side, .. } = self;
        formatter
            .debug_struct("Address")
            .field("url", &self.to_string())
            .field("endpoint", endpoint)
            .field("region", region)
            .field("path_style", path_style)
            .field("credentials_name", credentials_name)
            .field("side", side)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::File => write!(formatter, "file://{}", self.prefix),
            scheme => write!(formatter, "{}://{}/{}", scheme.word(), self.bucket, self.prefix),
        }
    }
}

/// The store a migration file describes. `secret` resolves references to secrets.
///
/// # Errors
/// `Unsupported` for an address that is none, `Credentials` for a secret that cannot be had; both name the side.
pub fn open(
    spec: &rehome_spec::Store,
    side: Side,
    secret: &dyn Fn(&rehome_spec::Secret) -> Result<String, String>,
) -> Result<Arc<dyn Store>> {
    Address::from_spec(spec, side, secret)?.open()
}

impl Address {
    /// # Errors
    /// `Unsupported` with what to write instead.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::permanent(ErrorKind::Unsupported, format!("`{text}` is not the address of a store: {why}"))
                .hint("write s3://BUCKET/PREFIX, oss://, cos://, obs://, gcs://, azblob:// or file:///FOLDER")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("it has no scheme"))?;
        let scheme = Scheme::from_word(scheme).ok_or_else(|| invalid("its scheme is unknown"))?;
        if scheme == Scheme::File {
            if !rest.starts_with('/') {
                return Err(invalid("a folder's path begins with `/`, like file:///srv/media"));
            }
            return Ok(Self::bare(scheme, String::new(), rest.to_owned()));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if bucket.is_empty() || !bucket.bytes().all(fits) {
            return Err(invalid("it names no bucket, or one with characters that no bucket has"));
        }
        let mut prefix = prefix.to_owned();
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Self::bare(scheme, bucket.to_owned(), prefix))
    }

    fn bare(scheme: Scheme, bucket: String, prefix: String) -> Self {
        Self {
            scheme,
            bucket,
            prefix,
            endpoint: None,
            region: None,
            path_style: None,
            access_key: None,
            secret_key: None,
            session_token: None,
            credentials_name: "the store's credentials".into(),
            side: None,
        }
    }

    /// # Errors
    /// See [`open`].
    pub fn from_spec(
        spec: &rehome_spec::Store,
        side: Side,
        secret: &dyn Fn(&rehome_spec::Secret) -> Result<String, String>,
    ) -> Result<Self> {
        let resolve = |what: &str, reference: &Option<rehome_spec::Secret>| match reference {
            None => Ok(None),
            Some(reference) => secret(reference).map(Some).map_err(|text| {
                Error::permanent(ErrorKind::Credentials, format!("cannot read {what} of the {side}: {text}"))
                    .on(side)
            }),
        };
        let mut address = Self::parse(&spec.url).map_err(|error| error.on(side))?;
        address.endpoint.clone_from(&spec.endpoint);
        address.region.clone_from(&spec.region);
        address.path_style = spec.path_style;
        address.access_key = resolve("access_key", &spec.access_key)?;
        address.secret_key = resolve("secret_key", &spec.secret_key)?;
        address.credentials_name = match (&spec.access_key, &spec.secret_key) {
            (None, None) => format!("the {side}'s credentials: it has no `access_key` and `secret_key`"),
            (access, secret) => {
                let references: Vec<&str> =
                    [access, secret].into_iter().flatten().map(|reference| reference.0.as_str()).collect();
                format!("the {side}'s credentials ({})", references.join(", "))
            }
        };
        address.side = Some(side);
        Ok(address)
    }

    /// Fills in what is not set from the variables people already have for this kind of store.
    #[must_use]
    pub fn with_environment(mut self, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let names = self.scheme.variables();
        let first =
            |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|text| !text.is_empty()));
        // Keys belong together: they are taken from the environment both or not at all.
        if self.access_key.is_none() && self.secret_key.is_none() {
            self.access_key = first(names.access_key);
            self.secret_key = first(names.secret_key);
            self.session_token = first(names.session_token);
            self.credentials_name =
                format!("{} and {}", names.access_key.join(" / "), names.secret_key.join(" / "));
        }
        self.region = self.region.or_else(|| first(names.region));
        self.endpoint = self.endpoint.or_else(|| first(names.endpoint));
        self
    }

    /// The store; nothing is sent.
    ///
    /// # Errors
    /// `Credentials` when one key of two is missing, `Unsupported` for what this kind of store cannot do.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        let opened: Result<Arc<dyn Store>> = match self.scheme {
            Scheme::File => Ok(Arc::new(LocalStore::new(PathBuf::from(&self.prefix), self.side))),
            Scheme::Azblob => opendal::azblob(self).map(|store| Arc::new(store) as Arc<dyn Store>),
            Scheme::Gcs if self.access_key.is_none() => {
                opendal::gcs(self).map(|store| Arc::new(store) as Arc<dyn Store>)
            }
            _ => self.settings().and_then(S3Store::new).map(|store| Arc::new(store) as Arc<dyn Store>),
        };
        opened.map_err(|error| match (error.side, self.side) {
            (None, Some(side)) => error.on(side),
            _ => error,
        })
    }

    fn settings(&self) -> Result<Settings> {
        let region = self.region.clone().unwrap_or_else(|| self.scheme.default_region().to_owned());
        let region = region.trim_start_matches("oss-").to_owned();
        let dialect = self.dialect(&region);
        let endpoint = match &self.endpoint {
            Some(endpoint) if endpoint.contains("://") => endpoint.clone(),
            Some(endpoint) => format!("https://{endpoint}"),
            None => self.default_endpoint(&region)?,
        };
        let credentials = match (&self.access_key, &self.secret_key) {
            (Some(access_key), Some(secret_key)) => Some(Credentials {
                access_key: access_key.trim().to_owned(),
                secret_key: secret_key.trim().to_owned(),
                session_token: self.session_token.clone(),
            }),
            (None, None) => None,
            _ => {
                let text = format!("{self} has only one of access_key and secret_key");
                return Err(Error::permanent(ErrorKind::Credentials, text).hint("give both, or neither"));
            }
        };
        // A certificate for *.host does not cover a bucket with a dot; an address has no subdomains.
        let virtual_host = dialect.virtual_host && !self.bucket.contains('.') && !is_numeric(&endpoint);
        Ok(Settings {
            dialect,
            path_style: self.path_style.unwrap_or(!virtual_host),
            endpoint,
            region,
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
            credentials,
            credentials_name: self.credentials_name.clone(),
            side: self.side,
            address: self.to_string(),
            page_keys: 1_000,
        })
    }

    fn dialect(&self, region: &str) -> &'static Dialect {
        match (self.scheme, self.endpoint.as_deref()) {
            (Scheme::Oss, _) => &dialect::OSS,
            (Scheme::Cos, _) => &dialect::COS,
            (Scheme::Obs, _) => &dialect::OBS,
            (Scheme::Gcs, _) => &dialect::GCS,
            (_, None) if region.starts_with("cn-") => &dialect::AWS_CHINA,
            (_, None) => &dialect::AWS,
            (_, Some(endpoint)) => dialect_of(endpoint),
        }
    }

    fn default_endpoint(&self, region: &str) -> Result<String> {
        let endpoint = match self.scheme {
            Scheme::S3 if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
            Scheme::S3 => format!("https://s3.{region}.amazonaws.com"),
            Scheme::Gcs => "https://storage.googleapis.com".to_owned(),
            Scheme::Oss if !region.is_empty() => format!("https://s3.oss-{region}.aliyuncs.com"),
            Scheme::Cos if !region.is_empty() => format!("https://cos.{region}.myqcloud.com"),
            Scheme::Obs if !region.is_empty() => format!("https://obs.{region}.myhuaweicloud.com"),
            _ => {
                return Err(Error::permanent(ErrorKind::Unsupported, format!("{self} has no region"))
                    .hint("set `region` (like \"cn-hangzhou\") or `endpoint` of this store"));
            }
        };
        Ok(endpoint)
    }
}

/// What an endpoint that was named with `s3://` speaks, told by its host.
fn dialect_of(endpoint: &str) -> &'static Dialect {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = rest.split(['/', ':']).next().unwrap_or("");
    let ends: [(&str, &'static Dialect); 6] = [
        (".amazonaws.com.cn", &dialect::AWS_CHINA),
        (".amazonaws.com", &dialect::AWS),
        (".aliyuncs.com", &dialect::OSS),
        (".myqcloud.com", &dialect::COS),
        (".myhuaweicloud.com", &dialect::OBS),
        (".googleapis.com", &dialect::GCS),
    ];
    ends.iter().find(|(end, _)| host.ends_with(end)).map_or(&dialect::GENERIC, |(_, dialect)| dialect)
}

/// An IP address or this machine: no bucket goes in front of those.
fn is_numeric(endpoint: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or("");
    if authority.starts_with('[') {
        return true;
    }
    let host = authority.split(':').next().unwrap_or("");
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok()
}

/// Names of environment variables, the first that is set counts.
struct Variables {
    access_key: &'static [&'static str],
    secret_key: &'static [&'static str],
    session_token: &'static [&'static str],
    region: &'static [&'static str],
    endpoint: &'static [&'static str],
}

impl Scheme {
    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "s3" => Self::S3,
            "oss" => Self::Oss,
            "cos" => Self::Cos,
            "obs" => Self::Obs,
            "gcs" | "gs" => Self::Gcs,
            "azblob" => Self::Azblob,
            "file" => Self::File,
            _ => return None,
        })
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Oss => "oss",
            Self::Cos => "cos",
            Self::Obs => "obs",
            Self::Gcs => "gcs",
            Self::Azblob => "azblob",
            Self::File => "file",
        }
    }

    fn default_region(self) -> &'static str {
        match self {
            Self::S3 => "us-east-1",
            Self::Gcs => "auto",
            _ => "",
        }
    }

    fn variables(self) -> Variables {
        const NONE: &[&str] = &[];
        let plain = |access_key, secret_key, region, endpoint| Variables {
            access_key,
            secret_key,
            session_token: NONE,
            region,
            endpoint,
        };
        match self {
            Self::S3 => Variables {
                access_key: &["AWS_ACCESS_KEY_ID"],
                secret_key: &["AWS_SECRET_ACCESS_KEY"],
                session_token: &["AWS_SESSION_TOKEN"],
                region: &["AWS_REGION", "AWS_DEFAULT_REGION"],
                endpoint: &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
            },
            Self::Oss => plain(
                &["OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"],
                &["OSS_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
                &["OSS_REGION"],
                &["OSS_ENDPOINT"],
            ),
            Self::Cos => plain(
                &["COS_SECRET_ID", "TENCENTCLOUD_SECRET_ID"],
                &["COS_SECRET_KEY", "TENCENTCLOUD_SECRET_KEY"],
                &["COS_REGION", "TENCENTCLOUD_REGION"],
                &["COS_ENDPOINT"],
            ),
            Self::Obs => plain(
                &["OBS_ACCESS_KEY_ID", "HUAWEICLOUD_SDK_AK"],
                &["OBS_SECRET_ACCESS_KEY", "HUAWEICLOUD_SDK_SK"],
                &["OBS_REGION"],
                &["OBS_ENDPOINT"],
            ),
            Self::Gcs => plain(&["GCS_ACCESS_KEY"], &["GCS_SECRET_KEY"], NONE, &["GCS_ENDPOINT"]),
            Self::Azblob => plain(
                &["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"],
                &["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"],
                NONE,
                &["AZURE_STORAGE_ENDPOINT"],
            ),
            Self::File => plain(NONE, NONE, NONE, NONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_spec::Secret;

    fn settings(url: &str, change: impl FnOnce(&mut Address)) -> Settings {
        let mut address = Address::parse(url).unwrap();
        address.access_key = Some("A".into());
        address.secret_key = Some("S".into());
        change(&mut address);
        address.settings().unwrap()
    }

    #[test]
    fn default_endpoints_follow_scheme_and_region() {
        let cases = [
            ("s3://b", "", "https://s3.us-east-1.amazonaws.com", "aws", false),
            ("s3://b.c", "eu-west-1", "https://s3.eu-west-1.amazonaws.com", "aws", true),
            ("s3://b", "cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn", "aws-cn", false),
            ("oss://b", "oss-cn-hangzhou", "https://s3.oss-cn-hangzhou.aliyuncs.com", "oss", false),
            ("cos://b-1", "ap-shanghai", "https://cos.ap-shanghai.myqcloud.com", "cos", false),
            ("obs://b", "cn-north-4", "https://obs.cn-north-4.myhuaweicloud.com", "obs", false),
            ("gs://b", "", "https://storage.googleapis.com", "gcs", true),
        ];
        for (url, region, endpoint, dialect, path_style) in cases {
            let settings = settings(url, |address| {
                address.region = (!region.is_empty()).then(|| region.to_owned());
            });
            assert_eq!(settings.endpoint, endpoint);
            assert_eq!(settings.dialect.name, dialect, "{url}");
            assert_eq!(settings.path_style, path_style, "{url}");
        }
    }

    #[test]
    fn a_named_endpoint_decides_the_dialect_and_the_style() {
        let of =
            |url: &str, endpoint: &str| settings(url, |address| address.endpoint = Some(endpoint.into()));
        let local = of("s3://b/p", "http://127.0.0.1:9000");
        assert_eq!((local.dialect.name, local.path_style, local.prefix.as_str()), ("generic", true, "p/"));
        assert_eq!(of("s3://b", "https://s3.oss-cn-beijing.aliyuncs.com").dialect.name, "oss");
        assert_eq!(of("s3://b", "minio.example.com").endpoint, "https://minio.example.com");
        assert!(of("oss://b", "http://[::1]:9000").path_style);
        assert!(!of("oss://b", "https://media.example.com").path_style);
    }

    #[test]
    fn addresses_that_are_none_say_what_to_write() {
        for text in ["", "bucket", "ftp://x/y", "s3://", "s3:///x", "s3://a b/c", "file://x"] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{text}");
            assert!(error.hint.is_some());
        }
        assert_eq!(Address::parse("s3://b/a%20//b").unwrap().prefix, "a%20//b/");
        assert_eq!(Address::parse("file:///srv/a b/").unwrap().prefix, "/srv/a b/");
        let without_region = Address::parse("oss://b").unwrap().open().unwrap_err();
        assert!(without_region.hint.unwrap().contains("region"));
    }

    #[test]
    fn secrets_are_resolved_and_never_shown() {
        let spec = rehome_spec::Store {
            url: "s3://media/x".into(),
            endpoint: Some("http://127.0.0.1:1".into()),
            region: None,
            access_key: Some(Secret("env:ID".into())),
            secret_key: Some(Secret("env:KEY".into())),
            path_style: None,
            principal: None,
        };
        let resolve = |secret: &Secret| Ok(format!("hidden-{}", secret.0));
        let address = Address::from_spec(&spec, Side::Target, &resolve).unwrap();
        assert_eq!(address.secret_key.as_deref(), Some("hidden-env:KEY"));
        assert!(!format!("{address:?}").contains("hidden"));
        assert!(address.credentials_name.contains("env:KEY"));
        let store = open(&spec, Side::Target, &resolve).unwrap();
        assert!(!format!("{store:?}").contains("hidden-env:KEY"));
        let missing = |_: &Secret| Err("ID is not set".to_owned());
        let error = open(&spec, Side::Target, &missing).unwrap_err();
        assert_eq!((error.kind, error.side), (ErrorKind::Credentials, Some(Side::Target)));
    }

    #[test]
    fn the_environment_fills_gaps_only() {
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("env-id".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("env-secret".to_owned()),
            "AWS_REGION" => Some("eu-central-1".to_owned()),
            _ => None,
        };
        let address = Address::parse("s3://b").unwrap().with_environment(&variable);
        assert_eq!(address.access_key.as_deref(), Some("env-id"));
        assert_eq!(address.region.as_deref(), Some("eu-central-1"));
        let mut given = Address::parse("s3://b").unwrap();
        given.access_key = Some("mine".into());
        let given = given.with_environment(&variable);
        assert_eq!((given.access_key.as_deref(), given.secret_key), (Some("mine"), None));
        assert_eq!(given.session_token, None);
    }
}
