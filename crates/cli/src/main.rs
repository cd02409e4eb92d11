//! The binary `rehome`: one file per command, terminal views, and the daemon that carries an engine.
//! Thin: it parses, asks, shows, and leaves every decision to the crates below.

mod arguments;
mod audit;
mod commands;
mod daemon;
mod exit;
mod paths;
mod printer;
mod view;

use arguments::Arguments;
use clap::Parser;
use exit::Exit;
use printer::Printer;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let printer = Printer::new(arguments.global.json, arguments.global.color);
    if let Some(exit) = commands::entry::keepalived::at_once(&arguments.command, &printer) {
        return ExitCode::from(exit.code());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.error(&exit::CliError::failed(format!("cannot start the runtime: {error}")));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    // Boxed: the futures of long commands are large, and only one exists per process.
    let ended = runtime.block_on(Box::pin(commands::run(arguments, &printer)));
    runtime.shutdown_background();
    match ended {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error.exit.code())
        }
    }
}

/// clap has the words for usage errors, help and version; only the exit code is ours.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe while printing help is not worth a second error.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Exit::Usage.code() } else { Exit::Done.code() })
}
