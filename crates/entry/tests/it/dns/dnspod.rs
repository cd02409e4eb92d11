//! The DNSPod driver against a server that answers as the documentation has it: errors come with status 200.

use super::service::{
    ACCESS_KEY, Asked, Kept, POLL, SECRET_KEY, Service, canonical, contract, credentials, hex, keyed, sha256,
};
use super::{entry, name};
use rehome_entry::EntryError;
use rehome_entry::dns::dnspod::Dnspod;
use rehome_entry::dns::edits::Piecewise;
use rehome_entry::dns::{Zone, system_clock};
use serde_json::{Value, json};

fn named(asked: &Asked) -> String {
    asked.header("x-tc-action").to_owned()
}

fn signed(asked: &Asked) -> String {
    let (canonical, names) = canonical(asked);
    assert_eq!((names.as_str(), asked.header("x-tc-token")), ("content-type;host", "a/token+="));
    let seconds = asked.header("x-tc-timestamp");
    let day =
        jiff::Timestamp::from_second(seconds.parse().unwrap()).unwrap().strftime("%Y-%m-%d").to_string();
    let scope = format!("{day}/dnspod/tc3_request");
    let text = format!("TC3-HMAC-SHA256\n{seconds}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let key = keyed(&keyed(&keyed(format!("TC3{SECRET_KEY}").as_bytes(), &day), "dnspod"), "tc3_request");
    let signature = hex(&keyed(&key, &text));
    format!("TC3-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn error(code: &str) -> String {
    json!({ "Response": { "Error": { "Code": code, "Message": "不行" }, "RequestId": "4e1f" } }).to_string()
}

fn means(kept: &mut Kept, asked: &Asked) -> (u16, String) {
    assert_eq!((asked.method.as_str(), asked.header("x-tc-version")), ("POST", "2021-03-23"));
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(body["Domain"], "example.com");
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| body[key].as_u64().unwrap_or_default();
    let answer = match named(asked).as_str() {
        "DescribeRecordList" => {
            let host = text("Subdomain");
            let all: Vec<_> = kept.listed().into_iter().filter(|record| record.host == host).collect();
            if all.is_empty() {
                return (200, error("ResourceNotFound.NoDataOfRecord"));
            }
            // It may show fewer than were asked for.
            let page = all.iter().skip(number("Offset") as usize).take(number("Limit").min(40) as usize);
            let shown: Vec<_> = page
                .map(|record| {
                    let mut shown = json!({
                        "RecordId": record.id, "Name": record.host, "Type": record.kind, "Value": record.value,
                        "TTL": record.ttl, "Line": "默认", "LineId": "0", "Status": "ENABLE", "Weight": null,
                        "MonitorStatus": "", "Remark": "", "UpdatedOn": "2026-01-02 03:04:05", "MX": 0, "DefaultNS": false,
                    });
                    if record.kind == "CNAME" {
                        shown["Value"] = json!(format!("{}.", record.value.trim_end_matches('.')));
                    }
                    for (key, value) in &record.more {
                        shown[key] = serde_json::from_str(value).unwrap_or(json!(value));
                    }
                    shown
                })
                .collect();
            json!({
                "RecordCountInfo": { "SubdomainCount": all.len(), "TotalCount": all.len(), "ListCount": shown.len() },
                "RecordList": shown,
            })
        }
        "CreateRecord" => {
            assert_eq!((text("RecordLine"), text("RecordLineId")), ("默认".into(), "0".into()));
            let (host, kind, value) = (text("SubDomain"), text("RecordType"), text("Value"));
            if kept.records.iter().any(|r| (&r.host, &r.kind, &r.value) == (&host, &kind, &value)) {
                return (200, error("InvalidParameter.DomainRecordExist"));
            }
            json!({ "RecordId": kept.add(&host, &kind, &value, number("TTL") as u32, &[]) })
        }
        "ModifyRecord" => {
            let record = kept.records.iter_mut().find(|record| record.id == number("RecordId")).unwrap();
            (record.kind, record.value, record.ttl) =
                (text("RecordType"), text("Value"), number("TTL") as u32);
            json!({ "RecordId": record.id })
        }
        "DeleteRecord" => {
            kept.records.retain(|record| record.id != number("RecordId"));
            json!({})
        }
        _ => return (200, error("InvalidAction")),
    };
    let mut answer = answer;
    answer["RequestId"] = json!("4e1f");
    (200, json!({ "Response": answer }).to_string())
}

async fn start() -> (Service, Piecewise<Dnspod>) {
    let service = Service::start(named, signed, means).await;
    let zone =
        Dnspod::zone(name("example.com"), service.endpoint(), credentials(), system_clock(), POLL).unwrap();
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
    for n in 0..90 {
        service.kept(|kept| kept.add("@", "A", &format!("10.0.0.{n}"), 600, &[]));
    }
    assert_eq!(zone.read(&name("example.com")).await.unwrap().entry.records().count(), 90);
    assert_eq!(service.kept(|kept| kept.count("DescribeRecordList")), 3);
}

#[tokio::test]
async fn too_fast_is_done_again_and_nothing_else_is() {
    let (service, zone) = start().await;
    let (shop, new) = (name("shop.example.com"), entry(&["192.0.2.1"], 600));
    let none = zone.read(&shop).await.unwrap().entry;
    service.kept(|kept| {
        kept.fail("CreateRecord", 200, &error("RequestLimitExceeded"));
        kept.fail("CreateRecord", 200, &error("RequestLimitExceeded.UinLimitExceeded"));
    });
    zone.replace(&shop, &none, &new).await.unwrap();
    assert_eq!(service.kept(|kept| kept.count("CreateRecord")), 3);
    for (status, text) in
        [(200, error("InternalError")), (502, "<html/>".into()), (500, "{\"Response\":{}}".into())]
    {
        service.kept(|kept| kept.fail("DescribeRecordList", status, &text));
        let failed = zone.read(&shop).await.unwrap_err();
        assert!(failed.is_retryable(), "{failed:?}");
    }
    // It was done, and the answer was an error: done again it is there, and that is no error.
    let two = entry(&["192.0.2.1", "192.0.2.2"], 600);
    service.kept(|kept| kept.faults.push_back(("CreateRecord".into(), 200, error("InternalError"), true)));
    assert!(zone.replace(&shop, &new, &two).await.unwrap_err().is_retryable());
    zone.replace(&shop, &new, &two).await.unwrap();
}

#[tokio::test]
async fn a_refusal_says_why_and_shows_no_secret() {
    let (service, zone) = start().await;
    for (code, words) in [
        ("AuthFailure.SignatureExpire", "clock"),
        ("AuthFailure.SecretIdNotFound", "check the access key"),
        ("UnauthorizedOperation", "dnspod:DescribeRecordList"),
        ("LimitExceeded.RecordTtlLimit", "choose a longer one"),
        ("InvalidParameterValue.DomainNotExists", "DomainNotExists"),
    ] {
        service.kept(|kept| kept.fail("DescribeRecordList", 200, &error(code)));
        let failed = zone.read(&name("shop.example.com")).await.unwrap_err();
        assert!(matches!(failed, EntryError::Refused { .. }), "{failed:?}");
        let text = format!("{failed} {failed:?}");
        assert!(text.contains(words) && !text.contains(SECRET_KEY) && !text.contains("a/token"), "{text}");
    }
}

#[tokio::test]
async fn what_would_be_flattened_is_named() {
    for (kind, more, words) in [
        ("A", &[("Line", "电信"), ("LineId", "\"10=0\"")][..], "line `电信`"),
        ("A", &[("Weight", "20")], "weight"),
        ("显性URL", &[], "redirection"),
    ] {
        let (service, zone) = start().await;
        service.kept(|kept| kept.add("shop", kind, "192.0.2.1", 600, more));
        let found = zone.read(&name("shop.example.com")).await.unwrap();
        assert!(found.obstacles[0].contains(words), "{found:?}");
    }
}
