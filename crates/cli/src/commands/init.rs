//! `rehome init`: a commented migration file to begin from.

use super::Context;
use crate::exit::{CliError, Exit, with_path};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Write a commented rehome.toml to begin from
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to write it; `-` prints it
    #[arg(default_value = "rehome.toml", value_name = "PATH")]
    pub path: PathBuf,
}

pub fn run(context: &Context<'_>, args: &InitArgs) -> Result<Exit, CliError> {
    if args.path.as_os_str() == "-" {
        context.printer.line(rehome_spec::TEMPLATE.trim_end());
        return Ok(Exit::Done);
    }
    // An existing file is somebody's work: it is never written over.
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&args.path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                CliError::failed(format!("{} exists already; it was not touched", args.path.display()))
                    .hint("name another path: `rehome init PATH`")
            } else {
                with_path(&args.path)(error)
            }
        })?;
    file.write_all(rehome_spec::TEMPLATE.as_bytes()).map_err(with_path(&args.path))?;
    if context.global.json {
        context.printer.json(&serde_json::json!({ "ui": "1.0", "written": args.path }));
    } else {
        context.printer.talk(&format!("wrote {}", args.path.display()));
        context.printer.hint("fill it in, then look whether everything can be reached: `rehome doctor`");
    }
    Ok(Exit::Done)
}
