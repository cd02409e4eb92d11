//! What this machine's /proc says of a running server: its master, its workers, how many clients are connected. Everything here
//! is "unknown" rather than wrong when it cannot be read.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

pub(crate) type Pid = i32;

/// The process that a pid file names, if it lives and its command line begins like `begins`.
pub(crate) fn named_by(pid_file: &Path, begins: &str) -> Option<Pid> {
    let text = fs::read_to_string(pid_file).ok()?;
    let pid: Pid = text.lines().next()?.trim().parse().ok()?;
    (pid > 1 && command_line(pid).is_some_and(|line| line.contains(begins))).then_some(pid)
}

/// Words of the command line with single spaces between.
pub(crate) fn command_line(pid: Pid) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Pid>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// `pid (name) state ppid …`; a name may hold anything but ends with the last bracket.
fn parent_of(pid: Pid) -> Option<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = text.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}

pub(crate) fn signal(pid: Pid, signal: rustix::process::Signal) -> std::io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(std::io::ErrorKind::NotFound)?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Established connections of these processes at ports that they listen on.
pub(crate) fn clients_of(pids: &[Pid]) -> Option<u64> {
    let sockets = sockets_of(pids)?;
    let ports: HashSet<u16> =
        sockets.iter().filter(|socket| socket.state == LISTENS).map(|socket| socket.port).collect();
    let is_client = |socket: &&Socket| socket.state == ESTABLISHED && ports.contains(&socket.port);
    Some(sockets.iter().filter(is_client).count() as u64)
}

/// Established connections of these processes to an address.
pub(crate) fn connections_to(pids: &[Pid], to: SocketAddr) -> Option<u64> {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let leads_there = |socket: &&Socket| socket.state == ESTABLISHED && socket.remote == Some(to);
    Some(sockets_of(pids)?.iter().filter(leads_there).count() as u64)
}

const ESTABLISHED: &str = "01";
const LISTENS: &str = "0A";

struct Socket {
    port: u16,
    remote: Option<SocketAddr>,
    state: String,
    inode: u64,
}

fn sockets_of(pids: &[Pid]) -> Option<Vec<Socket>> {
    let mut ours = HashSet::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                ours.insert(inode.parse::<u64>().ok()?);
            }
        }
    }
    let first = pids.first()?;
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{first}/net/{table}")).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(socket).filter(|socket| ours.contains(&socket.inode)));
    }
    Some(sockets)
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn socket(line: &str) -> Option<Socket> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = words.get(1)?.rsplit_once(':')?;
    Some(Socket {
        port: u16::from_str_radix(port, 16).ok()?,
        remote: words.get(2).and_then(|text| address(text)),
        state: (*words.get(3)?).to_owned(),
        inode: words.get(9)?.parse().ok()?,
    })
}

/// Words of four bytes as this machine keeps them, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..host.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        _ => <[u8; 16]>::try_from(bytes).ok()?.into(),
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_with_its_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(to).unwrap();
        let _server = listener.accept().unwrap();
        let me = Pid::try_from(std::process::id()).unwrap();
        assert!(command_line(me).is_some());
        assert!(clients_of(&[me]).unwrap() >= 1);
        assert_eq!(connections_to(&[me], to), Some(1));
        assert!(parent_of(me).is_some_and(|parent| children(parent).contains(&me)));
    }
}
