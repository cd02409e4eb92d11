//! Pages of a bucket's keys in byte order, with prefix, delimiter and a place to go on from.

use super::store::Object;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

pub(super) const MOST: usize = 1_000;

/// What `encoding-type=url` leaves as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

#[derive(Debug, Default)]
pub(super) struct Page {
    pub objects: Vec<(String, Arc<Object>)>,
    pub prefixes: Vec<String>,
    /// The last key or prefix of this page when there is more.
    pub next: Option<String>,
}

/// Items (keys, and prefixes that end with the delimiter) that come after `after`.
pub(super) fn page(
    objects: &BTreeMap<String, Arc<Object>>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    most: usize,
) -> Page {
    let mut page = Page::default();
    let mut last = String::new();
    let after = after.unwrap_or("");
    let mut from = if after >= prefix && !after.is_empty() {
        Bound::Excluded(after.to_string())
    } else {
        Bound::Included(prefix.to_string())
    };
    loop {
        let Some((key, object)) = objects.range::<String, _>((from, Bound::Unbounded)).next() else {
            return page;
        };
        let Some(rest) = key.strip_prefix(prefix) else { return page };
        let common = delimiter.filter(|delimiter| !delimiter.is_empty()).and_then(|delimiter| {
            let at = rest.find(delimiter)?;
            key.get(..prefix.len() + at + delimiter.len())
        });
        let item = common.unwrap_or(key);
        // A prefix at or before the starting place was on an earlier page.
        if common.is_none() || item > after {
            if page.objects.len() + page.prefixes.len() == most {
                page.next = (most > 0).then_some(last);
                return page;
            }
            last = item.to_string();
            match common {
                Some(common) => page.prefixes.push(common.to_string()),
                None => page.objects.push((key.clone(), object.clone())),
            }
        }
        from = match common {
            Some(common) => beyond(common),
            None => Bound::Excluded(key.clone()),
        };
    }
}

/// What a client shows to go on after `last`; opaque and plain ASCII whatever the key is made of.
pub(super) fn token(last: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(last)
}

pub(super) fn from_token(token: &str) -> Option<String> {
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

/// The first place after all keys that begin with `prefix`.
fn beyond(prefix: &str) -> Bound<String> {
    let mut text = prefix.to_string();
    while let Some(last) = text.pop() {
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            text.push(next);
            return Bound::Included(text);
        }
    }
    // Only for a prefix of nothing but the last character of all: no key is greater.
    Bound::Excluded(char::MAX.to_string().repeat(1_025))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::record::Meta;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bucket(keys: &[&str]) -> BTreeMap<String, Arc<Object>> {
        keys.iter()
            .map(|key| (key.to_string(), Arc::new(Object { meta: Meta::default(), pieces: vec![] })))
            .collect()
    }

    fn walk(
        objects: &BTreeMap<String, Arc<Object>>,
        prefix: &str,
        delimiter: Option<&str>,
        most: usize,
    ) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut prefixes, mut after) = (vec![], vec![], None);
        loop {
            let page = page(objects, prefix, delimiter, after.as_deref(), most);
            assert!(page.objects.len() + page.prefixes.len() <= most);
            keys.extend(page.objects.into_iter().map(|(key, _)| key));
            prefixes.extend(page.prefixes);
            match page.next {
                Some(next) => after = Some(next),
                None => return (keys, prefixes),
            }
        }
    }

    #[test]
    fn keys_that_folders_cannot_hold() {
        let objects =
            bucket(&["a", "a/", "a/b", "a//c", "a b", "a+b", "a%25", "a.conda", "ä/ö", "\u{10FFFF}x"]);
        for most in [1, 2, 3, 100] {
            let (keys, _) = walk(&objects, "", None, most);
            assert_eq!(keys, objects.keys().cloned().collect::<Vec<_>>());
            let (keys, prefixes) = walk(&objects, "", Some("/"), most);
            assert_eq!(keys, ["a", "a b", "a%25", "a+b", "a.conda", "\u{10FFFF}x"]);
            assert_eq!(prefixes, ["a/", "ä/"]);
            let (keys, prefixes) = walk(&objects, "a/", Some("/"), most);
            assert_eq!((keys, prefixes), (vec!["a/".to_string(), "a/b".into()], vec!["a//".to_string()]));
        }
        assert!(page(&objects, "", None, None, 0).next.is_none());
        let after_folder = page(&objects, "", Some("/"), Some("a/"), 10);
        assert_eq!(after_folder.prefixes, ["ä/"]);
    }

    proptest! {
        #[test]
        fn every_page_size_lists_the_same(keys in prop::collection::btree_set("[ab/\u{10FFFF}]{1,5}", 0..30), most in 1usize..5) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let objects = bucket(&keys);
            let (listed, prefixes) = walk(&objects, "", Some("/"), most);
            let plain: Vec<_> = keys.iter().filter(|key| !key.contains('/')).map(ToString::to_string).collect();
            let rolled: BTreeSet<_> = keys.iter().filter_map(|key| key.split_once('/')).map(|(head, _)| format!("{head}/")).collect();
            prop_assert_eq!(listed, plain);
            prop_assert_eq!(prefixes, rolled.into_iter().collect::<Vec<_>>());
        }
    }
}
