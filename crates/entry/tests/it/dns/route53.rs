//! The Route 53 driver against a server that answers as the documentation has it, batches all or nothing.

use super::service::{
    ACCESS_KEY, Asked, Kept, POLL, Record, SECRET_KEY, Service, canonical, contract, credentials, hex, keyed,
    sha256,
};
use super::{entry, name};
use rehome_entry::EntryError;
use rehome_entry::dns::route53::Route53;
use rehome_entry::dns::{Zone, system_clock};
use std::collections::BTreeMap;
use std::fmt::Write;

fn named(asked: &Asked) -> String {
    let path = asked.path.strip_prefix("/2013-04-01/").unwrap();
    match (asked.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
        ("GET", ["hostedzonesbyname"]) => "zones".into(),
        ("GET", ["hostedzone", _, "rrset"]) => "list".into(),
        ("POST", ["hostedzone", "Z1PUBLIC", "rrset"]) => "change".into(),
        ("GET", ["change", "C42"]) => "status".into(),
        other => panic!("{other:?}"),
    }
}

fn signed(asked: &Asked) -> String {
    let (canonical, names) = canonical(asked);
    assert_eq!(names, "host;x-amz-date;x-amz-security-token");
    let time = asked.header("x-amz-date");
    let day = time.split('T').next().unwrap();
    let scope = format!("{}/us-east-1/route53/aws4_request", day);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let first = keyed(format!("AWS4{SECRET_KEY}").as_bytes(), day);
    let key = ["us-east-1", "route53", "aws4_request"].iter().fold(first, |key, step| keyed(&key, step));
    let signature = hex(&keyed(&key, &text));
    format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}")
}

const NAMESPACE: &str = "xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"";

fn error(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<ErrorResponse {NAMESPACE}><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>4e1f</RequestId></ErrorResponse>"
    )
}

/// Sorted as the service sorts them: here all of a set stand together, sets by name and type.
fn sets(records: &[Record]) -> BTreeMap<(String, String, String), Vec<Record>> {
    let mut sets: BTreeMap<_, Vec<Record>> = BTreeMap::new();
    for record in records {
        let identifier = record.more.get("SetIdentifier").cloned().unwrap_or_default();
        sets.entry((record.host.clone(), record.kind.clone(), identifier)).or_default().push(record.clone());
    }
    sets
}

/// At most this many sets on a page.
const PAGE: usize = 2;

fn list(kept: &mut Kept, asked: &Asked) -> String {
    let sets = sets(&kept.listed());
    let from = (asked.parameter("name"), asked.parameter("type"), asked.parameter("identifier"));
    let mut rest = sets.range(from..);
    let mut page = String::new();
    for ((host, kind, _), records) in rest.by_ref().take(PAGE) {
        let _ = write!(page, "<ResourceRecordSet><Name>{host}.</Name><Type>{kind}</Type>");
        for (key, value) in &records[0].more {
            let _ = write!(page, "<{key}>{value}</{key}>");
        }
        if !records[0].more.contains_key("AliasTarget") {
            let _ = write!(page, "<TTL>{}</TTL><ResourceRecords>", records[0].ttl);
            for record in records {
                let _ = write!(page, "<ResourceRecord><Value>{}</Value></ResourceRecord>", record.value);
            }
            page.push_str("</ResourceRecords>");
        }
        page.push_str("</ResourceRecordSet>");
    }
    let next = rest.next().map(|((host, kind, identifier), _)| {
        let identifier = match identifier.as_str() {
            "" => String::new(),
            identifier => format!("<NextRecordIdentifier>{identifier}</NextRecordIdentifier>"),
        };
        format!("<NextRecordName>{host}</NextRecordName><NextRecordType>{kind}</NextRecordType>{identifier}")
    });
    format!(
        "<ListResourceRecordSetsResponse {NAMESPACE}><ResourceRecordSets>{page}</ResourceRecordSets>\
         <IsTruncated>{}</IsTruncated>{}<MaxItems>{PAGE}</MaxItems></ListResourceRecordSetsResponse>",
        next.is_some(),
        next.unwrap_or_default()
    )
}

/// The text of every element of a name.
fn texts<'a>(xml: &'a str, element: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(open.as_str()).skip(1).map(|rest| rest.split(close.as_str()).next().unwrap()).collect()
}

fn change(kept: &mut Kept, body: &str) -> (u16, String) {
    let mut records = kept.records.clone();
    for change in texts(body, "Change") {
        let (host, kind) =
            (texts(change, "Name")[0].trim_end_matches('.').to_owned(), texts(change, "Type")[0]);
        let ttl: u32 = texts(change, "TTL")[0].parse().unwrap();
        let values = texts(change, "Value");
        let of_set = |record: &Record| record.host == host && record.kind == kind;
        let there: Vec<_> =
            records.iter().filter(|record| of_set(record)).map(|r| (r.value.as_str(), r.ttl)).collect();
        match texts(change, "Action")[0] {
            "DELETE" => {
                let meant: Vec<_> = values.iter().map(|value| (*value, ttl)).collect();
                if there != meant {
                    let text = "Tried to delete resource record set but the values provided do not match the current values";
                    return (400, error("InvalidChangeBatch", text));
                }
                records.retain(|record| !of_set(record));
            }
            "CREATE" if there.is_empty() => {
                for value in values {
                    let (kind, value) = (kind.to_owned(), value.to_owned());
                    records.push(Record { host: host.clone(), kind, value, ttl, ..Record::default() });
                }
            }
            // The older form of the same complaint.
            "CREATE" => {
                let text = "<InvalidChangeBatch><Messages><Message>it already exists</Message></Messages></InvalidChangeBatch>";
                return (400, text.into());
            }
            other => panic!("{other}"),
        }
    }
    (kept.records, kept.pending) = (records, 2);
    (200, info("ChangeResourceRecordSetsResponse", "PENDING"))
}

fn info(root: &str, status: &str) -> String {
    format!(
        "<{root} {NAMESPACE}><ChangeInfo><Id>/change/C42</Id><Status>{status}</Status>\
         <SubmittedAt>2026-01-02T03:04:05Z</SubmittedAt></ChangeInfo></{root}>"
    )
}

fn zones(all: &[(&str, &str, bool)]) -> String {
    let zones: String = all
        .iter()
        .map(|(id, name, private)| {
            format!(
                "<HostedZone><Id>/hostedzone/{id}</Id><Name>{name}.</Name><CallerReference>x</CallerReference>\
                 <Config><PrivateZone>{private}</PrivateZone></Config></HostedZone>"
            )
        })
        .collect();
    format!(
        "<ListHostedZonesByNameResponse {NAMESPACE}><HostedZones>{zones}</HostedZones><IsTruncated>false</IsTruncated>\
         <MaxItems>100</MaxItems></ListHostedZonesByNameResponse>"
    )
}

fn means(kept: &mut Kept, asked: &Asked) -> (u16, String) {
    match named(asked).as_str() {
        "zones" => {
            assert_eq!(asked.parameter("dnsname"), "example.com");
            let all = [
                ("Z0PRIVATE", "example.com", true),
                ("Z1PUBLIC", "example.com", false),
                ("Z2", "example.net", false),
            ];
            (200, zones(&all))
        }
        "list" => (200, list(kept, asked)),
        "change" => change(kept, std::str::from_utf8(&asked.body).unwrap()),
        _ => {
            let status = if kept.pending == 0 { "INSYNC" } else { "PENDING" };
            kept.pending = kept.pending.saturating_sub(1);
            (200, info("GetChangeResponse", status))
        }
    }
}

async fn open(service: &Service) -> Result<Route53, EntryError> {
    Route53::open(name("example.com"), None, service.endpoint(), credentials(), system_clock(), POLL).await
}

async fn start() -> (Service, Route53) {
    let service = Service::start(named, signed, means).await;
    let zone = open(&service).await.unwrap();
    assert_eq!(zone.provider(), "Route 53 (hosted zone Z1PUBLIC)");
    (service, zone)
}

const SHOP: &str = "shop.example.com";

#[tokio::test]
async fn it_keeps_the_contract() {
    let (service, zone) = start().await;
    service.kept(|kept| {
        kept.add("a.example.com", "A", "192.0.2.77", 300, &[]);
        kept.add("z.example.com", "A", "192.0.2.78", 300, &[]);
    });
    contract(&zone).await;
    assert_eq!(service.kept(|kept| kept.records.len()), 2, "nobody else's record was touched");
    // Each change was waited for until it was everywhere.
    assert_eq!(service.kept(|kept| (kept.count("change"), kept.count("status"))), (6, 18));
}

#[tokio::test]
async fn every_page_of_the_name_is_read_and_no_more() {
    let (service, zone) = start().await;
    service.kept(|kept| {
        for kind in ["A", "AAAA", "CAA", "MX", "TXT"] {
            kept.add(SHOP, kind, if kind == "A" { "192.0.2.1" } else { "2001:db8::1" }, 300, &[]);
        }
        for n in 0..20 {
            kept.add(&format!("t{n}.example.com"), "A", "192.0.2.3", 300, &[]);
        }
    });
    let found = zone.read(&name(SHOP)).await.unwrap();
    assert_eq!((found.entry, found.besides.len()), (entry(&["192.0.2.1", "2001:db8::1"], 300), 3));
    assert_eq!(service.kept(|kept| kept.count("list")), 3);
}

#[tokio::test]
async fn whoever_was_faster_stays() {
    let (service, zone) = start().await;
    let (old, new) = (entry(&["192.0.2.1"], 300), entry(&["192.0.2.9"], 60));
    for theirs in [("192.0.2.7", 300), ("192.0.2.1", 120)] {
        service.kept(|kept| {
            kept.records.clear();
            kept.add(SHOP, "A", "192.0.2.1", 300, &[]);
        });
        assert_eq!(zone.read(&name(SHOP)).await.unwrap().entry, old);
        // Between our look and our change: the list still shows what was, the change meets what is.
        service.kept(|kept| {
            kept.lag = 1;
            kept.records.clear();
            kept.add(SHOP, "A", theirs.0, theirs.1, &[]);
        });
        let error = zone.replace(&name(SHOP), &old, &new).await.unwrap_err();
        assert!(matches!(error, EntryError::Changed { .. }), "{error:?}");
        assert_eq!(zone.read(&name(SHOP)).await.unwrap().entry, entry(&[theirs.0], theirs.1));
    }
}

#[tokio::test]
async fn values_are_deleted_as_they_are_written_there() {
    let (service, zone) = start().await;
    service.kept(|kept| kept.add(SHOP, "CNAME", "LB.Example.net.", 300, &[]));
    zone.replace(&name(SHOP), &entry(&["lb.example.net"], 300), &entry(&["192.0.2.1"], 60)).await.unwrap();
    assert_eq!(zone.read(&name(SHOP)).await.unwrap().entry, entry(&["192.0.2.1"], 60));
}

#[tokio::test]
async fn too_fast_is_done_again_and_nothing_else_is() {
    let (service, zone) = start().await;
    let none = zone.read(&name(SHOP)).await.unwrap().entry;
    service.kept(|kept| {
        kept.fail("change", 400, &error("Throttling", "Rate exceeded"));
        kept.fail("change", 400, &error("PriorRequestNotComplete", "wait"));
    });
    zone.replace(&name(SHOP), &none, &entry(&["192.0.2.1"], 60)).await.unwrap();
    assert_eq!(service.kept(|kept| kept.count("change")), 3);
    for (status, text) in [(500, error("InternalError", "")), (503, "busy".into()), (200, "<A>".into())] {
        service.kept(|kept| kept.fail("list", status, &text));
        assert!(zone.read(&name(SHOP)).await.unwrap_err().is_retryable());
    }
    // Done, and the answer was lost: the same call again finds it there.
    let (one, two) = (entry(&["192.0.2.1"], 60), entry(&["192.0.2.2"], 60));
    service.kept(|kept| kept.faults.push_back(("change".into(), 500, error("InternalError", ""), true)));
    assert!(zone.replace(&name(SHOP), &one, &two).await.unwrap_err().is_retryable());
    zone.replace(&name(SHOP), &one, &two).await.unwrap();
}

#[tokio::test]
async fn a_refusal_says_why_and_shows_no_secret() {
    let (service, zone) = start().await;
    for (code, words) in [
        ("InvalidClientTokenId", "check the access key"),
        ("SignatureDoesNotMatch", "clock"),
        ("RequestExpired", "clock"),
        ("AccessDenied", "ChangeResourceRecordSets"),
        ("NoSuchHostedZone", "NoSuchHostedZone"),
    ] {
        service.kept(|kept| kept.fail("list", 403, &error(code, "no")));
        let failed = zone.read(&name(SHOP)).await.unwrap_err();
        assert!(matches!(failed, EntryError::Refused { .. }), "{failed:?}");
        let text = format!("{failed} {failed:?}");
        assert!(text.contains(words) && !text.contains(SECRET_KEY) && !text.contains("a/token"), "{text}");
    }
}

#[tokio::test]
async fn what_would_be_flattened_is_named() {
    let (service, zone) = start().await;
    for (more, words) in [
        (&[("AliasTarget", "<DNSName>x.elb.amazonaws.com.</DNSName>")][..], "an alias"),
        (&[("SetIdentifier", "blue"), ("Weight", "9")], "weighted"),
        (&[("SetIdentifier", "eu"), ("GeoLocation", "<ContinentCode>EU</ContinentCode>")], "by place"),
        (&[("SetIdentifier", "x"), ("Failover", "PRIMARY")], "failover"),
        (&[("SetIdentifier", "x"), ("Region", "eu-west-1")], "latency"),
        (&[("TrafficPolicyInstanceId", "x")], "traffic policy"),
    ] {
        service.kept(|kept| {
            kept.records.clear();
            kept.add(SHOP, "A", "192.0.2.1", 300, more);
        });
        let found = zone.read(&name(SHOP)).await.unwrap();
        assert!(found.obstacles[0].contains(words), "{found:?}");
    }
}

#[tokio::test]
async fn the_zone_is_the_public_one_and_the_only_one() {
    let service = Service::start(named, signed, means).await;
    service.kept(|kept| {
        kept.fail("zones", 200, &zones(&[("Z1", "example.com", false), ("Z2", "example.com", false)]))
    });
    let several = open(&service).await.unwrap_err();
    assert!(matches!(&several, EntryError::Unfit { hint, .. } if hint.contains("--zone-id")), "{several:?}");
    service.kept(|kept| {
        kept.fail("zones", 200, &zones(&[("Z0", "example.com", true), ("Z2", "example.org", false)]))
    });
    let none = open(&service).await.unwrap_err();
    assert!(none.to_string().contains("no public hosted zone"), "{none:?}");
}

/// A server with a certificate that nobody vouches for gets no request.
#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await.is_ok()
    });
    let endpoint = rehome_entry::dns::http::Endpoint::parse(&endpoint).unwrap();
    let opened =
        Route53::open(name("example.com"), None, endpoint, credentials(), system_clock(), POLL).await;
    let text = opened.unwrap_err().to_string();
    assert!(text.contains("certificate"), "{text}");
    assert!(!server.await.unwrap(), "the handshake was not finished");
}
