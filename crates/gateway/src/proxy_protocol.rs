//! The PROXY header, versions 1 and 2, that a load balancer writes before the first byte of the client. Strict and bounded: what
//! is not exactly such a header ends the connection. Never reads a byte beyond it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The begin of version 2; no other protocol begins like this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// With its line end, by the protocol's own arithmetic.
const LONGEST_LINE: usize = 107;
/// Head and addresses and extras of version 2.
const LONGEST_BINARY: usize = 4 << 10;
const BINARY_HEAD: usize = 16;

/// Takes the header from the stream. `None`: it names no client (a health check of the proxy itself, or no address that
/// we know), so the socket's own address counts.
///
/// # Errors
/// `InvalidData` when this is no PROXY header, and what the stream says.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<IpAddr>> {
    // The shortest line of version 1 is longer than this, so nothing of the client's is taken.
    let mut begin = [0; SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin == SIGNATURE {
        return binary(stream).await;
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(malformed("the connection does not begin with a PROXY header"));
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(malformed("the PROXY line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    line.and_then(text).ok_or_else(|| malformed("the PROXY line is not one"))
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 51234 443` without its end; the outer `None`: it is not that.
fn text(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.split(' ');
    let client = match (words.next()?, words.next()?) {
        // Whatever follows is to be ignored.
        ("PROXY", "UNKNOWN") => return Some(None),
        ("PROXY", "TCP4") => addresses::<Ipv4Addr>(&mut words)?.into(),
        ("PROXY", "TCP6") => addresses::<Ipv6Addr>(&mut words)?.into(),
        _ => return None,
    };
    let ports = [words.next()?, words.next()?];
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && (port == "0" || !port.starts_with('0'))
            && port.parse::<u16>().is_ok()
    };
    (ports.into_iter().all(is_port) && words.next().is_none()).then_some(Some(client))
}

/// The source, if the destination is an address, too.
fn addresses<'a, A: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<A> {
    let source = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    Some(source)
}

/// What follows the signature of version 2.
async fn binary<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<IpAddr>> {
    let mut head = [0; BINARY_HEAD - SIGNATURE.len()];
    stream.read_exact(&mut head).await?;
    let [version_and_command, family, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if BINARY_HEAD + length > LONGEST_BINARY {
        return Err(malformed("the PROXY header is too long"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(malformed("the PROXY header has an unknown version or command")),
    };
    let short = || malformed("the PROXY header is shorter than its addresses");
    let client = match family {
        _ if is_local => return Ok(None),
        // Addresses and ports of both ends: 4 + 4 + 2 + 2 and 16 + 16 + 2 + 2 bytes; extras may follow.
        0x11 if payload.len() < 12 => return Err(short()),
        0x21 if payload.len() < 36 => return Err(short()),
        0x11 => payload.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        0x21 => payload.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        // No address, datagrams, unix sockets.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Err(malformed("the PROXY header has an unknown family")),
    };
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What was read, and how many bytes were left.
    async fn take(bytes: &[u8]) -> (Result<Option<String>, io::ErrorKind>, usize) {
        let mut rest = bytes;
        let found = read(&mut rest).await;
        (
            found.map(|client| client.map(|client| client.to_string())).map_err(|error| error.kind()),
            rest.len(),
        )
    }

    fn version_2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[command, family]);
        bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[tokio::test]
    async fn a_line_names_the_client_and_nothing_behind_it_is_taken() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 51234 443", Some("192.0.2.1")),
            ("PROXY TCP6 2001:db8::1 ::1 0 65535", Some("2001:db8::1")),
            ("PROXY UNKNOWN", None),
            ("PROXY UNKNOWN ffff:f...f:ffff whatever 1 2", None),
        ] {
            let bytes = format!("{line}\r\nGET /");
            assert_eq!(take(bytes.as_bytes()).await, (Ok(client.map(String::from)), 5), "{line}");
        }
    }

    #[tokio::test]
    async fn lines_that_are_nearly_right_are_wrong() {
        for line in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 51234\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 51234 443 1\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.1 51234 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 51234 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 443\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.1 1 2\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 shop.example 198.51.100.1 1 2\r\n",
        ] {
            assert_eq!(take(line.as_bytes()).await.0, Err(io::ErrorKind::InvalidData), "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(500));
        let (found, left) = take(endless.as_bytes()).await;
        assert_eq!((found, endless.len() - left), (Err(io::ErrorKind::InvalidData), 107));
        assert_eq!(take(b"PROXY TCP4 192.").await.0, Err(io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test]
    async fn the_longest_line_of_the_protocol_fits() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n");
        assert_eq!(line.len(), 107);
        assert_eq!(take(line.as_bytes()).await, (Ok(None), 0));
    }

    #[tokio::test]
    async fn a_binary_header_names_the_client() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 1, 187];
        let mut six = vec![0; 36];
        (six[0], six[15]) = (0xfd, 9);
        let extras = [&four[..], &[4, 0, 1, 0]].concat();
        for (bytes, client) in [
            (version_2(0x21, 0x11, &four), Some("192.0.2.1")),
            (version_2(0x21, 0x11, &extras), Some("192.0.2.1")),
            (version_2(0x21, 0x21, &six), Some("fd00::9")),
            (version_2(0x20, 0x11, &four), None),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x21, 0x00, &[1, 2, 3]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            let bytes = [&bytes[..], b"\x16\x03"].concat();
            assert_eq!(take(&bytes).await, (Ok(client.map(String::from)), 2), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn binary_headers_that_are_wrong_are_refused() {
        for bytes in [
            version_2(0x11, 0x11, &[0; 12]),
            version_2(0x22, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 11]),
            version_2(0x21, 0x21, &[0; 35]),
            version_2(0x21, 0x44, &[0; 12]),
            version_2(0x21, 0x11, &[0; 4081]),
        ] {
            assert_eq!(take(&bytes).await.0, Err(io::ErrorKind::InvalidData), "{bytes:?}");
        }
        assert_eq!(take(&version_2(0x21, 0x11, &[0; 4080])).await.0, Ok(Some("0.0.0.0".into())));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3) {
            let begin: &[u8] = match kind { 0 => b"", 1 => b"PROXY ", _ => &SIGNATURE };
            bytes.splice(0..0, begin.iter().copied());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _any = runtime.block_on(take(&bytes));
        }
    }
}
