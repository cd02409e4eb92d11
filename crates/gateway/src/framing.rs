//! Watches the bytes of an HTTP/1 client for requests with two lengths (`Content-Length` and `Transfer-Encoding`): the parser
//! below resolves that silently, RFC 9112 section 6.1 lets a server refuse it, and this gateway does. It also sees where a head
//! begins, which hyper's own time-out does not tell from an idle connection, and ends those that take too long. Never changes
//! a byte.

use crate::limits::{Entrance, Reason};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// So much of a line is looked at: both names and any sensible length fit.
const LOOKED_AT: usize = 96;

/// What the watcher found, asked once per request in order.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Number of the first ambiguous request plus one; 0: none.
    first: AtomicU64,
    asked: AtomicU64,
    off: AtomicBool,
}

impl Findings {
    /// Is the next request (or one before it) ambiguous?
    pub fn next_is_ambiguous(&self) -> bool {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let first = self.first.load(Ordering::Acquire);
        first != 0 && number >= first
    }

    /// From now on the bytes are not HTTP.
    pub fn stop(&self) {
        self.off.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before or in a request line.
    Start,
    Headers,
    /// So many bytes of a body with a length, then the next request.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk, then the end of its line.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Nothing to learn any more.
    Over,
}

#[derive(Debug)]
struct Scanner {
    at: At,
    line: Vec<u8>,
    length: bool,
    body: u64,
    chunked: bool,
    heads: u64,
    /// Number of the first ambiguous request.
    ambiguous: Option<u64>,
}

impl Scanner {
    fn new() -> Self {
        Self {
            at: At::Start,
            line: Vec::new(),
            length: false,
            body: 0,
            chunked: false,
            heads: 0,
            ambiguous: None,
        }
    }

    fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.at {
                At::Over => return,
                At::Body(left) | At::Chunk(left) => {
                    let passed = left.min(bytes.len() as u64);
                    bytes = bytes.get(passed as usize..).unwrap_or_default();
                    let left = left - passed;
                    self.at = match (self.at, left) {
                        (At::Body(_), 0) => At::Start,
                        (At::Body(_), _) => At::Body(left),
                        (_, 0) => At::ChunkEnd,
                        _ => At::Chunk(left),
                    };
                }
                _ => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    bytes = rest;
                    // Most lines come whole and are looked at where they are.
                    if self.line.is_empty() && end.is_some() {
                        self.at = self.line_ended(piece.get(..LOOKED_AT).unwrap_or(piece));
                        continue;
                    }
                    let room = LOOKED_AT - self.line.len();
                    self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
                    if end.is_some() {
                        let mut line = std::mem::take(&mut self.line);
                        self.at = self.line_ended(&line);
                        line.clear();
                        self.line = line;
                    }
                }
            }
        }
    }

    /// Did a head begin that has not ended?
    fn is_in_head(&self) -> bool {
        match self.at {
            At::Headers => true,
            At::Start => !self.line.trim_ascii().is_empty(),
            _ => false,
        }
    }

    fn line_ended(&mut self, seen: &[u8]) -> At {
        let line = seen.trim_ascii_end();
        match self.at {
            // Empty lines before a request are ignored (RFC 9112 section 2.2).
            At::Start if line.is_empty() => At::Start,
            At::Start => {
                (self.length, self.body, self.chunked) = (false, 0, false);
                At::Headers
            }
            At::Headers if line.is_empty() => self.head_ended(),
            At::Headers => {
                self.header(seen);
                At::Headers
            }
            // More digits than are looked at: the number is not known.
            At::ChunkSize if seen.len() == LOOKED_AT && !seen.contains(&b';') => self.lost(),
            At::ChunkSize => match chunk_size(line) {
                Some(0) => At::Trailers,
                Some(size) => At::Chunk(size),
                None => self.lost(),
            },
            At::ChunkEnd if line.is_empty() => At::ChunkSize,
            At::ChunkEnd => self.lost(),
            At::Trailers if line.is_empty() => At::Start,
            At::Trailers => At::Trailers,
            at @ (At::Body(_) | At::Chunk(_) | At::Over) => at,
        }
    }

    fn header(&mut self, line: &[u8]) {
        // Only names that begin with these matter; what begins with nothing visible is looked at closely.
        if !matches!(line.first(), Some(b't' | b'T' | b'c' | b'C' | ..=b' ')) {
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = line.split_at(colon);
        let name = name.trim_ascii();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.length = true;
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
            match std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()) {
                Some(length) => self.body = length,
                // Whoever understands this length better may see another message.
                None => self.ambiguous = self.ambiguous.or(Some(self.heads + 1)),
            }
        }
    }

    fn head_ended(&mut self) -> At {
        self.heads += 1;
        if self.length && self.chunked {
            self.ambiguous = self.ambiguous.or(Some(self.heads));
        }
        match (self.ambiguous, self.chunked, self.body) {
            (Some(_), _, _) => At::Over,
            (None, true, _) => At::ChunkSize,
            (None, false, 0) => At::Start,
            (None, false, length) => At::Body(length),
        }
    }

    /// The body makes no sense; whatever request is found behind it is not believed.
    fn lost(&mut self) -> At {
        self.ambiguous = self.ambiguous.or(Some(self.heads + 1));
        At::Over
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok()
}

/// A client's connection under watch.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    scanner: Scanner,
    findings: Arc<Findings>,
    /// How long a head may take.
    patience: Duration,
    /// Runs while a head is on its way.
    head: Option<Pin<Box<Sleep>>>,
    entrance: Arc<Entrance>,
}

impl<S> Watched<S> {
    pub fn new(stream: S, patience: Duration, entrance: Arc<Entrance>) -> (Self, Arc<Findings>) {
        let findings = Arc::<Findings>::default();
        let scanner = Scanner::new();
        (Self { stream, scanner, findings: findings.clone(), patience, head: None, entrance }, findings)
    }

    /// Is the time of a head over that still is not whole?
    fn head_is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.scanner.is_in_head() || self.findings.off.load(Ordering::Relaxed) {
            self.head = None;
            return false;
        }
        let patience = self.patience;
        self.head.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.scanner.at != At::Over && !this.findings.off.load(Ordering::Relaxed) {
            this.scanner.scan(buf.filled().get(before..).unwrap_or_default());
            if let Some(first) = this.scanner.ambiguous {
                this.findings.first.store(first, Ordering::Release);
            }
        }
        if this.head_is_late(cx) && result.is_pending() {
            this.entrance.turn_away(Reason::SlowHead);
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the request's head came too slowly",
            )));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ambiguous(pieces: &[&[u8]]) -> Option<u64> {
        let mut scanner = Scanner::new();
        for piece in pieces {
            scanner.scan(piece);
        }
        scanner.ambiguous
    }

    const BOTH: &[u8] =
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

    #[test]
    fn two_lengths_are_seen_in_either_order_and_any_case() {
        assert_eq!(ambiguous(&[BOTH]), Some(1));
        assert_eq!(ambiguous(&[b"PUT / HTTP/1.1\ntransfer-encoding:chunked\nCONTENT-LENGTH:0\n\n"]), Some(1));
        assert_eq!(ambiguous(&[b"PUT / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n"]), Some(1));
    }

    #[test]
    fn bodies_are_not_mistaken_for_heads() {
        let mut stream = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", BOTH.len()).into_bytes();
        stream.extend_from_slice(BOTH);
        stream.extend_from_slice(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.extend_from_slice(format!("{:x};ext=1\r\n", BOTH.len()).as_bytes());
        stream.extend_from_slice(BOTH);
        stream.extend_from_slice(b"\r\n0\r\nContent-Length: 5\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(ambiguous(&[&stream]), None);
        stream.extend_from_slice(BOTH);
        assert_eq!(ambiguous(&[&stream]), Some(4));
    }

    #[test]
    fn a_chunk_size_that_is_not_seen_whole_is_not_believed() {
        let stream = |zeros: usize| {
            let size = "0".repeat(zeros);
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size}5\r\nhello\r\n0\r\n\r\n")
        };
        assert_eq!(ambiguous(&[stream(80).as_bytes()]), None);
        assert_eq!(ambiguous(&[stream(200).as_bytes()]), Some(2));
    }

    #[test]
    fn behind_a_broken_body_nothing_is_believed() {
        for body in ["zz\r\n", "+5\r\nabcde\r\n", "-1\r\n", "3\r\nabcd\r\n0\r\n\r\n", "\r\n"] {
            let stream = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert_eq!(ambiguous(&[stream.as_bytes()]), Some(2), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(cuts in proptest::collection::vec(1usize..40, 1..60), body in "[a-z\r\n:]{0,80}") {
            let mut stream = format!("POST /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
            stream.extend_from_slice(BOTH);
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, more) = rest.split_at(*cut.min(&rest.len()));
                pieces.push(piece);
                rest = more;
            }
            prop_assert_eq!(ambiguous(&pieces), Some(2));
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _any = ambiguous(&[&bytes]);
        }
    }
}
