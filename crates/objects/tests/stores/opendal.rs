//! The OpenDAL driver against Azurite, Microsoft's own emulator of Blob Storage. (There is none of Google's to install.)

use crate::servers;
use bytes::Bytes;
use rehome_objects::store::contract::{self, Options};
use rehome_objects::store::{Address, Attributes, Condition, Store};
use rehome_part::{ErrorKind, Side};
use std::process::Command;
use std::sync::Arc;

/// The account every Azurite has; its key is published.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

fn store(url: &str, text: &str, key: &str) -> Arc<dyn Store> {
    let mut address = Address::parse(text).unwrap();
    address.endpoint = Some(format!("{url}/{ACCOUNT}"));
    address.access_key = Some(ACCOUNT.into());
    address.secret_key = Some(key.into());
    address.side = Some(Side::Target);
    address.open().unwrap()
}

/// This driver cannot make containers; rclone can.
fn make_container(url: &str, name: &str) -> Option<()> {
    let made = Command::new(servers::tool("rclone")?)
        .args([
            "mkdir",
            "--config",
            "/dev/null",
            &format!(":azureblob:{name}"),
            "--azureblob-account",
            ACCOUNT,
        ])
        .args(["--azureblob-key", KEY, "--azureblob-endpoint", &format!("{url}/{ACCOUNT}")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(())
}

#[tokio::test]
async fn azurite_keeps_the_contract_where_the_driver_can() {
    let Some(server) = servers::azurite() else { return };
    let Some(()) = make_container(&server.url, "media") else { return };
    let options = Options {
        listed_keys: 30,
        multipart_bytes: 12 << 20,
        lossy_headers: vec!["content-encoding", "content-language", "content-disposition", "expires"],
        // Azure's own rule for names of metadata.
        user_names: vec!["mtime", "owner"],
        ..Options::default()
    };
    for text in ["azblob://media", "azblob://media/below/a pre+fix"] {
        let store = store(&server.url, text, KEY);
        assert!(!store.create().await.unwrap());
        let findings = contract::check_all(&*store, &options).await;
        findings.verdict().unwrap_or_else(|text| panic!("{store:?}\n{text}"));
    }
    let store = store(&server.url, "azblob://media", KEY);
    let encoded = Attributes { content_encoding: Some("gzip".into()), ..Attributes::default() };
    let refused = store.put("k", &encoded, Bytes::new(), Condition::Always).await.unwrap_err();
    assert_eq!((refused.kind, refused.side), (ErrorKind::Unsupported, Some(Side::Target)));
}

#[tokio::test]
async fn azurite_without_container_or_with_wrong_keys() {
    let Some(server) = servers::azurite() else { return };
    contract::check_missing_bucket(&*store(&server.url, "azblob://missing", KEY)).await.unwrap();
    let wrong = store(&server.url, "azblob://missing", "d3Jvbmc=");
    contract::check_wrong_credentials(&*wrong).await.unwrap();
}
