//! What the S3 driver makes of servers that misbehave: a scripted server on loopback answers each request with what the test
//! gives it, and keeps what it was asked.

use bytes::Bytes;
use futures::TryStreamExt;
use rehome_objects::store::s3::dialect::{self, Dialect};
use rehome_objects::store::s3::{Credentials, S3Store, Settings};
use rehome_objects::store::{Attributes, Condition, Store, UploadedPart};
use rehome_part::ErrorKind;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Requests as they came (head and body as text), in order.
type Asked = Arc<Mutex<Vec<String>>>;

/// Answers one request after the other with `answers`, each a whole HTTP answer; a connection ends where the answer says so.
async fn script(dialect: &'static Dialect, answers: Vec<String>) -> (S3Store, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        while answers.len() > 0 {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Some(request) = read_request(&mut stream).await {
                kept.lock().unwrap().push(request);
                let answer = answers.next().expect("no more requests than answers");
                stream.write_all(answer.as_bytes()).await.unwrap();
                if answer.contains("Connection: close") || answers.len() == 0 {
                    break;
                }
            }
        }
    });
    let settings = Settings {
        dialect,
        endpoint,
        region: "us-east-1".into(),
        bucket: "bucket".into(),
        prefix: String::new(),
        path_style: true,
        credentials: Some(Credentials {
            access_key: "ACCESS".into(),
            secret_key: "very-secret".into(),
            session_token: Some("token-text".into()),
        }),
        credentials_name: "the target's credentials (env:ID, env:KEY)".into(),
        side: None,
        address: "s3://bucket/".into(),
        page_keys: 1_000,
    };
    (S3Store::new(settings).unwrap(), asked)
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = header(head, "content-length").map_or(0, |text| text.parse().unwrap());
            if body.len() >= length {
                return Some(text);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|line| {
        let (found, text) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(text)
    })
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn refusal(status: &str, code: &str) -> String {
    answer(status, "", &format!("<Error><Code>{code}</Code><Message>no</Message></Error>"))
}

async fn put(store: &S3Store, content: &'static str) -> rehome_part::Result<rehome_objects::store::Written> {
    store.put("k", &Attributes::default(), Bytes::from_static(content.as_bytes()), Condition::Always).await
}

#[tokio::test]
async fn completion_can_fail_after_it_said_ok() {
    let busy = "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>again</Message></Error>";
    let (store, _) =
        script(&dialect::AWS, vec![answer("200 OK", "", busy), answer("200 OK", "", "   ")]).await;
    let parts = [UploadedPart { number: 1, etag: "e".into(), size: 1 }];
    for _ in 0..2 {
        let error = store.complete_upload("k", "u", &parts).await.unwrap_err();
        assert!(error.is_temporary(), "{error:?}");
        assert_eq!(error.kind, ErrorKind::Network);
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"e\"\r\nConnection: close\r\n\r\nshort";
    let (store, _) = script(&dialect::AWS, vec![short.into()]).await;
    let (meta, body) = store.get("k", None, None).await.unwrap().unwrap();
    assert_eq!(meta.size, 10);
    let error = body.try_collect::<Vec<Bytes>>().await.unwrap_err();
    assert_eq!((error.kind, error.is_temporary()), (ErrorKind::Network, true));
}

#[tokio::test]
async fn a_server_that_ignores_conditions_and_ranges_is_not_believed() {
    let whole = answer("200 OK", "ETag: \"new\"\r\n", "0123456789");
    let (store, _) = script(&dialect::AWS, vec![whole.clone(), whole.clone(), whole]).await;
    assert_eq!(store.get("k", None, Some("old")).await.err().unwrap().kind, ErrorKind::Changed);
    assert_eq!(store.get("k", Some(2..4), None).await.err().unwrap().kind, ErrorKind::Unsupported);
    assert!(store.get("k", Some(0..10), Some("new")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_refused_form_is_tried_once_more_and_then_kept() {
    let ok = || answer("200 OK", "ETag: \"e\"\r\n", "");
    let (store, asked) =
        script(&dialect::GENERIC, vec![refusal("501 Not Implemented", "NotImplemented"), ok(), ok()]).await;
    put(&store, "one").await.unwrap();
    put(&store, "two").await.unwrap();
    let asked = asked.lock().unwrap();
    let forms: Vec<_> = asked
        .iter()
        .map(|request| {
            let signed = header(request, "x-amz-content-sha256").unwrap() != "UNSIGNED-PAYLOAD";
            (signed, header(request, "x-amz-checksum-crc64nvme").is_some())
        })
        .collect();
    assert_eq!(forms, [(false, true), (true, false), (true, false)]);
}

#[tokio::test]
async fn another_refusal_is_not_retried_and_tells_no_secret() {
    let (store, asked) = script(&dialect::AWS, vec![refusal("503 Slow Down", "SlowDown"); 1]).await;
    let error = put(&store, "x").await.unwrap_err();
    assert_eq!((error.kind, error.is_temporary()), (ErrorKind::Network, true));
    assert_eq!(asked.lock().unwrap().len(), 1);
    let (store, _) = script(&dialect::OSS, vec![refusal("403 Forbidden", "AccessDenied")]).await;
    let error = store.delete("k").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.hint.as_ref().unwrap().contains("env:KEY"));
    for shown in [format!("{error:?}"), format!("{store:?}")] {
        assert!(!shown.contains("very-secret") && !shown.contains("token-text"), "{shown}");
    }
}

#[tokio::test]
async fn keys_go_over_the_wire_byte_for_byte() {
    let keys = ["/a//b/../c/", "+ %25é?#", "~'()*!"];
    let paths = ["/bucket//a//b/../c/", "/bucket/%2B%20%2525%C3%A9%3F%23", "/bucket/~%27%28%29%2A%21"];
    let (store, asked) = script(&dialect::AWS, vec![answer("204 No Content", "", ""); 3]).await;
    for key in keys {
        store.delete(key).await.unwrap();
    }
    let asked = asked.lock().unwrap();
    for (request, path) in asked.iter().zip(paths) {
        assert_eq!(request.split(' ').nth(1), Some(path));
        assert!(
            header(request, "authorization")
                .unwrap()
                .contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date")
        );
    }
}

#[tokio::test]
async fn checksums_of_aliyun_and_tencent_are_read() {
    for (dialect, name) in [(&dialect::OSS, "x-oss-hash-crc64ecma"), (&dialect::COS, "x-cos-hash-crc64ecma")]
    {
        let told = answer("200 OK", &format!("{name}: 11051210869376104954\r\nETag: \"e\"\r\n"), "");
        let (store, asked) = script(dialect, vec![told]).await;
        let written = put(&store, "123456789").await.unwrap();
        let truth = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, b"123456789");
        assert_eq!(written.checksums.crc64xz, Some(truth));
        let request = asked.lock().unwrap()[0].to_ascii_lowercase();
        assert!(!request.contains("x-amz-checksum") && !request.contains("aws-chunked"), "{request}");
    }
}

#[tokio::test]
async fn a_listing_that_does_not_go_on_is_an_error() {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
        <Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>";
    let (store, _) = script(&dialect::AWS, vec![answer("200 OK", "", page); 2]).await;
    let listed = store.list("", None).try_collect::<Vec<_>>().await;
    assert_eq!(listed.unwrap_err().kind, ErrorKind::Corrupt);
    let html = answer("200 OK", "Content-Type: text/html\r\n", "<html><body>log in</body></html>");
    let (store, _) = script(&dialect::AWS, vec![html]).await;
    assert_eq!(store.check().await.unwrap_err().kind, ErrorKind::Unsupported);
}
