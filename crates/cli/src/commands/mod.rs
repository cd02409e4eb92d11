//! One file per command; this one only calls them and writes the audit line.

pub mod apply;
pub mod copy;
pub mod db;
pub mod demo;
pub mod doctor;
pub mod entry;
pub mod gateway;
pub mod generate;
pub mod init;
pub mod internal;
pub mod plan;
pub mod recover;
pub mod report;
pub mod runs;
pub mod status;
pub mod steer;

use crate::arguments::{Arguments, Command, Global};
use crate::exit::{CliError, Exit, with_path};
use crate::paths::{self, RunFolder};
use crate::printer::Printer;
use crate::{audit, daemon};
use rehome_spec::Migration;
use std::path::{Path, PathBuf};

/// What every command gets: where it looks, and whom it talks to.
#[derive(Debug)]
pub struct Context<'a> {
    pub printer: &'a Printer,
    pub global: Global,
    pub home: PathBuf,
}

pub async fn run(arguments: Arguments, printer: &Printer) -> Result<Exit, CliError> {
    let home = paths::state_home(arguments.global.state.as_deref())?;
    let context = Context { printer, global: arguments.global, home };
    let word = arguments.command.word();
    let ended = Box::pin(dispatch(&context, arguments.command)).await;
    if !word.starts_with("__") && !matches!(word, "completions" | "schema" | "man" | "reference") {
        let code = ended.as_ref().map_or_else(|error| error.exit.code(), |exit| exit.code());
        audit::record(&context.home, word, code);
    }
    ended
}

async fn dispatch(context: &Context<'_>, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Plan(args) => plan::run(context, &args).await,
        Command::Apply(args) => apply::run(context, &args).await,
        Command::Runs(args) => runs::run(context, &args),
        Command::Status(args) => status::run(context, &args).await,
        Command::Verify(args) => steer::verify(context, &args).await,
        Command::Shift(args) => steer::shift(context, &args).await,
        Command::Switch(args) => steer::switch(context, &args).await,
        Command::Reverse(args) => steer::reverse(context, &args).await,
        Command::Pause(args) => steer::pause(context, &args).await,
        Command::Resume(args) => steer::resume(context, &args).await,
        Command::Cancel(args) => steer::cancel(context, &args).await,
        Command::Complete(args) => steer::complete(context, &args).await,
        Command::Report(args) => report::run(context, &args),
        Command::Recover(args) => recover::run(context, &args).await,
        Command::Copy(args) => copy::run(context, &args).await,
        Command::Db(args) => Box::pin(db::run(context, &args)).await,
        Command::Entry(args) => Box::pin(entry::run(context, &args)).await,
        Command::Gateway(args) => gateway::run(context, &args).await,
        Command::Demo(args) => Box::pin(demo::run(context, &args)).await,
        Command::Completions(args) => generate::completions(context, &args),
        Command::Schema => generate::schema(context),
        Command::Man(args) => generate::man(context, &args),
        Command::Reference => generate::reference(context),
        Command::Engine(args) => internal::engine(context, &args).await,
        Command::Guard(args) => internal::guard(context, &args).await,
        Command::Cloud(args) => internal::cloud(context, &args).await,
    }
}

impl Context<'_> {
    /// The migration file: `--file`, or `rehome.toml` here or in a folder above.
    pub fn migration_path(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = &self.global.file {
            return Ok(path.clone());
        }
        let here = std::env::current_dir().map_err(with_path(Path::new(".")))?;
        here.ancestors().map(|folder| folder.join("rehome.toml")).find(|path| path.is_file()).ok_or_else(
            || {
                CliError::not_found("there is no rehome.toml here or in a folder above")
                    .hint("write one with `rehome init`, or name yours with `--file FILE`")
            },
        )
    }

    pub fn migration(&self) -> Result<(PathBuf, Migration), CliError> {
        let path = self.migration_path()?;
        let loaded =
            Migration::load_with_warnings(&path).map_err(|error| unreadable(&error, self.printer))?;
        if !loaded.warnings.is_empty() {
            self.printer.talk(loaded.render_warnings(self.printer.colored).trim_end());
        }
        Ok((path, loaded.migration))
    }

    /// The run a command means: `--run`, else the newest one of the migration file, else the only one that is not over.
    pub fn run_folder(&self) -> Result<RunFolder, CliError> {
        if let Some(name) = &self.global.run {
            let folder = RunFolder::new(&self.home, name);
            return if folder.exists() {
                Ok(folder)
            } else {
                Err(CliError::not_found(format!("there is no run `{name}`"))
                    .hint("list them with `rehome runs`"))
            };
        }
        let runs = paths::all_runs(&self.home)?;
        if let Ok((_, migration)) = self.migration() {
            let name = &migration.migration.name;
            if let Some(found) = runs.iter().find(|run| runs::belongs_to(run, name)) {
                return Ok(found.clone());
            }
            if self.global.file.is_some() {
                return Err(CliError::not_found(format!("there is no run of `{name}` yet"))
                    .hint("begin one with `rehome apply`"));
            }
        }
        let open: Vec<&RunFolder> = runs.iter().filter(|run| !runs::is_over(run)).collect();
        match (open.as_slice(), runs.as_slice()) {
            ([only], _) => Ok((*only).clone()),
            ([], [newest, ..]) => Ok(newest.clone()),
            ([], []) => Err(CliError::not_found("there is no run yet").hint("begin one with `rehome apply`")),
            _ => Err(CliError::usage("several runs are under way; which one?").hint(format!(
                "add `--run NAME`: {}",
                open.iter().map(|run| run.name()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// A line to the run's engine, starting one when none is alive.
    pub async fn engine(&self, run: &RunFolder) -> Result<daemon::client::Engine, CliError> {
        daemon::launch::ensure(self, run, &daemon::launch::Extras::default()).await
    }
}

pub fn load(path: &Path, printer: &Printer) -> Result<Migration, CliError> {
    Migration::load(path).map_err(|error| unreadable(&error, printer))
}

fn unreadable(error: &rehome_spec::SpecError, printer: &Printer) -> CliError {
    CliError { exit: Exit::Failed, text: error.render(printer.colored), hints: Vec::new(), rendered: true }
}

/// Looks a secret up the moment it is needed; the text says which reference failed, never what it holds.
pub fn resolve(secret: &rehome_spec::Secret) -> Result<String, String> {
    secret.resolve().map(|text| text.expose().to_owned()).map_err(|error| error.to_string())
}
