//! A real server that speaks TLS: only the one whose certificate is good is spoken to, and passwords are asked for.

use rehome_databases::Address;
use rehome_databases::postgres::{Session, connect};
use rehome_part::{Error, ErrorKind, Side};
use rehome_testkit::postgres::{self, Postgres};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

fn secured(folder: &Path, port: u16) -> Option<std::io::Result<Postgres>> {
    let programs = postgres::programs_or_skip()?;
    let made =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "db.example".to_owned()]).unwrap();
    let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    if let Some((user, group)) = postgres::owner().unwrap() {
        chown(&key, Some(user), Some(group)).unwrap();
    }
    let (port, chain, key) = (port.to_string(), chain.display().to_string(), key.display().to_string());
    let settings = [
        ("ssl", "on"),
        ("ssl_cert_file", &*chain),
        ("ssl_key_file", &*key),
        ("listen_addresses", "127.0.0.1"),
        ("port", &*port),
        ("password_encryption", "scram-sha-256"),
    ];
    Some(Postgres::start(&programs, &settings))
}

/// On a port that the kernel chose and nobody took meanwhile.
fn start(folder: &Path) -> Option<(Postgres, u16)> {
    for _ in 0..10 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        if let Ok(server) = secured(folder, port)? {
            return Some((server, port));
        }
    }
    panic!("no server came up on any of ten ports");
}

async fn try_as(user: &str, port: u16, rest: &str, password: Option<&str>) -> Result<Session, Error> {
    let address = Address::parse(&format!("postgres://{user}@127.0.0.1:{port}/postgres?{rest}")).unwrap();
    connect(&address, password, Side::Source).await
}

#[tokio::test]
async fn only_a_server_that_is_proven_hears_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, port)) = start(folder.path()) else { return };
    server.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'right'").unwrap();
    // Over TLS with a password, and in no other way.
    let rules = "local all all trust\nhostssl all all all scram-sha-256\n";
    std::fs::write(server.folder().join("data/pg_hba.conf"), rules).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    let ca = format!("sslrootcert={}", folder.path().join("chain.pem").display());
    let session = try_as("app", port, &ca, Some("right")).await.unwrap();
    let row =
        session.row("ask", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    for password in [Some("wrong"), None] {
        let error = try_as("app", port, &ca, password).await.unwrap_err();
        assert!(!error.text.contains("right") && !error.text.contains("wrong"), "{error}");
        assert!(password.is_none() || error.kind == ErrorKind::Credentials, "{error}");
    }
    let unknown = try_as("app", port, "sslmode=verify-full", Some("right")).await.unwrap_err();
    assert!(unknown.text.contains("certificate"), "{unknown}");
    let plain = try_as("app", port, "sslmode=disable", Some("right")).await.unwrap_err();
    assert_eq!(plain.kind, ErrorKind::Credentials, "{plain}");
    let other = format!("sslrootcert={}", folder.path().join("none.pem").display());
    assert!(try_as("app", port, &other, None).await.unwrap_err().text.contains("none.pem"));
}
