//! What the old entry still gets: the requests that a gateway has counted, read from its metrics page.

use super::http::{Http, excerpt};
use crate::EntryError;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;

const COUNTER: &str = "rehome_requests_total{";

/// The requests that the gateway whose metrics are at `url` (`http://HOST:PORT/metrics`) has handed on since it began.
///
/// # Errors
/// When there is no such page.
pub async fn requests(url: &str) -> Result<u64, EntryError> {
    let unfit = || EntryError::unfit(format!("`{url}` is no address"), "as in http://127.0.0.1:9100/metrics");
    let request = Request::get(url).body(Full::<Bytes>::default()).map_err(|_| unfit())?;
    if request.uri().host().is_none() {
        return Err(unfit());
    }
    let answer = Http::new()?.send(url, request).await?;
    let refused = |text: String| EntryError::Refused { whom: url.to_owned(), text };
    if answer.status != 200 {
        return Err(refused(format!("status {}: {}", answer.status, excerpt(&answer.body))));
    }
    sum(&String::from_utf8_lossy(&answer.body))
        .ok_or_else(|| refused("this is no metrics page of a gateway".into()))
}

fn sum(page: &str) -> Option<u64> {
    let values = page.lines().filter(|line| line.starts_with(COUNTER)).map(|line| {
        let (_, value) = line.rsplit_once(' ')?;
        value.parse::<u64>().ok()
    });
    values.reduce(|one, other| one?.checked_add(other?)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_classes_of_all_services_count() {
        let page = "# HELP rehome_requests_total Requests.\nrehome_requests_total{service=\"a b\",side=\"source\"} 3\n\
                    rehome_requests_total{service=\"c\",side=\"target\"} 39\nrehome_epoch 7\n";
        assert_eq!(sum(page), Some(42));
        assert_eq!(sum("rehome_epoch 7\n"), None);
        assert_eq!(sum("rehome_requests_total{} x\n"), None);
    }
}
