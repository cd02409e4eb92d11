//! `rehome demo`: two clouds, live traffic, a whole migration and its proof. It writes an ordinary migration file and runs the same
//! `plan` and `apply` as a user would, as processes of their own.

mod faults;
mod gateway;
mod summary;

use super::Context;
use super::apply::Instruments;
use crate::exit::{CliError, Exit, with_path};
use crate::paths::RunFolder;
use crate::view::follow::{self, journal_error};
use clap::Args;
use faults::Mischief;
use gateway::GatewayProcess;
use rehome_journal::{Event, Reader, RunView, Stage};
use rehome_part::Side;
use rehome_testkit::load::{Load, LoadConfig, LoadLog};
use rehome_testkit::oracle::{self, Verdict};
use rehome_testkit::world::{SwitchTimes, World, WorldConfig};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Move a running shop between two clouds on this machine, and prove that nothing was lost
///
/// Starts two embedded clouds (an S3 server and a small shop each), drives readers and writers through the gateway, moves the shop
/// from A to B, and checks every acknowledged write one by one. Exits 0 only when the checker agrees.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// After the switch go on writing, switch back, and check both directions
    #[arg(long)]
    pub reverse: bool,
    /// Put the clouds this many milliseconds apart
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub rtt: u64,
    /// Objects in the shop before the move
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub objects: u64,
    /// Requests per second through the gateway
    #[arg(long, value_name = "R", default_value_t = 300.0)]
    pub rate: f64,
    /// How long the whole show takes, roughly, in seconds
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub duration: u64,
    /// Keep orders in PostgreSQL, which must be on this machine
    #[arg(long)]
    pub postgres: bool,
    /// Leave both clouds and the migration file in this folder to play with
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// The same seed makes the same shop and the same wishes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub instruments: Instruments,
    /// WHO-ACT@STATE: engine-kill, guard-kill, both-kill, gateway-kill, engine-stop
    #[arg(long, hide = true)]
    pub mischief: Option<Mischief>,
}

/// The stage of the show: everything that runs meanwhile.
struct Show<'a> {
    context: &'a Context<'a>,
    args: &'a DemoArgs,
    folder: PathBuf,
    world: World,
    gateway: Arc<GatewayProcess>,
}

pub async fn run(context: &Context<'_>, args: &DemoArgs) -> Result<Exit, CliError> {
    let scratch;
    let folder = match &args.keep {
        Some(folder) => {
            if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(
                    CliError::failed(format!("{} is not empty", folder.display())).hint("name a new folder")
                );
            }
            std::fs::create_dir_all(folder).map_err(with_path(folder))?;
            std::path::absolute(folder).map_err(with_path(folder))?
        }
        None => {
            scratch = tempfile::Builder::new()
                .prefix("rehome-demo-")
                .tempdir()
                .map_err(with_path(Path::new("/tmp")))?;
            scratch.path().to_owned()
        }
    };
    // Registered before anything is started: whatever interrupts the show, everybody on the stage goes home.
    let mut interrupts = Interrupts::register()?;
    let show = Show::open(context, args, folder).await?;
    let outcome = tokio::select! {
        outcome = Box::pin(show.play()) => outcome,
        () = interrupts.any() => Err(CliError::failed("interrupted; both clouds were taken down")),
    };
    show.close(outcome.is_ok()).await;
    outcome
}

/// Ctrl-C, the end of the terminal, or a polite kill.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn register() -> Result<Self, CliError> {
        let one = |kind| signal(kind).map_err(|error| CliError::failed(error.to_string()));
        Ok(Self([one(SignalKind::interrupt())?, one(SignalKind::terminate())?, one(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

impl<'a> Show<'a> {
    async fn open(context: &'a Context<'a>, args: &'a DemoArgs, folder: PathBuf) -> Result<Self, CliError> {
        let rehome = std::env::current_exe().map_err(with_path(Path::new("rehome")))?;
        let talk = |text: &str| context.printer.talk(text);
        talk(&format!("starting two clouds with {} objects, {} ms apart", args.objects, args.rtt));
        let config = WorldConfig {
            seed: args.seed,
            round_trip: Duration::from_millis(args.rtt),
            keep: args.keep.is_some(),
            postgres: args.postgres,
            times: SwitchTimes {
                // Four steps, then the soak: together about the duration asked for.
                read_step_time: Duration::from_millis(args.duration.max(4) * 1_000 / 8),
                ..SwitchTimes::default()
            },
            ..WorldConfig::new(folder.clone(), rehome, args.objects)
        };
        let world = World::start(&config).await.map_err(|error| CliError::failed(error.to_string()))?;
        let home = folder.join("state");
        let gateway = GatewayProcess::start(
            home,
            world.migration_file.clone(),
            &args.instruments.sabotage,
            args.keep.is_some(),
        )
        .await?;
        Ok(Self { context, args, folder, world, gateway: Arc::new(gateway) })
    }

    async fn play(&self) -> Result<Exit, CliError> {
        let args = self.args;
        let load = self.load("before")?;
        // A writer that knows nothing of the gateway: only the fence keeps it from splitting the shop in two.
        let straggler = self.straggler()?;
        let mischief = args.mischief.clone().map(|mischief| {
            faults::watch(mischief, self.run_folder(), Arc::clone(&self.gateway), self.home())
        });
        self.rehome(&["plan", "-o", &self.path("plan.json")], true).await?;
        let switched = self.apply().await?;
        self.soak().await?;
        let straggler = straggler.stop().await;
        let mut logs = Vec::new();
        let mut exit = switched;
        let mut verdicts = Vec::new();
        let mut load = load;
        if args.reverse && switched == Exit::Done {
            // The target is checked at rest; then users write again, and the way back is taken under their writes.
            logs.push(load.stop().await);
            verdicts.push(self.judge(&logs, &straggler).await?);
            load = self.load("after")?;
            exit = self.reverse().await?;
            self.soak().await?;
        }
        logs.push(load.stop().await);
        let outage = match mischief {
            Some(mischief) if mischief.is_finished() => mischief.await.ok().flatten(),
            Some(mischief) => {
                mischief.abort();
                None
            }
            None => None,
        };
        verdicts.push(self.judge(&logs, &straggler).await?);
        let view = self.view()?;
        let seen = summary::Seen {
            logs: &logs,
            straggler: &straggler,
            verdicts: &verdicts,
            unproved: self.unproved()?,
            outage,
        };
        let summary = summary::of(args, &view, &seen, &self.world.manifest);
        summary::show(self.context.printer, &summary, &view, &seen);
        Ok(summary::exit(&summary, exit))
    }

    fn home(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn run_folder(&self) -> RunFolder {
        RunFolder::new(&self.home(), "shop")
    }

    fn view(&self) -> Result<RunView, CliError> {
        RunView::load(&self.run_folder().path).map_err(|error| journal_error(&error))
    }

    fn straggler(&self) -> Result<Load, CliError> {
        let (writers, rate) = (1, 10.0);
        let config = LoadConfig {
            gateway: self.world.source.shop,
            readers: 0,
            writers,
            rate,
            ..self.traffic("straggler")
        };
        let log = config.log.clone();
        Load::start(config).map_err(with_path(&log))
    }

    fn load(&self, name: &str) -> Result<Load, CliError> {
        let config = self.traffic(name);
        let log = config.log.clone();
        Load::start(config).map_err(with_path(&log))
    }

    fn traffic(&self, name: &str) -> LoadConfig {
        let log = self.folder.join(format!("load-{name}.jsonl"));
        let media = self.world.manifest.objects.iter().filter(|object| object.key.starts_with("media/"));
        LoadConfig {
            gateway: self.world.gateway,
            readers: 8,
            writers: 8,
            rate: self.args.rate,
            name: name.to_owned(),
            seed: self.args.seed,
            media: Arc::new(media.cloned().collect()),
            log,
            patience: Duration::from_secs(30),
        }
    }

    /// What the run itself could not prove, and should have: a fence never seen to refuse, a marker never seen to arrive.
    fn unproved(&self) -> Result<Vec<String>, CliError> {
        let mut reader = Reader::open(&self.run_folder().path).map_err(|error| journal_error(&error))?;
        let last = reader.refresh().map_err(|error| journal_error(&error))?.last_seq;
        let records = reader.events_since(0, last as usize).map_err(|error| journal_error(&error))?;
        let unproved = records.into_iter().filter_map(|record| match record.event {
            Event::Fenced { proved: false, .. } => {
                Some("fence-not-proved: no write was seen to be refused".to_owned())
            }
            Event::Drained { marker_seen: false, .. } => {
                Some("marker-not-seen: the drain was believed without its marker".to_owned())
            }
            _ => None,
        });
        Ok(unproved.collect())
    }

    /// Runs this binary as a user would. What it prints on stdout is shown unless `quiet`.
    async fn rehome(&self, arguments: &[&str], quiet: bool) -> Result<ExitStatus, CliError> {
        let rehome = std::env::current_exe().map_err(with_path(Path::new("rehome")))?;
        let mut command = Command::new(&rehome);
        command.arg("--state").arg(self.home()).arg("--file").arg(&self.world.migration_file);
        if self.context.global.json {
            command.arg("--json");
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        if quiet {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        command.status().await.map_err(with_path(&rehome))
    }

    /// Applies the plan; an engine that died is started again, as `rehome apply` by a person would.
    async fn apply(&self) -> Result<Exit, CliError> {
        let instruments = &self.args.instruments;
        let mut first = vec!["apply".to_owned(), self.path("plan.json"), "--yes".to_owned()];
        first.extend(instruments.fault.iter().map(|fault| format!("--fault={fault}")));
        first.extend(instruments.guard_fault.iter().map(|fault| format!("--guard-fault={fault}")));
        let mut again = vec!["apply".to_owned(), "--yes".to_owned()];
        let mut common: Vec<String> =
            instruments.sabotage.iter().map(|name| format!("--sabotage={name}")).collect();
        if self.args.keep.is_none() {
            common.push(format!("--end-with={}", std::process::id()));
        }
        first.extend(common.clone());
        again.extend(common);
        self.until(Side::Target, &first, &again).await
    }

    async fn reverse(&self) -> Result<Exit, CliError> {
        let words: Vec<String> = ["reverse", "--yes"].map(String::from).to_vec();
        self.until(Side::Source, &words, &words).await
    }

    /// Gives the command until `owner` owns the application (or it is plain that it will not).
    async fn until(&self, owner: Side, first: &[String], again: &[String]) -> Result<Exit, CliError> {
        let mut code = None;
        for attempt in 0..5 {
            let words = if attempt == 0 { first } else { again };
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            code = self.rehome(&words, false).await?.code();
            let view = self.view()?;
            if view.owner == owner && view.stage == Stage::Reversing {
                return Ok(Exit::Done);
            }
            if code == Some(i32::from(Exit::Stuck.code())) {
                return Ok(Exit::Stuck);
            }
        }
        self.context
            .printer
            .talk(&format!("the {owner} does not own the shop after five attempts (last exit {code:?})"));
        Ok(Exit::Failed)
    }

    /// Goes on for a while after a switch; on a terminal the tree stays in sight.
    async fn soak(&self) -> Result<(), CliError> {
        let least = Duration::from_millis(self.args.duration * 1_000 / 4);
        if self.context.printer.live {
            let begun = Instant::now();
            follow::until(self.context.printer, &self.run_folder(), 0, |_| begun.elapsed() >= least).await?;
        } else {
            tokio::time::sleep(least).await;
        }
        Ok(())
    }

    /// Asks the checker about the owner of now.
    async fn judge(&self, logs: &[LoadLog], straggler: &LoadLog) -> Result<Verdict, CliError> {
        let view = self.view()?;
        let (owner, mut owners) = match view.owner {
            Side::Source => (&self.world.source, vec![self.world.source.name.clone()]),
            Side::Target => {
                (&self.world.target, vec![self.world.source.name.clone(), self.world.target.name.clone()])
            }
        };
        if view.owner == Side::Source && view.switches.iter().any(|report| report.owner == Side::Target) {
            owners = vec![
                self.world.source.name.clone(),
                self.world.target.name.clone(),
                self.world.source.name.clone(),
            ];
        }
        let bucket = owner.bucket().ok_or_else(|| CliError::failed("the demo lost its own keys"))?;
        let failed =
            |what: &str, error: String| CliError::failed(format!("the checker cannot read {what}: {error}"));
        let mut evidence = oracle::gather(&bucket, &self.world.manifest, &[".rehome/".to_owned()])
            .await
            .map_err(|error| failed("the owner's bucket", error.to_string()))?;
        let mut journals = [&self.world.source, &self.world.target]
            .into_iter()
            .map(rehome_testkit::world::Cloud::journal)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed("the clouds' own journals", error.to_string()))?;
        if let Some(records) = owner.records() {
            oracle::gather_records(&records, &mut evidence, &mut journals)
                .await
                .map_err(|error| failed("the owner's database", error))?;
        }
        let logs: Vec<&LoadLog> = logs.iter().chain([straggler]).collect();
        Ok(oracle::judge(&logs, &evidence, &journals, &owners))
    }

    async fn close(self, well: bool) {
        let printer = self.context.printer;
        if let Some(folder) = &self.args.keep {
            printer.talk(&format!(
                "kept: both clouds, the gateway and the engine go on; everything is below {}",
                folder.display()
            ));
            for process in &self.world.processes {
                printer.talk(&format!("  {:<10} pid {}", process.name, process.pid().unwrap_or_default()));
            }
            printer.talk(&format!("  {:<10} pid {}", "gateway", self.gateway.pid().unwrap_or_default()));
            printer.hint(&format!(
                "rehome --state {} --file {} status",
                self.home().display(),
                self.world.migration_file.display()
            ));
            return;
        }
        faults::end_engines(&self.run_folder(), &self.home()).await;
        self.gateway.end().await;
        if !well {
            printer.hint("the same with `--keep DIR` leaves everything there to look at");
        }
    }
}
