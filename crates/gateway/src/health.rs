//! Asks both sides of every service once a second whether they are well, and turns the measuring windows. Only reports; routing
//! looks at the result.

use crate::body::RequestBody;
use crate::core::Core;
use crate::service::{Service, SideState};
use crate::upstream::Member;
use http::uri::PathAndQuery;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use rehome_part::Side;
use rehome_spec::UpstreamHttp;
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
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
    let well = is_well(service, state, member, path);
    let healthy = tokio::time::timeout(PATIENCE, well).await.unwrap_or(false);
    if member.healthy() != Some(healthy) {
        let upstream = &member.upstream.authority;
        tracing::info!(service = service.plan.name, %side, upstream, healthy, "health");
    }
    member.set_healthy(healthy);
}

async fn is_well(service: &Service, state: &SideState, member: &Arc<Member>, path: &PathAndQuery) -> bool {
    // A connection of its own where that says something about the next one; HTTP/2 has one for everybody.
    let taken = match service.plan.dialing.http {
        UpstreamHttp::One => member.connect().await,
        UpstreamHttp::Two => member.take(false).await,
    };
    let Ok((mut connection, connecting)) = taken else { return false };
    if let Some(took) = connecting {
        state.connects.record(took);
    }
    let authority = &member.upstream.authority;
    let uri = service.plan.upstream_uri(Some(path.clone()), Some(authority), member.upstream.secure);
    let request = Request::builder().uri(uri).header(header::USER_AGENT, "rehome-gateway");
    let request = match service.plan.dialing.http {
        UpstreamHttp::One => request.header(header::HOST, authority).header(header::CONNECTION, "close"),
        UpstreamHttp::Two => request,
    };
    let Ok(request) = request.body(RequestBody::Empty) else { return false };
    match connection.send(request).await {
        Ok(response) => {
            let status = response.status();
            let drained = response.into_body().collect().await.is_ok();
            drained && (StatusCode::OK..StatusCode::MULTIPLE_CHOICES).contains(&status)
        }
        Err(_) => false,
    }
}
