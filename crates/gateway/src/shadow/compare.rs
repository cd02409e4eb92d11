//! Two answers side by side: status, the headers that matter, the body (JSON by structure). Pure. Finds places and kinds, and
//! keeps no value: what users see in an answer is theirs.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{StatusCode, response};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;

/// A body larger than this, as it came or unpacked, is not compared.
pub(super) const LARGEST: usize = 256 << 10;
/// Places found in one pair of answers; more say nothing new.
const PLACES: usize = 64;
/// Longer lists are compared element by element only.
const SORTED: usize = 1_000;

/// Set by whatever stands in the way, or anew with every answer.
const NEVER: [&str; 13] = [
    "age",
    "alt-svc",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-connection",
    "server",
    "transfer-encoding",
    "via",
    "x-request-id",
    "x-runtime",
    "x-served-by",
];
/// Their values are each side's own; that they are there at all is what clients build on.
const PRESENCE: [HeaderName; 4] =
    [header::ETAG, header::LAST_MODIFIED, header::EXPIRES, header::CONTENT_ENCODING];

/// An answer as it is compared.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// How a place differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Value,
    Type,
    /// Only the owner's answer has it.
    Missing,
    /// Only the other side's answer has it.
    Added,
    /// A list of another length.
    Count,
    /// The same elements in another order.
    Order,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Value => "another value",
            Self::Type => "another type",
            Self::Missing => "missing",
            Self::Added => "added",
            Self::Count => "another count",
            Self::Order => "another order",
        }
    }

    /// Does everything below the place move with it?
    fn covers_below(self) -> bool {
        !matches!(self, Self::Value)
    }
}

/// `status`, `header cache-control`, `cookies`, `body`, or a path into JSON: `$.items[].price`.
pub(super) type Places = BTreeMap<String, Kind>;

/// What a service says is no difference: names of headers, and paths into JSON with all below them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignored {
    headers: BTreeSet<String>,
    paths: Vec<String>,
}

impl Ignored {
    pub fn of(list: &[String]) -> Self {
        let (paths, headers): (Vec<_>, Vec<_>) = list.iter().partition(|entry| entry.starts_with('$'));
        Self {
            headers: headers.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
            paths: paths.into_iter().cloned().collect(),
        }
    }

    fn has_path(&self, place: &str) -> bool {
        self.paths.iter().any(|path| is_below(place, path))
    }
}

fn is_below(place: &str, path: &str) -> bool {
    place.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Where the two differ.
pub(super) fn differences(owner: &Answer, other: &Answer, ignored: &Ignored) -> Places {
    let mut found = Places::new();
    if owner.status != other.status {
        found.insert(format!("status {} is {}", owner.status.as_u16(), other.status.as_u16()), Kind::Value);
    }
    headers(&owner.headers, &other.headers, ignored, &mut found);
    bodies(owner, other, &mut found);
    found.retain(|place, _| !ignored.has_path(place));
    found
}

/// `found` without what differs between two looks at the same side.
pub(super) fn without_noise(mut found: Places, noise: &Places) -> Places {
    found.retain(|place, _| {
        !noise.iter().any(|(noisy, kind)| {
            place == noisy || kind.covers_below() && is_below(place, noisy.trim_end_matches("[]"))
        })
    });
    found
}

fn headers(owner: &HeaderMap, other: &HeaderMap, ignored: &Ignored, found: &mut Places) {
    let names: HashSet<&HeaderName> = owner.keys().chain(other.keys()).collect();
    for name in names {
        if NEVER.contains(&name.as_str()) || ignored.headers.contains(name.as_str()) {
            continue;
        }
        if *name == header::SET_COOKIE {
            if cookies(owner) != cookies(other) {
                found.insert("cookies".into(), Kind::Value);
            }
            continue;
        }
        let kind = match (owner.contains_key(name), other.contains_key(name)) {
            (true, false) => Kind::Missing,
            (false, true) => Kind::Added,
            _ if PRESENCE.contains(name) || values(owner, name) == values(other, name) => continue,
            _ => Kind::Value,
        };
        found.insert(format!("header {name}"), kind);
    }
}

/// Lists may be split over lines and spaced as one likes.
fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<Vec<u8>> {
    let lines = headers.get_all(name).iter();
    lines
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|piece| piece.trim_ascii().to_ascii_lowercase())
        .collect()
}

/// Names and attributes; the values are sessions.
fn cookies(headers: &HeaderMap) -> BTreeSet<Vec<u8>> {
    let lines = headers.get_all(header::SET_COOKIE).iter();
    lines
        .map(|line| {
            let mut pieces = line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = pieces.next().and_then(|pair| pair.split(|byte| *byte == b'=').next());
            let mut kept = vec![name.unwrap_or_default().to_vec()];
            kept.extend(
                pieces
                    .map(<[u8]>::to_ascii_lowercase)
                    .filter(|piece| !piece.starts_with(b"expires") && !piece.starts_with(b"max-age")),
            );
            kept[1..].sort();
            kept.join(&b';')
        })
        .collect()
}

fn bodies(owner: &Answer, other: &Answer, found: &mut Places) {
    if owner.body == other.body {
        return;
    }
    let (Some(mine), Some(theirs)) = (unpacked(owner), unpacked(other)) else {
        found.insert("body".into(), Kind::Value);
        return;
    };
    if mine == theirs {
        return;
    }
    let json = |answer: &Answer, body: &[u8]| {
        let is_json = answer
            .headers
            .get(header::CONTENT_TYPE)
            .is_none_or(|kind| kind.to_str().is_ok_and(|kind| kind.to_ascii_lowercase().contains("json")));
        is_json.then(|| serde_json::from_slice::<Value>(body).ok()).flatten()
    };
    match (json(owner, &mine), json(other, &theirs)) {
        (Some(mine), Some(theirs)) => values_differ("$", &mine, &theirs, found),
        _ => drop(found.insert("body".into(), Kind::Value)),
    }
}

/// The body without its encoding; `None` when that is not one we know, or it grows too large.
fn unpacked(answer: &Answer) -> Option<Bytes> {
    let encoding =
        answer.headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
    let limit = LARGEST as u64 + 1;
    let mut plain = Vec::new();
    match encoding.as_deref() {
        None | Some(b"" | b"identity") => return Some(answer.body.clone()),
        Some(b"gzip" | b"x-gzip") => {
            flate2::read::MultiGzDecoder::new(&*answer.body).take(limit).read_to_end(&mut plain).ok()?;
        }
        Some(b"deflate") => {
            flate2::read::ZlibDecoder::new(&*answer.body).take(limit).read_to_end(&mut plain).ok()?;
        }
        Some(_) => return None,
    }
    (plain.len() <= LARGEST).then(|| plain.into())
}

fn values_differ(path: &str, owner: &Value, other: &Value, found: &mut Places) {
    if owner == other || found.len() >= PLACES {
        return;
    }
    match (owner, other) {
        (Value::Object(owner), Value::Object(other)) => {
            for (key, value) in owner {
                let below = format!("{path}.{}", shorten(key));
                match other.get(key) {
                    Some(theirs) => values_differ(&below, value, theirs, found),
                    None => drop(found.insert(below, Kind::Missing)),
                }
            }
            let added = other.keys().filter(|key| !owner.contains_key(*key));
            found.extend(added.map(|key| (format!("{path}.{}", shorten(key)), Kind::Added)));
        }
        (Value::Array(owner), Value::Array(other)) => lists_differ(path, owner, other, found),
        (Value::Number(owner), Value::Number(other)) => {
            if owner.as_f64() != other.as_f64() {
                found.insert(path.into(), Kind::Value);
            }
        }
        _ if std::mem::discriminant(owner) != std::mem::discriminant(other) => {
            found.insert(path.into(), Kind::Type);
        }
        _ => drop(found.insert(path.into(), Kind::Value)),
    }
}

fn lists_differ(path: &str, owner: &[Value], other: &[Value], found: &mut Places) {
    let below = format!("{path}[]");
    if owner.len() != other.len() {
        found.insert(below.clone(), Kind::Count);
    } else if owner.len() <= SORTED && sorted(owner) == sorted(other) {
        found.insert(below, Kind::Order);
        return;
    }
    for (mine, theirs) in owner.iter().zip(other) {
        values_differ(&below, mine, theirs, found);
    }
}

fn sorted(list: &[Value]) -> Vec<String> {
    let mut texts: Vec<String> = list.iter().map(Value::to_string).collect();
    texts.sort_unstable();
    texts
}

/// A key that is an id would make a place of its own for every answer.
fn shorten(key: &str) -> String {
    if super::endpoint::is_id(key) { "{}".into() } else { key.chars().take(60).collect() }
}

pub(super) fn answer_of(answer: &response::Parts) -> Answer {
    Answer { status: answer.status, headers: answer.headers.clone(), body: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    fn json(body: &str) -> Answer {
        answer(200, &[("content-type", "application/json; charset=utf-8")], body)
    }

    fn places(owner: &Answer, other: &Answer) -> Vec<String> {
        let found = differences(owner, other, &Ignored::default());
        found.into_iter().map(|(place, kind)| format!("{place}: {}", kind.name())).collect()
    }

    #[test]
    fn json_differs_by_place_whatever_its_spelling() {
        let owner = json(r#"{"id":1,"total":1.0,"items":[{"sku":"a","n":1},{"sku":"b","n":2}],"gone":0}"#);
        let same =
            json(r#"{ "total": 1, "items": [{"n":1,"sku":"a"},{"n":2,"sku":"b"}], "gone": 0, "id": 1 }"#);
        assert_eq!(places(&owner, &same), Vec::<String>::new());
        let other = json(r#"{"id":"1","total":2,"items":[{"sku":"a","n":1},{"sku":"c","n":2}],"new":{}}"#);
        assert_eq!(
            places(&owner, &other),
            [
                "$.gone: missing",
                "$.id: another type",
                "$.items[].sku: another value",
                "$.new: added",
                "$.total: another value"
            ]
        );
        assert_eq!(places(&json("[1,2,3]"), &json("[3,1,2]")), ["$[]: another order"]);
        assert_eq!(places(&json("[1,2,3]"), &json("[1,2]")), ["$[]: another count"]);
        let by_id = |id: &str| json(&format!(r#"{{"{id}":{{"n":{}}}}}"#, id.len()));
        assert_eq!(
            places(&by_id("4711"), &by_id("47110")),
            ["$.{}: added"],
            "ids make no places of their own"
        );
    }

    #[test]
    fn headers_count_by_what_clients_build_on() {
        let owner = [
            ("cache-control", "no-cache, Private"),
            ("etag", "\"1\""),
            ("date", "now"),
            ("set-cookie", "sid=1; Path=/; HttpOnly"),
            ("x-old", "1"),
        ];
        let same = [
            ("cache-control", "no-cache"),
            ("cache-control", "private"),
            ("etag", "W/\"2\""),
            ("date", "then"),
            ("set-cookie", "sid=2; httponly; path=/; Max-Age=3"),
            ("x-old", "1"),
        ];
        assert_eq!(places(&answer(200, &owner, "x"), &answer(200, &same, "x")), Vec::<String>::new());
        let other = [("cache-control", "public"), ("set-cookie", "sid=1; Path=/"), ("x-new", "1")];
        assert_eq!(
            places(&answer(200, &owner, "x"), &answer(404, &other, "y")),
            [
                "body: another value",
                "cookies: another value",
                "header cache-control: another value",
                "header etag: missing",
                "header x-new: added",
                "header x-old: missing",
                "status 200 is 404: another value"
            ]
        );
    }

    #[test]
    fn what_moves_between_two_looks_is_noise_with_all_below() {
        let owner = json(r#"{"at":1,"list":[{"n":1}],"price":3}"#);
        let again = json(r#"{"at":2,"list":[{"n":1},{"n":2}],"price":3}"#);
        let other = json(r#"{"at":9,"list":[{"n":7}],"price":4}"#);
        let ignored = Ignored::default();
        let noise = differences(&owner, &again, &ignored);
        let left = without_noise(differences(&owner, &other, &ignored), &noise);
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["$.price"]);
    }

    #[test]
    fn a_service_may_say_what_is_no_difference() {
        let ignored = Ignored::of(&["X-Cloud".into(), "$.meta".into()]);
        let owner = answer(
            200,
            &[("x-cloud", "a"), ("content-type", "application/json")],
            r#"{"meta":{"a":1},"metal":1}"#,
        );
        let other = answer(
            200,
            &[("x-cloud", "b"), ("content-type", "application/json")],
            r#"{"meta":{"a":2},"metal":2}"#,
        );
        assert_eq!(differences(&owner, &other, &ignored).into_keys().collect::<Vec<_>>(), ["$.metal"]);
    }

    #[test]
    fn packed_and_unpacked_are_the_same() {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(br#"{"a":1}"#).unwrap();
        let packed = Answer { body: packer.finish().unwrap().into(), ..json("") };
        let mut packed = packed;
        packed.headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(places(&json(r#"{ "a": 1 }"#), &packed), ["header content-encoding: added"]);
        assert_eq!(
            places(&json(r#"{"a":2}"#), &packed),
            ["$.a: another value", "header content-encoding: added"]
        );
        // A bomb is not unpacked to its end.
        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![0; 64 << 20]).unwrap();
        packed.body = bomb.finish().unwrap().into();
        assert!(unpacked(&packed).is_none());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z0-9]{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{1,3}", inner, 0..5).prop_map(Value::from_iter)
            ]
        })
    }

    proptest! {
        /// An answer is equal to itself; whatever differs between two answers is cancelled when it is noise.
        #[test]
        fn equal_is_equal_and_noise_cancels(one in any_json(), two in any_json()) {
            let (owner, other) = (json(&one.to_string()), json(&two.to_string()));
            prop_assert!(places(&owner, &owner).is_empty());
            let found = differences(&owner, &other, &Ignored::default());
            prop_assert_eq!(found.is_empty(), one == two);
            prop_assert!(without_noise(found.clone(), &found).is_empty());
        }

        #[test]
        fn any_bytes_are_survived(one in proptest::collection::vec(any::<u8>(), 0..80), two in proptest::collection::vec(any::<u8>(), 0..80), packed in any::<bool>()) {
            let mut owner = Answer { body: one.into(), ..json("") };
            if packed {
                owner.headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
            }
            let other = Answer { body: two.into(), ..json("") };
            let _found = differences(&owner, &other, &Ignored::default());
        }
    }
}
