//! Programs of a given major version, wherever they are, and as the user who has to run them can reach them. Brings nothing.

use super::{VERSIONS, programs};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's programs of this major version, or those that `scripts/postgres_versions.sh` brought; `None` where there are none.
pub fn programs_of(major: i32) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = std::env::var_os("REHOME_TOOLS").map_or_else(|| root.join(".tools"), PathBuf::from);
    [Path::new(VERSIONS).to_owned(), tools.join("postgres")]
        .into_iter()
        .map(|versions| versions.join(major.to_string()).join("bin"))
        .find(|folder| folder.join("postgres").exists())
}

/// The same for a test: where there are none it says loudly that the test did not run, or fails where tools are required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn programs_of_or_skip(major: i32) -> Option<PathBuf> {
    let found = programs_of(major);
    if found.is_none() {
        // Some versions are there for this processor only, and the oldest two only where there is npm.
        let could_be = cfg!(target_arch = "x86_64") && (major > 13 || is_on_path("npm"));
        let required = could_be && std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "PostgreSQL {major} is missing: run scripts/postgres_versions.sh {major}");
        eprintln!("SKIPPED: PostgreSQL {major} is missing; run scripts/postgres_versions.sh {major}");
    }
    found
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The major version of a server's programs.
///
/// # Errors
/// It does not run, or says something else.
pub fn major_of(programs: &Path) -> io::Result<i32> {
    let output = Command::new(programs.join("postgres")).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text.split_whitespace().nth(2).and_then(|version| version.split('.').next()?.parse().ok());
    major.ok_or_else(|| io::Error::other(format!("`{text}` is no version of a server")))
}

/// The folder of a client program: a server that came alone is asked with that of the machine.
///
/// # Errors
/// There is none.
pub(super) fn client(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let own = folder.join(name).exists().then(|| folder.to_owned());
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no {name} here"));
    own.or_else(programs).ok_or_else(missing)
}

/// The programs as `owner` can run them: copied into `folder`, with their libraries, where one of the folders above is closed to him.
///
/// # Errors
/// They cannot be looked at or copied.
pub(super) fn within_reach(
    folder_of_programs: &Path,
    folder: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<PathBuf> {
    let real = folder_of_programs.canonicalize()?;
    let mut is_closed = false;
    for above in real.ancestors() {
        // The world may pass; that he may as somebody in particular is not looked for.
        is_closed |= above.metadata()?.mode() & 0o001 == 0;
    }
    let (Some(_), true, Some(all)) = (owner, is_closed, real.parent()) else { return Ok(real) };
    let copy = folder.join("programs");
    let copied = Command::new("cp").arg("-a").arg(all).arg(&copy).status()?;
    if !copied.success() {
        return Err(io::Error::other(format!("cannot copy {}", all.display())));
    }
    Ok(copy.join("bin"))
}
