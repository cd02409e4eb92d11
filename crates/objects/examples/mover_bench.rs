//! The mover's bench: copies one S3 bucket to another with the library's own `copy`, or runs another program beside it, and
//! prints wall time, client CPU and peak memory as one line of JSON. Linux only (it reads /proc). Not a timed test.
//!
//! ```text
//! mover_bench seed  URL ENDPOINT COUNT SIZE     fill a bucket with COUNT objects of SIZE bytes
//! mover_bench copy  URL ENDPOINT URL ENDPOINT   copy, from scratch (fresh state)
//! mover_bench run   PROGRAM ARGUMENT …          the same figures for another program
//! ```
//! Keys come from `BENCH_ACCESS_KEY` and `BENCH_SECRET_KEY`; `BENCH_CONCURRENCY` sets the copies under way at once.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use bytes::Bytes;
use futures::StreamExt;
use rehome_objects::store::{Address, Attributes, Condition, Store};
use rehome_objects::{CopyOptions, copy};
use rehome_part::Progress;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Ticks of /proc/PID/stat; fixed on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["seed", url, endpoint, count, size] => {
            seed(open(url, endpoint)?, count.parse()?, size.parse()?).await
        }
        ["copy", source, source_endpoint, target, target_endpoint] => {
            measure_copy(open(source, source_endpoint)?, open(target, target_endpoint)?).await
        }
        ["run", program, arguments @ ..] => measure_program(program, arguments).await,
        _ => Err("seed URL ENDPOINT COUNT SIZE | copy URL ENDPOINT URL ENDPOINT | run PROGRAM …".into()),
    }
}

fn open(url: &str, endpoint: &str) -> Outcome<Arc<dyn Store>> {
    let mut address = Address::parse(url)?;
    if !endpoint.is_empty() {
        address.endpoint = Some(endpoint.into());
        address.region = Some("us-east-1".into());
        address.path_style = Some(true);
        address.access_key = Some(std::env::var("BENCH_ACCESS_KEY")?);
        address.secret_key = Some(std::env::var("BENCH_SECRET_KEY")?);
    }
    Ok(address.open()?)
}

async fn seed(store: Arc<dyn Store>, count: usize, size: usize) -> Outcome {
    store.create().await?;
    let mut content = vec![0; size];
    fastrand::Rng::with_seed(1).fill(&mut content);
    let content = Bytes::from(content);
    let mut puts = futures::stream::iter(0..count)
        .map(|number| {
            let (store, content) = (Arc::clone(&store), content.clone());
            async move {
                let key = format!("{:03}/object-{number:08}", number % 1_000);
                store.put(&key, &Attributes::default(), content, Condition::Always).await
            }
        })
        .buffer_unordered(16);
    while let Some(put) = puts.next().await {
        put?;
    }
    Ok(())
}

async fn measure_copy(source: Arc<dyn Store>, target: Arc<dyn Store>) -> Outcome {
    let concurrency = std::env::var("BENCH_CONCURRENCY").ok().map(|text| text.parse()).transpose()?;
    let options = CopyOptions { concurrency: concurrency.unwrap_or(32), ..CopyOptions::default() };
    let state = tempfile::tempdir()?;
    let began = Instant::now();
    let done = copy(source, target, options, state.path(), Arc::new(Quiet), CancellationToken::new()).await?;
    let wall = began.elapsed();
    let figures =
        Figures { wall, cpu_seconds: ticks("self", 13)? / TICKS_PER_SECOND, peak_kib: peak_kib("self")? };
    figures.print("rehome", Some((done.objects, done.bytes)));
    Ok(())
}

async fn measure_program(program: &str, arguments: &[&str]) -> Outcome {
    let before = ticks("self", 15)?;
    let began = Instant::now();
    let mut child = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).spawn()?;
    let process = child.id().ok_or("the program ended at once")?.to_string();
    let mut peak = 0;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            // The kernel keeps the high-water mark; only the last moments before the end can be missed.
            () = tokio::time::sleep(Duration::from_millis(20)) => peak = peak_kib(&process).unwrap_or(0).max(peak),
        }
    };
    let wall = began.elapsed();
    if !status.success() {
        return Err(format!("{program} ended with {status}").into());
    }
    let cpu_seconds = (ticks("self", 15)? - before) / TICKS_PER_SECOND;
    Figures { wall, cpu_seconds, peak_kib: peak }.print(program, None);
    Ok(())
}

struct Figures {
    wall: Duration,
    cpu_seconds: f64,
    peak_kib: u64,
}

impl Figures {
    fn print(&self, name: &str, done: Option<(u64, u64)>) {
        let (objects, bytes) = done.unzip();
        let line = serde_json::json!({
            "program": name.rsplit('/').next(),
            "wall_seconds": self.wall.as_secs_f64(),
            "cpu_seconds": self.cpu_seconds,
            "peak_mib": self.peak_kib as f64 / 1024.0,
            "objects": objects,
            "bytes": bytes,
        });
        println!("{line}");
    }
}

/// User and system time: fields 13 and 14 after the name for a process, 15 and 16 for its children that ended.
fn ticks(process: &str, field: usize) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = text.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    // The first field after the name is the third of all; the numbers above count from 0.
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let read =
        |index: usize| -> Outcome<f64> { Ok(fields.get(index).ok_or("a short /proc/self/stat")?.parse()?) };
    Ok(read(field - 2)? + read(field - 1)?)
}

fn peak_kib(process: &str) -> Outcome<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
