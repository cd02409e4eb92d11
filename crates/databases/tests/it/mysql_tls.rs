//! Real servers that speak TLS: only the one whose certificate is good is spoken to, also by the other server, and passwords stay
//! where they belong.

use crate::mysql_world::{RIGHTS, copy, differences, follow};
use rehome_databases::mysql::{MysqlPart, connect};
use rehome_databases::{Address, End, Ends, FenceMeans};
use rehome_part::{ErrorKind, Flow, Side};
use rehome_testkit::mariadb::{self, Mariadb};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;

/// Certificate and key for 127.0.0.1, as files that the server may read.
fn certificate(folder: &Path) -> [String; 2] {
    let made =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    if let Some((user, group)) = mariadb::owner().unwrap() {
        chown(&key, Some(user), Some(group)).unwrap();
    }
    [format!("--ssl-cert={}", chain.display()), format!("--ssl-key={}", key.display())]
}

fn secured(folder: &Path) -> Option<Mariadb> {
    let [chain, key] = certificate(folder);
    let server = crate::support::mariadb(&[&chain, &key, "--require-secure-transport=ON"])?;
    let user = format!(
        "CREATE USER mover@'%' IDENTIFIED BY 'right and secret'; GRANT {RIGHTS} ON *.* TO mover@'%' WITH GRANT OPTION"
    );
    server.sql("mysql", &user).unwrap();
    Some(server)
}

fn end(server: &Mariadb, folder: &Path) -> End {
    let address =
        format!("{}?sslrootcert={}", server.address("mover", "shop"), folder.join("chain.pem").display());
    End::new(Address::parse(&address).unwrap(), Some("right and secret".into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_server_that_is_proven_hears_the_password() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(source) = secured(one.path()) else { return };
    let Some(target) = secured(two.path()) else { return };
    let good = end(&source, one.path()).address;
    assert!(connect(&good, Some("right and secret"), Side::Source).await.is_ok());
    for password in [Some("wrong and secret"), None] {
        let error = connect(&good, password, Side::Source).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
        assert!(!error.text.contains("secret"), "{error}");
    }
    // The certificate of another.
    let other = Address { tls: end(&target, two.path()).address.tls, ..good.clone() };
    let error = connect(&other, Some("right and secret"), Side::Source).await.unwrap_err();
    assert!(error.text.contains("certificate"), "{error}");
    let unknown =
        Address::parse(&format!("{}?sslmode=verify-full", source.address("mover", "shop"))).unwrap();
    assert!(connect(&unknown, Some("right and secret"), Side::Source).await.is_err());
    let plain = Address::parse(&source.address("mover", "shop")).unwrap();
    assert!(connect(&plain, Some("right and secret"), Side::Source).await.is_err());

    // The servers speak to each other in the same way.
    source
        .sql(
            "mysql",
            "CREATE DATABASE shop; CREATE TABLE shop.t (id int PRIMARY KEY); INSERT INTO shop.t VALUES (1)",
        )
        .unwrap();
    let state = tempfile::tempdir().unwrap();
    let ends = Ends { source: end(&source, one.path()), target: end(&target, two.path()) };
    assert!(!format!("{ends:?}").contains("secret"));
    let part = Arc::new(MysqlPart::new("shop", ends, FenceMeans::Writes, state.path()).unwrap());
    assert!(!format!("{part:?}").contains("secret"));
    copy(&part).await;
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    source.sql("shop", "INSERT INTO t VALUES (2)").unwrap();
    following.reaches(&part, Flow::Forward).await;
    let shown = target.sql("mysql", "SHOW ALL SLAVES STATUS").unwrap();
    assert!(shown.contains("chain.pem"), "{shown}");
    following.finish().await;
    assert_eq!(differences(&part).await, Vec::<String>::new());
    // What is kept on disk holds no password, nor do the binary logs.
    let mut kept = String::new();
    for file in std::fs::read_dir(state.path()).unwrap() {
        kept.push_str(&std::fs::read_to_string(file.unwrap().path()).unwrap_or_default());
    }
    assert!(kept.contains("installed") && !kept.contains("secret"), "{kept}");
    for server in [&source, &target] {
        for log in std::fs::read_dir(server.folder().join("data")).unwrap() {
            let path = log.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("bin.0") {
                let bytes = std::fs::read(&path).unwrap();
                let finds = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
                assert!(!finds(b"rehome_replica"), "{name} speaks of the replication user");
            }
        }
    }
}
