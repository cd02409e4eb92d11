//! One process of a test world, for tests that have no `rehome` binary: `testkit-process __cloud s3|shop|delay CONFIG`.

use std::path::Path;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [word, kind, config] = &arguments[..] else { return ExitCode::from(2) };
    if word != "__cloud" {
        return ExitCode::from(2);
    }
    match rehome_testkit::process(kind, Path::new(config)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {error}"); // nowhere else to say it
            ExitCode::FAILURE
        }
    }
}
