//! The S3 driver against servers that nobody here wrote.

use crate::servers;
use bytes::Bytes;
use futures::TryStreamExt;
use rehome_objects::store::contract::{self, Flaw, Options};
use rehome_objects::store::s3::dialect::{self, Dialect};
use rehome_objects::store::s3::{Credentials, S3Store, Settings};
use rehome_objects::store::{Attributes, Condition, Store};
use rehome_part::{ErrorKind, Side};
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn settings(dialect: &'static Dialect, endpoint: &str, bucket: &str, prefix: &str) -> Settings {
    Settings {
        dialect,
        endpoint: endpoint.into(),
        region: "us-east-1".into(),
        bucket: bucket.into(),
        prefix: prefix.into(),
        path_style: true,
        credentials: Some(Credentials {
            access_key: "TESTACCESSKEY".into(),
            secret_key: "test-secret-key".into(),
            session_token: None,
        }),
        credentials_name: "the source's credentials (env:ID, env:KEY)".into(),
        side: Some(Side::Source),
        address: format!("s3://{bucket}/{prefix}"),
        page_keys: 1_000,
    }
}

async fn made(settings: Settings) -> S3Store {
    let store = S3Store::new(settings).unwrap();
    assert!(store.create().await.unwrap());
    assert!(!store.create().await.unwrap());
    store
}

/// moto takes its time for an object: fewer of them, in smaller pages.
async fn moto_contract(
    server: &servers::Server,
    dialect: &'static Dialect,
    bucket: &str,
    prefix: &str,
    multipart_bytes: usize,
) {
    let store = made(Settings { page_keys: 15, ..settings(dialect, &server.url, bucket, prefix) }).await;
    let options = Options { listed_keys: 40, multipart_bytes, ..Options::default() };
    let findings = contract::check_all(&store, &options).await;
    findings.verdict().unwrap_or_else(|text| panic!("{}:\n{text}", dialect.name));
    store.remove().await.unwrap();
}

#[tokio::test]
async fn moto_keeps_the_contract_as_aws() {
    let Some(server) = servers::moto() else { return };
    let missing = S3Store::new(settings(&dialect::AWS, &server.url, "missing", "")).unwrap();
    contract::check_missing_bucket(&missing).await.unwrap();
    moto_contract(&server, &dialect::AWS, "aws-bucket", "", 20 << 20).await;
}

#[tokio::test]
async fn moto_keeps_the_contract_below_a_prefix_and_as_obs() {
    let Some(server) = servers::moto() else { return };
    moto_contract(&server, &dialect::GENERIC, "generic", "some pre+fix/%/", 6 << 20).await;
    moto_contract(&server, &dialect::OBS, "obs", "", 6 << 20).await;
}

#[tokio::test]
async fn rclone_keeps_the_contract_where_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = servers::rclone(folder.path(), "TESTACCESSKEY", "test-secret-key") else { return };
    let store = made(settings(&dialect::GENERIC, &server.url, "bucket", "")).await;
    // It keeps objects as files: keys that cannot be files are refused or altered by it.
    let options = Options {
        skip_keys: ["a//b", "trailing/", "p/q"].map(String::from).to_vec(),
        lossy_headers: vec!["expires"],
        flaws: vec![Flaw::KinDelete, Flaw::CompletionTag, Flaw::CompletionOnce],
        ..Options::default()
    };
    contract::check_all(&store, &options).await.verdict().unwrap();
    let refused = store.put("a//b", &Attributes::default(), Bytes::new(), Condition::Always).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Unsupported);
    // It ignores `?policy`: that must not become a listing that is taken for a policy, or a bucket removed.
    assert_eq!(store.policy().await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(store.set_policy(None).await.unwrap_err().kind, ErrorKind::Unsupported);
    store.check().await.unwrap();
    let mut wrong = settings(&dialect::GENERIC, &server.url, "bucket", "");
    wrong.credentials.as_mut().unwrap().secret_key = "another".into();
    contract::check_wrong_credentials(&S3Store::new(wrong).unwrap()).await.unwrap();
    let mut unknown = settings(&dialect::GENERIC, &server.url, "bucket", "");
    unknown.credentials.as_mut().unwrap().access_key = "SOMEBODYELSE".into();
    contract::check_wrong_credentials(&S3Store::new(unknown).unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_prefix_hides_everything_else() {
    let Some(server) = servers::moto() else { return };
    let whole = made(settings(&dialect::AWS, &server.url, "shared", "")).await;
    let below = S3Store::new(settings(&dialect::AWS, &server.url, "shared", "mine/")).unwrap();
    let put = async |store: &S3Store, key: &str| {
        store.put(key, &Attributes::default(), Bytes::from_static(b"x"), Condition::Always).await.unwrap()
    };
    for key in ["mine/a", "mine/", "mine", "mine2/a", "other"] {
        put(&whole, key).await;
    }
    let keys: Vec<String> = below.list("", None).map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!(keys, ["", "a"]);
    assert!(below.head("a").await.unwrap().is_some());
    below.delete("a").await.unwrap();
    assert!(whole.head("mine/a").await.unwrap().is_none());
    let id = below.begin_upload("u", &Attributes::default()).await.unwrap();
    whole.begin_upload("not-mine", &Attributes::default()).await.unwrap();
    let open = below.open_uploads().await.unwrap();
    assert_eq!(
        open.iter().map(|upload| (&upload.key, &upload.id)).collect::<Vec<_>>(),
        [(&"u".to_owned(), &id)]
    );
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_temporary() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let store = S3Store::new(settings(&dialect::GENERIC, &url, "bucket", "")).unwrap();
    let error = store.check().await.unwrap_err();
    assert_eq!(
        (error.kind, error.is_temporary(), error.side),
        (ErrorKind::Network, true, Some(Side::Source))
    );
}

/// One call of the user service, whose answers are XML.
async fn call_iam(url: &str, form: &str) -> String {
    let authority = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0\r\n\
         \r\n{form}",
        form.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

async fn make_user(url: &str) -> Credentials {
    call_iam(url, "Action=CreateUser&Version=2010-05-08&UserName=app").await;
    let all = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
        %22Action%22%3A%22s3%3A*%22%2C%22Resource%22%3A%22*%22%7D%5D%7D";
    let form =
        format!("Action=PutUserPolicy&Version=2010-05-08&UserName=app&PolicyName=all&PolicyDocument={all}");
    call_iam(url, &form).await;
    let answer = call_iam(url, "Action=CreateAccessKey&Version=2010-05-08&UserName=app").await;
    let between = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap();
        rest.split('<').next().unwrap().to_owned()
    };
    Credentials {
        access_key: between("AccessKeyId"),
        secret_key: between("SecretAccessKey"),
        session_token: None,
    }
}

/// moto checks signatures and policies here. (It does not evaluate the condition that exempts the migration, and it does not
/// hold multipart uploads to `s3:PutObject`, as AWS does.)
#[tokio::test]
async fn the_fence_is_felt_by_the_application_and_lifted_again() {
    let Some(server) = servers::moto_with_users() else { return };
    let credentials = make_user(&server.url).await;
    let settings =
        Settings { credentials: Some(credentials), ..settings(&dialect::AWS, &server.url, "fenced", "") };
    let mut wrong = settings.clone();
    let app = made(settings).await;
    let put = async |condition: Condition| {
        app.put("k+ %", &Attributes::default(), Bytes::from_static(b"x"), condition)
            .await
            .map_err(|error| error.kind)
    };
    let impossible = || Condition::Matches("0".repeat(32));
    put(Condition::Always).await.unwrap();
    assert_eq!(put(impossible()).await, Err(ErrorKind::Changed));
    let fence = app.fence_policy(None, "arn:aws:iam::123456789012:user/rehome").unwrap();
    app.set_policy(Some(&fence)).await.unwrap();
    assert_eq!(put(Condition::Always).await, Err(ErrorKind::Credentials));
    assert_eq!(put(impossible()).await, Err(ErrorKind::Credentials));
    assert_eq!(app.delete("k+ %").await.unwrap_err().kind, ErrorKind::Credentials);
    assert!(app.get("k+ %", None, None).await.unwrap().is_some());
    let lifted = app.unfence_policy(&app.policy().await.unwrap().unwrap()).unwrap();
    app.set_policy(lifted.as_deref()).await.unwrap();
    put(Condition::Always).await.unwrap();
    assert_eq!(put(impossible()).await, Err(ErrorKind::Changed));
    wrong.credentials.as_mut().unwrap().secret_key = "another".into();
    contract::check_wrong_credentials(&S3Store::new(wrong).unwrap()).await.unwrap();
}

/// Writes a certificate for 127.0.0.1 that signs itself.
fn make_certificate(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let config = folder.join("request.cnf");
    let text = "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=extensions\n[name]\nCN=rehome test\n\
        [extensions]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n";
    std::fs::write(&config, text).unwrap();
    let made = Command::new(servers::tool("openssl")?)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .arg("-config")
        .arg(&config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some((certificate, key))
}

#[tokio::test]
async fn tls_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let Some((certificate, key)) = make_certificate(folder.path()) else { return };
    let Some(server) = servers::moto_over_tls(&certificate, &key) else { return };
    assert!(server.url.starts_with("https://"));
    let store = S3Store::new(settings(&dialect::GENERIC, &server.url, "bucket", "")).unwrap();
    let error = store.check().await.unwrap_err();
    assert_eq!((error.kind, error.is_temporary()), (ErrorKind::Network, false), "{error}");
    assert!(error.hint.unwrap().contains("SSL_CERT_FILE"));
    // Trusted authorities come from the environment of the process: another one trusts this certificate.
    let trusting = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vendors::a_trusted_server_is_used_over_tls", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", &certificate)
        .env("REHOME_TEST_ENDPOINT", &server.url)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&trusting.stdout).into_owned();
    assert!(trusting.status.success() && told.contains("1 passed"), "{told}");
}

#[tokio::test]
#[ignore = "the other half of tls_is_verified, in a process of its own"]
async fn a_trusted_server_is_used_over_tls() {
    let endpoint = std::env::var("REHOME_TEST_ENDPOINT").expect("started by tls_is_verified");
    let store = made(settings(&dialect::GENERIC, &endpoint, "bucket", "")).await;
    let content = Bytes::from(vec![7; 3 << 20]);
    store.put("k", &Attributes::default(), content.clone(), Condition::Always).await.unwrap();
    let (_, body) = store.get("k", None, None).await.unwrap().unwrap();
    assert_eq!(body.try_collect::<Vec<Bytes>>().await.unwrap().concat(), content);
}
