//! `rehome gateway`: the gateway as its own process, beside whatever carries the engine.

use super::{Context, resolve};
use crate::exit::{CliError, Exit, with_path};
use crate::paths;
use clap::Args;
use rehome_databases::{Address, trusted_by};
use rehome_gateway::pgbouncer::PgBouncer;
use rehome_gateway::postgres::{End, FrontDoor, Login};
use rehome_gateway::{Backend, Config};
use rehome_spec::{Database, Gateway, Migration};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

/// Run the gateway: the proxy that users reach the application through
///
/// Reads go to both sides by weight, writes to the owner only; during a switch writes wait here for a moment. The
/// gateway keeps serving when the engine is dead, and it ends gracefully on SIGTERM. Certificates are read again when
/// their files change, and on SIGHUP.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Which `[[gateways]]` entry this process is, when there are several
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Prometheus metrics on this address
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Append one JSON line per request to this file
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// How long open requests may take to finish after SIGTERM, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub drain: u64,
    /// Write the addresses it listens on as JSON into this file once it does
    #[arg(long, hide = true)]
    pub ready: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub sabotage: Vec<String>,
    /// End when standard input ends: the demo's gateway does not outlive the demo
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

pub async fn run(context: &Context<'_>, args: &GatewayArgs) -> Result<Exit, CliError> {
    crate::daemon::log::to_stderr();
    let (_, migration) = context.migration()?;
    let mut config = config(&context.home, &migration, args.name.as_deref())?;
    config.metrics = args.metrics;
    config.access_log = args.access_log.clone();
    config.sabotage = args.sabotage.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(with_path(Path::new("SIGTERM")))?;
    let mut reload = signal(SignalKind::hangup()).map_err(with_path(Path::new("SIGHUP")))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(with_path(Path::new("SIGINT")))?;
    let control = config.control.clone();
    let running = rehome_gateway::start(config)
        .await
        .map_err(|error| CliError::failed(format!("the gateway cannot start: {error}")))?;
    if let Some(path) = &args.ready {
        paths::write_private(
            path,
            serde_json::json!({ "services": running.addresses, "remote": running.remote })
                .to_string()
                .as_bytes(),
        )?;
    }
    for (service, address) in &running.addresses {
        context.printer.talk(&format!("{service}: listening on {address}"));
    }
    context.printer.talk(&format!("controlled by {}", control.display()));
    if let Some(remote) = &running.remote {
        context.printer.talk(&format!("and by whoever shows the token on {remote}"));
    }
    let mut ended = std::pin::pin!(stdin_ended());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => running.reload().await,
            () = &mut ended, if args.end_with_stdin => break,
        }
    }
    context.printer.talk("draining: no new connections, open requests finish");
    let drained = running.drain(Duration::from_secs(args.drain)).await;
    if drained.cut > 0 {
        context.printer.warning(&format!("{} connections did not end in time and were cut", drained.cut));
    }
    Ok(Exit::Done)
}

async fn stdin_ended() {
    let mut stdin = tokio::io::stdin();
    // Whatever is written there is nobody's message; an error is an end, too.
    while matches!(stdin.read(&mut [0u8; 256]).await, Ok(1..)) {}
}

/// What the gateway of this name is made from; the same words the engine finds it by.
fn config(home: &Path, migration: &Migration, name: Option<&str>) -> Result<Config, CliError> {
    if !migration.needs_gateways() {
        return Err(CliError::failed(
            "the migration file has no `[[services]]`, so a gateway has nothing to do",
        )
        .hint("add a `[[services]]` table with name, listen, source and target"));
    }
    let gateways = migration.gateways_or_default(home);
    let gateway: &Gateway = match (name, gateways.as_slice()) {
        (None, [only]) => only,
        (None, _) => return Err(CliError::usage("the file has several gateways; add `--name NAME`")),
        (Some(name), all) => all
            .iter()
            .find(|gateway| gateway.name == name)
            .ok_or_else(|| CliError::not_found(format!("the migration file has no gateway `{name}`")))?,
    };
    let folder = gateway.control.parent().map(Path::to_owned).unwrap_or_else(|| PathBuf::from("."));
    paths::private_folder(&folder)?;
    let state = folder.join(format!("{}.state", gateway.name));
    let (name, control, services) =
        (gateway.name.clone(), gateway.control.clone(), migration.services.clone());
    let config = Config::new(name, state, control, secret(gateway)?, services);
    let mut bouncers = Vec::new();
    let fronts = migration.databases.iter().filter_map(|database| Some((database, database.front.as_ref()?)));
    let front_doors =
        fronts.map(|(database, front)| front_door(database, front)).collect::<Result<_, _>>()?;
    for database in &migration.databases {
        let ours = database.pgbouncers.iter();
        for written in ours.filter(|one| one.gateway.as_ref().is_none_or(|name| *name == gateway.name)) {
            bouncers.push(pgbouncer(database, written)?);
        }
    }
    Ok(Config {
        bouncers,
        front_doors,
        hold: migration.switch.hold.clone(),
        remote: gateway.remote.clone(),
        ..config
    })
}

/// A PgBouncer as the gateway drives it.
pub fn pgbouncer(database: &Database, written: &rehome_spec::PgBouncer) -> Result<PgBouncer, CliError> {
    let backend = |end: &rehome_spec::DatabaseEnd| address(&end.url).map(backend);
    let (console, source) = (address(&written.admin)?, backend(&database.source)?);
    let password = written.password.as_ref().map(resolve).transpose();
    Ok(PgBouncer {
        name: database.name.clone(),
        console: (console.host, console.port),
        user: console.user,
        password: password.map_err(|error| CliError::new(Exit::Credentials, error))?,
        file: written.file.clone(),
        database: written.database.clone().unwrap_or_else(|| source.database.clone()),
        options: written.options.clone(),
        source,
        target: backend(&database.target)?,
    })
}

/// A front door as the gateway opens it.
pub fn front_door(database: &Database, written: &rehome_spec::DatabaseFront) -> Result<FrontDoor, CliError> {
    let end = |end: &rehome_spec::DatabaseEnd| {
        let address = address(&end.url)?;
        let tls = trusted_by(&address).map_err(|error| CliError::usage(error.text))?;
        Ok::<_, CliError>(End { at: backend(address), tls })
    };
    let credentials = |error| CliError::new(Exit::Credentials, error);
    let mut logins = Vec::new();
    for login in &database.source.applications {
        let Some(password) = &login.password else { continue };
        let password = resolve(password).map_err(credentials)?;
        let there = database.target.applications.iter().find(|other| other.user == login.user);
        let there = there.and_then(|other| other.password.as_ref()).map(resolve).transpose();
        let there = there.map_err(credentials)?.unwrap_or_else(|| password.clone());
        logins.push(Login { user: login.user.clone(), passwords: [password, there] });
    }
    let source = end(&database.source)?;
    Ok(FrontDoor {
        name: database.name.clone(),
        listen: written.listen.clone(),
        tls: written.tls.clone(),
        database: source.at.database.clone(),
        logins,
        source,
        target: end(&database.target)?,
    })
}

fn address(text: &str) -> Result<Address, CliError> {
    Address::parse(text).map_err(|error| CliError::usage(error.text).hint(error.hint))
}

fn backend(at: Address) -> Backend {
    Backend { host: at.host, port: at.port, database: at.database }
}

/// The shared secret of a gateway: its `token`, or a file beside its socket that the first one to come writes.
pub fn secret(gateway: &Gateway) -> Result<String, CliError> {
    if let Some(token) = &gateway.token {
        return resolve(token).map_err(|error| CliError::new(Exit::Credentials, error));
    }
    let path = gateway.control.with_extension("secret");
    if !path.exists() {
        if let Some(folder) = path.parent() {
            paths::private_folder(folder)?;
        }
        publish_once(&path, &paths::fresh_secret()?)?;
    }
    std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(with_path(&path))
}

/// Two processes may come at once: whoever links its file first wins, and both read that one.
fn publish_once(path: &Path, secret: &str) -> Result<(), CliError> {
    let mine = path.with_extension(format!("secret-{}", std::process::id()));
    paths::write_private(&mine, secret.as_bytes())?;
    let linked = std::fs::hard_link(&mine, path);
    let removed = std::fs::remove_file(&mine);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(with_path(path)(error)),
        _ => removed.map_err(with_path(&mine)),
    }
}
