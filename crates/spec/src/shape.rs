//! The tables and keys of `rehome.toml`. No `flatten`, no `untagged`: they ruin error messages.

use crate::network::Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A migration: what moves, from where to where, and behind which services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migration {
    pub migration: Header,
    /// Limits of the switch; every one has a default.
    #[serde(default)]
    pub switch: Switch,
    #[serde(default)]
    pub objects: Vec<Objects>,
    #[serde(default)]
    pub databases: Vec<Database>,
    #[serde(default)]
    pub services: Vec<Service>,
    #[serde(default)]
    pub gateways: Vec<Gateway>,
    #[serde(default)]
    pub workers: Vec<Worker>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Letters, digits, `-` and `_`; names the run's folder and its reports.
    pub name: String,
    pub source: Place,
    pub target: Place,
    /// A second place (another disk, a mounted share) the journal is copied to after every change.
    pub journal_copy: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub cloud: String,
    #[serde(default)]
    pub region: Option<String>,
}

/// What the switch may cost, and how it goes there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Switch {
    /// The longest write pause that is acceptable; the switch is not begun when the prediction is above it.
    pub max_pause: Span,
    /// How long a write that was already forwarded may take before the switch is given up.
    pub in_flight_deadline: Span,
    /// Shares of reads sent to the target one after the other before the switch, in percent.
    pub read_steps: Vec<u8>,
    /// How long each share is watched.
    pub read_step_time: Span,
    /// How long reads are compared before the first share.
    pub shadow_time: Span,
    /// How much longer the other side may take to answer reads, at their median and their 99th percentile.
    pub max_added_latency: Span,
    /// What happens when the new owner does worse than the old one after the switch.
    pub when_worse: WhenWorse,
    /// How long the way back is kept ready after the switch before `complete` is offered.
    pub soak: Span,
    pub hold: Hold,
    /// What becomes of upgraded and streaming connections when the switch begins.
    pub sessions: Sessions,
    /// Gates that are not to stop the switch: you answer for them, by name.
    pub accept: Vec<AcceptedGate>,
}

/// What a run does when, after the switch, more requests fail or take longer than before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenWorse {
    /// Say so.
    Alert,
    /// Say so, and go back once, if the gates of a switch back are met.
    Reverse,
}

/// A gate that a person can answer for; every other one guards what nobody can know better than the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AcceptedGate {
    /// More writes may have to wait than `hold.requests` allows.
    HoldCapacity,
    /// The other side is far behind, or how far is not known.
    Lag,
    /// Writes reach the source past the gateways (they are refused at the fence, not held), or nothing tells whether they do.
    NoBypass,
    /// The predicted write pause is above `max_pause`, or is not known.
    PredictedPause,
    /// The other side's service does not answer its health path.
    TargetHealth,
    /// The other side answers reads more slowly than `max_added_latency` allows.
    ReadLatency,
    /// Too many reads failed on the other side.
    Reads,
    /// Reads were answered differently by the other side, or could not be compared.
    Shadow,
    /// A part cannot go back.
    WayBack,
}

impl AcceptedGate {
    pub const ALL: [Self; 9] = [
        Self::HoldCapacity,
        Self::Lag,
        Self::NoBypass,
        Self::PredictedPause,
        Self::ReadLatency,
        Self::Reads,
        Self::Shadow,
        Self::TargetHealth,
        Self::WayBack,
    ];

    /// As it is called in the file, in the journal and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HoldCapacity => "hold-capacity",
            Self::Lag => "lag",
            Self::NoBypass => "no-bypass",
            Self::PredictedPause => "predicted-pause",
            Self::ReadLatency => "read-latency",
            Self::Reads => "reads",
            Self::Shadow => "shadow",
            Self::TargetHealth => "target-health",
            Self::WayBack => "way-back",
        }
    }
}

/// How much may wait at the gateway while writes are held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Requests waiting at once.
    pub requests: u32,
    /// The longest any of them waits.
    pub age: Span,
    /// Client connections that may be open at once.
    pub connections: u32,
    /// Memory that waiting requests may take (headers; bodies are left unread).
    pub bytes: Size,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sessions {
    /// Wait for them to end, up to the in-flight deadline, then give the switch up.
    Wait,
    /// Close them; clients connect again and reach the new owner.
    Close,
    /// Refuse to switch while there are any.
    Refuse,
}

/// A bucket (or a prefix of one, or a local folder) that moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    pub name: String,
    pub source: Store,
    pub target: Store,
    /// The application's own credentials on each side: the fence is proved by a write that they are refused.
    #[serde(default)]
    pub application: Option<Application>,
    /// Where each side's changes can be read; without it changes are found by listing again.
    #[serde(default)]
    pub changes: Option<Changes>,
    #[serde(default)]
    pub fence: FencePlan,
    /// Copies under way at once.
    #[serde(default)]
    pub concurrency: Option<u32>,
}

/// One store: `s3://bucket/prefix`, `oss://`, `cos://`, `obs://`, `gcs://`, `azblob://container/prefix`, `file:///path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub url: String,
    /// The service's address where it does not follow from the URL and the region.
    #[serde(default)]
    pub endpoint: Option<String>,
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub access_key: Option<Secret>,
    #[serde(default)]
    pub secret_key: Option<Secret>,
    /// Put the bucket in the path instead of the host name; default: what the kind of store wants.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// The name of the migration's own principal in this store's policies (AWS: an ARN; others: see the fence's page).
    #[serde(default)]
    pub principal: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Application {
    pub source: Keys,
    pub target: Keys,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    pub access_key: Secret,
    pub secret_key: Secret,
}

/// Change hooks of both sides; the protocol is in docs/change-hook.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    pub source: Hook,
    /// Without it the way back follows by listing.
    #[serde(default)]
    pub target: Option<Hook>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    pub url: String,
    #[serde(default)]
    pub token: Option<Secret>,
}

/// How writers are kept out of a side.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FencePlan {
    #[serde(default)]
    pub by: FenceBy,
    /// `by = "command"`: programs with their arguments, run without a shell; `{side}` becomes `source` or `target`.
    #[serde(default)]
    pub close: Vec<String>,
    #[serde(default)]
    pub open: Vec<String>,
    /// `by = "hook"`: an address of the service per side that takes `POST {"fence": true|false, "side": "source"|"target"}`.
    #[serde(default)]
    pub source: Option<Hook>,
    #[serde(default)]
    pub target: Option<Hook>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FenceBy {
    /// A bucket policy that denies writes to everybody but the migration's principal.
    #[default]
    Policy,
    Command,
    Hook,
    /// No fence: the report says "one writable side: not proven".
    None,
}

/// A database that moves by its engine's own replication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub name: String,
    pub source: DatabaseEnd,
    pub target: DatabaseEnd,
    #[serde(default)]
    pub fence: DatabaseFence,
    /// PgBouncers that the application comes by: their clients are held through a switch and sent on to the new owner.
    #[serde(default)]
    pub pgbouncers: Vec<PgBouncer>,
    /// A front door at every gateway, for clients that speak PostgreSQL's protocol and come by no PgBouncer.
    #[serde(default)]
    pub front: Option<DatabaseFront>,
}

impl Database {
    /// Do its clients come by a gateway that can hold them?
    pub fn is_behind_gateway(&self) -> bool {
        self.front.is_some() || !self.pgbouncers.is_empty()
    }
}

/// Where a gateway takes the clients of a PostgreSQL database. The logins under `applications` that have a password may come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseFront {
    /// Where clients connect instead of to the server: `0.0.0.0:5432`.
    pub listen: String,
    /// Certificates, and with them nothing but TLS; without any, clients come in plain text.
    #[serde(default)]
    pub tls: Vec<Certificate>,
}

/// A PgBouncer in front of a PostgreSQL database, driven by the gateway process that runs beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PgBouncer {
    /// Its admin console on the gateway's machine, `postgres://user@127.0.0.1:6432/pgbouncer`; the user is one of its `admin_users`.
    pub admin: String,
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file that its configuration includes, and nobody else writes: `%include /etc/pgbouncer/rehome.ini` as the last line.
    pub file: PathBuf,
    /// What clients call the database there; by default as the source's server calls it.
    #[serde(default)]
    pub database: Option<String>,
    /// More settings of its line, as PgBouncer writes them: `pool_size=20`.
    #[serde(default)]
    pub options: String,
    /// The gateway that runs beside it, where there are several.
    #[serde(default)]
    pub gateway: Option<String>,
}

/// One end of a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseEnd {
    /// `postgres://user@host:5432/database`, `mysql://user@host:3306/schema` (MariaDB) or `redis://user@host:6379`; the user is the
    /// migration's own, never the application's. `sslmode=disable` and `sslrootcert=FILE` may follow.
    pub url: String,
    #[serde(default)]
    pub password: Option<Secret>,
    /// The address as the other end's server reaches it, where that is another.
    #[serde(default)]
    pub seen_by_other: Option<String>,
    /// The application's own logins: the fence is proved by a write that they are refused.
    #[serde(default)]
    pub applications: Vec<DatabaseLogin>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseLogin {
    pub user: String,
    #[serde(default)]
    pub password: Option<Secret>,
}

/// How writers are kept out of a side of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseFence {
    /// Every write is refused; reads go on, also while the switch lasts.
    #[default]
    Writes,
    /// Nobody but the migration gets in, and who is inside is put out: for applications that wait behind a front door.
    Logins,
    /// No fence: the report says "one writable side: not proven".
    None,
}

/// An HTTP service that users reach through the gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: String,
    /// Where the gateway listens, `address:port`.
    pub listen: String,
    pub source: String,
    pub target: String,
    /// Further addresses of the source, equals of the first: the one with the fewest requests under way is next.
    #[serde(default)]
    pub source_peers: Vec<String>,
    #[serde(default)]
    pub target_peers: Vec<String>,
    /// What the addresses are spoken to with; gRPC needs "2".
    #[serde(default)]
    pub upstream_http: UpstreamHttp,
    /// A file with certificates (PEM) to believe beside the system's own, for addresses with https.
    #[serde(default)]
    pub upstream_ca: Option<PathBuf>,
    /// A path that answers 200 on a healthy side.
    #[serde(default)]
    pub health: Option<String>,
    /// The methods that only read; everything else is a write.
    #[serde(default = "default_reads")]
    pub reads: Vec<String>,
    /// Names of the parts whose data this service shows.
    #[serde(default)]
    pub uses: Vec<String>,
    /// How old the target's data may be before reads go back to the source.
    #[serde(default = "default_max_staleness")]
    pub max_staleness: Span,
    /// What tells one client from another for read-your-writes, the first that a request has.
    #[serde(default = "default_clients")]
    pub clients: Vec<ClientKey>,
    /// How long an upstream connection may idle before it is closed; keep it below the server's own time-out.
    #[serde(default = "default_idle")]
    pub upstream_idle: Span,
    /// How long an upstream may take to begin its answer.
    #[serde(default = "default_answer")]
    pub upstream_timeout: Span,
    /// Certificates: with any, `listen` speaks TLS. All services of one `listen` have some, or none has.
    #[serde(default)]
    pub tls: Vec<Certificate>,
    /// The hosts this service answers for, `shop.example.com` or `*.example.com`; without any, every host.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The paths this service answers for, with all below them; without any, every path.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Every connection begins with a PROXY header (version 1 or 2), as load balancers send it.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Whose PROXY header and `X-Forwarded-…` lines are believed; from everybody else they are replaced.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// The largest body of a request; without it there is no limit.
    #[serde(default)]
    pub max_body: Option<Size>,
    /// Connections that one client address may have at once; without it only the bound of all counts.
    #[serde(default)]
    pub connections_per_client: Option<u32>,
    /// How reads are compared with the target before any user sees its answers.
    #[serde(default)]
    pub shadow: Shadow,
}

/// A share of the safe reads (GET and HEAD) is asked of the target, too, once the client has its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shadow {
    /// Percent of the safe reads; 0: nothing is compared.
    #[schemars(range(max = 100))]
    pub share: u8,
    /// Comparisons that a verdict needs.
    pub least: u32,
    /// So many of a thousand may differ.
    #[schemars(range(max = 1000))]
    pub allowed_per_thousand: u16,
    /// What is no difference: names of headers, and paths into JSON with all below them (`$.items[].seen`).
    pub ignore: Vec<String>,
}

impl Default for Shadow {
    fn default() -> Self {
        Self { share: 5, least: 50, allowed_per_thousand: 5, ignore: Vec::new() }
    }
}

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// A PEM file: the certificate first, then those that lead to the authority.
    pub chain: PathBuf,
    /// Its private key in PEM, without a password.
    pub key: Secret,
}

/// The version of HTTP between the gateway and the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpstreamHttp {
    #[default]
    #[serde(rename = "1.1")]
    One,
    /// HTTP/2: by ALPN on https, with prior knowledge on http.
    #[serde(rename = "2")]
    Two,
}

/// `cookie:NAME`, `header:NAME` or `address`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ClientKey(pub String);

/// A gateway that serves this migration. Without any, one is expected at the run's own socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    pub name: String,
    /// The unix socket it is controlled by.
    pub control: PathBuf,
    /// The secret both ends show.
    #[serde(default)]
    pub token: Option<Secret>,
    /// For a gateway on another machine than the engine: the same control over TLS. Needs `token`.
    #[serde(default)]
    pub remote: Option<Remote>,
}

/// How the engine reaches a gateway on another machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Where the engine finds it, `host:port`.
    pub address: String,
    /// Where the gateway listens, when that is not `address`.
    #[serde(default)]
    pub listen: Option<String>,
    /// The gateway's certificate, good for the host of `address`; read on its own machine only.
    pub tls: Certificate,
    /// A file with certificates (PEM) that the engine believes beside the system's own.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// A background worker that writes; stopped at the fence, started on the new owner after the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    pub name: String,
    /// Shell commands, run as they stand by `/bin/sh -c` on this machine: they are the user's own words.
    pub stop: String,
    pub start: String,
    pub is_stopped: String,
    /// Extra environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

fn default_reads() -> Vec<String> {
    ["GET", "HEAD", "OPTIONS"].map(String::from).to_vec()
}
fn default_max_staleness() -> Span {
    Span::from_millis(2_000)
}
fn default_clients() -> Vec<ClientKey> {
    ["header:authorization", "header:cookie", "address"].map(|key| ClientKey(key.into())).to_vec()
}
fn default_idle() -> Span {
    Span::from_millis(4_000)
}
fn default_answer() -> Span {
    Span::from_millis(60_000)
}

impl Default for Switch {
    fn default() -> Self {
        Self {
            max_pause: Span::from_millis(2_000),
            in_flight_deadline: Span::from_millis(2_000),
            read_steps: vec![1, 5, 25, 50],
            read_step_time: Span::from_millis(60_000),
            shadow_time: Span::from_millis(60_000),
            max_added_latency: Span::from_millis(250),
            when_worse: WhenWorse::Alert,
            soak: Span::from_millis(24 * 3_600_000),
            hold: Hold::default(),
            sessions: Sessions::Wait,
            accept: Vec::new(),
        }
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self { requests: 4_096, age: Span::from_millis(15_000), connections: 8_192, bytes: Size(64 << 20) }
    }
}

/// A length of time, written with its unit: `250ms`, `2s`, `5m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub std::time::Duration);

impl Span {
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_span(text)
    }
}

/// A number of bytes, written with its unit: `512B`, `64KiB`, `16MiB`, `5GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Where a secret is kept: `env:NAME`, `file:PATH` or `cmd:PROGRAM ARG …`. The file never holds the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

/// A type that is written as text and read by a function of its own.
macro_rules! text_with_unit {
    ($type:ty, $parse:ident, $show:ident, $pattern:literal, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&$show(*self))
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}
pub(crate) use text_with_unit;
text_with_unit!(Span, parse_span, show_span, r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "2s");
text_with_unit!(Size, parse_size, show_size, r"^[0-9]+(\.[0-9]+)?(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$", "64MiB");

const SPANS: [(&str, f64); 5] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3), ("d", 86_400e3)];
const SIZES: [(&str, f64); 9] = [
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1_024.0),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
    ("KB", 1e3),
    ("B", 1.0),
];

fn number_with_unit(text: &str, units: &[(&str, f64)], what: &str, example: &str) -> Result<f64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
    match (number.parse::<f64>(), factor) {
        (Ok(number), Some(factor)) => Ok(number * factor),
        _ => {
            let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
            Err(format!(
                "`{text}` is not {what}: write a number and one of {}, like \"{example}\"",
                names.join(", ")
            ))
        }
    }
}

/// Longer times and larger sizes are slips, and beyond them numbers would no longer be exact.
const LONGEST_DAYS: u64 = 3_650;
const LARGEST_BYTES: f64 = (1u64 << 52) as f64;

pub(crate) fn parse_span(text: &str) -> Result<Span, String> {
    let millis = number_with_unit(text, &SPANS, "a length of time", "2s")?;
    if millis > (LONGEST_DAYS * 86_400_000) as f64 {
        return Err(format!("`{text}` is too long: at most {LONGEST_DAYS}d can be written"));
    }
    Ok(Span(std::time::Duration::from_micros((millis * 1e3).round() as u64)))
}

pub(crate) fn parse_size(text: &str) -> Result<Size, String> {
    let bytes = number_with_unit(text, &SIZES, "a size", "64MiB")?;
    if bytes > LARGEST_BYTES {
        return Err(format!("`{text}` is too large: at most 4096TiB can be written"));
    }
    Ok(Size(bytes.round() as u64))
}

/// In the largest unit that is exact.
pub(crate) fn show_span(span: Span) -> String {
    let micros = span.0.as_micros();
    for (unit, factor) in [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)] {
        if micros >= factor && micros.is_multiple_of(factor) {
            return format!("{}{unit}", micros / factor);
        }
    }
    match micros % 1_000 {
        0 => format!("{}ms", micros / 1_000),
        fraction => format!("{}.{fraction:03}ms", micros / 1_000),
    }
}

fn show_size(size: Size) -> String {
    for (unit, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if size.0 >= factor && size.0.is_multiple_of(factor) {
            return format!("{}{unit}", size.0 / factor);
        }
    }
    format!("{}B", size.0)
}

/// As it is written in the file, in the largest unit that is exact: `2s`, `250ms`, `1d`.
impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show_span(*self))
    }
}

/// As it is written in the file, in the largest unit that is exact: `64MiB`.
impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show_size(*self))
    }
}
