//! Asks both sides of every service once a second whether they are well, and turns the measuring windows. Only reports; routing
//! looks at the result.

use crate::body::RequestBody;
use crate::config::{GatewayError, Plan};
use crate::control::Mode;
use crate::core::Core;
use crate::service::{Service, SideState};
use crate::upstream::{Head, Member};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, header};
use rehome_part::Side;
use rehome_spec::UpstreamHttp;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// Connections that are opened ahead of time.
const WARM_LEAST: usize = 2;
const WARM_MOST: usize = 256;
/// Periods per measuring window; two windows count.
const WINDOW: u64 = 30;

/// Runs for the life of the gateway.
pub(crate) async fn watch(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0_u64;
    loop {
        ticks.tick().await;
        count += 1;
        let rounds = core.services.iter().map(|(service, _)| look(service));
        futures::future::join_all(rounds).await;
        for (service, _) in &core.services {
            let members =
                [&service.source, &service.target].into_iter().flat_map(|side| side.group.members());
            members.for_each(|member| member.sweep());
            service.budget.second();
            if count.is_multiple_of(WINDOW) {
                service.turn();
            }
        }
    }
}

/// Runs for the life of the gateway: has connections to the other side open before requests go there, as many as the owner's,
/// while a share of reads or a switch is under way. The way there may be long, and then everybody would wait for it at once.
pub(crate) async fn keep_warm(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = core.warm.notified() => {}
        }
        let in_switch = core.gate.mode() != Mode::Standing;
        let soon = |service: &Service| in_switch || service.weight_actual() > 0 || service.shadow.is_on();
        let all = core.services.iter().filter(|(service, _)| soon(service)).map(|(service, _)| {
            let owner = core.gate.owner();
            let wanted = service.side(owner).group.open().clamp(WARM_LEAST, WARM_MOST);
            service.side(owner.other()).group.warm(wanted)
        });
        futures::future::join_all(all).await;
    }
}

async fn look(service: &Service) {
    let Some(path) = &service.plan.health else { return };
    let members = [Side::Source, Side::Target].into_iter().flat_map(|side| {
        let state = service.side(side);
        state.group.members().iter().map(move |member| look_at(service, side, state, member, path))
    });
    futures::future::join_all(members).await;
}

async fn look_at(
    service: &Service,
    side: Side,
    state: &SideState,
    member: &Arc<Member>,
    path: &PathAndQuery,
) {
    let healthy = match ask(&service.plan, member, path, PATIENCE).await {
        Ok((status, connecting)) => {
            if let Some(took) = connecting {
                state.connects.record(took);
            }
            status.is_success()
        }
        Err(_) => false,
    };
    if member.healthy() != Some(healthy) {
        let upstream = &member.upstream.authority;
        tracing::info!(service = service.plan.name, %side, upstream, healthy, "health");
    }
    member.set_healthy(healthy);
}

/// What one address answers, and how long connecting took.
async fn ask(
    plan: &Plan,
    member: &Arc<Member>,
    path: &PathAndQuery,
    patience: Duration,
) -> io::Result<(StatusCode, Option<Duration>)> {
    let asked = async {
        // A connection of its own where that says something about the next one; HTTP/2 has one for everybody.
        let (mut connection, connecting) = match plan.dialing.http {
            UpstreamHttp::One => member.connect().await?,
            UpstreamHttp::Two => member.take(false).await?,
        };
        let authority = &member.upstream.authority;
        let uri = plan.upstream_uri(Some(path.clone()), Some(authority), member.upstream.secure);
        let request = Request::builder().uri(uri).header(header::USER_AGENT, "rehome-gateway");
        let request = match plan.dialing.http {
            UpstreamHttp::One => request.header(header::HOST, authority).header(header::CONNECTION, "close"),
            UpstreamHttp::Two => request,
        };
        let (parts, ()) = request.body(()).map_err(io::Error::other)?.into_parts();
        connection.begin(&Head { parts, added: Vec::new() }, RequestBody::Empty);
        let answer = connection.answer(patience, None).await;
        let answer = answer.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let status = answer.map_err(|failed| failed.error)?.status;
        connection.drain().await?;
        Ok((status, connecting))
    };
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What one address of a service said to a request of its health path (`/` without one).
#[derive(Debug)]
pub struct Probed {
    pub side: Side,
    /// `host:port`
    pub address: String,
    pub path: String,
    /// The status, or why there is none.
    pub answer: Result<u16, String>,
}

/// Asks every address of a service as a gateway would: the same TLS, the same version of HTTP.
///
/// # Errors
/// The service's settings cannot work.
pub async fn probe(service: &rehome_spec::Service) -> Result<Vec<Probed>, GatewayError> {
    let plan = Plan::check(service)?;
    let path = plan.health.clone().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let sides = [(Side::Source, &plan.source), (Side::Target, &plan.target)];
    let all = sides
        .into_iter()
        .flat_map(|(side, upstreams)| upstreams.iter().map(move |upstream| (side, upstream)));
    let (plan, path) = (&plan, &path);
    let probes = all.map(|(side, upstream)| async move {
        let member = Member::new(upstream.clone(), plan.dialing.clone(), PROBE_PATIENCE);
        let answer = ask(plan, &member, path, PROBE_PATIENCE).await;
        Probed {
            side,
            address: upstream.authority.clone(),
            path: path.to_string(),
            answer: answer.map(|(status, _)| status.as_u16()).map_err(|error| error.to_string()),
        }
    });
    Ok(futures::future::join_all(probes).await)
}
