//! Aliyun DNS (API of 2015-01-09). Untested against the service: its signature is proved with the published vector, its calls
//! against a server that answers as the documentation says. Records change one at a time, without compare-and-set.

mod sign;

use super::edits::{Edit, Listing, Piecewise, Records};
use super::http::{Answer, Endpoint, Failure, Http, Patience, excerpt};
use super::signature::{Credentials, hex, query};
use super::{Clock, DnsName, Kind};
use crate::EntryError;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use std::time::Duration;

pub const ENDPOINT: &str = "https://alidns.aliyuncs.com";
const VERSION: &str = "2015-01-09";
const PAGE_SIZE: u32 = 100;
const MAX_PAGES: u32 = 50;

#[derive(Clone)]
pub struct Alidns {
    zone: DnsName,
    endpoint: Endpoint,
    credentials: Credentials,
    http: Http,
    clock: Clock,
    poll: Duration,
}

impl std::fmt::Debug for Alidns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alidns")
            .field("zone", &self.zone)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    total_count: u64,
    domain_records: PageRecords,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PageRecords {
    #[serde(default)]
    record: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "RecordId")]
    id: String,
    #[serde(rename = "RR")]
    host: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Value")]
    value: String,
    #[serde(rename = "TTL")]
    ttl: u32,
    #[serde(rename = "Line", default)]
    line: String,
    #[serde(rename = "Status", default)]
    status: String,
    #[serde(rename = "Locked", default)]
    locked: bool,
    #[serde(rename = "Weight", default)]
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Complaint {
    code: String,
    #[serde(default)]
    message: String,
}

impl Alidns {
    pub fn zone(
        zone: DnsName,
        endpoint: Endpoint,
        credentials: Credentials,
        clock: Clock,
        poll: Duration,
    ) -> Result<Piecewise<Self>, EntryError> {
        Ok(Piecewise(Self { zone, endpoint, credentials, http: Http::new()?, clock, poll }))
    }

    async fn call(&self, action: &str, pairs: &[(&str, String)]) -> Result<Bytes, EntryError> {
        let (whom, query) = (self.provider(), query(pairs));
        let mut patience = Patience::new();
        loop {
            // Signed anew each time: a nonce is good for once.
            let answer = self.http.send(&whom, self.signed(action, &query)?).await?;
            if answer.status == 200 {
                return Ok(answer.body);
            }
            patience.heed(&whom, complaint(&whom, action, &answer)).await?;
        }
    }

    fn signed(&self, action: &str, query: &str) -> Result<Request<Full<Bytes>>, EntryError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)
            .map_err(|error| EntryError::unfit(format!("no random numbers: {error}"), "check the system"))?;
        let call = sign::Call {
            host: &self.endpoint.host,
            action,
            version: VERSION,
            query,
            nonce: &hex(&nonce),
            now: (self.clock)(),
        };
        let mut request =
            Request::builder().method(Method::POST).uri(self.endpoint.url(&format!("/?{query}")));
        request = request.header("host", &self.endpoint.host);
        for (name, value) in sign::headers(&call, &self.credentials) {
            request = request.header(name, value);
        }
        request.body(Full::default()).map_err(|_| {
            EntryError::unfit(
                "the access key or token has characters that no header takes",
                "check the references",
            )
        })
    }
}

fn complaint(whom: &str, action: &str, answer: &Answer) -> Failure {
    let Ok(Complaint { code, message }) = serde_json::from_slice(&answer.body) else {
        let text = format!("{action}: status {} and no JSON: {}", answer.status, excerpt(&answer.body));
        return Failure::Final(EntryError::Unreachable { whom: whom.to_owned(), text });
    };
    let text = format!("{action}: {code}: {}", excerpt(message.as_bytes()));
    if code.starts_with("Throttling") {
        return Failure::TooFast(text);
    }
    if answer.status >= 500 {
        return Failure::Final(EntryError::Unreachable { whom: whom.to_owned(), text });
    }
    let hint = match code.as_str() {
        code if code.starts_with("InvalidAccessKeyId") => "; check the access key",
        "SignatureDoesNotMatch" | "IncompleteSignature" => "; check the secret key",
        code if code.contains("TimeStamp") || code.contains("Timestamp") => "; set this machine's clock",
        code if code.starts_with("Forbidden") || code.starts_with("NoPermission") => {
            "; the key needs alidns:DescribeSubDomainRecords, AddDomainRecord, UpdateDomainRecord, DeleteDomainRecord"
        }
        "QuotaExceeded.TTL" => "; the plan of this domain does not allow so short a TTL: choose a longer one",
        _ => "",
    };
    Failure::Final(EntryError::Refused { whom: whom.to_owned(), text: format!("{text}{hint}") })
}

fn take(listing: &mut Listing, record: Record) {
    if record.status.eq_ignore_ascii_case("disable") {
        return;
    }
    let upper = record.kind.to_ascii_uppercase();
    let Some(kind) = Kind::named(&upper) else {
        if upper.ends_with("_URL") {
            listing.obstacles.push(format!("it is a redirection of the provider ({upper})"));
        } else if !listing.besides.contains(&upper) {
            listing.besides.push(upper);
        }
        return;
    };
    if record.line != "default" {
        listing.is_for_line(kind, &record.line);
    }
    if record.locked {
        listing.obstacles.push(format!("an {kind} record is locked"));
    }
    listing.hold(record.id, kind, &record.value, record.ttl);
}

#[async_trait]
impl Records for Alidns {
    fn provider(&self) -> String {
        "Aliyun DNS".into()
    }

    fn origin(&self) -> &DnsName {
        &self.zone
    }

    fn poll(&self) -> Duration {
        self.poll
    }

    async fn list(&self, name: &DnsName) -> Result<Listing, EntryError> {
        let host = name.relative_to(&self.zone);
        let (mut listing, mut seen, mut weights) = (Listing::default(), 0, Vec::new());
        for number in 1..=MAX_PAGES {
            let pairs = [
                ("DomainName", self.zone.to_string()),
                ("SubDomain", format!("{host}.{}", self.zone)),
                ("PageNumber", number.to_string()),
                ("PageSize", PAGE_SIZE.to_string()),
            ];
            let body = self.call("DescribeSubDomainRecords", &pairs).await?;
            let page: Page = serde_json::from_slice(&body).map_err(|error| {
                let text = format!("DescribeSubDomainRecords: not the answer that is documented: {error}");
                EntryError::Refused { whom: self.provider(), text }
            })?;
            let records = page.domain_records.record;
            seen += records.len() as u64;
            let is_last = records.is_empty() || seen >= page.total_count;
            for record in records.into_iter().filter(|record| record.host.eq_ignore_ascii_case(host)) {
                weights.extend(record.weight);
                take(&mut listing, record);
            }
            if is_last {
                if weights.iter().any(|weight| *weight != weights[0]) {
                    listing.obstacles.push("its records have different weights".into());
                }
                return Ok(listing);
            }
        }
        Err(EntryError::Refused {
            whom: self.provider(),
            text: format!("{name} has more records than an entry has"),
        })
    }

    async fn edit(&self, name: &DnsName, edit: &Edit) -> Result<(), EntryError> {
        let record = |kind: &Kind, value: &str, ttl: &u32| {
            vec![
                ("RR", name.relative_to(&self.zone).to_owned()),
                ("Type", kind.to_string()),
                ("Value", value.to_owned()),
                ("TTL", ttl.to_string()),
            ]
        };
        let (action, pairs) = match edit {
            Edit::Add { kind, value, ttl } => {
                let mut pairs = record(kind, value, ttl);
                pairs.push(("DomainName", self.zone.to_string()));
                ("AddDomainRecord", pairs)
            }
            Edit::Update { id, kind, value, ttl } => {
                let mut pairs = record(kind, value, ttl);
                pairs.push(("RecordId", id.clone()));
                ("UpdateDomainRecord", pairs)
            }
            Edit::Delete { id } => ("DeleteDomainRecord", vec![("RecordId", id.clone())]),
        };
        match self.call(action, &pairs).await {
            // It is as wanted: an earlier call got there whose answer was lost. The list is read afterwards in any case.
            Err(EntryError::Refused { text, .. }) if text.contains("DomainRecordDuplicate") => Ok(()),
            done => done.map(drop),
        }
    }
}
