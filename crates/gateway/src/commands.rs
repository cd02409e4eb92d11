//! The control socket and what each request does; the lines are read in [`crate::conversation`]. Bounds the callers; decides
//! nothing itself (see [`crate::grant`]).

use crate::config::GatewayError;
use crate::control::{Moment, Refusal, Request, Response};
use crate::conversation::converse;
use crate::core::Core;
use crate::grant::Refused;
use crate::remote::{self, Door};
use crate::service::Service;
use crate::state_file::make_private_folder;
use rehome_part::Token;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// Callers at once.
const CONNECTIONS: usize = 32;
/// The longest deadline of a hold that is believed.
const MAX_IN_FLIGHT: Duration = Duration::from_secs(600);

/// Opens the socket (mode 0600). One that a dead process left is replaced, a live one is not.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, GatewayError> {
    let error = |text: String| GatewayError::Control { path: path.into(), text };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        make_private_folder(folder).map_err(|problem| error(format!("its folder: {problem}")))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(error("a file that is no socket is in the way".into()));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(error("another process answers there".into())),
            Err(problem) if problem.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|problem| error(problem.to_string()))?;
            }
            Err(problem) => return Err(error(problem.to_string())),
        },
        Err(_) => {}
    }
    // Under a name of its own until the mode is right, so that nobody connects before.
    let hidden = path.with_extension(format!("new-{}", std::process::id()));
    let _left_behind = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(|problem| error(problem.to_string()))?;
    fs::set_permissions(&hidden, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&hidden, path))
        .map_err(|problem| error(problem.to_string()))?;
    Ok(listener)
}

/// Serves the control socket for the life of the gateway.
pub(crate) async fn serve(listener: UnixListener, core: Arc<Core>, secret: Arc<str>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut callers = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
        while callers.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (core, secret) = (core.clone(), secret.clone());
                callers.spawn(async move {
                    let done = converse(stream, &secret, |request| handle(&core, request)).await;
                    if let Err(error) = done {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves callers from other machines for the life of the gateway.
pub(crate) async fn serve_remote(door: Door, core: Arc<Core>, secret: Arc<str>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut callers = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
        while callers.try_join_next().is_some() {}
        match door.accept().await {
            Ok(stream) => {
                let (core, secret, acceptor) = (core.clone(), secret.clone(), door.acceptor());
                callers.spawn(async move {
                    let done = async {
                        let stream = remote::shake_hands(acceptor, stream).await?;
                        converse(stream, &secret, |request| handle(&core, request)).await
                    };
                    if let Err(error) = done.await {
                        tracing::debug!(%error, "a remote control connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept callers from other machines");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Does what a request says.
pub(crate) async fn handle(core: &Core, request: Request) -> Response {
    let done = match request {
        Request::Status => return Response::Status(Box::new(core.status().await)),
        Request::Enroll { run, token } => core.change(|grant| grant.enroll(&run, token)).await,
        Request::Shed { shedding } => {
            tracing::info!(?shedding, "connections");
            core.shed
                .set(shedding)
                .map_err(|error| (Refusal::Failed, format!("the listening sockets: {error}")))
        }
        Request::Leave { run, token } => core.change(|grant| grant.leave(&run, token)).await,
        Request::Weight { service, percent, token } => weight(core, &service, percent, token).await,
        Request::Freshness { service, through, token } => freshness(core, &service, through, token).await,
        Request::Shadow { service, on, token } => shadow(core, &service, on, token).await,
        Request::Arm { epoch, lease_ms, ask, ask_secret, token } => {
            let armed = core.change(|grant| grant.arm(epoch, core.lease(lease_ms), &ask, &ask_secret, token));
            let armed = armed.await;
            if armed.is_ok() {
                core.services.iter().for_each(|(service, _)| service.shadow.set(false));
                core.warm.notify_one();
                futures::future::join_all(core.doors.iter().map(|door| door.prepared())).await;
            }
            armed
        }
        Request::Hold { epoch, in_flight_ms, sessions, token } => {
            let patience = Duration::from_millis(in_flight_ms).min(MAX_IN_FLIGHT);
            return held(core.hold(epoch, patience, sessions, token).await);
        }
        Request::Renew { epoch, lease_ms, token } => {
            let renewed = core.change(|grant| grant.renew(epoch, core.lease(lease_ms), token)).await;
            return held(renewed.map(|()| core.gate.held()));
        }
        Request::Settle { epoch, owner, token } => core.settle(epoch, owner, token).await,
        Request::Revoke { epoch, token } => core.change(|grant| grant.revoke(epoch, token)).await,
    };
    match done {
        Ok(()) => Response::Done,
        Err((why, text)) => Response::Refused { why, text },
    }
}

fn held(result: Result<crate::control::Held, Refused>) -> Response {
    match result {
        Ok(held) => Response::Held(held),
        Err((why, text)) => Response::Refused { why, text },
    }
}

fn service<'a>(core: &'a Core, name: &str) -> Result<&'a Service, Refused> {
    let found = core.services.iter().map(|(service, _)| service).find(|service| service.plan.name == name);
    found
        .map(|service| &**service)
        .ok_or_else(|| (Refusal::UnknownService, format!("no service `{name}` here")))
}

async fn weight(core: &Core, name: &str, percent: u8, token: Token) -> Result<(), Refused> {
    let service = service(core, name)?;
    if percent > 100 {
        return Err((Refusal::BadRequest, format!("{percent} % is more than all")));
    }
    core.change(|grant| {
        let next = grant.effect(token)?;
        service.weight.store(percent, Ordering::Relaxed);
        Ok(next)
    })
    .await
}

async fn shadow(core: &Core, name: &str, on: bool, token: Token) -> Result<(), Refused> {
    let service = service(core, name)?;
    core.change(|grant| {
        let next = grant.effect(token)?;
        service.shadow.set(on);
        Ok(next)
    })
    .await
}

async fn freshness(core: &Core, name: &str, through: Option<Moment>, token: Token) -> Result<(), Refused> {
    let service = service(core, name)?;
    core.change(|grant| {
        let next = grant.effect(token)?;
        // Moments of a process before this one are as good as unknown; none can lie in the future.
        let micros = through.and_then(|moment| core.clock.own(moment)).unwrap_or(0);
        service.through.store(micros.min(core.clock.micros()), Ordering::Relaxed);
        Ok(next)
    })
    .await
}
