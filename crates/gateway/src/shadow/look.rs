//! One pair of answers: the looks at both sides that are needed until it is clear whether they differ. Sends safe requests only,
//! through the pools of the service, and never counts as traffic of a side.

use super::Missed;
use super::compare::{self, Answer, Places, differences, without_noise};
use super::endpoint::endpoint;
use super::ranking::Found;
use crate::body::RequestBody;
use crate::service::Service;
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt;
use rehome_part::Side;
use std::time::{Duration, Instant};

/// Marks what nobody waits for, so that the application's own counts can leave it out.
const MARK: HeaderName = HeaderName::from_static("rehome-shadow");
/// How long one look may take.
const LONGEST: Duration = Duration::from_secs(10);
/// How often freshness is looked at, while the other side may only be behind.
const AGAIN: Duration = Duration::from_millis(50);
/// A side that is not known to have everything after twice what the service tolerates, and this long, is not compared.
const CATCH_UP: Duration = Duration::from_secs(1);

/// What the client was told, and what it had asked.
#[derive(Debug)]
pub(super) struct Pair {
    pub request: Request<RequestBody>,
    pub first: Answer,
    pub took: Duration,
    pub id: String,
}

/// Why a look gave nothing to compare.
enum Blind {
    NoAnswer,
    Large,
}

/// Compares one pair and writes down what came of it.
pub(super) async fn compare(service: &Service, pair: Pair) {
    let owner = service.gate.owner();
    let endpoint = endpoint(pair.request.method(), pair.request.uri().path());
    let looked = looks(service, owner, &pair).await;
    // Who owned the answer must own it still: in between, the sides changed their parts.
    if service.gate.owner() != owner || !service.shadow.is_on() {
        return service.shadow.miss(Missed::Cut);
    }
    match looked {
        Ok((found, noisy)) => {
            service.shadow.ranking().note(endpoint, Found { places: found, noisy, id: pair.id });
        }
        Err(why) => service.shadow.miss(why),
    }
}

async fn looks(service: &Service, owner: Side, pair: &Pair) -> Result<(Places, bool), Missed> {
    let shadow = &service.shadow;
    let (other, took) = match look(service, owner.other(), &pair.request).await {
        Ok(looked) => looked,
        Err(Blind::Large) => return Err(Missed::Large),
        Err(Blind::NoAnswer) => return Ok((no_answer(owner.other()), false)),
    };
    shadow.owner_times.record(pair.took);
    shadow.other_times.record(took);
    let found = differences(&pair.first, &other, &shadow.ignored);
    if found.is_empty() {
        return Ok((found, false));
    }
    // A second look at the owner: what changed there is noise. Its moment is what the other side must have caught up with.
    let asked = service.clock.micros();
    let second = look_again(service, owner, pair).await?;
    let mut noise = differences(&pair.first, &second, &shadow.ignored);
    let left = without_noise(found, &noise);
    if left.is_empty() {
        return Ok((left, true));
    }
    caught_up(service, asked).await?;
    let other = match look(service, owner.other(), &pair.request).await {
        Ok((other, _)) => other,
        Err(Blind::Large) => return Err(Missed::Large),
        Err(Blind::NoAnswer) => return Ok((no_answer(owner.other()), false)),
    };
    let third = look_again(service, owner, pair).await?;
    noise.extend(differences(&second, &third, &shadow.ignored));
    let found = differences(&third, &other, &shadow.ignored);
    Ok((without_noise(found, &noise), !noise.is_empty()))
}

fn no_answer(side: Side) -> Places {
    [(format!("no answer from the {side}"), compare::Kind::Missing)].into()
}

async fn look_again(service: &Service, owner: Side, pair: &Pair) -> Result<Answer, Missed> {
    match look(service, owner, &pair.request).await {
        Ok((answer, _)) => Ok(answer),
        Err(_) => Err(Missed::Unsure),
    }
}

/// Until everything acknowledged before `moment` can be read on the other side.
async fn caught_up(service: &Service, moment: u64) -> Result<(), Missed> {
    let until = Instant::now() + (service.plan.max_staleness * 2 + CATCH_UP).min(LONGEST);
    while Instant::now() < until {
        if service.through.load(std::sync::atomic::Ordering::Relaxed) >= moment {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(Missed::Stale)
}

/// One answer of one side with its whole body, and the time to its head.
async fn look(
    service: &Service,
    side: Side,
    request: &Request<RequestBody>,
) -> Result<(Answer, Duration), Blind> {
    let patience = service.plan.upstream_timeout.min(LONGEST);
    tokio::time::timeout(patience, ask(service, side, request)).await.unwrap_or(Err(Blind::NoAnswer))
}

async fn ask(
    service: &Service,
    side: Side,
    request: &Request<RequestBody>,
) -> Result<(Answer, Duration), Blind> {
    let mut copy = Request::new(RequestBody::Empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.headers_mut().insert(MARK, HeaderValue::from_static("1"));
    let (mut connection, _) = service.side(side).group.take(false).await.map_err(|_| Blind::NoAnswer)?;
    let began = Instant::now();
    let response = connection.send(copy).await.map_err(|_| Blind::NoAnswer)?;
    let took = began.elapsed();
    let (mut response, mut body) = (compare::answer_of(&response), response.into_body());
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Blind::NoAnswer)?;
        if let Some(piece) = frame.data_ref() {
            if whole.len() + piece.len() > compare::LARGEST {
                connection.cut();
                return Err(Blind::Large);
            }
            whole.extend_from_slice(piece);
        }
    }
    connection.give_back();
    // What the gateway takes out of an answer on its way to the client is taken out here, too.
    crate::headers::prepare_response(&mut response.headers, http::Version::HTTP_11);
    response.body = whole.freeze();
    Ok((response, took))
}
