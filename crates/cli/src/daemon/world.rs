//! Builds the world of a run out of its migration file: parts, gateways, workers, clock, faults.

use super::faults::Planned;
use super::gateways::ControlledGateways;
use super::launch::Extras;
use super::ports::{EntryLock, GuardProcess, ShellWorkers};
use crate::commands::{self, Context};
use crate::exit::CliError;
use crate::paths::{self, RunFolder};
use rehome_engine::ports::Gateways;
use rehome_engine::{ServiceInfo, SessionRule, Settings, SystemClock, World};
use rehome_part::Part;
use rehome_spec::{Migration, Secret, Sessions, WhenWorse};
use std::path::Path;
use std::sync::Arc;

type Resolve<'a> = &'a dyn Fn(&Secret) -> Result<String, String>;

/// Every part of the file, its state below `folder`.
pub fn parts(
    migration: &Migration,
    folder: &Path,
    secret: Resolve<'_>,
    sabotage: &[String],
) -> Result<Vec<Arc<dyn Part>>, CliError> {
    let settings = rehome_objects::Settings { sabotage: sabotage.to_vec(), ..Default::default() };
    let one = |objects: &rehome_spec::Objects| {
        let state = folder.join(&objects.name);
        paths::private_folder(&state)?;
        rehome_objects::part_with(objects, &state, secret, settings.clone())
            .map_err(|error| CliError::from(error).within(&format!("cannot open {}", objects.name)))
    };
    let objects = migration.objects.iter().map(one);
    let databases = migration.databases.iter().map(|database| {
        let state = folder.join(&database.name);
        paths::private_folder(&state)?;
        let part = rehome_databases::part(database, &state, secret);
        part.map_err(|error| CliError::from(error).within(&format!("cannot open {}", database.name)))
    });
    objects.chain(databases).collect()
}

/// Everything an engine (or a guard that takes over) acts through.
pub fn build(
    context: &Context<'_>,
    run: &RunFolder,
    migration: &Migration,
    extras: &Extras,
) -> Result<World, CliError> {
    let parts = parts(migration, &run.path.join("parts"), &commands::resolve, &extras.sabotage)?;
    let names = migration.services.iter().map(|service| service.name.clone()).collect();
    let gateways: Vec<_> =
        if migration.needs_gateways() { migration.gateways_or_default(&context.home) } else { Vec::new() };
    let gateways = ControlledGateways::new(
        &gateways,
        &run.name(),
        vec![run.socket(), run.guard_socket()],
        run.read_secret()?,
        migration.switch.sessions,
        names,
    )?;
    let gateways: Arc<dyn Gateways> = Arc::new(gateways);
    Ok(World {
        parts,
        services: services(migration),
        gateways,
        workers: Arc::new(ShellWorkers { workers: migration.workers.clone() }),
        clock: Arc::new(SystemClock),
        faults: Arc::new(Planned::new(&extras.faults, &extras.sabotage)),
        entry: Arc::new(EntryLock { path: run.entry_lock() }),
        guard: Arc::new(GuardProcess {
            home: context.home.clone(),
            run: run.clone(),
            arguments: extras.guard_arguments(),
        }),
    })
}

fn services(migration: &Migration) -> Vec<ServiceInfo> {
    migration
        .services
        .iter()
        .map(|service| ServiceInfo {
            name: service.name.clone(),
            uses: service.uses.clone(),
            max_staleness: service.max_staleness.0,
        })
        .collect()
}

pub fn settings(migration: &Migration) -> Settings {
    let switch = &migration.switch;
    Settings {
        max_pause: switch.max_pause.0,
        in_flight_deadline: switch.in_flight_deadline.0,
        // Without a service nobody's reads can be shared out.
        read_steps: if migration.services.is_empty() { Vec::new() } else { switch.read_steps.clone() },
        read_step_time: switch.read_step_time.0,
        shadow_time: switch.shadow_time.0,
        max_added_latency: switch.max_added_latency.0,
        reverse_when_worse: switch.when_worse == WhenWorse::Reverse,
        soak: switch.soak.0,
        hold_requests: switch.hold.requests,
        sessions: match switch.sessions {
            Sessions::Wait => SessionRule::Wait,
            Sessions::Close => SessionRule::Close,
            Sessions::Refuse => SessionRule::Refuse,
        },
        accepted_gates: switch.accept.iter().map(|gate| gate.name().to_owned()).collect(),
        ..Settings::default()
    }
}
