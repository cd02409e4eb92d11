//! What a proxy adds to and takes from headers (RFC 9110 section 7.6, RFC 7239's older relatives). Pure functions on a header
//! map; never looks at a body.

use crate::origin::Origin;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Version};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("rehome-outcome");
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// RFC 7239's own; this gateway writes the older ones.
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// A request id from outside is kept up to this length.
const MAX_REQUEST_ID: usize = 128;

/// What no `Connection` may take away: the upstream routes, frames and trusts by it (RFC 9110 section 7.6.1 forbids naming
/// fields that are meant for everybody).
const KEPT: [HeaderName; 7] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::VIA,
    REQUEST_ID,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
];

/// Which headers of interest a message has: found in one pass, because most messages have few of them and every look-up costs as
/// much as three lines of the pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen(u16);

impl Seen {
    const CONNECTION: u16 = 1;
    const HOP: u16 = 1 << 1;
    const TE: u16 = 1 << 2;
    const UPGRADE: u16 = 1 << 3;
    const EXPECT: u16 = 1 << 4;
    const FORWARDED: u16 = 1 << 5;
    const ORIGIN: u16 = 1 << 6;
    const COOKIES: u16 = 1 << 7;
    const VIA: u16 = 1 << 8;
    const REQUEST_ID: u16 = 1 << 9;
    const LENGTH: u16 = 1 << 10;
    const ACCEPT: u16 = 1 << 11;

    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = 0;
        for name in headers.keys() {
            seen |= match name.as_str() {
                "connection" => Self::CONNECTION,
                "keep-alive" | "proxy-connection" => Self::HOP,
                "transfer-encoding" => Self::HOP | Self::LENGTH,
                "te" => Self::TE,
                "upgrade" => Self::UPGRADE,
                "expect" => Self::EXPECT,
                "forwarded" => Self::FORWARDED,
                "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => Self::ORIGIN,
                "cookie" => Self::COOKIES,
                "via" => Self::VIA,
                "x-request-id" => Self::REQUEST_ID,
                "content-length" => Self::LENGTH,
                "accept" => Self::ACCEPT,
                _ => 0,
            };
        }
        Self(seen)
    }

    fn any(self, wanted: u16) -> bool {
        self.0 & wanted != 0
    }
}

/// Removes what concerns one connection only: the fixed set and everything that `Connection` names.
fn strip_hop_by_hop(headers: &mut HeaderMap, seen: Seen) {
    if seen.any(Seen::CONNECTION) {
        strip_connection(headers);
    }
    if seen.any(Seen::HOP) {
        for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &header::TRANSFER_ENCODING] {
            headers.remove(name);
        }
    }
    if seen.any(Seen::TE) {
        headers.remove(header::TE);
    }
    if seen.any(Seen::UPGRADE) {
        headers.remove(header::UPGRADE);
    }
}

fn strip_connection(headers: &mut HeaderMap) {
    let mut connection = headers.get_all(header::CONNECTION).iter();
    match (connection.next(), connection.next()) {
        // What nearly everybody says, and it names no header.
        (Some(only), None) if matches!(only.as_bytes(), b"keep-alive" | b"close") => {}
        _ => {
            let named: Vec<HeaderName> =
                tokens(headers, &header::CONNECTION).filter_map(|name| name.parse().ok()).collect();
            for name in named.into_iter().filter(|name| !KEPT.contains(name)) {
                headers.remove(name);
            }
        }
    }
    headers.remove(header::CONNECTION);
}

/// The comma-separated tokens of all lines of a header.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Does the client want another protocol on this connection? HTTP/2 by upgrade is declined by not answering to it.
pub(crate) fn wants_upgrade<B>(request: &Request<B>, seen: Seen) -> bool {
    seen.any(Seen::UPGRADE)
        && request.version() == Version::HTTP_11
        && request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol != "h2c")
        && tokens(request.headers(), &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Does the client ask for a stream of events that may never end?
pub(crate) fn wants_events(headers: &HeaderMap, seen: Seen) -> bool {
    seen.any(Seen::ACCEPT)
        && headers.get(header::ACCEPT).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// Is this the head of an answer that may never end?
pub(crate) fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| is_stream_type(value.as_bytes()))
}

/// Is this the type of a body that may never end?
pub(crate) fn is_stream_type(value: &[u8]) -> bool {
    value.starts_with(b"text/event-stream")
        || value.starts_with(b"application/grpc")
        || value.starts_with(b"multipart/x-mixed-replace")
}

/// What a request's head gets besides the client's own headers, in front of none of which it has another line of the same name.
pub(crate) type Added = Vec<(&'static str, HeaderValue)>;

/// Turns the headers of a client's request into those for the upstream: takes what is not for it out of `headers`, and returns
/// what is new. `seen` is what there was; `id` is a new one, if the client's own cannot be used.
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    seen: Seen,
    version: Version,
    origin: &Origin,
    host: Option<HeaderValue>,
    id: Option<HeaderValue>,
) -> Added {
    let mut added = Added::with_capacity(8);
    if let Some(id) = id {
        if seen.any(Seen::REQUEST_ID) {
            headers.remove(REQUEST_ID);
        }
        added.push(("x-request-id", id));
    }
    let trailers = seen.any(Seen::TE)
        && tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers, seen);
    // Answered by this gateway when the body is wanted.
    if seen.any(Seen::EXPECT) {
        headers.remove(header::EXPECT);
    }
    if trailers {
        added.push(("te", HeaderValue::from_static("trailers")));
    }
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    say_origin(headers, seen, origin, &mut added);
    if seen.any(Seen::COOKIES) {
        join_cookies(headers);
    }
    match (seen.any(Seen::VIA), via(version)) {
        (true, via) => add_to_list(headers, &header::VIA, &via),
        (false, via) => added.push(("via", via)),
    }
    added
}

/// What a trusted proxy said stays and is added to; what anybody else said is replaced.
fn say_origin(headers: &mut HeaderMap, seen: Seen, origin: &Origin, added: &mut Added) {
    let scheme = HeaderValue::from_static(if origin.peer.secure { "https" } else { "http" });
    if origin.is_believed && seen.any(Seen::ORIGIN) {
        if !headers.contains_key(FORWARDED_HOST)
            && let Some(host) = headers.get(header::HOST)
        {
            headers.insert(FORWARDED_HOST, host.clone());
        }
        headers.entry(FORWARDED_PROTO).or_insert(scheme);
        return add_to_list(headers, &FORWARDED_FOR, &origin.peer.shown);
    }
    if seen.any(Seen::ORIGIN) {
        for name in [&FORWARDED_FOR, &FORWARDED_PROTO, &FORWARDED_HOST] {
            headers.remove(name);
        }
    }
    if seen.any(Seen::FORWARDED) && !origin.is_believed {
        headers.remove(FORWARDED);
    }
    if let Some(host) = headers.get(header::HOST) {
        added.push(("x-forwarded-host", host.clone()));
    }
    added.push(("x-forwarded-proto", scheme));
    added.push(("x-forwarded-for", origin.peer.shown.clone()));
}

/// Turns the headers of an upstream's answer into those for the client.
pub(crate) fn prepare_response(headers: &mut HeaderMap, version: Version, id: &HeaderValue) {
    let seen = Seen::of(headers);
    strip_hop_by_hop(headers, seen);
    match (seen.any(Seen::VIA), via(version)) {
        (true, via) => add_to_list(headers, &header::VIA, &via),
        (false, via) => {
            headers.insert(header::VIA, via);
        }
    }
    if !seen.any(Seen::REQUEST_ID) {
        headers.insert(REQUEST_ID, id.clone());
    }
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(via_text(version))
}

/// This gateway in `Via`, with the version in which it got the message (RFC 9110 section 7.6.3).
pub(crate) fn via_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2 rehome",
        Version::HTTP_10 => "1.0 rehome",
        _ => "1.1 rehome",
    }
}

fn add_to_list(headers: &mut HeaderMap, name: &HeaderName, item: &HeaderValue) {
    if let Entry::Vacant(place) = headers.entry(name) {
        place.insert(item.clone());
        return;
    }
    let mut list = headers.get_all(name).iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
    list.push(item.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list.join(&b", "[..])) {
        headers.insert(name, value);
    }
}

/// HTTP/2 may split cookies over several lines, HTTP/1.1 must not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(|value| value.as_bytes()).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Why two parsers could read this head differently, if they could. Where a body ends over HTTP/1 is settled before (`http1::Framing`);
/// what is said of it here is about HTTP/2.
pub(crate) fn ambiguity<B>(request: &Request<B>, seen: Seen) -> Option<&'static str> {
    let length = || if seen.any(Seen::LENGTH) { length_ambiguity(request.headers()) } else { None };
    target_ambiguity(request).or_else(|| host_ambiguity(request)).or_else(length)
}

/// RFC 9112 section 3.2: `host:port` alone is for CONNECT, `*` for OPTIONS, everything else has a path.
fn target_ambiguity<B>(request: &Request<B>) -> Option<&'static str> {
    if *request.method() == Method::CONNECT {
        return None;
    }
    let uri = request.uri();
    if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Some("the target of a request is http\n");
    }
    match uri.path_and_query().map(|path| path.as_str()) {
        Some("*") if *request.method() == Method::OPTIONS => None,
        Some(path) if path.starts_with('/') => None,
        _ => Some("the target of a request is a path\n"),
    }
}

/// RFC 9112 section 3.2 and RFC 9113 section 8.3.1: one host, a valid one, and the same wherever HTTP/2 names it.
fn host_ambiguity<B>(request: &Request<B>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let authority = request.uri().authority();
    let Some(host) = hosts.next() else {
        let lacks = request.version() == Version::HTTP_11 && authority.is_none();
        return lacks.then_some("an HTTP/1.1 request needs a Host\n");
    };
    if hosts.next().is_some() {
        return Some("a request has one Host\n");
    }
    let is_valid = |host: &str| host.is_empty() || !host.contains('@') && host.parse::<Authority>().is_ok();
    if !is_plain_host(host.as_bytes()) && !host.to_str().is_ok_and(is_valid) {
        return Some("the Host is not valid\n");
    }
    let differs =
        |authority: &Authority| !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes());
    let is_http2 = request.version() == Version::HTTP_2;
    (is_http2 && authority.is_some_and(differs)).then_some("Host and :authority differ\n")
}

/// What nearly every host looks like: a name or an address with dots, perhaps a port. Other forms are for the parser.
fn is_plain_host(host: &[u8]) -> bool {
    let name =
        host.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')).count();
    match host.get(name..) {
        Some([b':', port @ ..]) => {
            name > 0 && (1..=4).contains(&port.len()) && port.iter().all(u8::is_ascii_digit)
        }
        rest => name > 0 && rest.is_none_or(<[u8]>::is_empty),
    }
}

/// RFC 9112 section 6: one length; and the only encoding that is undone here is `chunked`, so no other may be lost on the way.
fn length_ambiguity(headers: &HeaderMap) -> Option<&'static str> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if encodings.next().is_some_and(|first| !is_chunked(first)) || encodings.next().is_some() {
        return Some("the only transfer encoding here is chunked\n");
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let is_number =
        |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|first| !is_number(first)) || lengths.next().is_some() {
        return Some("a request has one length\n");
    }
    None
}

/// The client's own id, if it has a usable one.
pub(crate) fn own_id(headers: &HeaderMap, seen: Seen) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID).filter(|_| seen.any(Seen::REQUEST_ID))?;
    (1..=MAX_REQUEST_ID).contains(&id.len()).then(|| id.clone())
}

pub(crate) fn random_id() -> HeaderValue {
    let id = HeaderValue::from_bytes(&hexadecimal(fastrand::u128(..)));
    id.expect("hexadecimal digits are visible ASCII")
}

/// Thirty-two digits; formatting them takes as long as parsing the head they go into.
fn hexadecimal(number: u128) -> [u8; 32] {
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair.copy_from_slice(&PAIRS[usize::from(byte)]);
    }
    text
}

/// The two digits of every byte.
const PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Methods that a proxy may send again after a connection failed.
pub(crate) fn is_repeatable(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Peer;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_connection_names_goes_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-One"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("trailer", "x-sum"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let seen = Seen::of(&headers);
        strip_hop_by_hop(&mut headers, seen);
        assert_eq!(headers, map(&[("x-three", "3"), ("trailer", "x-sum")]));
    }

    fn origin(address: &str, is_believed: bool, secure: bool) -> Origin {
        let address = address.parse().unwrap();
        Origin { peer: Peer::new(address, secure), is_believed, client: address }
    }

    fn prepare(headers: &mut HeaderMap, version: Version, origin: &Origin) {
        let seen = Seen::of(headers);
        for (name, value) in prepare_request(headers, seen, version, origin, None, None) {
            assert!(!headers.contains_key(name), "{name} has another line");
            headers.append(name, value);
        }
    }

    const CLAIMS: [(&str, &str); 6] = [
        ("host", "shop.example"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "www.example"),
        ("forwarded", "for=192.0.2.1"),
        ("te", "trailers, gzip"),
    ];

    #[test]
    fn connection_takes_nothing_that_is_meant_for_everybody() {
        let mut headers = map(&[
            ("connection", "Host, content-length, x-forwarded-for, x-one"),
            ("host", "a"),
            ("content-length", "5"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-one", "1"),
        ]);
        let seen = Seen::of(&headers);
        strip_hop_by_hop(&mut headers, seen);
        let kept = [("host", "a"), ("content-length", "5"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(headers, map(&kept));
    }

    fn said(method: &str, target: &str, version: Version, lines: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri(target).version(version);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        ambiguity(&request, Seen::of(request.headers()))
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_named() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let host = ("host", "a:80");
        assert_eq!(said("GET", "/x?y", one, &[host]), None);
        assert_eq!(said("OPTIONS", "*", one, &[host]), None);
        assert_eq!(said("GET", "http://b/x", one, &[host]), None, "the absolute form wins");
        assert_eq!(said("GET", "http://A:80/x", two, &[host]), None);
        assert_eq!(said("GET", "/", Version::HTTP_10, &[]), None);
        assert_eq!(said("POST", "/", one, &[host, ("transfer-encoding", "Chunked")]), None);
        for (method, target, version, lines) in [
            ("GET", "*", one, &[host][..]),
            ("GET", "a:80", one, &[host]),
            ("GET", "ftp://a/", one, &[host]),
            ("GET", "/", one, &[]),
            ("GET", "/", one, &[host, host]),
            ("GET", "/", one, &[("host", "a b")]),
            ("GET", "/", one, &[("host", "x@a")]),
            ("GET", "http://b/", two, &[host]),
            ("POST", "/", one, &[host, ("transfer-encoding", "gzip, chunked")]),
            ("POST", "/", one, &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
            ("POST", "/", two, &[("content-length", "5"), ("content-length", "7")]),
            ("POST", "/", two, &[("content-length", "")]),
            ("POST", "/", two, &[("content-length", "+5")]),
        ] {
            assert!(said(method, target, version, lines).is_some(), "{method} {target} {lines:?}");
        }
    }

    #[test]
    fn a_request_says_where_it_came_from() {
        let mut headers = map(&CLAIMS);
        prepare(&mut headers, Version::HTTP_11, &origin("10.0.0.9", true, false));
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1, 10.0.0.9");
        assert_eq!(headers["x-forwarded-host"], "www.example");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["forwarded"], "for=192.0.2.1");
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["via"], "1.1 rehome");
        prepare_response(&mut headers, Version::HTTP_11, &HeaderValue::from_static("id"));
        assert_eq!(headers["via"], "1.1 rehome, 1.1 rehome");
    }

    #[test]
    fn a_stranger_does_not_say_where_it_came_from() {
        let mut headers = map(&CLAIMS);
        headers.append("x-forwarded-for", HeaderValue::from_static("192.0.2.2"));
        prepare(&mut headers, Version::HTTP_2, &origin("::ffff:10.0.0.9", false, true));
        assert_eq!(headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["10.0.0.9"]);
        assert_eq!(headers["x-forwarded-host"], "shop.example");
        assert_eq!(headers["x-forwarded-proto"], "https", "it came over TLS");
        assert!(!headers.contains_key("forwarded"));
    }

    #[test]
    fn numbers_have_all_their_digits() {
        for number in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0011_2233_4455_6677] {
            assert_eq!(hexadecimal(number), format!("{number:032x}").as_bytes());
        }
    }

    #[test]
    fn split_cookies_become_one_line() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn a_request_id_is_kept_or_made() {
        let own = |headers: &HeaderMap| own_id(headers, Seen::of(headers));
        let mut headers = map(&[("x-request-id", "mine")]);
        assert_eq!(own(&headers).unwrap(), "mine");
        headers.insert(REQUEST_ID, "x".repeat(500).parse().unwrap());
        assert_eq!(own(&headers), None);
        assert_eq!(own(&HeaderMap::new()), None);
        assert_eq!(random_id().len(), 32);
    }

    #[test]
    fn a_plain_host_is_one_that_the_parser_takes_too() {
        for host in ["a", "shop.example", "10.0.0.1:8080", "a-b.c:1"] {
            assert!(is_plain_host(host.as_bytes()) && host.parse::<Authority>().is_ok(), "{host}");
        }
        for host in ["", ":80", "a:", "a:b", "a b", "x@a", "[::1]:80", "a:80:80", "a_b", "a/b"] {
            assert!(!is_plain_host(host.as_bytes()), "{host} is for the parser");
        }
    }
}
