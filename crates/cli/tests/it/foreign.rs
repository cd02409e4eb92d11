//! Against S3 servers that nobody here wrote (moto, `rclone serve s3`), with real trees as input, and `rclone check` as judge.

use crate::harness::{Place, Ran, tool, wait_for};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const KEYS: (&str, &str) = ("longaccesskey", "longsecretkey");

/// An S3 server of somebody else's; killed when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(mut command: Command, marker: &'static str) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (found, addresses) = mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let found = found.clone();
            // Read to the end, so that the server never waits for a reader.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once(marker) {
                        let address = rest.split([']', ' ']).next().unwrap_or(rest);
                        let _ = found.send(address.trim_end_matches('/').to_owned());
                    }
                }
            });
        }
        let address =
            addresses.recv_timeout(Duration::from_secs(120)).expect("the server says where it listens");
        Self { child, address }
    }

    fn rclone(folder: &Path) -> Option<Self> {
        let mut command = Command::new(tool("rclone")?);
        command
            .args([
                "serve",
                "s3",
                "--addr",
                "127.0.0.1:0",
                "--config",
                "/dev/null",
                "--log-level",
                "INFO",
                "--auth-key",
            ])
            .arg(format!("{},{}", KEYS.0, KEYS.1))
            .arg(folder);
        Some(Self::start(command, "Starting s3 server on ["))
    }

    fn moto() -> Option<Self> {
        let mut command = Command::new(tool("moto_server")?);
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        Some(Self::start(command, "Running on "))
    }
}

fn rehome(place: &Place, arguments: &[&str]) -> Ran {
    let mut command = place.command(arguments);
    command.env("AWS_ACCESS_KEY_ID", KEYS.0).env("AWS_SECRET_ACCESS_KEY", KEYS.1);
    crate::harness::ran(command.output().unwrap())
}

/// `rclone check`: same files, same sizes, same MD5.
fn rclone_agrees(folder: &Path, server: &Server, bucket: &str) {
    let rclone = tool("rclone").expect("the server was rclone's or stood beside it");
    let remote = format!(
        ":s3,provider=Other,access_key_id={},secret_access_key={},endpoint='{}',force_path_style=true:{bucket}",
        KEYS.0, KEYS.1, server.address
    );
    let checked = Command::new(rclone)
        .args(["check", "--config", "/dev/null", "--download", "--one-way", "--skip-links"])
        .arg(folder)
        .arg(&remote)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "rclone check disagrees:\n{said}");
    assert!(said.contains("0 differences found"), "{said}");
}

/// A real tree of many small files: what this machine has installed.
fn real_tree() -> PathBuf {
    let tree = PathBuf::from("/usr/share/doc");
    assert!(tree.is_dir(), "Debian has it");
    tree
}

#[test]
fn a_real_tree_into_rclones_server_and_through_moto_back() {
    let place = Place::new();
    let store = place.path("store");
    std::fs::create_dir_all(store.join("docs")).unwrap();
    let (Some(rclone), Some(moto)) = (Server::rclone(&store), Server::moto()) else { return };
    let tree = real_tree();
    let copied = rehome(
        &place,
        &["copy", tree.to_str().unwrap(), "s3://docs", "--target-endpoint", &rclone.address, "--json"],
    );
    // Symbolic links are listed as not carried, never followed and never silent.
    assert!([0, 10].contains(&copied.code), "{}", copied.stderr);
    assert!(copied.last_json()["objects"].as_u64().unwrap() > 500);
    rclone_agrees(&tree, &rclone, "docs");
    let second = rehome(
        &place,
        &["copy", tree.to_str().unwrap(), "s3://docs", "--target-endpoint", &rclone.address, "--json"],
    );
    assert_eq!(second.last_json()["objects"], 0, "a second copy does nothing: {}", second.stdout);

    // From one server into the other: a part of it, moto being slow.
    let part = "s3://docs/perl";
    let over = rehome(
        &place,
        &[
            "copy",
            part,
            "s3://second",
            "--source-endpoint",
            &rclone.address,
            "--target-endpoint",
            &moto.address,
            "--verify",
            "--json",
        ],
    );
    assert!([0, 10].contains(&over.code), "{}\n{}", over.stdout, over.stderr);
    assert_eq!(over.last_json()["verification"]["differences_total"], 0, "{}", over.stdout);
    rclone_agrees(&tree.join("perl"), &moto, "second");
}

#[test]
fn a_killed_copy_goes_on_where_it_was() {
    let place = Place::new();
    let store = place.path("store");
    std::fs::create_dir_all(store.join("docs")).unwrap();
    let Some(server) = Server::rclone(&store) else { return };
    let tree = real_tree();
    let arguments = [
        "copy",
        tree.to_str().unwrap(),
        "s3://docs",
        "--target-endpoint",
        &server.address,
        "--json",
        "--concurrency",
        "4",
    ];
    let mut command = place.command(&arguments);
    command.env("AWS_ACCESS_KEY_ID", KEYS.0).env("AWS_SECRET_ACCESS_KEY", KEYS.1);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let landed = || walk(&store.join("docs"));
    wait_for("the first objects", Duration::from_secs(60), || (landed() > 200).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    let before = landed();
    let resumed = rehome(&place, &arguments);
    assert!([0, 10].contains(&resumed.code), "{}", resumed.stderr);
    let kept = resumed.last_json()["kept"].as_u64().unwrap();
    assert!(kept > 0 && kept as usize <= before, "kept {kept} of {before} that had landed");
    rclone_agrees(&tree, &server, "docs");
}

fn walk(folder: &Path) -> usize {
    let entries =
        std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 }).sum()
}

/// A migration between two foreign servers with nothing but listings to follow by, and nothing in front of it.
#[test]
fn a_migration_between_foreign_servers() {
    let place = Place::new();
    let store = place.path("store");
    std::fs::create_dir_all(store.join("media")).unwrap();
    for number in 0..60 {
        std::fs::write(store.join(format!("media/file {number:02} + ü.txt")), format!("content {number}"))
            .unwrap();
    }
    let (Some(rclone), Some(moto)) = (Server::rclone(&store), Server::moto()) else { return };
    let keys = "access_key = \"env:AWS_ACCESS_KEY_ID\", secret_key = \"env:AWS_SECRET_ACCESS_KEY\", region = \"us-east-1\"";
    place.write(
        "rehome.toml",
        &format!(
            "[migration]\nname = \"foreign\"\nsource = {{ cloud = \"rclone\" }}\ntarget = {{ cloud = \"moto\" }}\n\n\
             [switch]\nmax_pause = \"10s\"\n\n\
             [[objects]]\nname = \"media\"\nfence = {{ by = \"none\" }}\n\
             source = {{ url = \"s3://media\", endpoint = \"{}\", {keys} }}\n\
             target = {{ url = \"s3://moved\", endpoint = \"{}\", {keys} }}\n",
            rclone.address, moto.address
        ),
    );
    // However this test ends, its engine ends with it.
    let end_with = format!("--end-with={}", std::process::id());
    let ready = rehome(&place, &["apply", "--until", "ready", "--json", &end_with]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);
    // Written through the server: it would not look into its folder again for minutes.
    std::fs::create_dir(place.path("late")).unwrap();
    place.write("late/late.txt", "written while following");
    let late = rehome(&place, &["copy", "late", "s3://media", "--target-endpoint", &rclone.address]);
    assert_eq!(late.code, 0, "{}", late.stderr);
    let switched = rehome(&place, &["switch", "--yes", "--json"]);
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    let report = rehome(&place, &["report", "--json"]).last_json();
    assert_eq!(report["phase"], "switched");
    assert_eq!(report["one_writable_side_proved"], false, "no fence, no proof, and it says so");
    rclone_agrees(&store.join("media"), &moto, "moved");
    let completed = rehome(&place, &["complete", "--yes"]);
    assert_eq!(completed.code, 0, "{}", completed.stderr);
}
