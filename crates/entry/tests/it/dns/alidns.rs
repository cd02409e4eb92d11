//! The Aliyun DNS driver against a server that answers as the documentation has it.

use super::service::{
    ACCESS_KEY, Asked, Kept, POLL, SECRET_KEY, Service, canonical, contract, credentials, hex, keyed, sha256,
};
use super::{entry, name};
use rehome_entry::EntryError;
use rehome_entry::dns::alidns::Alidns;
use rehome_entry::dns::authority::Authority;
use rehome_entry::dns::edits::Piecewise;
use rehome_entry::dns::state::StateFile;
use rehome_entry::dns::steps::{Steps, Wish};
use rehome_entry::dns::{Zone, system_clock};
use serde_json::json;
use std::time::Duration;

fn named(asked: &Asked) -> String {
    asked.header("x-acs-action").to_owned()
}

fn signed(asked: &Asked) -> String {
    let (canonical, names) = canonical(asked);
    assert!(names.starts_with("host;x-acs-action") && names.contains("x-acs-security-token"), "{names}");
    assert_eq!(asked.header("x-acs-content-sha256"), sha256(b""));
    let signature =
        hex(&keyed(SECRET_KEY.as_bytes(), &format!("ACS3-HMAC-SHA256\n{}", sha256(canonical.as_bytes()))));
    format!("ACS3-HMAC-SHA256 Credential={ACCESS_KEY},SignedHeaders={names},Signature={signature}")
}

fn error(code: &str) -> String {
    json!({ "RequestId": "4E1F", "HostId": "alidns.aliyuncs.com", "Code": code, "Message": "No." })
        .to_string()
}

fn means(kept: &mut Kept, asked: &Asked) -> (u16, String) {
    assert_eq!((asked.method.as_str(), asked.header("x-acs-version")), ("POST", "2015-01-09"));
    let parameter = |name| asked.parameter(name);
    let id = parameter("RecordId").parse::<u64>().unwrap_or_default();
    match named(asked).as_str() {
        "DescribeSubDomainRecords" => {
            assert_eq!(parameter("DomainName"), "example.com");
            let (size, page): (usize, usize) =
                (parameter("PageSize").parse().unwrap(), parameter("PageNumber").parse().unwrap());
            let host = parameter("SubDomain");
            let host = host.strip_suffix(".example.com").unwrap();
            let all: Vec<_> = kept.listed().into_iter().filter(|record| record.host == host).collect();
            let shown: Vec<_> = all
                .iter()
                .skip((page - 1) * size)
                .take(size)
                .map(|record| {
                    let mut shown = json!({
                        "DomainName": "example.com", "RecordId": record.id.to_string(), "RR": record.host,
                        "Type": record.kind, "Value": record.value, "TTL": record.ttl, "Line": "default",
                        "Status": "ENABLE", "Locked": false,
                    });
                    for (key, value) in &record.more {
                        shown[key] = serde_json::from_str(value).unwrap_or(json!(value));
                    }
                    shown
                })
                .collect();
            let answer = json!({
                "TotalCount": all.len(), "PageNumber": page, "PageSize": size, "RequestId": "4E1F",
                "DomainRecords": { "Record": shown },
            });
            return (200, answer.to_string());
        }
        "AddDomainRecord" => {
            let (host, kind, value) = (parameter("RR"), parameter("Type"), parameter("Value"));
            let same = |record: &&super::service::Record| {
                (&record.host, &record.kind, &record.value) == (&host, &kind, &value)
            };
            if kept.records.iter().any(|record| same(&record)) {
                return (400, error("DomainRecordDuplicate"));
            }
            kept.add(&host, &kind, &value, parameter("TTL").parse().unwrap(), &[]);
        }
        "UpdateDomainRecord" => {
            let record = kept.records.iter_mut().find(|record| record.id == id).unwrap();
            (record.kind, record.value) = (parameter("Type"), parameter("Value"));
            record.ttl = parameter("TTL").parse().unwrap();
        }
        "DeleteDomainRecord" => kept.records.retain(|record| record.id != id),
        other => return (404, error(&format!("InvalidAction.{other}"))),
    }
    (200, json!({ "RequestId": "4E1F", "RecordId": id.to_string() }).to_string())
}

async fn start() -> (Service, Piecewise<Alidns>) {
    let service = Service::start(named, signed, means).await;
    let zone =
        Alidns::zone(name("example.com"), service.endpoint(), credentials(), system_clock(), POLL).unwrap();
    (service, zone)
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let (service, zone) = start().await;
    service.kept(|kept| kept.add("other", "A", "192.0.2.77", 600, &[]));
    contract(&zone).await;
    assert_eq!(service.kept(|kept| kept.records.len()), 1, "nobody else's record was touched");
}

#[tokio::test]
async fn every_page_is_read() {
    let (service, zone) = start().await;
    for n in 0..230 {
        service.kept(|kept| kept.add("shop", "A", &format!("10.0.{}.{}", n / 200, n % 200), 600, &[]));
    }
    let found = zone.read(&name("shop.example.com")).await.unwrap();
    assert_eq!(found.entry.records().count(), 230);
    assert_eq!(service.kept(|kept| kept.count("DescribeSubDomainRecords")), 3);
}

#[tokio::test]
async fn too_fast_is_done_again_and_nothing_else_is() {
    let (service, zone) = start().await;
    let (shop, new) = (name("shop.example.com"), entry(&["192.0.2.1"], 600));
    let none = zone.read(&shop).await.unwrap().entry;
    service.kept(|kept| {
        kept.fail("AddDomainRecord", 400, &error("Throttling.User"));
        kept.fail("AddDomainRecord", 503, &error("Throttling.Api"));
    });
    zone.replace(&shop, &none, &new).await.unwrap();
    assert_eq!(service.kept(|kept| kept.count("AddDomainRecord")), 3);
    // A server that fails may have done it: looked at again by the next call, not sent again by this one.
    for (status, text) in
        [(500, error("InternalError")), (503, "<html>busy</html>".into()), (200, "<html>hi</html>".into())]
    {
        service.kept(|kept| kept.fail("DescribeSubDomainRecords", status, &text));
        let failed = zone.read(&shop).await.unwrap_err();
        assert_eq!(failed.is_retryable(), status >= 500, "{failed:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_why_and_shows_no_secret() {
    let (service, zone) = start().await;
    for (status, code, words) in [
        (404, "InvalidAccessKeyId.NotFound", "check the access key"),
        (400, "SignatureDoesNotMatch", "check the secret key"),
        (400, "InvalidTimeStamp.Expired", "clock"),
        (403, "Forbidden.RAM", "alidns:DescribeSubDomainRecords"),
        (400, "QuotaExceeded.TTL", "choose a longer one"),
        (400, "InvalidDomainName.NoExist", "InvalidDomainName.NoExist"),
    ] {
        service.kept(|kept| kept.fail("DescribeSubDomainRecords", status, &error(code)));
        let failed = zone.read(&name("shop.example.com")).await.unwrap_err();
        assert!(matches!(failed, EntryError::Refused { .. }), "{failed:?}");
        let text = format!("{failed} {failed:?}");
        assert!(text.contains(words) && !text.contains(SECRET_KEY) && !text.contains("a/token"), "{text}");
    }
}

#[tokio::test]
async fn a_list_that_lags_is_waited_for() {
    let (service, zone) = start().await;
    let shop = name("shop.example.com");
    let (old, new) = (entry(&["192.0.2.1"], 600), entry(&["192.0.2.2"], 600));
    service.kept(|kept| kept.add("shop", "A", "192.0.2.1", 600, &[]));
    assert_eq!(zone.read(&shop).await.unwrap().entry, old);
    service.kept(|kept| kept.lag = 4);
    zone.replace(&shop, &old, &new).await.unwrap();
    assert_eq!(zone.read(&shop).await.unwrap().entry, new);
    assert_eq!(service.kept(|kept| kept.count("UpdateDomainRecord")), 1);
}

#[tokio::test]
async fn what_would_be_flattened_is_named() {
    for (kind, more, words) in [
        ("A", &[("Line", "telecom")][..], "line `telecom`"),
        ("A", &[("Locked", "true")], "locked"),
        ("REDIRECT_URL", &[], "redirection"),
    ] {
        let (service, zone) = start().await;
        service.kept(|kept| kept.add("shop", kind, "192.0.2.1", 600, more));
        let found = zone.read(&name("shop.example.com")).await.unwrap();
        assert!(found.obstacles[0].contains(words), "{found:?}");
    }
    let (service, zone) = start().await;
    service.kept(|kept| {
        kept.add("shop", "A", "192.0.2.1", 600, &[("Weight", "9")]);
        kept.add("shop", "A", "192.0.2.2", 600, &[("Weight", "1")]);
        kept.add("shop", "A", "192.0.2.3", 600, &[("Status", "DISABLE")]);
        kept.add("shop", "MX", "mail.example.com", 600, &[]);
    });
    let found = zone.read(&name("shop.example.com")).await.unwrap();
    assert!(found.obstacles[0].contains("different weights"), "{found:?}");
    assert_eq!(
        (found.entry, found.besides),
        (entry(&["192.0.2.1", "192.0.2.2"], 600), vec!["MX".to_owned()])
    );
}

#[tokio::test]
async fn broken_off_between_two_edits_it_goes_on() {
    let (service, zone) = start().await;
    let kept = service.kept.clone();
    service.kept(|kept| {
        kept.add("shop", "A", "192.0.2.1", 600, &[]);
        kept.add("shop", "A", "192.0.2.2", 600, &[]);
    });
    // A name server that serves what the service keeps.
    let server = super::liars::Liar::start(move |asked| {
        let records: Vec<_> = kept.lock().unwrap().records.iter().map(|r| (r.value.clone(), r.ttl)).collect();
        vec![super::liars::serve(asked, &records)]
    })
    .await;
    let authority = Authority::given(name("example.com"), &[server.address], system_clock());
    let folder = tempfile::tempdir().unwrap();
    let steps = Steps {
        zone: &zone,
        authority: &authority,
        name: name("shop.example.com"),
        file: StateFile::new(folder.path(), &name("shop.example.com")),
        clock: system_clock(),
        patience: Duration::from_secs(5),
        say: &|_| {},
    };
    let point = Wish::Point { to: vec!["192.0.2.8".into(), "192.0.2.9".into()], replace_cname: false };
    // The first update is done, and its answer is an error: the second one is never asked for.
    service
        .kept(|kept| kept.faults.push_back(("UpdateDomainRecord".into(), 500, error("InternalError"), true)));
    let failed = steps.carry_out(steps.plan(&point).await.unwrap()).await.unwrap_err();
    assert!(failed.is_retryable(), "{failed:?}");
    let half = zone.read(&name("shop.example.com")).await.unwrap().entry;
    assert_eq!(half, entry(&["192.0.2.2", "192.0.2.8"], 600), "half of it");
    let done = steps.carry_out(steps.plan(&point).await.unwrap()).await.unwrap();
    assert_eq!(
        (done.entry, done.former),
        (entry(&["192.0.2.8", "192.0.2.9"], 600), entry(&["192.0.2.1", "192.0.2.2"], 600))
    );
    // And back from a half, too.
    service
        .kept(|kept| kept.faults.push_back(("UpdateDomainRecord".into(), 500, error("InternalError"), true)));
    assert!(steps.carry_out(steps.plan(&Wish::Back).await.unwrap()).await.is_err());
    steps.carry_out(steps.plan(&Wish::Back).await.unwrap()).await.unwrap();
    assert_eq!(
        zone.read(&name("shop.example.com")).await.unwrap().entry,
        entry(&["192.0.2.1", "192.0.2.2"], 600)
    );
}
