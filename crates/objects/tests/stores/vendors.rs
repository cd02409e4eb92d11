//! The S3 driver against servers that nobody here wrote.

use crate::servers;
use bytes::Bytes;
use futures::TryStreamExt;
use rehome_objects::store::contract::{self, Flaw, Options};
use rehome_objects::store::s3::dialect::{self, Dialect};
use rehome_objects::store::s3::{Credentials, S3Store, Settings};
use rehome_objects::store::{Attributes, Condition, Store};
use rehome_part::{ErrorKind, Side};

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
async fn moto_contract(server: &servers::Server, dialect: &'static Dialect, bucket: &str, prefix: &str) {
    let store = made(Settings { page_keys: 25, ..settings(dialect, &server.url, bucket, prefix) }).await;
    let options = Options { listed_keys: 60, ..Options::default() };
    let findings = contract::check_all(&store, &options).await;
    findings.verdict().unwrap_or_else(|text| panic!("{}:\n{text}", dialect.name));
    store.remove().await.unwrap();
}

#[tokio::test]
async fn moto_keeps_the_contract_as_aws() {
    let Some(server) = servers::moto() else { return };
    let missing = S3Store::new(settings(&dialect::AWS, &server.url, "missing", "")).unwrap();
    contract::check_missing_bucket(&missing).await.unwrap();
    moto_contract(&server, &dialect::AWS, "aws-bucket", "").await;
}

#[tokio::test]
async fn moto_keeps_the_contract_below_a_prefix_and_as_obs() {
    let Some(server) = servers::moto() else { return };
    moto_contract(&server, &dialect::GENERIC, "generic", "some pre+fix/%/").await;
    moto_contract(&server, &dialect::OBS, "obs", "").await;
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
