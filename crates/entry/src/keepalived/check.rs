//! Is a gateway alive? Asked over HTTP, within a second, and watched for most of that second: a connection that is kept breaks in the
//! moment its process dies, so a death is seen at once and not at the next question.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a living gateway is watched. Keepalived asks every second; what is left is for starting this program.
const WATCH: Duration = Duration::from_millis(700);
/// The end of everything.
const LIMIT: Duration = Duration::from_millis(1_000);
const MAX_HEAD: u64 = 16 << 10;

/// Why a gateway counts as dead.
#[derive(Debug, thiserror::Error)]
pub enum Dead {
    #[error("nobody answers at {0}: {1}")]
    Silent(SocketAddr, io::Error),
    #[error("{0} answers, and takes no clients: {1}")]
    Leaving(SocketAddr, String),
}

/// Returns after [`WATCH`] when the gateway lives, and as soon as it is dead otherwise.
///
/// # Errors
/// It is dead: refused, broken and not answering again, silent until the limit, or draining.
pub fn answers(address: SocketAddr) -> Result<(), Dead> {
    let begun = Instant::now();
    loop {
        let mut connection = ask(address, begun + LIMIT)?;
        // Whatever else it says is nobody's business; that the connection breaks is.
        let mut rest = [0_u8; 1024];
        loop {
            let left = WATCH.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            if connection.set_read_timeout(Some(left)).is_err() {
                return Ok(());
            }
            match connection.read(&mut rest) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(1..) => {}
                // Ended or broken: does it still answer anybody?
                Ok(0) | Err(_) => break,
            }
        }
    }
}

/// One question; the connection it was answered on.
fn ask(address: SocketAddr, until: Instant) -> Result<TcpStream, Dead> {
    let silent = |error| Dead::Silent(address, error);
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let asked = || -> io::Result<(TcpStream, String)> {
        let mut stream = TcpStream::connect_timeout(&address, left()?)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(left()?))?;
        stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut head = Vec::new();
        let mut piece = [0_u8; 1024];
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            stream.set_read_timeout(Some(left()?))?;
            match stream.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => head.extend_from_slice(&piece[..length]),
            }
            if head.len() as u64 > MAX_HEAD {
                return Err(io::Error::new(ErrorKind::InvalidData, "its answer has no end"));
            }
        }
        let first = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        Ok((stream, String::from_utf8_lossy(first).into_owned()))
    };
    let (stream, status) = asked().map_err(silent)?;
    let mut words = status.split(' ');
    match (words.next(), words.next()) {
        (Some(version), Some("200")) if version.starts_with("HTTP/1.") => Ok(stream),
        _ => Err(Dead::Leaving(address, status.chars().take(80).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const ALIVE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nalive\n";

    /// Answers each connection with what its turn says, then does what it says with it.
    fn server(turns: Vec<(&'static [u8], Option<Duration>)>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (answer, keep) in turns {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0_u8; 512];
                let _read = stream.read(&mut request);
                stream.write_all(answer).unwrap();
                thread::sleep(keep.unwrap_or_default());
            }
        });
        address
    }

    #[test]
    fn a_living_gateway_is_watched_and_a_dead_one_told_at_once() {
        let begun = Instant::now();
        answers(server(vec![(ALIVE, Some(LIMIT * 3))])).unwrap();
        assert!(begun.elapsed() >= WATCH, "it was watched");
        // It dies while it is watched: nobody listens any more.
        let begun = Instant::now();
        let dead = answers(server(vec![(ALIVE, None)])).unwrap_err();
        assert!(matches!(dead, Dead::Silent(..)), "{dead}");
        assert!(begun.elapsed() < WATCH, "at once, not at the end: {:?}", begun.elapsed());
    }

    #[test]
    fn a_connection_that_ends_is_no_death_as_long_as_the_next_is_answered() {
        answers(server(vec![(ALIVE, None), (ALIVE, Some(LIMIT * 3))])).unwrap();
    }

    #[test]
    fn a_gateway_that_drains_gives_the_address_away() {
        let leaving: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let dead = answers(server(vec![(leaving, Some(LIMIT))])).unwrap_err();
        assert!(matches!(&dead, Dead::Leaving(_, status) if status.contains("503")), "{dead}");
        let dead = answers(server(vec![(ALIVE, None), (leaving, Some(LIMIT))])).unwrap_err();
        assert!(matches!(dead, Dead::Leaving(..)), "{dead}");
    }

    #[test]
    fn silence_and_babble_end_within_the_limit() {
        for answer in [&b""[..], b"HTTP/1.1 200", b"SSH-2.0-x\r\n\r\n"] {
            let begun = Instant::now();
            answers(server(vec![(answer, Some(LIMIT * 3))])).unwrap_err();
            assert!(begun.elapsed() < LIMIT * 2, "{:?}", begun.elapsed());
        }
    }
}
