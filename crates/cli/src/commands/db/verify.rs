//! `rehome db verify`: do two databases hold the same rows?

use super::super::Context;
use super::end;
use crate::exit::{CliError, Exit};
use crate::paths;
use crate::printer::{Printer, count, span, style};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use rehome_databases::verify::{self, Compared, Found, Options, Pair, Progress, What};
use rehome_spec::Span;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Compare two databases row by row, without moving the rows
///
/// Each server sums up its own rows piece by piece; where the sums differ the piece is looked at again, since a change may be on
/// its way, and then row by row. A comparison that was ended goes on where it was. Exit code 10 unless everything is the same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rehome db verify postgres://app@old/shop postgres://app@new/shop\n  \
    rehome db verify postgres://app@old/shop postgres://app@new/shop --table public.orders --patience 0s")]
pub struct VerifyArgs {
    /// One database: postgres://user@host:port/database, mysql://…/schema or redis://…
    pub source: String,
    /// The other
    pub target: String,
    /// Reference to the source's password: env:NAME, file:PATH or cmd:PROGRAM
    #[arg(long, value_name = "REF")]
    pub source_password: Option<String>,
    /// Reference to the target's password
    #[arg(long, value_name = "REF")]
    pub target_password: Option<String>,
    /// Only this table (schema.table; of MySQL its bare name, of Redis the number of a database); may be said again
    #[arg(long = "table", value_name = "NAME")]
    pub tables: Vec<String>,
    /// How long a change may take from one side to the other
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = clap::value_parser!(Span))]
    pub patience: Span,
    /// Pieces compared at once; each takes a session on both sides
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// Rows of a piece
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub chunk_rows: u32,
}

pub async fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<Exit, CliError> {
    let pair = Pair {
        source: end(&args.source, args.source_password.as_ref(), "source")?,
        target: end(&args.target, args.target_password.as_ref(), "target")?,
    };
    let options = Options {
        tables: args.tables.clone(),
        chunk_rows: args.chunk_rows,
        jobs: args.jobs as usize,
        patience: args.patience.0,
        ..Options::default()
    };
    let marks = context.home.join("verifications");
    paths::private_folder(&marks)?;
    let (progress, stop, begun) = (Arc::<Progress>::default(), CancellationToken::new(), Instant::now());
    let shown = Shown::start(context.printer, progress.clone());
    let compared = tokio::select! {
        compared = verify::verify(&pair, &options, &marks, progress, stop.clone()) => compared,
        () = shown.keep() => unreachable!("it is drawn for ever"),
        _ = tokio::signal::ctrl_c() => {
            shown.end();
            context.printer.talk("stopped; the same command goes on where this one was");
            return Ok(Exit::Failed);
        }
    };
    shown.end();
    let compared = compared?;
    let same = compared.iter().all(Compared::is_same);
    if context.global.json {
        let seconds = begun.elapsed().as_secs_f64();
        context.printer.json(&serde_json::json!({
            "type": "summary", "ui": "1.0", "same": same, "seconds": seconds, "tables": compared,
        }));
    } else {
        show(context.printer, &compared, begun.elapsed());
    }
    Ok(if same { Exit::Done } else { Exit::Differences })
}

fn show(printer: &Printer, compared: &[Compared], took: Duration) {
    for table in compared {
        printer.line(&line(table));
        for row in &table.rows {
            let what = match row.what {
                What::OnlyOnSource => "only on the source",
                What::OnlyOnTarget => "only on the target",
                What::Differs => "differs",
            };
            let key = match table.key.is_empty() {
                true => format!("a row with hash {}", row.key.join(", ")),
                false => {
                    let pairs =
                        table.key.iter().zip(&row.key).map(|(name, value)| format!("{name} = {value}"));
                    pairs.collect::<Vec<_>>().join(", ")
                }
            };
            printer.line(&format!("    {key}: {what}"));
        }
        let unnamed = table.differing.saturating_sub(table.rows.len() as u64);
        if unnamed > 0 {
            printer.line(&format!("    and {} more", count(unnamed)));
        }
        for note in &table.notes {
            printer.line(&format!("    {}{note}{}", style::DIM, style::DIM.render_reset()));
        }
    }
    let rows: u64 = compared.iter().map(|table| table.source_rows).sum();
    let differ = compared.iter().filter(|table| !table.is_same()).count();
    let verdict =
        if differ == 0 { "the same on both sides".to_owned() } else { format!("{differ} not the same") };
    printer.line(&format!(
        "{} tables, {} rows in {}: {verdict}",
        count(compared.len() as u64),
        count(rows),
        span(took.as_secs_f64())
    ));
}

fn line(table: &Compared) -> String {
    let rows = format!("{} rows", count(table.source_rows));
    let (word, color, text) = match &table.found {
        Found::Same => ("same     ", style::GOOD, rows),
        Found::Differs => (
            "DIFFERS  ",
            style::BAD,
            format!("{} of {rows}, {} on the target", count(table.differing), count(table.target_rows)),
        ),
        Found::Unsettled => {
            let text = format!(
                "{} of {rows} changed at every look; try again when less is written",
                count(table.unsettled)
            );
            ("UNSETTLED", style::WARN, text)
        }
        Found::Missing(side) => ("MISSING  ", style::BAD, format!("the {side} has no such table")),
        Found::Unlike => ("UNLIKE   ", style::BAD, "its columns are not the same".to_owned()),
    };
    format!("{color}{word}{} {}  {text}", color.render_reset(), table.table)
}

/// What is shown meanwhile.
struct Shown<'a> {
    printer: &'a Printer,
    progress: Arc<Progress>,
    bar: Option<ProgressBar>,
}

impl<'a> Shown<'a> {
    fn start(printer: &'a Printer, progress: Arc<Progress>) -> Self {
        let bar = || ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout_with_hz(10));
        Self { printer, progress, bar: printer.live.then(bar) }
    }

    async fn keep(&self) {
        let every = match (&self.bar, self.printer.json) {
            (Some(_), _) => Duration::from_millis(200),
            (None, true) => Duration::from_secs(1),
            (None, false) => Duration::from_secs(10),
        };
        let mut before = 0;
        loop {
            tokio::time::sleep(every).await;
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (rows, expected) = (read(&self.progress.rows), read(&self.progress.rows_expected));
            let (tables, of) = (read(&self.progress.tables), read(&self.progress.tables_expected));
            let rate = rows.saturating_sub(before) as f64 / every.as_secs_f64();
            before = rows;
            let left = (rate > 0.0).then(|| expected.saturating_sub(rows) as f64 / rate);
            let eta = left.map(|seconds| format!(", {} left", span(seconds))).unwrap_or_default();
            let text = format!(
                "{tables} of {of} tables, {} of about {} rows, {}/s{eta}",
                count(rows),
                count(expected),
                count(rate as u64)
            );
            match &self.bar {
                Some(bar) => {
                    bar.set_message(text);
                    bar.tick();
                }
                None if self.printer.json => self.printer.json(&serde_json::json!({
                    "type": "progress", "ui": "1.0", "tables": tables, "tables_expected": of, "rows": rows,
                    "rows_expected": expected, "message": text,
                })),
                None => self.printer.talk(&text),
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
