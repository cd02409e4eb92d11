//! Clients that watch an address while it moves: new connections at a steady pace, and writers that keep theirs.

use super::rig::{Rig, header, length, read_head};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One new connection with one request.
#[derive(Debug, Clone)]
pub struct Probed {
    pub began: Instant,
    pub took: Duration,
    pub failed: Option<String>,
}

/// A connection every so often, whatever became of those before, until `enough`.
pub fn probe(rig: &Rig, to: SocketAddr, pace: Duration, enough: &AtomicBool) -> Vec<Probed> {
    let watch = async {
        let mut all = tokio::task::JoinSet::new();
        let mut ticks = tokio::time::interval(pace);
        while !enough.load(Ordering::Relaxed) {
            ticks.tick().await;
            all.spawn(async move {
                let began = Instant::now();
                let asked = tokio::time::timeout(Duration::from_secs(5), once(to)).await;
                let failed = match asked {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("no answer in time".into()),
                };
                Probed { began, took: began.elapsed(), failed }
            });
        }
        let mut probed = all.join_all().await;
        probed.sort_by_key(|one| one.began);
        probed
    };
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(watch);
    rig.lab.inside("client", run).unwrap()
}

async fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    // A reset behind the whole answer harms nobody.
    while !answer.ends_with(b"\r\n\r\nok") {
        match stream.read(&mut piece).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
    }
}

/// What the probes say about a time.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub probes: usize,
    pub failed: usize,
    /// Took a second or longer: their first packet was lost and sent again.
    pub delayed: usize,
    /// The longest time in which no probe that began was answered at its first attempt. A busy machine makes probes late, not this.
    pub outage: Duration,
}

impl Gap {
    pub fn of(all: &[Probed], from: Instant, to: Instant) -> Self {
        let these: Vec<&Probed> = all.iter().filter(|one| (from..to).contains(&one.began)).collect();
        let delayed = |one: &Probed| one.failed.is_none() && one.took > Duration::from_millis(900);
        let (mut outage, mut since) = (Duration::ZERO, None);
        for one in &these {
            if one.failed.is_some() || delayed(one) {
                since.get_or_insert(one.began);
            } else if let Some(since) = since.take() {
                outage = outage.max(one.began - since);
            }
        }
        // It never came back.
        outage = outage.max(since.map_or(Duration::ZERO, |since| to - since));
        Self {
            probes: these.len(),
            failed: these.iter().filter(|one| one.failed.is_some()).count(),
            delayed: these.iter().filter(|one| delayed(one)).count(),
            outage,
        }
    }
}

/// What a writer with a connection that it keeps went through.
#[derive(Debug, Default)]
pub struct Written {
    pub acknowledged: Vec<String>,
    /// Writes without an answer, with what was seen instead.
    pub failed: Vec<String>,
}

/// Writes one after the other until `enough`, on one connection as long as it is kept. Like good clients it looks whether the
/// connection ended before it writes, and never sends a write twice.
pub fn write(
    rig: &Rig,
    node: &str,
    to: SocketAddr,
    path: &str,
    pause: Duration,
    enough: &AtomicBool,
) -> Written {
    let work = || {
        let mut written = Written::default();
        let mut kept: Option<BufReader<TcpStream>> = None;
        let mut number = 0;
        while !enough.load(Ordering::Relaxed) {
            number += 1;
            let path = format!("{path}/{number}");
            match write_once(&mut kept, to, &path) {
                Ok(()) => written.acknowledged.push(path),
                Err(error) => {
                    kept = None;
                    written.failed.push(format!("{path}: {error}"));
                }
            }
            std::thread::sleep(pause);
        }
        written
    };
    rig.lab.inside(node, work).unwrap()
}

fn write_once(kept: &mut Option<BufReader<TcpStream>>, to: SocketAddr, path: &str) -> std::io::Result<()> {
    let ended = |reader: &BufReader<TcpStream>| {
        let stream = reader.get_ref();
        stream.set_nonblocking(true).unwrap();
        let ended =
            !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        ended
    };
    kept.take_if(|reader| ended(reader));
    let mut reader = match kept.take() {
        Some(reader) => reader,
        None => {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(8)))?;
            BufReader::new(stream)
        }
    };
    let request = format!("POST {path} HTTP/1.1\r\nhost: shop\r\ncontent-length: 2\r\n\r\nhi");
    reader.get_mut().write_all(request.as_bytes())?;
    let head = read_head(&mut reader).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    std::io::copy(&mut (&mut reader).take(length(&head)), &mut std::io::sink())?;
    if !header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        *kept = Some(reader);
    }
    match head.starts_with("HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::Error::other(head)),
    }
}
