//! Control from another machine: over TLS, for whoever shows the secret, and nobody else.

use crate::support::*;
use rehome_gateway::RemoteGateway;
use rehome_gateway::client::{Client, ClientError, Place};
use rehome_gateway::control::{Request as Control, Response as Reply};
use rehome_spec::{Certificate, Remote, Secret};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn certificate(folder: &Path, name: &str) -> (Certificate, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (chain, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (Certificate { chain: chain.clone(), key: Secret(format!("file:{}", key.display())) }, chain)
}

#[tokio::test]
async fn the_right_certificate_and_the_right_secret_and_nothing_less() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = tempfile::tempdir().unwrap();
    let (tls, ca) = certificate(folder.path(), "edge");
    let (_, stranger) = certificate(folder.path(), "stranger");
    let remote = Remote { address: "127.0.0.1:0".into(), listen: None, tls, ca: None };
    let gateway = Gateway::with(service(&source.url(), &target.url()), |config| config.remote = Some(remote));
    let gateway = gateway.await;
    let address = gateway.running.remote.unwrap();
    let place = |ca: &Path| Place::Remote(RemoteGateway::new(&address.to_string(), Some(ca)).unwrap());

    let client = Client::connect(place(&ca), SECRET, "engine from afar").await.unwrap();
    let Reply::Status(status) = client.call(Control::Status).await.unwrap() else { panic!("no status") };
    assert_eq!(status.name, "edge-1");
    let weight = Control::Weight { service: "api".into(), percent: 40, token: TOKEN };
    assert_eq!(client.call(weight).await.unwrap(), Reply::Done);
    assert_eq!(gateway.status().await.services[0].weight_wanted, 40, "it is the same control");

    let guess = Client::connect(place(&ca), "guess", "nobody").await.unwrap_err();
    assert!(matches!(&guess, ClientError::Unwelcome { .. }), "{guess}");
    let wrong = Client::connect(place(&stranger), SECRET, "engine").await.unwrap_err();
    assert!(matches!(&wrong, ClientError::Unreachable { .. }), "{wrong}");
    assert!(wrong.to_string().contains("certificate") && !wrong.to_string().contains(SECRET), "{wrong}");

    // Without TLS nobody gets as far as the greeting.
    let mut plain = TcpStream::connect(address).await.unwrap();
    let _sent = plain.write_all(b"{\"version\":1,\"secret\":\"x\",\"who\":\"y\"}\n").await;
    let mut said = Vec::new();
    let _cut = within("the end of a plain connection", plain.read_to_end(&mut said)).await;
    assert!(!said.starts_with(b"{"), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn an_address_or_a_file_that_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    for (address, ca) in [("10.0.0.6:7443", Some(folder.path().join("absent.pem"))), ("no host:1", None)] {
        let error = RemoteGateway::new(address, ca.as_deref()).unwrap_err().to_string();
        assert!(error.contains(address), "{error}");
    }
}
