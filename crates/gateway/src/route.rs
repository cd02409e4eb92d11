//! Which service of a listener a request is for, by host and path. The most specific host first, then the longest path. A path
//! that could mean another one to whoever reads it next is refused, never guessed at.

use http::uri::Authority;
use http::{Request, header};
use std::borrow::Cow;

/// Why no service takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoute {
    Host,
    Path,
    /// The path climbs (`..`), openly or in disguise.
    Climbs,
}

/// What one listener serves.
#[derive(Debug)]
pub(crate) struct Routes<T> {
    /// The most specific first.
    routes: Vec<Route<T>>,
    by_host: bool,
    by_path: bool,
}

#[derive(Debug)]
struct Route<T> {
    host: Hosts,
    /// Without its last slash; empty for every path.
    path: String,
    to: T,
}

/// In the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Hosts {
    One(String),
    /// Every name with one label before this.
    Below(String),
    Every,
}

impl Hosts {
    fn parse(text: &str) -> Self {
        let text = plain(text);
        match text.strip_prefix("*.") {
            Some(parent) => Self::Below(parent.to_owned()),
            None => Self::One(text),
        }
    }

    fn holds(&self, host: Option<&str>) -> bool {
        match (self, host) {
            (Self::Every, _) => true,
            (Self::One(name), Some(host)) => name == host,
            (Self::Below(parent), Some(host)) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            (_, None) => false,
        }
    }
}

impl<T: Clone> Routes<T> {
    /// From the hosts and paths of each service; empty ones stand for all.
    pub fn new<'a>(services: impl IntoIterator<Item = (&'a [String], &'a [String], T)>) -> Self {
        let mut routes = Vec::new();
        for (hosts, paths, to) in services {
            let every = [Hosts::Every];
            let named: Vec<Hosts> = hosts.iter().map(|host| Hosts::parse(host)).collect();
            for host in if named.is_empty() { &every[..] } else { &named[..] } {
                let below = |path: &String| path.trim_end_matches('/').to_owned();
                let paths =
                    if paths.is_empty() { vec![String::new()] } else { paths.iter().map(below).collect() };
                routes.extend(paths.into_iter().map(|path| Route {
                    host: host.clone(),
                    path,
                    to: to.clone(),
                }));
            }
        }
        let rank = |route: &Route<T>| (route.host.clone(), std::cmp::Reverse(route.path.len()));
        routes.sort_by_key(rank);
        let by_host = routes.iter().any(|route| route.host != Hosts::Every);
        let by_path = routes.iter().any(|route| !route.path.is_empty());
        Self { routes, by_host, by_path }
    }

    /// Two services that would take the same request: the host and path they share.
    pub fn ambiguous(&self) -> Option<String> {
        let pairs = self.routes.iter().zip(self.routes.iter().skip(1));
        let mut twins = pairs.filter(|(one, other)| one.host == other.host && one.path == other.path);
        twins.next().map(|(one, _)| {
            let host = match &one.host {
                Hosts::One(name) => name.clone(),
                Hosts::Below(parent) => format!("*.{parent}"),
                Hosts::Every => "every host".into(),
            };
            format!("{host}, path {}/", one.path)
        })
    }

    /// The service of a request.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find<B>(&self, request: &Request<B>) -> Result<&T, NoRoute> {
        let host = if self.by_host { host_of(request) } else { None };
        let path = if self.by_path { normal(request.uri().path())? } else { Cow::default() };
        let mut here = self.routes.iter().filter(|route| route.host.holds(host.as_deref())).peekable();
        if here.peek().is_none() {
            return Err(NoRoute::Host);
        }
        here.find(|route| is_below(&path, route.path.as_bytes())).map(|route| &route.to).ok_or(NoRoute::Path)
    }
}

/// On the borders of segments: `/api` holds `/api` and `/api/x`, not `/apix`.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with(b"/"))
}

/// The host that a request names, the same one that its `Host` will say to the upstream: the target's own before the header's.
fn host_of<B>(request: &Request<B>) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        return Some(plain(authority.host()));
    }
    let header = request.headers().get(header::HOST)?.to_str().ok()?;
    header.parse().ok().map(|authority: Authority| plain(authority.host()))
}

/// In small letters and without the dot of the root.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The path as an upstream may understand it: decoded once, without empty segments.
fn normal(path: &str) -> Result<Cow<'_, [u8]>, NoRoute> {
    let is_plain = |byte: &u8| !matches!(byte, b'%' | b'\\' | b';');
    if path.bytes().all(|byte| is_plain(&byte)) && !path.contains("//") && !path.contains("/.") {
        return Ok(Cow::Borrowed(path.as_bytes()));
    }
    let decoded = decoded(path.as_bytes());
    let mut whole = Vec::with_capacity(decoded.len());
    // A backslash is a slash to some servers, and `..;x` is `..` to others.
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let bare = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if matches!(bare, b"." | b"..") {
            return Err(NoRoute::Climbs);
        }
        if !segment.is_empty() {
            whole.push(b'/');
            whole.extend_from_slice(segment);
        }
    }
    Ok(Cow::Owned(whole))
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, more @ ..] = rest {
        let pair = more.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = pair.and_then(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { more.get(2..).unwrap_or_default() } else { more };
    }
    bytes
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn routes(services: &[(&[&str], &[&str])]) -> Routes<usize> {
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let services: Vec<_> = services.iter().map(|(hosts, paths)| (texts(hosts), texts(paths))).collect();
        Routes::new(services.iter().enumerate().map(|(n, (hosts, paths))| (&hosts[..], &paths[..], n)))
    }

    fn to(routes: &Routes<usize>, host: &str, path: &str) -> Result<usize, NoRoute> {
        let request = Request::builder().uri(path).header("host", host).body(()).unwrap();
        routes.find(&request).copied()
    }

    #[test]
    fn the_most_specific_host_then_the_longest_path() {
        let routes = routes(&[
            (&[], &[]),
            (&["*.example.com"], &[]),
            (&["shop.example.com"], &[]),
            (&["shop.example.com"], &["/api/"]),
            (&["Shop.Example.com."], &["/api/v2", "/v2"]),
        ]);
        for (host, path, wanted) in [
            ("other.net", "/api", 0),
            ("a.b.example.com", "/", 0),
            ("example.com", "/", 0),
            (".example.com", "/", 0),
            ("www.example.com", "/api", 1),
            ("shop.example.com", "/", 2),
            ("SHOP.example.COM.:8443", "/apix", 2),
            ("shop.example.com", "/api?x=/y", 3),
            ("shop.example.com:443", "/api/x", 3),
            ("shop.example.com", "/api/v2/x", 4),
            ("shop.example.com", "/api/v20", 3),
            ("shop.example.com", "/v2", 4),
        ] {
            assert_eq!(to(&routes, host, path), Ok(wanted), "{host}{path}");
        }
    }

    #[test]
    fn what_fits_nobody_is_said_to_be_of_another_host_or_path() {
        let routes = routes(&[(&["a.example"], &["/x"]), (&["b.example"], &[])]);
        assert_eq!(to(&routes, "c.example", "/x"), Err(NoRoute::Host));
        assert_eq!(to(&routes, "a.example", "/y"), Err(NoRoute::Path));
        assert_eq!(to(&routes, "not a host", "/x"), Err(NoRoute::Host));
        let nameless = Request::builder().uri("/x").body(()).unwrap();
        assert_eq!(routes.find(&nameless), Err(NoRoute::Host));
    }

    #[test]
    fn the_target_counts_before_the_header() {
        let routes = routes(&[(&["a.example"], &[]), (&["b.example"], &[])]);
        let request =
            Request::builder().uri("http://B.example:80/").header("host", "a.example").body(()).unwrap();
        assert_eq!(routes.find(&request), Ok(&1));
    }

    #[test]
    fn disguised_paths_reach_what_they_mean_or_nothing() {
        let routes = routes(&[(&[], &[]), (&[], &["/api"])]);
        for path in ["/%61pi/x", "/api%2fx", "/api%2Fx", "//api//x", "/a%70%69", "/api;v=1/..x", "/%2fapi"] {
            let wanted = usize::from(path != "/api;v=1/..x");
            assert_eq!(to(&routes, "h", path), Ok(wanted), "{path}");
        }
        for path in [
            "/x/../api",
            "/x/%2e%2e/api",
            "/x/.%2E/api",
            "/x%2f..%2fapi",
            "/..",
            "/.",
            "/x/..;a=b/api",
            "/x%5c..%5capi",
        ] {
            assert_eq!(to(&routes, "h", path), Err(NoRoute::Climbs), "{path}");
        }
        for path in ["/x/...", "/x/..y", "/.well-known/acme", "/100%", "/%zz", "/x?y=../z"] {
            assert_eq!(to(&routes, "h", path), Ok(0), "{path}");
        }
        assert_eq!(to(&self::routes(&[(&[], &[])]), "h", "/x/../y"), Ok(0), "nothing is routed by path here");
    }

    #[test]
    fn two_of_a_kind_are_found() {
        assert_eq!(routes(&[(&["a"], &["/x/"]), (&["b"], &["/x"])]).ambiguous(), None);
        let twins = routes(&[(&["*.A"], &["/x/"]), (&["b", "*.a."], &["/x"])]).ambiguous();
        assert_eq!(twins.as_deref(), Some("*.a, path /x/"));
    }

    proptest! {
        /// However it is written: what a decoding server sees below `/api` never goes past its rule.
        #[test]
        fn no_spelling_gets_around_a_rule(tail in "(/[a-z.%0-9]{0,6}){0,4}", mask in any::<u8>()) {
            let spelt: String = "api".bytes().enumerate().map(|(n, byte)| match mask >> n & 1 {
                0 => char::from(byte).to_string(),
                _ => format!("%{byte:02x}"),
            }).collect();
            let slash = if mask & 8 == 0 { "/" } else { "//" };
            let path = format!("{slash}{spelt}{tail}");
            let routes = routes(&[(&[], &[]), (&[], &["/api"])]);
            prop_assert!(matches!(to(&routes, "h", &path), Ok(1) | Err(NoRoute::Climbs)), "{}", path);
        }
    }
}
