//! The world a demo or a test moves: two clouds with what is in them at the beginning, each cloud's S3 server and shop
//! as processes of their own, the distance between them, and the migration file. The gateway and the engine are not
//! part of it: they are what is tried.

mod migration;
mod process;
mod seed;

pub use migration::SwitchTimes;
pub use process::Process;
pub use seed::{Manifest, Profile, Seeded, seed};

use crate::cloud::{Faults, Keys, Mutation, S3Config, read_mutations};
use crate::delay::DelayConfig;
use crate::postgres::{APPLICATION, DATABASE, MIGRATION, PostgresConfig};
use crate::s3::{S3, S3Failure};
use crate::shop::{DatabaseConfig, ShopConfig};
use migration::Place;
use process::{Launch, free_addresses, write_secret};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BUCKET: &str = "shop";

/// Why there is no world.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("cannot write {path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{name}: {why}")]
    Process { name: String, why: String },
    #[error("cannot fill the source: {0}")]
    Seed(#[from] S3Failure),
}

#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// An empty or absent folder; everything is below it.
    pub directory: PathBuf,
    /// The `rehome` binary, which must know `__cloud s3|shop|delay CONFIG`.
    pub rehome: PathBuf,
    pub profile: Profile,
    pub seed: u64,
    /// Between the source's place, where gateway and engine are, and the target's.
    pub round_trip: Duration,
    /// How long a shop thinks about a write.
    pub think: Duration,
    /// Leave all processes running when this ends (`--keep`).
    pub keep: bool,
    pub times: SwitchTimes,
    /// The shops keep orders and receipts in PostgreSQL, which must be on this machine.
    pub postgres: bool,
    /// Faults of the two clouds, source first.
    pub faults: [Faults; 2],
}

impl WorldConfig {
    pub fn new(directory: PathBuf, rehome: PathBuf, objects: u64) -> Self {
        Self {
            directory,
            rehome,
            profile: Profile::of(objects),
            seed: 1,
            round_trip: Duration::ZERO,
            think: Duration::ZERO,
            keep: false,
            times: SwitchTimes::default(),
            postgres: false,
            faults: [Faults::default(), Faults::default()],
        }
    }
}

/// One cloud, near by: as its own shop sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cloud {
    /// `A` or `B`; the name in [`crate::shop::CLOUD_HEADER`] and in [`crate::oracle::judge`].
    pub name: String,
    /// Of its S3 server; the mutation journal is there.
    pub directory: PathBuf,
    pub s3: SocketAddr,
    pub events: SocketAddr,
    pub shop: SocketAddr,
    /// Of its database, where it has one.
    #[serde(default)]
    pub database: Option<SocketAddr>,
    #[serde(skip)]
    keys: Option<[Keys; 2]>,
    /// Of the migration's role in the database.
    #[serde(skip)]
    database_password: Option<String>,
}

impl Cloud {
    /// The bucket as the migration's principal sees it, without distance.
    pub fn bucket(&self) -> Option<S3> {
        self.keys.as_ref().map(|[_, migration]| S3::new(self.s3, BUCKET, migration.clone()))
    }

    /// The database as the migration's role sees it, without distance.
    pub fn records(&self) -> Option<DatabaseConfig> {
        Some(DatabaseConfig {
            address: self.database?,
            user: MIGRATION.into(),
            password: self.database_password.clone()?,
            database: DATABASE.into(),
        })
    }

    /// The name and all mutations so far, for [`crate::oracle::judge`].
    pub fn journal(&self) -> io::Result<(String, Vec<Mutation>)> {
        Ok((self.name.clone(), read_mutations(&self.directory)?))
    }
}

/// A running world. Dropped, its processes end, unless it was made to be kept.
#[derive(Debug)]
pub struct World {
    pub source: Cloud,
    pub target: Cloud,
    pub migration_file: PathBuf,
    /// Where the gateway is to listen; nobody listens there yet.
    pub gateway: SocketAddr,
    pub manifest: Manifest,
    /// `a-s3`, `a-shop`, `b-s3`, `b-shop`, and `distance` when there is one.
    pub processes: Vec<Process>,
}

impl World {
    /// Starts everything, fills the source, writes the migration file; all listen when this returns.
    pub async fn start(config: &WorldConfig) -> Result<Self, WorldError> {
        let old = config.directory.join("cloud-a");
        if old.exists() {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "there is a world already");
            return Err(WorldError::File { path: old, source });
        }
        let folders = [config.directory.clone(), config.directory.join("secrets")];
        for path in folders {
            std::fs::create_dir_all(&path).map_err(|source| WorldError::File { path, source })?;
        }
        // A cloud that is killed comes back where it was, so its addresses are fixed before it starts.
        let addresses: [SocketAddr; 9] = free_addresses()?;
        let mut processes = Vec::new();
        // The application's role moves with its password.
        let passwords = [fresh_secret(), fresh_secret()];
        let source = start_cloud(config, 0, &addresses[..4], &passwords, &mut processes).await?;
        let target = start_cloud(config, 1, &addresses[4..8], &passwords, &mut processes).await?;
        let far = start_distance(config, &source, &target, &mut processes).await?;
        let filled = source.bucket().expect("a cloud that was just started has its keys");
        let manifest = seed(&filled, config.profile, config.seed).await?;
        let gateway = addresses[8];
        let migration_file = write_migration(config, &source, &target, &far, gateway)?;
        let world = Self { source, target, migration_file, gateway, manifest, processes };
        world.write_manifest(&config.directory)?;
        Ok(world)
    }

    pub fn process(&mut self, name: &str) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.name == name)
    }

    fn write_manifest(&self, directory: &Path) -> Result<(), WorldError> {
        let path = directory.join("manifest.json");
        let text = serde_json::to_vec(&self.manifest).expect("a manifest is plain data");
        std::fs::write(&path, text).map_err(|source| WorldError::File { path, source })
    }
}

async fn start_cloud(
    config: &WorldConfig,
    side: usize,
    addresses: &[SocketAddr],
    [application, migration]: &[String; 2],
    processes: &mut Vec<Process>,
) -> Result<Cloud, WorldError> {
    let letter = ["a", "b"][side];
    let keys = [fresh_keys(letter, "app"), fresh_keys(letter, "migration")];
    let token = fresh_secret();
    let secrets = config.directory.join("secrets");
    let secret =
        |name: &str, value: &str| write_secret(&secrets.join(format!("{letter}-{name}")), value.as_bytes());
    secret("app-access", &keys[0].access_key)?;
    secret("app-secret", &keys[0].secret_key)?;
    secret("migration-access", &keys[1].access_key)?;
    secret("migration-secret", &keys[1].secret_key)?;
    secret("events-token", &token)?;
    let database = config.postgres.then_some(addresses[3]);
    if let Some(listen) = database {
        secret("database-app", application)?;
        secret("database-migration", migration)?;
        let server = PostgresConfig {
            listen,
            application_password: (side == 0).then(|| application.clone()),
            migration_password: migration.clone(),
            outlive_parent: config.keep,
        };
        processes.push(launch(config, "postgres", format!("{letter}-postgres"), &server).start().await?);
    }
    let directory = config.directory.join(format!("cloud-{letter}"));
    let s3 = S3Config {
        directory: directory.clone(),
        listen: addresses[0],
        app: keys[0].clone(),
        migration: keys[1].clone(),
        events_listen: addresses[1],
        events_token: token,
        bucket: BUCKET.into(),
        sync: false,
        feed_keep: 1_000_000,
        faults: config.faults[side].clone(),
        outlive_parent: config.keep,
    };
    let name = letter.to_ascii_uppercase();
    let shop = ShopConfig {
        cloud: name.clone(),
        listen: addresses[2],
        s3: addresses[0],
        bucket: BUCKET.into(),
        keys: keys[0].clone(),
        database: database.map(|address| DatabaseConfig {
            address,
            user: APPLICATION.into(),
            password: application.clone(),
            database: DATABASE.into(),
        }),
        think_ms: u64::try_from(config.think.as_millis()).unwrap_or(u64::MAX),
        slow_ms: 0,
        outlive_parent: config.keep,
    };
    processes.push(launch(config, "s3", format!("{letter}-s3"), &s3).start().await?);
    processes.push(launch(config, "shop", format!("{letter}-shop"), &shop).start().await?);
    Ok(Cloud {
        name,
        directory,
        s3: addresses[0],
        events: addresses[1],
        shop: addresses[2],
        database,
        keys: Some(keys),
        database_password: database.map(|_| migration.clone()),
    })
}

fn launch<'a, C: Serialize>(
    config: &'a WorldConfig,
    kind: &'static str,
    name: String,
    own: &'a C,
) -> Launch<'a, C> {
    Launch {
        rehome: &config.rehome,
        kind,
        name,
        config: own,
        folder: &config.directory,
        outlives: config.keep,
    }
}

/// What is reached from the other place: S3, feed and shop of the target, and each database.
struct Far {
    s3: SocketAddr,
    events: SocketAddr,
    shop: SocketAddr,
    target_database: Option<SocketAddr>,
    /// The source's database, as the target's server reaches it.
    source_database: Option<SocketAddr>,
}

async fn start_distance(
    config: &WorldConfig,
    source: &Cloud,
    target: &Cloud,
    processes: &mut Vec<Process>,
) -> Result<Far, WorldError> {
    let mut addresses = vec![target.s3, target.events, target.shop];
    addresses.extend(target.database);
    addresses.extend(source.database);
    if !config.round_trip.is_zero() {
        let delay = DelayConfig {
            to: addresses,
            round_trip_ms: u64::try_from(config.round_trip.as_millis()).unwrap_or(u64::MAX),
            outlive_parent: config.keep,
        };
        let process = launch(config, "delay", "distance".into(), &delay).start().await?;
        addresses = process.ready.clone();
        processes.push(process);
    }
    let other = || WorldError::Process { name: "distance".into(), why: "it names other addresses".into() };
    let [s3, events, shop, databases @ ..] = addresses.as_slice() else { return Err(other()) };
    let (target_database, source_database) = (databases.first().copied(), databases.get(1).copied());
    Ok(Far { s3: *s3, events: *events, shop: *shop, target_database, source_database })
}

fn write_migration(
    config: &WorldConfig,
    source: &Cloud,
    target: &Cloud,
    far: &Far,
    gateway: SocketAddr,
) -> Result<PathBuf, WorldError> {
    let principals = [principal("migration"), principal("migration")];
    let near = Place {
        cloud: &source.name,
        bucket: BUCKET,
        s3: source.s3,
        events: source.events,
        shop: source.shop,
        database: source.database,
        database_from_other: far.source_database.filter(|far| Some(*far) != source.database),
        principal: &principals[0],
        secrets: "a-",
    };
    let away = Place {
        cloud: &target.name,
        bucket: BUCKET,
        s3: far.s3,
        events: far.events,
        shop: far.shop,
        database: far.target_database,
        database_from_other: None,
        principal: &principals[1],
        secrets: "b-",
    };
    let path = config.directory.join("rehome.toml");
    // Secrets are named by whole paths: the file is read from wherever the user stands.
    let secrets = std::path::absolute(config.directory.join("secrets"))
        .map_err(|source| WorldError::File { path: path.clone(), source })?;
    let text = migration::text(&secrets, [&near, &away], gateway, config.times);
    std::fs::write(&path, text).map_err(|source| WorldError::File { path: path.clone(), source })?;
    Ok(path)
}

fn fresh_keys(letter: &str, name: &str) -> Keys {
    Keys {
        access_key: format!("AK{}{}", letter.to_ascii_uppercase(), name.to_ascii_uppercase()),
        secret_key: fresh_secret(),
        principal: principal(name),
    }
}

fn principal(name: &str) -> String {
    format!("arn:aws:iam::000000000000:user/{name}")
}

fn fresh_secret() -> String {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
