//! `rehome db assess`: what a database holds, and what stands in the way of moving it while it runs.

use super::super::{Context, doctor};
use super::end;
use crate::exit::{CliError, Exit, of_findings};
use crate::printer::{count, size, span};
use clap::Args;
use rehome_databases::{Address, Engine, mysql, postgres, redis};
use rehome_part::{Finding, Side};
use rehome_spec::Span;
use std::time::Duration;

/// Say what a database holds and what stands in the way of moving it while it runs
///
/// Exit code 10 when something stands in the way; each finding says what to do.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rehome db assess postgres://app@db.example/shop --password env:DB_PASSWORD\n  \
    rehome db assess postgres://app@old/shop --target postgres://app@new/shop --watch 30s"
)]
pub struct AssessArgs {
    /// The database: postgres://user@host:port/database, mysql://…/schema or redis://…
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
    let engine = source.0.engine;
    if let Some((other, _)) = target.as_ref().filter(|(target, _)| target.engine != engine) {
        let text = format!("the source is {} and the target {}", engine.shown(), other.engine.shown());
        return Err(CliError::usage(text).hint("a database moves to a server of the same engine"));
    }
    let mut looked = match engine {
        Engine::Postgres => of_postgres(&source, target.as_ref(), args.watch.0).await?,
        Engine::Mysql => of_mysql(&source, target.as_ref(), args.watch.0).await?,
        Engine::Redis => of_redis(&source, target.as_ref(), args.watch.0).await?,
    };
    looked.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    if context.global.json {
        looked.assessed["findings"] = serde_json::json!(looked.findings);
        context.printer.json(&serde_json::json!({
            "ui": "1.0", "type": "db-assess", "engine": engine.scheme(), "assessed": looked.assessed,
        }));
    } else {
        looked.lines.iter().for_each(|line| context.printer.line(line));
        doctor::show(context.printer, &looked.name, &looked.findings);
    }
    Ok(of_findings(&looked.findings))
}

/// An address and the password for it.
type End = (Address, Option<String>);

/// What is said of a database, whatever its engine.
struct Looked {
    name: String,
    lines: Vec<String>,
    /// As the engine's own structure says it.
    assessed: serde_json::Value,
    findings: Vec<Finding>,
}

impl Looked {
    fn new(name: &str, assessed: &impl serde::Serialize, findings: Vec<Finding>) -> Result<Self, CliError> {
        let assessed = serde_json::to_value(assessed)
            .map_err(|error| CliError::new(Exit::Failed, format!("write the assessment: {error}")))?;
        Ok(Self { name: name.to_owned(), lines: Vec::new(), assessed, findings })
    }

    fn largest(&mut self, largest: &[(String, u64)]) {
        if !largest.is_empty() {
            let largest = largest.iter().map(|(table, bytes)| format!("{table} {}", size(*bytes)));
            self.lines.push(format!("largest: {}", largest.collect::<Vec<_>>().join(", ")));
        }
    }
}

async fn of_postgres(source: &End, target: Option<&End>, watch: Duration) -> Result<Looked, CliError> {
    let session = postgres::connect(&source.0, source.1.as_deref(), Side::Source).await?;
    let mut assessed = postgres::assess(&session, watch).await?;
    if let Some((address, password)) = target {
        let session = postgres::connect(address, password.as_deref(), Side::Target).await?;
        assessed.findings.extend(postgres::fits(&assessed, &session).await?);
    }
    let mut looked = Looked::new(&assessed.database, &assessed, assessed.findings.clone())?;
    looked.lines.push(format!(
        "PostgreSQL {}, database {}: {} in {} tables, about {} rows, {} sequences",
        assessed.version,
        assessed.database,
        size(assessed.bytes),
        count(assessed.tables),
        count(assessed.rows),
        count(assessed.sequences),
    ));
    if let Some(watched) = &assessed.watched {
        looked.lines.push(changes(
            watched.commits_per_second,
            watched.rows_per_second,
            watched.log_bytes_per_second,
            watched.seconds,
        ));
    }
    if let Some(seconds) = assessed.read_seconds {
        looked.lines.push(format!(
            "estimate: {} to read all tables once by one session (from a sample); indexes on the target come on top",
            span(seconds)
        ));
    }
    looked.largest(&assessed.largest);
    if !assessed.extensions.is_empty() {
        looked.lines.push(format!("extensions: {}", assessed.extensions.join(", ")));
    }
    Ok(looked)
}

async fn of_mysql(source: &End, target: Option<&End>, watch: Duration) -> Result<Looked, CliError> {
    let mut session = mysql::connect(&source.0, source.1.as_deref(), Side::Source).await?;
    let mut assessed = mysql::assess(&mut session, watch).await?;
    if let Some((address, password)) = target {
        let mut session = mysql::connect(address, password.as_deref(), Side::Target).await?;
        assessed.findings.extend(mysql::fits(&assessed, &mut session).await?);
    }
    let mut looked = Looked::new(&assessed.database, &assessed, assessed.findings.clone())?;
    looked.lines.push(format!(
        "{} {}, schema {}: {} in {} tables, about {} rows",
        if assessed.is_mariadb { "MariaDB" } else { "MySQL" },
        assessed.version,
        assessed.database,
        size(assessed.bytes),
        count(assessed.tables),
        count(assessed.rows),
    ));
    if let Some(watched) = &assessed.watched {
        looked.lines.push(changes(
            watched.commits_per_second,
            watched.rows_per_second,
            watched.log_bytes_per_second,
            watched.seconds,
        ));
    }
    looked.largest(&assessed.largest);
    Ok(looked)
}

async fn of_redis(source: &End, target: Option<&End>, watch: Duration) -> Result<Looked, CliError> {
    let session = redis::connect(&source.0, source.1.as_deref(), Side::Source).await?;
    let mut assessed = redis::assess(&session, watch).await?;
    if let Some((address, password)) = target {
        let session = redis::connect(address, password.as_deref(), Side::Target).await?;
        assessed.findings.extend(redis::fits(&assessed, &session).await?);
    }
    let mut looked = Looked::new("redis", &assessed, assessed.findings.clone())?;
    looked.lines.push(format!(
        "Redis {}: {} in {} databases, {} keys, {} of them with an end, {} users",
        assessed.version,
        size(assessed.bytes),
        count(assessed.databases.len() as u64),
        count(assessed.keys),
        count(assessed.expiring),
        count(assessed.users.len() as u64),
    ));
    if let Some(watched) = &assessed.watched {
        let known =
            |rate: Option<f64>, shown: &dyn Fn(f64) -> String| rate.map_or("unknown".to_owned(), shown);
        looked.lines.push(format!(
            "changes: {}/s, stream {} (over {:.0} s)",
            known(watched.changes_per_second, &|rate| format!("{rate:.1}")),
            known(watched.stream_bytes_per_second, &|rate| format!("{}/s", size(rate as u64))),
            watched.seconds,
        ));
    }
    Ok(looked)
}

fn changes(commits: f64, rows: f64, log: f64, seconds: f64) -> String {
    format!(
        "changes: {commits:.1} commits/s, {rows:.1} rows/s, {}/s of log (all databases; over {seconds:.0} s)",
        size(log as u64),
    )
}
