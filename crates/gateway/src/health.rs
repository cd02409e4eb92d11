//! Asks both sides of every service once a second whether they are well, and turns the measuring windows. Only reports; routing
//! looks at the result.

use crate::body::RequestBody;
use crate::core::Core;
use crate::service::{Service, SideState};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use rehome_part::Side;
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
            service.source.pool.sweep();
            service.target.pool.sweep();
            if count.is_multiple_of(WINDOW) {
                service.turn();
            }
        }
    }
}

async fn look(service: &Service) {
    let Some(path) = &service.plan.health else { return };
    let sides = [Side::Source, Side::Target].map(|side| async move {
        let state = service.side(side);
        let healthy = tokio::time::timeout(PATIENCE, is_well(state, path)).await.unwrap_or(false);
        if state.healthy() != Some(healthy) {
            tracing::info!(service = service.plan.name, %side, healthy, "health");
        }
        state.set_healthy(healthy);
    });
    futures::future::join_all(sides).await;
}

async fn is_well(state: &SideState, path: &PathAndQuery) -> bool {
    let Ok((mut connection, connecting)) = state.pool.connect().await else { return false };
    if let Some(took) = connecting {
        state.connects.record(took);
    }
    let request = Request::builder()
        .uri(Uri::from(path.clone()))
        .header(header::HOST, &state.pool.upstream.authority)
        .header(header::USER_AGENT, "rehome-gateway")
        .header(header::CONNECTION, "close")
        .body(RequestBody::Empty);
    let Ok(request) = request else { return false };
    match connection.sender.send_request(request).await {
        Ok(response) => {
            let status = response.status();
            let drained = response.into_body().collect().await.is_ok();
            drained && (StatusCode::OK..StatusCode::MULTIPLE_CHOICES).contains(&status)
        }
        Err(_) => false,
    }
}
