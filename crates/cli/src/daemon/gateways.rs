//! The engine's gateways, reached by their control sockets. Every call goes to all of them at once and succeeds only if
//! all did it.

use crate::commands::gateway::secret;
use crate::exit::CliError;
use async_trait::async_trait;
use futures::future::join_all;
use rehome_engine::ports::{GatewayStatus, Gateways, HoldProof, Moments};
use rehome_gateway::RemoteGateway;
use rehome_gateway::client::{Client, Place};
use rehome_gateway::control::{Mode, Moment, Refusal, Request, Response, SessionRule, Status};
use rehome_part::{Epoch, Error, ErrorKind, Result, Retry, Side, Token};
use rehome_spec::{Gateway, Sessions};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug)]
pub struct ControlledGateways {
    lines: Vec<Line>,
    run: String,
    /// The sockets a gateway asks for the decision: the engine's, then the guard's.
    ask: Vec<PathBuf>,
    ask_secret: String,
    sessions: SessionRule,
    /// Names of all services.
    services: Vec<String>,
}

/// The way to one gateway.
#[derive(Debug)]
struct Line {
    name: String,
    client: Client,
    /// On another machine: it cannot ask at our sockets, so it holds until the engine or the guard tells it the decision.
    is_remote: bool,
}

impl Line {
    async fn call(&self, request: Request) -> Result<Response> {
        match self.client.call(request).await {
            Ok(Response::Refused { why, text }) => Err(refused(&self.name, why, &text)),
            Ok(response) => Ok(response),
            Err(error) => Err(unreachable(&self.name, &error.to_string())),
        }
    }
}

fn place(gateway: &Gateway) -> std::result::Result<Place, CliError> {
    let Some(remote) = &gateway.remote else { return Ok(gateway.control.clone().into()) };
    RemoteGateway::new(&remote.address, remote.ca.as_deref())
        .map(Place::Remote)
        .map_err(|error| CliError::failed(error.to_string()))
}

/// One gateway's status, for `doctor`.
pub async fn status(gateway: &Gateway) -> std::result::Result<Status, String> {
    let secret = secret(gateway).map_err(|error| error.text)?;
    let client = Client::new(place(gateway).map_err(|error| error.text)?, secret, crate::audit::actor());
    match client.call(Request::Status).await {
        Ok(Response::Status(status)) => Ok(*status),
        Ok(other) => Err(format!("it answered {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

impl ControlledGateways {
    pub fn new(
        gateways: &[Gateway],
        run: &str,
        ask: Vec<PathBuf>,
        ask_secret: String,
        sessions: Sessions,
        services: Vec<String>,
    ) -> std::result::Result<Self, CliError> {
        let who = format!("engine of {run}, pid {}", std::process::id());
        let lines = gateways
            .iter()
            .map(|gateway| {
                let client = Client::new(place(gateway)?, secret(gateway)?, who.as_str());
                Ok(Line { name: gateway.name.clone(), client, is_remote: gateway.remote.is_some() })
            })
            .collect::<std::result::Result<_, CliError>>()?;
        let sessions = match sessions {
            Sessions::Wait => SessionRule::Wait,
            Sessions::Close => SessionRule::Close,
            Sessions::Refuse => SessionRule::Refuse,
        };
        Ok(Self { lines, run: run.to_owned(), ask, ask_secret, sessions, services })
    }

    /// The same request to every gateway; the first failure is the answer.
    async fn all(&self, request: &Request) -> Result<Vec<Response>> {
        self.each(|_| request.clone()).await
    }

    /// A request to every gateway, made for it; the first failure is the answer.
    async fn each(&self, request: impl Fn(&Line) -> Request) -> Result<Vec<Response>> {
        join_all(self.lines.iter().map(|line| line.call(request(line)))).await.into_iter().collect()
    }

    async fn done(&self, request: Request) -> Result<()> {
        self.all(&request).await.map(|_| ())
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        let answers = self.all(&Request::Status).await?;
        let status = |answer| match answer {
            Response::Status(status) => Ok(*status),
            other => Err(Error::permanent(
                ErrorKind::Other,
                format!("a gateway answered {other:?} to a status request"),
            )),
        };
        answers.into_iter().map(status).collect()
    }

    fn proof(answers: Vec<Response>) -> HoldProof {
        let mut proof = HoldProof::default();
        for answer in answers {
            proof.gateways += 1;
            if let Response::Held(held) = answer {
                proof.in_flight += held.in_flight;
                proof.waiting += held.waiting;
                proof.oldest_ms = proof.oldest_ms.max(held.oldest_ms);
                proof.fullness = proof.fullness.max(held.fullness);
            }
        }
        proof
    }
}

fn unreachable(name: &str, text: &str) -> Error {
    Error::temporary(ErrorKind::Network, format!("gateway {name}: {text}"))
        .hint("start it with `rehome gateway`, or see its log")
}

/// What a refusal means to the engine: may it call again, and why not.
fn refused(name: &str, why: Refusal, text: &str) -> Error {
    let (kind, retry) = match why {
        Refusal::BadSecret => (ErrorKind::Credentials, Retry::Permanent),
        Refusal::InFlight | Refusal::Sessions | Refusal::HoldFull => (ErrorKind::Deadline, Retry::Permanent),
        Refusal::IntentRecorded => (ErrorKind::Unsupported, Retry::Permanent),
        Refusal::UnknownService => (ErrorKind::NotFound, Retry::Permanent),
        Refusal::Failed => (ErrorKind::Other, Retry::Temporary),
        _ => (ErrorKind::Other, Retry::Permanent),
    };
    Error::new(kind, retry, format!("gateway {name} refused: {text}"))
}

#[async_trait]
impl Gateways for ControlledGateways {
    async fn enroll(&self, token: Token) -> Result<()> {
        self.done(Request::Enroll { run: self.run.clone(), token }).await
    }

    async fn leave(&self, token: Token) -> Result<()> {
        self.done(Request::Leave { run: self.run.clone(), token }).await
    }

    async fn status(&self) -> Result<Vec<GatewayStatus>> {
        let statuses = self.statuses().await?;
        Ok(statuses
            .into_iter()
            .map(|status| GatewayStatus {
                name: status.name,
                epoch: status.epoch,
                owner: status.owner,
                holding: status.mode == Mode::Held,
                armed: status.mode != Mode::Standing,
                intent: status.intent,
                sessions: status.held.sessions,
                slowest_ms: status.held.slowest_ms,
                slow: status.held.slow,
                services: status.services,
            })
            .collect())
    }

    async fn weight(&self, service: Option<&str>, percent: u8, token: Token) -> Result<()> {
        let all: Vec<&str> = self.services.iter().map(String::as_str).collect();
        for name in service.map_or(all, |name| vec![name]) {
            self.done(Request::Weight { service: name.to_owned(), percent, token }).await?;
        }
        Ok(())
    }

    async fn shadow(&self, on: bool, token: Token) -> Result<()> {
        for service in self.services.clone() {
            self.done(Request::Shadow { service, on, token }).await?;
        }
        Ok(())
    }

    async fn moment(&self) -> Result<Moments> {
        let statuses = self.statuses().await?;
        Ok(Moments(
            statuses.into_iter().map(|status| (status.name, status.now.process, status.now.micros)).collect(),
        ))
    }

    async fn freshness(&self, service: &str, through: Option<Moments>, token: Token) -> Result<()> {
        let request = |line: &Line| {
            let known =
                through.iter().flat_map(|moments| &moments.0).find(|(gateway, ..)| *gateway == line.name);
            let through = known.map(|(_, process, micros)| Moment { process: *process, micros: *micros });
            Request::Freshness { service: service.to_owned(), through, token }
        };
        self.each(request).await.map(drop)
    }

    async fn arm(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<()> {
        let lease_ms = lease.as_millis() as u64;
        let request = |line: &Line| {
            let ask = if line.is_remote { Vec::new() } else { self.ask.clone() };
            Request::Arm { epoch, lease_ms, ask, ask_secret: self.ask_secret.clone(), token }
        };
        self.each(request).await.map(drop)
    }

    async fn hold(&self, epoch: Epoch, in_flight: Duration, token: Token) -> Result<HoldProof> {
        let in_flight_ms = in_flight.as_millis() as u64;
        let request = Request::Hold { epoch, in_flight_ms, sessions: self.sessions, token };
        self.all(&request).await.map(Self::proof)
    }

    async fn renew(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<HoldProof> {
        let request = Request::Renew { epoch, lease_ms: lease.as_millis() as u64, token };
        self.all(&request).await.map(Self::proof)
    }

    async fn settle(&self, epoch: Epoch, owner: Side, token: Token) -> Result<()> {
        self.done(Request::Settle { epoch, owner, token }).await
    }

    async fn revoke(&self, epoch: Epoch, token: Token) -> Result<()> {
        self.done(Request::Revoke { epoch, token }).await
    }
}
