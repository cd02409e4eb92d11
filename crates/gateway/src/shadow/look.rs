//! One pair of answers: the looks at both sides that are needed until it is clear whether they differ. Sends safe requests only,
//! through the pools of the service, and never counts as traffic of a side.

use super::Missed;
use super::compare::{self, Answer, Places, differences, without_noise};
use super::endpoint::endpoint;
use super::ranking::Found;
use crate::body::RequestBody;
use crate::service::Service;
use crate::upstream::Head;
use bytes::BytesMut;
use http::{HeaderName, HeaderValue};
use rehome_part::Side;
use std::future::poll_fn;
use std::time::{Duration, Instant};

/// Marks what nobody waits for, so that the application's own counts can leave it out.
pub(super) const MARK: HeaderName = HeaderName::from_static("rehome-shadow");
/// How long one look may take.
const LONGEST: Duration = Duration::from_secs(10);
/// How often freshness is looked at, while the other side may only be behind.
const AGAIN: Duration = Duration::from_millis(50);
/// A side that is not known to have everything after twice what the service tolerates, and this long, is not compared.
const CATCH_UP: Duration = Duration::from_secs(1);

/// What the client was told, and what it had asked.
#[derive(Debug)]
pub(super) struct Pair {
    /// Marked as nobody's.
    pub head: Head,
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
    let endpoint = endpoint(&pair.head.parts.method, pair.head.parts.uri.path());
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
    let (other, took) = match look(service, owner.other(), &pair.head).await {
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
    let other = match look(service, owner.other(), &pair.head).await {
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
    match look(service, owner, &pair.head).await {
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
async fn look(service: &Service, side: Side, head: &Head) -> Result<(Answer, Duration), Blind> {
    let patience = service.plan.upstream_timeout.min(LONGEST);
    tokio::time::timeout(patience, ask(service, side, head)).await.unwrap_or(Err(Blind::NoAnswer))
}

async fn ask(service: &Service, side: Side, head: &Head) -> Result<(Answer, Duration), Blind> {
    let (mut connection, _) = service.side(side).group.take(false).await.map_err(|_| Blind::NoAnswer)?;
    let began = Instant::now();
    connection.begin(head, RequestBody::Empty);
    let Some(Ok(head)) = connection.answer(LONGEST, None).await else { return Err(Blind::NoAnswer) };
    let took = began.elapsed();
    // What the gateway changes in an answer on its way to the client is changed here, too.
    let parts = head.into_prepared(&HeaderValue::from_static("-")).map_err(|_| Blind::NoAnswer)?;
    let mut whole = BytesMut::from(connection.take_whole().unwrap_or_default());
    while let Some(frame) = poll_fn(|cx| connection.poll_frame(cx)).await {
        let frame = frame.map_err(|_| Blind::NoAnswer)?;
        if let Some(piece) = frame.data_ref() {
            if whole.len() + piece.len() > compare::LARGEST {
                return Err(Blind::Large);
            }
            whole.extend_from_slice(piece);
        }
    }
    connection.give_back();
    Ok((Answer { body: whole.freeze(), ..compare::answer_of(&parts) }, took))
}
