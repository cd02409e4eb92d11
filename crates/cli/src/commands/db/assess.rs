//! `rehome db assess`: what a database holds, and what stands in the way of moving it while it runs.

use super::super::{Context, doctor};
use super::end;
use crate::exit::{CliError, Exit, of_findings};
use crate::printer::{Printer, count, size, span};
use clap::Args;
use rehome_databases::postgres::{self, Assessed};
use rehome_part::Side;
use rehome_spec::Span;

/// Say what a database holds and what stands in the way of moving it while it runs
///
/// Exit code 10 when something stands in the way; each finding says what to do.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rehome db assess postgres://app@db.example/shop --password env:DB_PASSWORD\n  \
    rehome db assess postgres://app@old/shop --target postgres://app@new/shop --watch 30s"
)]
pub struct AssessArgs {
    /// The database: postgres://user@host:port/database
    pub source: String,
    /// Reference to its password: env:NAME, file:PATH or cmd:PROGRAM
    #[arg(long, value_name = "REF")]
    pub password: Option<String>,
    /// Where it is to go; then both are compared
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// Reference to the target's password
    #[arg(long, value_name = "REF", requires = "target")]
    pub target_password: Option<String>,
    /// How long changes are counted; 0s does not count them
    #[arg(long, value_name = "SPAN", default_value = "5s", value_parser = clap::value_parser!(Span))]
    pub watch: Span,
}

pub async fn run(context: &Context<'_>, args: &AssessArgs) -> Result<Exit, CliError> {
    let source = end(&args.source, args.password.as_ref(), "source")?;
    let target = match &args.target {
        Some(target) => Some(end(target, args.target_password.as_ref(), "target")?),
        None => None,
    };
    let session = postgres::connect(&source.0, source.1.as_deref(), Side::Source).await?;
    let mut assessed = postgres::assess(&session, args.watch.0).await?;
    if let Some((address, password)) = target {
        let session = postgres::connect(&address, password.as_deref(), Side::Target).await?;
        assessed.findings.extend(postgres::fits(&assessed, &session).await?);
    }
    assessed.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    if context.global.json {
        context.printer.json(&serde_json::json!({ "ui": "1.0", "type": "db-assess", "assessed": assessed }));
    } else {
        show(context.printer, &assessed);
    }
    Ok(of_findings(&assessed.findings))
}

fn show(printer: &Printer, assessed: &Assessed) {
    printer.line(&format!(
        "PostgreSQL {}, database {}: {} in {} tables, about {} rows, {} sequences",
        assessed.version,
        assessed.database,
        size(assessed.bytes),
        count(assessed.tables),
        count(assessed.rows),
        count(assessed.sequences),
    ));
    if let Some(watched) = &assessed.watched {
        printer.line(&format!(
            "changes: {:.1} commits/s, {:.1} rows/s, {}/s of log (all databases; over {:.0} s)",
            watched.commits_per_second,
            watched.rows_per_second,
            size(watched.log_bytes_per_second as u64),
            watched.seconds,
        ));
    }
    if let Some(seconds) = assessed.read_seconds {
        printer.line(&format!(
            "estimate: {} to read all tables once by one session (from a sample); indexes on the target come on top",
            span(seconds)
        ));
    }
    if !assessed.largest.is_empty() {
        let largest = assessed.largest.iter().map(|(table, bytes)| format!("{table} {}", size(*bytes)));
        printer.line(&format!("largest: {}", largest.collect::<Vec<_>>().join(", ")));
    }
    if !assessed.extensions.is_empty() {
        printer.line(&format!("extensions: {}", assessed.extensions.join(", ")));
    }
    doctor::show(printer, &assessed.database, &assessed.findings);
}
