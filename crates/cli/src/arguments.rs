//! The words of the command line. Each command's own arguments stand in its file; their comments are the help.

use crate::commands;
use crate::printer::Color;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Move a running application from one cloud to another, and back
///
/// rehome moves the objects, and the traffic with them, of an application that stays in use: users notice nothing, nothing
/// that was acknowledged is lost, and until you say `complete` the whole move can be taken back.
#[derive(Debug, Parser)]
#[command(name = "rehome", version, propagate_version = true, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
A first look:    rehome demo
Your own move:   rehome init, then doctor, plan, apply --until ready, switch, and later complete (or reverse)
Exit codes:      0 done, 1 failed, 2 usage, 3 confirmation needed, 4 not found, 5 network, 6 credentials,
                 10 differences, 20 gate not met, 21 reversed, 22 stuck";

#[derive(Debug, Args, Clone)]
pub struct Global {
    /// Print JSON: one document for short commands, one object per line for long ones
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// The migration file
    #[arg(long, short, global = true, value_name = "FILE", env = "REHOME_FILE", hide_env_values = true)]
    pub file: Option<PathBuf>,
    /// The run, when it does not follow from the migration file
    #[arg(long, short, global = true, value_name = "NAME")]
    pub run: Option<String>,
    /// Where runs are kept [default: $XDG_STATE_HOME/rehome]
    #[arg(long, global = true, value_name = "DIR", env = "REHOME_STATE", hide_env_values = true)]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(commands::init::InitArgs),
    Doctor(commands::doctor::DoctorArgs),
    Plan(commands::plan::PlanArgs),
    Apply(commands::apply::ApplyArgs),
    Runs(commands::runs::RunsArgs),
    Status(commands::status::StatusArgs),
    Verify(commands::steer::VerifyArgs),
    Shift(commands::steer::ShiftArgs),
    Switch(commands::steer::SwitchArgs),
    Reverse(commands::steer::ReverseArgs),
    Pause(commands::steer::PauseArgs),
    Resume(commands::steer::ResumeArgs),
    Cancel(commands::steer::CancelArgs),
    Complete(commands::steer::CompleteArgs),
    Report(commands::report::ReportArgs),
    Recover(commands::recover::RecoverArgs),
    Copy(commands::copy::CopyArgs),
    Db(Box<commands::db::DbArgs>),
    Gateway(commands::gateway::GatewayArgs),
    Entry(Box<commands::entry::EntryArgs>),
    Demo(Box<commands::demo::DemoArgs>),
    Completions(commands::generate::CompletionsArgs),
    /// The JSON Schema of the migration file
    #[command(hide = true)]
    Schema,
    /// Writes the man pages into a folder
    #[command(hide = true)]
    Man(commands::generate::ManArgs),
    /// Writes the command line reference as Markdown
    #[command(hide = true)]
    Reference,
    #[command(name = "__engine", hide = true)]
    Engine(commands::internal::EngineArgs),
    #[command(name = "__guard", hide = true)]
    Guard(commands::internal::GuardArgs),
    #[command(name = "__cloud", hide = true)]
    Cloud(commands::internal::CloudArgs),
}

impl Command {
    /// The word as people type it, for the audit line.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Doctor(_) => "doctor",
            Self::Plan(_) => "plan",
            Self::Apply(_) => "apply",
            Self::Runs(_) => "runs",
            Self::Status(_) => "status",
            Self::Verify(_) => "verify",
            Self::Shift(_) => "shift",
            Self::Switch(_) => "switch",
            Self::Reverse(_) => "reverse",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Cancel(_) => "cancel",
            Self::Complete(_) => "complete",
            Self::Report(_) => "report",
            Self::Recover(_) => "recover",
            Self::Copy(_) => "copy",
            Self::Db(_) => "db",
            Self::Gateway(_) => "gateway",
            Self::Entry(_) => "entry",
            Self::Demo(_) => "demo",
            Self::Completions(_) => "completions",
            Self::Schema => "schema",
            Self::Man(_) => "man",
            Self::Reference => "reference",
            Self::Engine(_) => "__engine",
            Self::Guard(_) => "__guard",
            Self::Cloud(_) => "__cloud",
        }
    }
}
