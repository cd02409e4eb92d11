//! What belongs together in the ranking: a method and a path without its ids. Pure.

use http::Method;

/// Steps of a path that are looked at; what is behind them is one endpoint.
const STEPS: usize = 8;

/// `GET /orders/{}/items`.
pub(super) fn endpoint(method: &Method, path: &str) -> String {
    let mut text = format!("{method} ");
    let mut steps = path.split('/').filter(|step| !step.is_empty());
    for step in steps.by_ref().take(STEPS) {
        text.push('/');
        if is_id(step) { text.push_str("{}") } else { text.push_str(step) }
    }
    if steps.next().is_some() {
        text.push_str("/…");
    }
    if path == "/" {
        text.push('/');
    }
    text
}

/// Is this one of many of its kind: digits, a hash, a UUID, something long?
pub(super) fn is_id(step: &str) -> bool {
    let stem = step.split_once('.').map_or(step, |(stem, _)| stem);
    if stem.len() <= 4
        && stem.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return false; // a version
    }
    let digits = stem.bytes().filter(u8::is_ascii_digit).count();
    let plain = stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let hex = stem.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    step.contains(['@', '%'])
        || !plain && step.len() > 24
        || step.len() > 40
        || digits > 0 && (digits * 2 >= stem.len() || hex && stem.len() >= 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_out_and_words_stay() {
        for (path, expected) in [
            ("/", "GET /"),
            ("/orders/4711", "GET /orders/{}"),
            ("/orders/4711/items/9", "GET /orders/{}/items/{}"),
            ("/u/123e4567-e89b-12d3-a456-426614174000/avatar", "GET /u/{}/avatar"),
            ("/media/0a1b2c3d4e.jpg", "GET /media/{}"),
            ("/api/v2/health", "GET /api/v2/health"),
            ("/products/blue-shoes", "GET /products/blue-shoes"),
            ("/static/main.css", "GET /static/main.css"),
            ("/order-20260101", "GET /{}"),
            ("/of/a@example.org", "GET /of/{}"),
            ("//a//b/", "GET /a/b"),
            ("/1/2/3/4/5/6/7/8/9", "GET /{}/{}/{}/{}/{}/{}/{}/{}/…"),
        ] {
            assert_eq!(endpoint(&Method::GET, path), expected);
        }
    }
}
