//! The users: writers with orders of their own, and readers of pictures.

use super::tally::{Operation, Outcome, Seen, Tally, Write};
use super::{LoadConfig, Turn};
use crate::monotonic_nanos;
use crate::shop::{CLOUD_HEADER, MEDIA, Order};
use crate::wire::{Answer, NoAnswer, Repeat, Wire};
use crate::world::Seeded;
use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The gateway's word on a write it gives no answer of a shop for: `not-sent`, or `unknown`.
pub(crate) const OUTCOME_HEADER: &str = "rehome-outcome";

/// Orders a writer keeps at most; then it removes one instead of making another.
const MOST_ORDERS: usize = 40;

/// One user's connection and identity.
struct Client {
    name: String,
    host: String,
    wire: Wire,
    patience: Duration,
    tally: Arc<Tally>,
}

/// One exchange, with its times.
struct Exchange {
    request: String,
    is_write: bool,
    started_nanos: u64,
    ended_nanos: u64,
    answer: Result<Answer, NoAnswer>,
}

impl Client {
    fn new(config: &LoadConfig, role: &str, number: u32, tally: Arc<Tally>) -> Self {
        Self {
            name: format!("{}-{role}{number}", config.name),
            host: config.gateway.to_string(),
            wire: Wire::new(config.gateway).insisting(config.patience),
            patience: config.patience,
            tally,
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Exchange {
        let is_write = !method.is_safe();
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", &self.host)
            .header("cookie", format!("session={}", self.name))
            .header("content-type", "application/json")
            .body(Full::new(body.map_or_else(Bytes::new, |body| body.to_string().into())))
            .expect("paths are encoded and names are plain");
        let repeat = if is_write { Repeat::Never } else { Repeat::WhenStale };
        let started_nanos = monotonic_nanos();
        let answer = self.wire.send(request, repeat, self.patience).await;
        self.tally.refused(self.wire.take_refused());
        Exchange {
            request: format!("{method} {path}"),
            is_write,
            started_nanos,
            ended_nanos: monotonic_nanos(),
            answer,
        }
    }

    /// Counts an exchange; `good` says which statuses are no failure.
    fn count(&self, exchange: &Exchange, good: impl Fn(StatusCode) -> bool) {
        let (cloud, failure) = match &exchange.answer {
            Ok(answer) => {
                let why = || {
                    (
                        Some(answer.status.as_u16()),
                        String::from_utf8_lossy(&answer.body).chars().take(200).collect(),
                    )
                };
                (answer.header(CLOUD_HEADER).map(String::from), (!good(answer.status)).then(why))
            }
            Err(error) => (None, Some((None, error.to_string()))),
        };
        self.tally.request(Seen {
            client: self.name.clone(),
            request: exchange.request.clone(),
            is_write: exchange.is_write,
            started_nanos: exchange.started_nanos,
            ended_nanos: exchange.ended_nanos,
            cloud,
            failure,
        });
    }
}

/// An order the writer was told it has.
#[derive(Debug, Clone)]
struct Own {
    id: String,
    /// The number of the newest write that was acknowledged.
    version: u64,
}

/// Makes, changes, removes and looks at its own orders.
pub(super) struct Writer {
    client: Client,
    random: Rng,
    number: u64,
    orders: Vec<Own>,
    /// Removed last, with an acknowledgement: must not be shown any more.
    removed: Option<String>,
    /// The newest receipt it was promised.
    receipt: Option<String>,
}

impl Writer {
    pub(super) fn new(config: &LoadConfig, number: u32, tally: Arc<Tally>) -> Self {
        Self {
            client: Client::new(config, "w", number, tally),
            random: Rng::with_seed(config.seed.wrapping_mul(31).wrapping_add(u64::from(number))),
            number: 0,
            orders: Vec::new(),
            removed: None,
            receipt: None,
        }
    }

    fn wish(&mut self) -> serde_json::Value {
        self.number += 1;
        json!({ "client": self.client.name, "number": self.number, "amount": self.random.u64(1..100_000) })
    }

    async fn create(&mut self) {
        let wish = self.wish();
        let exchange = self.client.exchange(Method::POST, "/orders", Some(wish)).await;
        let order =
            exchange.answer.as_ref().ok().filter(|answer| answer.status == StatusCode::CREATED).and_then(
                |answer| {
                    let body: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
                    body["order"].as_str().map(String::from)
                },
            );
        let outcome = self.record(exchange, Operation::Create, order.clone());
        if let (Outcome::Acknowledged { .. }, Some(id)) = (outcome, order) {
            self.receipt = Some(format!("{}-{id}", self.number));
            self.orders.push(Own { id, version: self.number });
        }
    }

    async fn update(&mut self) {
        let index = self.random.usize(..self.orders.len());
        let id = self.orders[index].id.clone();
        let wish = self.wish();
        let exchange = self.client.exchange(Method::PUT, &format!("/orders/{id}"), Some(wish)).await;
        match self.record(exchange, Operation::Update, Some(id)) {
            Outcome::Acknowledged { .. } => self.orders[index].version = self.number,
            Outcome::Refused { .. } => {}
            // It may still be on its way: whatever came now could overtake it.
            Outcome::Unknown { .. } => drop(self.orders.swap_remove(index)),
        }
    }

    async fn remove(&mut self) {
        let index = self.random.usize(..self.orders.len());
        let id = self.orders[index].id.clone();
        let wish = self.wish();
        let exchange = self.client.exchange(Method::DELETE, &format!("/orders/{id}"), Some(wish)).await;
        match self.record(exchange, Operation::Delete, Some(id.clone())) {
            Outcome::Acknowledged { .. } => {
                self.orders.swap_remove(index);
                self.removed = Some(id);
            }
            Outcome::Refused { .. } => {}
            Outcome::Unknown { .. } => drop(self.orders.swap_remove(index)),
        }
    }

    fn record(&self, exchange: Exchange, operation: Operation, order: Option<String>) -> Outcome {
        self.client.count(&exchange, |status| status.is_success());
        let outcome = outcome(&exchange.answer);
        self.client.tally.write(Write {
            client: self.client.name.clone(),
            number: self.number,
            operation,
            order,
            started_nanos: exchange.started_nanos,
            ended_nanos: exchange.ended_nanos,
            outcome: outcome.clone(),
        });
        outcome
    }

    /// Looks at what it wrote: never older than what it was told.
    async fn look_at_order(&mut self) {
        let own = self.random.choice(&self.orders).cloned();
        let Some(own) = own else { return };
        let exchange = self.client.exchange(Method::GET, &format!("/orders/{}", own.id), None).await;
        self.client.count(&exchange, |status| status.is_success());
        let Ok(answer) = exchange.answer else { return };
        let seen =
            serde_json::from_slice::<Order>(&answer.body).ok().filter(|_| answer.status == StatusCode::OK);
        let stale = match (&seen, answer.status) {
            (Some(order), _) => order.version < own.version,
            (None, StatusCode::NOT_FOUND) => true,
            _ => false, // an error is counted as failed, not as stale
        };
        if stale {
            let shown = seen.map_or("nothing".to_string(), |order| format!("version {}", order.version));
            self.stale(
                &answer,
                format!("order {} with version {} was acknowledged and {shown} shown", own.id, own.version),
            );
        }
    }

    async fn look_at_removed(&mut self) {
        let Some(id) = self.removed.clone() else { return };
        let exchange = self.client.exchange(Method::GET, &format!("/orders/{id}"), None).await;
        self.client.count(&exchange, |status| status.is_success() || status == StatusCode::NOT_FOUND);
        if let Ok(answer) = exchange.answer
            && answer.status == StatusCode::OK
        {
            self.stale(&answer, format!("order {id} is shown after its removal was acknowledged"));
        }
    }

    async fn look_at_receipts(&mut self) {
        let Some(receipt) = self.receipt.clone() else { return };
        let exchange =
            self.client.exchange(Method::GET, &format!("/orders?client={}", self.client.name), None).await;
        self.client.count(&exchange, |status| status.is_success());
        if let Ok(answer) = exchange.answer
            && answer.status == StatusCode::OK
            && !String::from_utf8_lossy(&answer.body).contains(&format!("\"{receipt}\""))
        {
            self.stale(&answer, format!("receipt {receipt} was promised and is not in the list"));
        }
    }

    fn stale(&self, answer: &Answer, text: String) {
        let cloud = answer.header(CLOUD_HEADER).unwrap_or("no cloud");
        self.client.tally.violation(true, format!("{}: {text} ({cloud})", self.client.name));
    }
}

impl Turn for Writer {
    async fn turn(&mut self) {
        let roll = self.random.u32(..100);
        match roll {
            _ if self.orders.is_empty() => self.create().await,
            0..30 if self.orders.len() < MOST_ORDERS => self.create().await,
            0..45 => self.remove().await,
            45..70 => self.update().await,
            70..90 => self.look_at_order().await,
            90..95 => self.look_at_receipts().await,
            _ => self.look_at_removed().await,
        }
    }
}

/// What the answer to a write means. Only a shop's own success counts as done; only the gateway's word, or an answer that a
/// shop gives before it does anything, counts as not done.
fn outcome(answer: &Result<Answer, NoAnswer>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(NoAnswer::NotSent(why)) => return Outcome::Refused { status: 0, why: why.clone() },
        Err(error) => return Outcome::Unknown { why: error.to_string() },
    };
    let status = answer.status.as_u16();
    let told = || {
        format!("{status}: {}", String::from_utf8_lossy(&answer.body).chars().take(200).collect::<String>())
    };
    match (answer.header(CLOUD_HEADER), answer.header(OUTCOME_HEADER)) {
        (Some(cloud), _) if answer.status.is_success() => Outcome::Acknowledged { cloud: cloud.into() },
        (Some(_), _) if answer.status.is_client_error() => Outcome::Refused { status, why: told() },
        (None, Some("not-sent")) => Outcome::Refused { status, why: told() },
        _ => Outcome::Unknown { why: told() },
    }
}

/// Looks at pictures and compares them with what was put there.
pub(super) struct Reader {
    client: Client,
    random: Rng,
    media: Arc<Vec<Seeded>>,
}

impl Reader {
    pub(super) fn new(config: &LoadConfig, number: u32, tally: Arc<Tally>) -> Self {
        let random = Rng::with_seed(config.seed.wrapping_mul(37).wrapping_add(u64::from(number)));
        Self { client: Client::new(config, "r", number, tally), random, media: config.media.clone() }
    }
}

impl Turn for Reader {
    async fn turn(&mut self) {
        let Some(picture) = self.random.choice(self.media.iter()) else {
            let exchange = self.client.exchange(Method::GET, "/healthz", None).await;
            return self.client.count(&exchange, |status| status.is_success());
        };
        let name = picture.key.strip_prefix(MEDIA).unwrap_or(&picture.key);
        let path = format!("/media/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        let exchange = self.client.exchange(Method::GET, &path, None).await;
        self.client.count(&exchange, |status| status.is_success());
        if let Ok(answer) = exchange.answer
            && answer.status == StatusCode::OK
            && !picture.is(&answer.body)
        {
            let cloud = answer.header(CLOUD_HEADER).unwrap_or("no cloud");
            let text = format!(
                "{} of {cloud} has other content than it should ({} bytes)",
                picture.key,
                answer.body.len()
            );
            self.client.tally.violation(false, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> Result<Answer, NoAnswer> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() })
    }

    #[test]
    fn what_answers_mean() {
        let shop = (CLOUD_HEADER, "A");
        assert!(matches!(outcome(&answer(201, &[shop])), Outcome::Acknowledged { cloud } if cloud == "A"));
        assert!(matches!(outcome(&answer(201, &[])), Outcome::Unknown { .. }), "not from a shop");
        assert!(matches!(outcome(&answer(404, &[shop])), Outcome::Refused { status: 404, .. }));
        assert!(matches!(outcome(&answer(503, &[(OUTCOME_HEADER, "not-sent")])), Outcome::Refused { .. }));
        assert!(matches!(outcome(&answer(502, &[(OUTCOME_HEADER, "unknown")])), Outcome::Unknown { .. }));
        assert!(
            matches!(outcome(&answer(503, &[shop])), Outcome::Unknown { .. }),
            "the shop may have stored half of it"
        );
        assert!(matches!(outcome(&Err(NoAnswer::Late)), Outcome::Unknown { .. }));
        assert!(matches!(outcome(&Err(NoAnswer::NotSent("x".into()))), Outcome::Refused { .. }));
    }
}
