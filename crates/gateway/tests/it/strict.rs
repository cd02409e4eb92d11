//! An upstream that keeps every byte it got, and the strictest reader of requests: whatever two parsers could read differently is
//! `Unclear` to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A whole request.
#[derive(Debug)]
pub struct Request {
    pub line: String,
    pub body: String,
}

/// What the strict reader makes of some bytes.
#[derive(Debug)]
pub enum Read {
    /// A request and its length in bytes.
    Whole(Request, usize),
    Part,
    Unclear(String),
}

impl Read {
    pub fn next(bytes: &[u8]) -> Self {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            return match plain(bytes) {
                Ok(()) => Self::Part,
                Err(why) => Self::Unclear(why),
            };
        };
        let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
        let read = plain(head).and_then(|()| read_head(head)).and_then(|(line, headers)| {
            let body = body(&headers, rest)?;
            Ok(body.map(|(body, length)| (Request { line, body }, end + 4 + length)))
        });
        match read {
            Ok(Some((request, length))) => Self::Whole(request, length),
            Ok(None) => Self::Part,
            Err(why) => Self::Unclear(why),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// No control characters, and CR and LF only together.
fn plain(head: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(head).replace("\r\n", "");
    // A cut may fall between CR and LF.
    let text = text.strip_suffix('\r').unwrap_or(&text);
    match text.chars().find(|c| c.is_control() && *c != '\t') {
        Some(control) => Err(format!("the head holds {control:?}")),
        None => Ok(()),
    }
}

type Head = (String, Vec<(String, String)>);

fn read_head(head: &[u8]) -> Result<Head, String> {
    let text = std::str::from_utf8(head).map_err(|error| error.to_string())?;
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let parts: Vec<&str> = line.split(' ').collect();
    let target = parts.get(1).copied().unwrap_or_default();
    if parts.len() != 3
        || parts[2] != "HTTP/1.1"
        || !(target.starts_with('/') || line == "OPTIONS * HTTP/1.1")
    {
        return Err(format!("the request line {line:?}"));
    }
    let mut headers = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Err(format!("no colon in {line:?}")) };
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return Err(format!("the name {name:?}"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
    if all(&headers, "host").len() != 1 {
        return Err(format!("hosts {:?}", all(&headers, "host")));
    }
    Ok((line, headers))
}

fn all<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|header| header.0 == name).map(|header| header.1.as_str()).collect()
}

/// The body and its length on the wire; `None` while something is missing.
fn body(headers: &[(String, String)], rest: &[u8]) -> Result<Option<(String, usize)>, String> {
    let (lengths, encodings) = (all(headers, "content-length"), all(headers, "transfer-encoding"));
    match (&lengths[..], &encodings[..]) {
        ([], []) => Ok(Some((String::new(), 0))),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse::<usize>().map_err(|error| error.to_string())?;
            Ok(rest.get(..length).map(|body| (String::from_utf8_lossy(body).into_owned(), length)))
        }
        ([], ["chunked"]) => chunks(rest),
        _ => Err(format!("lengths {lengths:?} and encodings {encodings:?}")),
    }
}

fn chunks(rest: &[u8]) -> Result<Option<(String, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = find(&rest[at..], b"\r\n") else { return Ok(None) };
        let size = String::from_utf8_lossy(&rest[at..at + end]).into_owned();
        if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("the chunk size {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|error| error.to_string())?;
        at += end + 2;
        if size == 0 {
            return Ok(trailers(&rest[at..])?
                .map(|length| (String::from_utf8_lossy(&body).into_owned(), at + length)));
        }
        let Some(chunk) = rest.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk does not end where its size says".into());
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

fn trailers(rest: &[u8]) -> Result<Option<usize>, String> {
    if rest.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    let Some(end) = find(rest, b"\r\n\r\n") else { return Ok(None) };
    plain(&rest[..end])?;
    Ok(Some(end + 4))
}

/// One connection as the upstream saw it.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    bytes: Arc<Mutex<Vec<u8>>>,
    over: Arc<AtomicBool>,
}

impl Recorded {
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Did the gateway close it?
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// The upstream.
pub struct Recorder {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Recorded>>>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<Mutex<Vec<Recorded>>>::default();
        let list = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let recorded = Recorded::default();
                list.lock().unwrap().push(recorded.clone());
                tokio::spawn(record(stream, recorded));
            }
        });
        Self { address, connections }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The connections until now; those that come later are in the next answer.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.connections.lock().unwrap())
    }

    /// The first lines of all whole requests.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for connection in self.connections.lock().unwrap().iter() {
            let bytes = connection.bytes();
            let mut rest = &bytes[..];
            while let Read::Whole(request, length) = Read::next(rest) {
                lines.push(request.line);
                rest = &rest[length..];
            }
        }
        lines
    }
}

/// Answers each whole request; says nothing to anything else.
async fn record(mut stream: TcpStream, recorded: Recorded) {
    let (mut pending, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        recorded.bytes.lock().unwrap().extend_from_slice(&buffer[..read]);
        pending.extend_from_slice(&buffer[..read]);
        while let Read::Whole(_, length) = Read::next(&pending) {
            pending.drain(..length);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                break;
            }
        }
    }
    recorded.over.store(true, Ordering::SeqCst);
}
