//! The schema of the source by PostgreSQL's own `pg_dump` and `pg_restore`: what a table is before its rows come, and what is
//! better built after them. Statements are run by our own session, so a password never leaves this process but to `pg_dump`.

use super::connect::Session;
use crate::address::Tls;
use crate::end::End;
use rehome_part::{Error, ErrorKind, Result, Side};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tokio::process::Command;

/// Where Debian keeps the programs of each version; elsewhere they are on the path.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Authorities as most systems keep them in one file, for a `libpq` that does not know the word `system`.
const AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// `pg_dump` and `pg_restore` of one version.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The programs that read `source` and write what `target` understands: of the target's version, or the nearest newer one.
    ///
    /// # Errors
    /// There are none that are new enough.
    pub async fn find(given: Option<&Path>, source: i32, target: i32) -> Result<Self> {
        if let Some(folder) = given {
            return Ok(Self { folder: folder.to_owned() });
        }
        let mut folders: Vec<PathBuf> =
            std::env::var_os("PATH").map(|paths| std::env::split_paths(&paths).collect()).unwrap_or_default();
        if let Ok(entries) = std::fs::read_dir(VERSIONS) {
            folders.extend(entries.flatten().map(|entry| entry.path().join("bin")));
        }
        let mut found = Vec::new();
        for folder in folders {
            if let Some(version) = version_in(&folder).await {
                found.push((version, folder));
            }
        }
        found.retain(|(version, _)| *version >= source);
        // The target's own version first, then the nearest newer one.
        found.sort_by_key(|(version, _)| (*version < target, (*version - target).abs()));
        match found.into_iter().next() {
            Some((_, folder)) => Ok(Self { folder }),
            None => Err(Error::permanent(
                ErrorKind::Unsupported,
                format!("no pg_dump of version {source} or newer is on this machine"),
            )
            .hint(format!("install the client programs of PostgreSQL {target} here"))),
        }
    }

    /// Writes the source's schema into `file`.
    ///
    /// # Errors
    /// `pg_dump` failed; its words are in the error.
    pub async fn dump(&self, source: &End, file: &Path) -> Result<()> {
        let part = file.with_extension("part");
        let address = &source.address;
        let mut command = self.command("pg_dump");
        command.args([
            "--schema-only",
            "--format=custom",
            "--no-publications",
            "--no-subscriptions",
            "--no-password",
        ]);
        command.args(["--exclude-schema=rehome", "--lock-wait-timeout=10s"]).arg("--file").arg(&part);
        command.arg("--host").arg(&address.host).arg("--port").arg(address.port.to_string());
        command.arg("--username").arg(&address.user).arg("--dbname").arg(connect_to(&address.database));
        command.env("PGAPPNAME", "rehome");
        if let Some(password) = &source.password {
            command.env("PGPASSWORD", password);
        }
        match &address.tls {
            Tls::Off => command.env("PGSSLMODE", "disable"),
            Tls::Verified { authorities } => {
                let known = AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
                let root = authorities.clone().or(known).unwrap_or_else(|| "system".into());
                command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", root)
            }
        };
        let output = ended(command, "pg_dump").await?;
        succeeded("pg_dump", &output).map_err(|error| error.on(Side::Source))?;
        std::fs::rename(&part, file)
            .map_err(|error| Error::permanent(ErrorKind::Other, format!("{}: {error}", file.display())))
    }

    /// The entries of a dump, a line each.
    pub async fn list(&self, file: &Path, section: &str) -> Result<Vec<String>> {
        let mut command = self.command("pg_restore");
        command.arg("--list").arg(format!("--section={section}")).arg(file);
        let output = ended(command, "pg_restore").await?;
        succeeded("pg_restore", &output)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter(|line| !line.starts_with(';') && !is_ours(line)).map(str::to_owned).collect())
    }

    /// The statements that make these entries.
    pub async fn statements(&self, file: &Path, entries: &[String]) -> Result<String> {
        let list = tempfile::NamedTempFile::new()
            .and_then(|list| std::fs::write(list.path(), entries.join("\n") + "\n").map(|()| list))
            .map_err(|error| Error::permanent(ErrorKind::Other, format!("a temporary file: {error}")))?;
        let mut command = self.command("pg_restore");
        command.arg("--use-list").arg(list.path()).args(["--file", "-"]).arg(file);
        let output = ended(command, "pg_restore").await?;
        succeeded("pg_restore", &output)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter(|line| is_for_any_server(line)).fold(
            String::with_capacity(text.len()),
            |mut kept, line| {
                kept.push_str(line);
                kept.push('\n');
                kept
            },
        ))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.env("LC_ALL", "C");
        command
    }
}

/// Words for psql are not for a server, and a setting that 17 brought is not for an older one; there are no rows here that could begin so.
fn is_for_any_server(line: &str) -> bool {
    !["\\restrict", "\\unrestrict", "SET transaction_timeout = 0;"].iter().any(|word| line.starts_with(word))
}

/// A database's name that is not read as a connection string.
fn connect_to(database: &str) -> String {
    let escaped = database.replace('\\', "\\\\").replace('\'', "\\'");
    format!("dbname='{escaped}'")
}

async fn version_in(folder: &Path) -> Option<i32> {
    let program = folder.join("pg_dump");
    if !program.exists() || !folder.join("pg_restore").exists() {
        return None;
    }
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.ok()?;
    // pg_dump (PostgreSQL) 15.14 (Debian …); a wrapper without a server says another thing.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split_whitespace().nth(2)?;
    word.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

async fn ended(mut command: Command, program: &str) -> Result<Output> {
    command
        .output()
        .await
        .map_err(|error| Error::permanent(ErrorKind::Other, format!("cannot run {program}: {error}")))
}

fn succeeded(program: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let first: String = words.lines().take(4).collect::<Vec<_>>().join("; ").chars().take(600).collect();
    Err(Error::permanent(ErrorKind::Other, format!("{program} ended with {}: {first}", output.status)))
}

/// An entry of a dump: `215; 1259 16390 TABLE public orders shop`.
pub(super) fn kind_of(entry: &str) -> &str {
    let rest = entry.split_once(';').map_or("", |(_, rest)| rest.trim_start());
    let words = rest.splitn(3, ' ').nth(2).unwrap_or_default();
    // The kind is in capitals, in one word or several.
    let end = words
        .split_inclusive(' ')
        .take_while(|word| {
            word.trim().chars().all(|character| character.is_ascii_uppercase()) && word.trim().len() > 1
        })
        .map(str::len)
        .sum::<usize>();
    words.get(..end).unwrap_or_default().trim_end()
}

fn is_ours(entry: &str) -> bool {
    let words: Vec<&str> = entry.split(' ').collect();
    match kind_of(entry) {
        "TRIGGER" => words.contains(&"rehome_fence"),
        _ => false,
    }
}

/// Does what names rows in this table's index have to be there before rows are followed?
pub(super) fn is_wanted_early(entry: &str, identities: &[String]) -> bool {
    match kind_of(entry) {
        "CONSTRAINT" => true,
        "INDEX" => {
            let words: Vec<&str> = entry.split(' ').collect();
            identities.iter().any(|index| words.contains(&index.as_str()))
        }
        _ => false,
    }
}

/// Is this a constraint with an index of its own on that table?
pub(super) fn is_key_of(entry: &str, schema: &str, table: &str) -> bool {
    kind_of(entry) == "CONSTRAINT" && entry.contains(&format!(" CONSTRAINT {schema} {table} "))
}

/// The names of indexes that name rows, or have to where there is no primary key.
pub(super) async fn identities(session: &Session) -> Result<Vec<String>> {
    let statement = "
        SELECT x.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
        JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indisunique AND i.indimmediate AND NOT i.indisprimary AND n.nspname !~ '^pg_'
          AND (i.indisreplident OR NOT EXISTS (
               SELECT 1 FROM pg_catalog.pg_index k WHERE k.indrelid = i.indrelid AND k.indisprimary AND k.indimmediate))";
    let rows = session.rows("read the indexes", statement, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_it_is() {
        for (entry, kind) in [
            ("215; 1259 16390 TABLE public orders shop", "TABLE"),
            ("3310; 2606 16400 FK CONSTRAINT public lines lines_order_fkey shop", "FK CONSTRAINT"),
            ("3200; 2606 16395 CONSTRAINT public orders orders_pkey shop", "CONSTRAINT"),
            ("3201; 1259 16401 INDEX public orders_at shop", "INDEX"),
            ("4; 2615 2200 SCHEMA - public pg_database_owner", "SCHEMA"),
            ("3300; 0 0 SEQUENCE OWNED BY public orders_id_seq shop", "SEQUENCE OWNED BY"),
        ] {
            assert_eq!(kind_of(entry), kind, "{entry}");
        }
        assert!(is_ours("1; 2620 1 TRIGGER public orders rehome_fence shop"));
        assert!(is_wanted_early("3200; 2606 16395 CONSTRAINT public orders orders_pkey shop", &[]));
        assert!(is_key_of("3200; 2606 16395 CONSTRAINT public orders orders_pkey shop", "public", "orders"));
        assert!(!is_key_of("3200; 2606 16395 CONSTRAINT public orders orders_pkey shop", "public", "order"));
        assert!(!is_wanted_early("3310; 2606 16400 FK CONSTRAINT public lines lines_order_fkey shop", &[]));
    }
}
