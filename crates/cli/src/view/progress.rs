//! Progress of a copy: a bar on a terminal, a line every ten seconds elsewhere, a JSON line with `--json`.

use crate::printer::{Printer, count, size, span};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rehome_part::Progress;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub fn sink(printer: &Printer) -> Arc<Sink> {
    let form = if printer.json {
        Form::Json
    } else if printer.live {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout_with_hz(10));
        let style = ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        bar.set_style(style);
        Form::Bar(bar)
    } else {
        Form::Lines
    };
    Arc::new(Sink {
        form,
        begun: Instant::now(),
        last: Mutex::new(Last { shown: Instant::now(), rate: 0.0, bytes: 0, at: Instant::now() }),
    })
}

#[derive(Debug)]
pub struct Sink {
    form: Form,
    begun: Instant,
    last: Mutex<Last>,
}

#[derive(Debug)]
enum Form {
    Bar(ProgressBar),
    Lines,
    Json,
}

#[derive(Debug)]
struct Last {
    shown: Instant,
    /// Bytes per second, decaying.
    rate: f64,
    bytes: u64,
    at: Instant,
}

impl Sink {
    pub fn finish(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    fn interval(&self) -> Duration {
        match self.form {
            Form::Bar(_) => Duration::from_millis(100),
            Form::Lines => Duration::from_secs(10),
            Form::Json => Duration::from_secs(1),
        }
    }
}

impl Progress for Sink {
    fn update(
        &self,
        done_objects: u64,
        done_bytes: u64,
        total_objects: Option<u64>,
        total_bytes: Option<u64>,
    ) {
        let Ok(mut last) = self.last.lock() else { return };
        let now = Instant::now();
        if now - last.shown < self.interval() || self.begun.elapsed() < Duration::from_millis(250) {
            return;
        }
        let fresh = done_bytes.saturating_sub(last.bytes) as f64 / (now - last.at).as_secs_f64().max(1e-3);
        last.rate = if last.bytes == 0 { fresh } else { 0.7 * last.rate + 0.3 * fresh };
        (last.shown, last.bytes, last.at) = (now, done_bytes, now);
        let rate = last.rate;
        drop(last);
        let left =
            total_bytes.filter(|_| rate > 0.0).map(|total| total.saturating_sub(done_bytes) as f64 / rate);
        let of = total_objects.map(|total| format!(" of {}", count(total))).unwrap_or_default();
        let eta = left.map(|seconds| format!(", {} left", span(seconds))).unwrap_or_default();
        let text = format!(
            "{}{of} objects, {}, {}/s{eta}",
            count(done_objects),
            size(done_bytes),
            size(rate as u64)
        );
        match &self.form {
            Form::Bar(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            Form::Lines => anstream::eprintln!("{text}"),
            Form::Json => anstream::println!(
                "{}",
                serde_json::json!({ "type": "progress", "objects": done_objects, "bytes": done_bytes,
                    "total_objects": total_objects, "total_bytes": total_bytes, "bytes_per_second": rate, "message": text })
            ),
        }
    }
}
