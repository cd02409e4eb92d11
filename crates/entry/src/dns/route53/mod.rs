//! Amazon Route 53 (API of 2013-04-01). Untested against the service: its signature is proved against botocore's, its calls
//! against a server that answers as the documentation says.
//!
//! A change is one batch that deletes what was read and creates what is wanted. A deletion has to name exactly what is there,
//! so the batch compares and sets; an UPSERT would write over what someone else did meanwhile.

mod sign;
mod xml;

use super::http::{Answer, Endpoint, Failure, Http, Patience, excerpt};
use super::signature::{Credentials, query};
use super::{Capabilities, Clock, DnsName, Entry, Found, Kind, Zone};
use crate::EntryError;
use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use std::time::Duration;
use tokio::time::Instant;
use xml::{Element, Raw};

pub const ENDPOINT: &str = "https://route53.amazonaws.com";
const API: &str = "/2013-04-01";
const MAX_PAGES: u32 = 50;
/// Amazon says 60 s; a change that is later than this is looked for again by whoever runs the command again.
const SYNC_TIME: Duration = Duration::from_secs(180);
/// What a record set has that a plain one has not.
const SPECIAL: [(&str, &str); 11] = [
    ("AliasTarget", "an alias"),
    ("Weight", "weighted"),
    ("GeoLocation", "answered by place"),
    ("GeoProximityLocation", "answered by nearness"),
    ("Region", "answered by latency"),
    ("Failover", "answered by failover"),
    ("MultiValueAnswer", "answered by several values with health checks"),
    ("CidrRoutingConfig", "answered by the client's network"),
    ("TrafficPolicyInstanceId", "made by a traffic policy"),
    ("HealthCheckId", "bound to a health check"),
    ("SetIdentifier", "one of several"),
];

#[derive(Clone)]
pub struct Route53 {
    zone: DnsName,
    id: String,
    wire: Wire,
    poll: Duration,
}

impl std::fmt::Debug for Route53 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route53").field("zone", &self.zone).field("id", &self.id).finish_non_exhaustive()
    }
}

/// How the service is spoken to.
#[derive(Clone)]
struct Wire {
    endpoint: Endpoint,
    region: &'static str,
    credentials: Credentials,
    http: Http,
    clock: Clock,
}

const WHOM: &str = "Route 53";

fn refused(text: String) -> EntryError {
    EntryError::Refused { whom: WHOM.into(), text }
}

impl Wire {
    async fn call(
        &self,
        method: &str,
        path: &str,
        pairs: &[(&str, String)],
        payload: String,
    ) -> Result<Element, EntryError> {
        let (query, payload) = (query(pairs), Bytes::from(payload));
        let mut patience = Patience::new();
        loop {
            let answer = self.http.send(WHOM, self.signed(method, path, &query, &payload)?).await?;
            match understood(&format!("{method} {path}"), &answer) {
                Ok(root) => return Ok(root),
                Err(failure) => patience.heed(WHOM, failure).await?,
            }
        }
    }

    fn signed(
        &self,
        method: &str,
        path: &str,
        query: &str,
        payload: &Bytes,
    ) -> Result<Request<Full<Bytes>>, EntryError> {
        let call = sign::Call {
            method,
            host: &self.endpoint.host,
            path,
            query,
            payload,
            region: self.region,
            now: (self.clock)(),
        };
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request =
            Request::builder().method(method).uri(self.endpoint.url(&format!("{path}{mark}{query}")));
        request = request.header("host", &self.endpoint.host).header("content-type", "application/xml");
        for (name, value) in sign::headers(&call, &self.credentials) {
            request = request.header(name, value);
        }
        request.body(Full::new(payload.clone())).map_err(|_| {
            EntryError::unfit(
                "the access key or token has characters that no header takes",
                "check the references",
            )
        })
    }
}

fn understood(call: &str, answer: &Answer) -> Result<Element, Failure> {
    let parsed = xml::parse(&String::from_utf8_lossy(&answer.body));
    let root = match (answer.status, parsed) {
        (200, Ok(root)) => return Ok(root),
        (_, Ok(root)) => root,
        (status, Err(why)) => {
            let text = format!("{call}: status {status} and no XML ({why}): {}", excerpt(&answer.body));
            return Err(Failure::Final(EntryError::Unreachable { whom: WHOM.into(), text }));
        }
    };
    let (code, message) = match root.name.as_str() {
        "InvalidChangeBatch" => {
            let messages: Vec<&str> =
                root.list("Messages").iter().map(|message| message.text.as_str()).collect();
            ("InvalidChangeBatch", messages.join("; "))
        }
        _ => (root.at(&["Error", "Code"]), root.at(&["Error", "Message"]).to_owned()),
    };
    let text = format!("{call}: {code}: {}", excerpt(message.as_bytes()));
    if matches!(code, "Throttling" | "ThrottlingException" | "PriorRequestNotComplete") {
        return Err(Failure::TooFast(text));
    }
    if answer.status >= 500 {
        return Err(Failure::Final(EntryError::Unreachable { whom: WHOM.into(), text }));
    }
    let hint = match code {
        "InvalidClientTokenId" | "UnrecognizedClientException" => "; check the access key",
        "SignatureDoesNotMatch" => "; check the secret key, and this machine's clock",
        "RequestExpired" => "; set this machine's clock",
        "AccessDenied" => {
            "; the key needs route53:ListHostedZonesByName, ListResourceRecordSets, ChangeResourceRecordSets, GetChange"
        }
        _ => "",
    };
    Err(Failure::Final(refused(format!("{text}{hint}"))))
}

impl Route53 {
    /// `id`: which hosted zone, where several have the name.
    ///
    /// # Errors
    /// When it cannot be found, or there are several.
    pub async fn open(
        zone: DnsName,
        id: Option<&str>,
        endpoint: Endpoint,
        credentials: Credentials,
        clock: Clock,
        poll: Duration,
    ) -> Result<Self, EntryError> {
        let region = if endpoint.host.ends_with(".com.cn") { "cn-northwest-1" } else { "us-east-1" };
        let wire = Wire { endpoint, region, credentials, http: Http::new()?, clock };
        let id = match id {
            Some(id) => id.trim_start_matches("/hostedzone/").to_owned(),
            None => find(&wire, &zone).await?,
        };
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(EntryError::unfit("the hosted zone's id is none", "it looks like Z0123456789ABC"));
        }
        Ok(Self { zone, id, wire, poll })
    }

    /// The record sets of a name, page after page: they come sorted by name, beginning with it.
    async fn sets(&self, name: &DnsName) -> Result<Vec<Element>, EntryError> {
        let path = format!("{API}/hostedzone/{}/rrset", self.id);
        let mut from = vec![("name", name.to_string())];
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let mut pairs = from.clone();
            pairs.push(("maxitems", "100".into()));
            let root = self.wire.call("GET", &path, &pairs, String::new()).await?;
            let of_name = |set: &&Element| is_named(set, name);
            let sets = root.list("ResourceRecordSets");
            found.extend(sets.iter().filter(of_name).cloned());
            let goes_on =
                root.at(&["IsTruncated"]) == "true" && sets.last().is_none_or(|last| is_named(last, name));
            if !goes_on {
                return Ok(found);
            }
            let next = [
                ("name", "NextRecordName"),
                ("type", "NextRecordType"),
                ("identifier", "NextRecordIdentifier"),
            ];
            let next = next.map(|(key, element)| (key, root.at(&[element]).to_owned()));
            from = next.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            if from.is_empty() {
                break;
            }
        }
        Err(refused(format!("the list of the record sets of {name} has no end")))
    }

    async fn in_sync(&self, change: &str) -> Result<(), EntryError> {
        let id = change.trim_start_matches("/change/");
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(refused("the change has no id".into()));
        }
        let path = format!("{API}/change/{id}");
        let deadline = Instant::now() + SYNC_TIME;
        loop {
            let root = self.wire.call("GET", &path, &[], String::new()).await?;
            if root.at(&["ChangeInfo", "Status"]) == "INSYNC" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text =
                    format!("the change {id} is not at all of its servers after {} s", SYNC_TIME.as_secs());
                return Err(EntryError::Unreachable { whom: WHOM.into(), text });
            }
            tokio::time::sleep(self.poll).await;
        }
    }
}

/// The one public hosted zone of a name.
async fn find(wire: &Wire, zone: &DnsName) -> Result<String, EntryError> {
    let pairs = [("dnsname", zone.to_string()), ("maxitems", "100".into())];
    let root = wire.call("GET", &format!("{API}/hostedzonesbyname"), &pairs, String::new()).await?;
    let is_it = |found: &&Element| is_named(found, zone) && found.at(&["Config", "PrivateZone"]) != "true";
    let found: Vec<&Element> = root.list("HostedZones").iter().filter(is_it).collect();
    match found.as_slice() {
        [one] => Ok(one.at(&["Id"]).trim_start_matches("/hostedzone/").to_owned()),
        [] => Err(EntryError::unfit(
            format!("this account has no public hosted zone {zone}"),
            "check the access key, or name the zone with `--zone`",
        )),
        several => Err(EntryError::unfit(
            format!("this account has {} public hosted zones {zone}", several.len()),
            "name the one that the domain is delegated to with `--zone-id`",
        )),
    }
}

fn is_named(element: &Element, name: &DnsName) -> bool {
    element.at(&["Name"]).trim_end_matches('.').eq_ignore_ascii_case(name.as_str())
}

/// What the elements say, and for each plain set the values as they are written there.
fn understand(sets: &[Element]) -> (Found, Vec<Raw>) {
    let (mut found, mut raw) = (Found::default(), Vec::new());
    for set in sets {
        let kind = set.at(&["Type"]);
        let Some(kind) = Kind::named(kind) else {
            found.besides.push(kind.to_owned());
            continue;
        };
        let special = SPECIAL.iter().find(|(element, _)| set.child(element).is_some());
        let values: Vec<String> =
            set.list("ResourceRecords").iter().map(|record| record.at(&["Value"]).to_owned()).collect();
        let spelled: Option<Vec<String>> = values.iter().map(|value| kind.canonical(value)).collect();
        match (special, set.at(&["TTL"]).parse::<u32>(), spelled) {
            (Some((_, what)), ..) => found.obstacles.push(format!("its {kind} record set is {what}")),
            (None, Ok(ttl), Some(spelled)) if !spelled.is_empty() => {
                spelled.into_iter().for_each(|value| found.entry.add(kind, ttl, value));
                raw.push(Raw { kind, ttl, values });
            }
            _ => found.obstacles.push(format!("its {kind} record set is not one of plain values")),
        }
    }
    (found, raw)
}

#[async_trait]
impl Zone for Route53 {
    fn provider(&self) -> String {
        format!("{WHOM} (hosted zone {})", self.id)
    }

    fn origin(&self) -> &DnsName {
        &self.zone
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic: true, compares: true, tested: false }
    }

    async fn read(&self, name: &DnsName) -> Result<Found, EntryError> {
        Ok(understand(&self.sets(name).await?).0)
    }

    async fn replace(&self, name: &DnsName, before: &Entry, after: &Entry) -> Result<(), EntryError> {
        let (found, raw) = understand(&self.sets(name).await?);
        if found.entry == *after {
            return Ok(());
        }
        let changed = || EntryError::Changed { what: name.to_string() };
        if found.entry != *before {
            return Err(changed());
        }
        let differs = |set: &Raw| before.get(set.kind) != after.get(set.kind);
        let gone: Vec<Raw> = raw.into_iter().filter(differs).collect();
        let new: Vec<Raw> = Raw::all_of(after).into_iter().filter(differs).collect();
        let path = format!("{API}/hostedzone/{}/rrset", self.id);
        let payload = xml::change(name.as_str(), &gone, &new);
        let answered = self.wire.call("POST", &path, &[], payload).await;
        let root = match answered {
            // Someone was faster, or an earlier call of ours got there and its answer was lost.
            Err(EntryError::Refused { text, .. }) if text.contains("InvalidChangeBatch") => {
                let now = understand(&self.sets(name).await?).0.entry;
                return if now == *after {
                    Ok(())
                } else if now == *before {
                    Err(refused(text))
                } else {
                    Err(changed())
                };
            }
            root => root?,
        };
        self.in_sync(root.at(&["ChangeInfo", "Id"])).await
    }
}
