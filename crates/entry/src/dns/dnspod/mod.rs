//! Tencent's DNSPod (API of 2021-03-23). Untested against the service: its signature is proved with the published vector, its
//! calls against a server that answers as the documentation says. Records change one at a time, without compare-and-set.

mod sign;

use super::edits::{Edit, Listing, Piecewise, Records};
use super::http::{Answer, Endpoint, Failure, Http, Patience, excerpt};
use super::signature::Credentials;
use super::{Clock, DnsName, Kind};
use crate::EntryError;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

pub const ENDPOINT: &str = "https://dnspod.tencentcloudapi.com";
const VERSION: &str = "2021-03-23";
const PAGE_SIZE: u64 = 100;
const MAX_PAGES: u64 = 50;
/// The line of everybody, by its number and by its name.
const DEFAULT_LINE: (&str, &str) = ("0", "默认");

#[derive(Clone)]
pub struct Dnspod {
    zone: DnsName,
    endpoint: Endpoint,
    credentials: Credentials,
    http: Http,
    clock: Clock,
    poll: Duration,
}

impl std::fmt::Debug for Dnspod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dnspod")
            .field("zone", &self.zone)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "Response")]
    response: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Complaint {
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    record_count_info: Count,
    #[serde(default)]
    record_list: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Count {
    total_count: u64,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "RecordId")]
    id: u64,
    #[serde(rename = "Name")]
    host: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Value")]
    value: String,
    #[serde(rename = "TTL")]
    ttl: u32,
    #[serde(rename = "Line", default)]
    line: String,
    #[serde(rename = "LineId", default)]
    line_id: String,
    #[serde(rename = "Status", default)]
    status: String,
    #[serde(rename = "Weight", default)]
    weight: Option<u64>,
}

impl Dnspod {
    pub fn zone(
        zone: DnsName,
        endpoint: Endpoint,
        credentials: Credentials,
        clock: Clock,
        poll: Duration,
    ) -> Result<Piecewise<Self>, EntryError> {
        Ok(Piecewise(Self { zone, endpoint, credentials, http: Http::new()?, clock, poll }))
    }

    async fn call(&self, action: &str, body: &Value) -> Result<Value, EntryError> {
        let (whom, payload) = (self.provider(), Bytes::from(body.to_string()));
        let mut patience = Patience::new();
        loop {
            let answer = self.http.send(&whom, self.signed(action, &payload)?).await?;
            match understood(&whom, action, &answer) {
                Ok(response) => return Ok(response),
                Err(failure) => patience.heed(&whom, failure).await?,
            }
        }
    }

    fn signed(&self, action: &str, payload: &Bytes) -> Result<Request<Full<Bytes>>, EntryError> {
        let (now, host) = ((self.clock)(), &self.endpoint.host);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.endpoint.url("/"))
            .header("host", host)
            .header("content-type", sign::CONTENT_TYPE)
            .header("x-tc-action", action)
            .header("x-tc-version", VERSION)
            .header("x-tc-timestamp", now.as_second())
            .header("authorization", sign::authorization(host, "dnspod", payload, now, &self.credentials));
        if let Some(token) = &self.credentials.session_token {
            request = request.header("x-tc-token", token);
        }
        request.body(Full::new(payload.clone())).map_err(|_| {
            EntryError::unfit(
                "the access key or token has characters that no header takes",
                "check the references",
            )
        })
    }
}

/// Errors come with status 200 too: the body says.
fn understood(whom: &str, action: &str, answer: &Answer) -> Result<Value, Failure> {
    let unreachable = |text: String| Failure::Final(EntryError::Unreachable { whom: whom.to_owned(), text });
    let Ok(Envelope { mut response }) = serde_json::from_slice(&answer.body) else {
        let text =
            format!("{action}: status {} and no JSON of its own: {}", answer.status, excerpt(&answer.body));
        return Err(unreachable(text));
    };
    let Some(error) = response.get_mut("Error").map(Value::take) else {
        return match answer.status {
            200 => Ok(response),
            status => Err(unreachable(format!("{action}: status {status}"))),
        };
    };
    let Ok(Complaint { code, message }) = serde_json::from_value(error) else {
        return Err(unreachable(format!("{action}: an error without a code")));
    };
    let text = format!("{action}: {code}: {}", excerpt(message.as_bytes()));
    if code.starts_with("RequestLimitExceeded") {
        return Err(Failure::TooFast(text));
    }
    if code.starts_with("InternalError") || answer.status >= 500 {
        return Err(unreachable(text));
    }
    let hint = match code.as_str() {
        "AuthFailure.SignatureExpire" => "; set this machine's clock",
        code if code.starts_with("AuthFailure") => "; check the access key and the secret key",
        code if code.starts_with("UnauthorizedOperation") => {
            "; the key needs dnspod:DescribeRecordList, CreateRecord, ModifyRecord, DeleteRecord"
        }
        code if code.contains("RecordTtlLimit") => {
            "; the plan of this domain does not allow so short a TTL: choose a longer one"
        }
        _ => "",
    };
    Err(Failure::Final(EntryError::Refused { whom: whom.to_owned(), text: format!("{text}{hint}") }))
}

fn take(listing: &mut Listing, record: Record) {
    if record.status.eq_ignore_ascii_case("disable") {
        return;
    }
    let upper = record.kind.to_ascii_uppercase();
    let Some(kind) = Kind::named(&upper) else {
        if upper.contains("URL") {
            listing.obstacles.push(format!("it is a redirection of the provider ({upper})"));
        } else if !listing.besides.contains(&upper) {
            listing.besides.push(upper);
        }
        return;
    };
    if record.line_id != DEFAULT_LINE.0 && record.line != DEFAULT_LINE.1 {
        listing.is_for_line(kind, &record.line);
    }
    if record.weight.is_some() {
        listing.obstacles.push(format!("an {kind} record has a weight"));
    }
    listing.hold(record.id.to_string(), kind, &record.value, record.ttl);
}

#[async_trait]
impl Records for Dnspod {
    fn provider(&self) -> String {
        "DNSPod".into()
    }

    fn origin(&self) -> &DnsName {
        &self.zone
    }

    fn poll(&self) -> Duration {
        self.poll
    }

    async fn list(&self, name: &DnsName) -> Result<Listing, EntryError> {
        let host = name.relative_to(&self.zone);
        let (mut listing, mut offset) = (Listing::default(), 0);
        for _ in 0..MAX_PAGES {
            let body =
                json!({ "Domain": self.zone, "Subdomain": host, "Offset": offset, "Limit": PAGE_SIZE });
            let response = match self.call("DescribeRecordList", &body).await {
                Err(EntryError::Refused { text, .. }) if text.contains("ResourceNotFound.NoDataOfRecord") => {
                    return Ok(listing);
                }
                response => response?,
            };
            let page: Page = serde_json::from_value(response).map_err(|error| {
                let text = format!("DescribeRecordList: not the answer that is documented: {error}");
                EntryError::Refused { whom: self.provider(), text }
            })?;
            offset += page.record_list.len() as u64;
            let is_last = page.record_list.is_empty() || offset >= page.record_count_info.total_count;
            let of_name = |record: &Record| record.host.eq_ignore_ascii_case(host);
            page.record_list.into_iter().filter(of_name).for_each(|record| take(&mut listing, record));
            if is_last {
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
            json!({
                "Domain": self.zone, "SubDomain": name.relative_to(&self.zone), "RecordType": kind.name(),
                "RecordLine": DEFAULT_LINE.1, "RecordLineId": DEFAULT_LINE.0, "Value": value, "TTL": ttl,
            })
        };
        let number = |id: &str| json!(id.parse::<u64>().unwrap_or_default());
        let (action, body) = match edit {
            Edit::Add { kind, value, ttl } => ("CreateRecord", record(kind, value, ttl)),
            Edit::Update { id, kind, value, ttl } => {
                let mut body = record(kind, value, ttl);
                body["RecordId"] = number(id);
                ("ModifyRecord", body)
            }
            Edit::Delete { id } => ("DeleteRecord", json!({ "Domain": self.zone, "RecordId": number(id) })),
        };
        match self.call(action, &body).await {
            // It is as wanted: an earlier call got there whose answer was lost. The list is read afterwards in any case.
            Err(EntryError::Refused { text, .. }) if text.contains("DomainRecordExist") => Ok(()),
            done => done.map(drop),
        }
    }
}
