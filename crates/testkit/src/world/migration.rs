//! The migration file of a world: an ordinary `rehome.toml`, as a user would write it.

use crate::postgres::{APPLICATION, DATABASE, MIGRATION};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Limits and times of the switch, for the `[switch]` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchTimes {
    pub max_pause: Duration,
    pub in_flight_deadline: Duration,
    pub read_step_time: Duration,
    pub soak: Duration,
}

impl Default for SwitchTimes {
    fn default() -> Self {
        Self {
            max_pause: Duration::from_secs(5),
            in_flight_deadline: Duration::from_secs(5),
            read_step_time: Duration::from_secs(2),
            soak: Duration::from_secs(3_600),
        }
    }
}

/// One side as the migration reaches it.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub cloud: &'a str,
    pub bucket: &'a str,
    pub s3: SocketAddr,
    pub events: SocketAddr,
    pub shop: SocketAddr,
    pub database: Option<SocketAddr>,
    /// Where the other side's server finds it, if elsewhere.
    pub database_from_other: Option<SocketAddr>,
    pub principal: &'a str,
    /// `a-` or `b-`: secrets are files that begin with it.
    pub secrets: &'a str,
}

pub(super) fn text(
    secrets: &Path,
    places: [&Place<'_>; 2],
    gateway: SocketAddr,
    times: SwitchTimes,
) -> String {
    let secret = |place: &Place<'_>, name: &str| {
        quoted(&format!("file:{}", secrets.join(format!("{}{name}", place.secrets)).display()))
    };
    let mut text = String::from(
        "# The shop of the demo, from one embedded cloud to another.\n\n[migration]\nname = \"shop\"\n",
    );
    let mut add = |line: String| {
        let _ = writeln!(text, "{line}"); // writing to a String cannot fail
    };
    let [source, target] = places;
    add(format!(
        "source = {{ cloud = {} }}\ntarget = {{ cloud = {} }}\n",
        quoted(source.cloud),
        quoted(target.cloud)
    ));
    add("[switch]".into());
    add(format!("max_pause = {}", span(times.max_pause)));
    add(format!("in_flight_deadline = {}", span(times.in_flight_deadline)));
    add(format!("read_step_time = {}", span(times.read_step_time)));
    add(format!("shadow_time = {}", span(times.read_step_time)));
    add(format!("soak = {}", span(times.soak)));
    add("# One writer goes past the gateway on purpose: the fence has to stop it.\naccept = [\"no-bypass\"]\n".into());
    add("[[objects]]\nname = \"media\"\n".into());
    for (side, place) in ["source", "target"].into_iter().zip(places) {
        add(format!("[objects.{side}]"));
        add(format!("url = {}", quoted(&format!("s3://{}", place.bucket))));
        add(format!("endpoint = {}", quoted(&format!("http://{}", place.s3))));
        add("region = \"us-east-1\"\npath_style = true".into());
        add(format!("access_key = {}", secret(place, "migration-access")));
        add(format!("secret_key = {}", secret(place, "migration-secret")));
        add(format!("principal = {}\n", quoted(place.principal)));
    }
    add("# The shop's own credentials: the fence is proved by a write that they are refused.".into());
    for (side, place) in ["source", "target"].into_iter().zip(places) {
        add(format!("[objects.application.{side}]"));
        add(format!("access_key = {}", secret(place, "app-access")));
        add(format!("secret_key = {}\n", secret(place, "app-secret")));
    }
    for (side, place) in ["source", "target"].into_iter().zip(places) {
        add(format!("[objects.changes.{side}]"));
        add(format!("url = {}", quoted(&format!("http://{}/changes", place.events))));
        add(format!("token = {}\n", secret(place, "events-token")));
    }
    add("[objects.fence]\nby = \"policy\"\n".into());
    let has_database = source.database.is_some();
    if has_database {
        add("[[databases]]\nname = \"orders\"\n".into());
    }
    for (side, place) in ["source", "target"].into_iter().zip(places) {
        let Some(address) = place.database else { continue };
        let url = |address: SocketAddr| quoted(&format!("postgres://{MIGRATION}@{address}/{DATABASE}"));
        add(format!("[databases.{side}]"));
        add(format!("url = {}", url(address)));
        add(format!("password = {}", secret(place, "database-migration")));
        if let Some(other) = place.database_from_other {
            add(format!("seen_by_other = {}", url(other)));
        }
        let login =
            format!("{{ user = {}, password = {} }}", quoted(APPLICATION), secret(place, "database-app"));
        add(format!("applications = [{login}]\n"));
    }
    add("[[services]]\nname = \"shop\"".into());
    add(format!("listen = {}", quoted(&gateway.to_string())));
    add(format!("source = {}", quoted(&format!("http://{}", source.shop))));
    add(format!("target = {}", quoted(&format!("http://{}", target.shop))));
    let uses = if has_database { "\"media\", \"orders\"" } else { "\"media\"" };
    add(format!("health = \"/healthz\"\nuses = [{uses}]\nmax_staleness = \"2s\""));
    add("# Each cloud's shop says where it is; nothing else may differ.".into());
    add("shadow = { share = 50, least = 20, ignore = [\"shop-cloud\"] }".into());
    text
}

fn quoted(text: &str) -> String {
    // JSON's escapes are a subset of what TOML's basic strings understand.
    serde_json::Value::from(text).to_string()
}

fn span(time: Duration) -> String {
    format!("\"{}ms\"", time.as_millis())
}
