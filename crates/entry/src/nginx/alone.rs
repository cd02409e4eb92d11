//! nginx without the gateway, for those who insist: files to include that split reads by a stable hash, send every write to the
//! owner, and mirror a sample. There is no hold, no freshness and no switch in them, and every step is a reload: they say so.

use super::server::{Nginx, Running};
use super::tree::Tree;
use crate::EntryError;
use crate::address::Address;
use crate::change::{Served, TakenUp};
use crate::files::{self, failed};
use crate::quiet::{self, Quiet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the files are to do.
#[derive(Debug, Clone)]
pub struct Alone {
    pub service: String,
    pub source: Vec<Address>,
    pub target: Vec<Address>,
    /// Writes go to the target, and what reads are not split off too.
    pub target_owns: bool,
    /// The share of reads that goes to the side that does not own, 0 to 100.
    pub percent: u8,
    /// Methods that only read.
    pub reads: Vec<String>,
    /// What tells one client from another, in nginx's variables.
    pub key: String,
    /// The share of reads of which the target gets a copy, 0 to 100.
    pub mirror: u8,
}

/// What these files cannot do, for people who are about to rely on them.
pub const LIMITS: [&str; 4] = [
    "every step is a reload of nginx: each connection of a client that is open in that moment may lose one request",
    "nothing is held: a switch without the gateway means refused or lost writes in between, so close the application for it",
    "reads that go to the other side do not know whether the client's own writes have arrived there",
    "a mirrored request keeps its client's connection busy until the copy is answered too",
];

/// A file to write: its name, and what includes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub name: String,
    /// `http`, `server` or `location`.
    pub goes_into: &'static str,
    pub text: String,
}

impl Alone {
    /// # Errors
    /// When a name, a share or a key does not fit into a configuration.
    pub fn pieces(&self) -> Result<Vec<Piece>, EntryError> {
        self.check()?;
        let id = self.id();
        let piece = |into: &'static str, text: String| Piece {
            name: format!("rehome-{}-{into}.conf", self.service),
            goes_into: into,
            text: format!("# Written by `rehome entry nginx alone`: include it in {into} {{ }}.\n{text}"),
        };
        Ok(vec![
            piece("http", self.http(&id)?),
            piece("server", self.server(&id)),
            piece("location", self.location(&id)),
        ])
    }

    fn check(&self) -> Result<(), EntryError> {
        let unfit = |what: String, hint: &str| Err(EntryError::unfit(what, hint));
        let is_word = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|sign| sign.is_ascii_alphanumeric() || more.contains(sign))
        };
        if !is_word(&self.service, "-_.") {
            return unfit(
                format!("`{}` makes no file name", self.service),
                "use letters, digits, `-`, `_` and `.`",
            );
        }
        if !is_word(&self.key, "$_{}|:-.") {
            return unfit(
                format!("`{}` is no key of nginx's variables", self.key),
                "write it like $remote_addr or $cookie_session",
            );
        }
        if self.percent > 100 || self.mirror > 100 {
            return unfit("a share is 0 to 100".into(), "write it like 25");
        }
        if self.source.is_empty() || self.target.is_empty() {
            return unfit("both sides need an address".into(), "name them in the migration file");
        }
        match self.reads.iter().find(|method| !is_word(method, "-")) {
            Some(method) => unfit(format!("`{method}` is no method"), "write it like GET"),
            None => Ok(()),
        }
    }

    /// For names of variables and upstreams.
    fn id(&self) -> String {
        let clean = |sign: char| if sign.is_ascii_alphanumeric() { sign.to_ascii_lowercase() } else { '_' };
        format!("rehome_{}", self.service.chars().map(clean).collect::<String>())
    }

    fn http(&self, id: &str) -> Result<String, EntryError> {
        let mut text = String::new();
        for (side, addresses) in [("source", &self.source), ("target", &self.target)] {
            if addresses.iter().any(|address| address.secure) {
                return Err(EntryError::unfit(
                    format!("{side} is spoken to with https, which these files do not do"),
                    "use the gateway for it",
                ));
            }
            let servers: String =
                addresses.iter().map(|address| format!("    server {};\n", address.authority())).collect();
            let _ = write!(text, "upstream {id}_{side} {{\n{servers}    keepalive 64;\n}}\n");
        }
        let (owner, other) = if self.target_owns { ("target", "source") } else { ("source", "target") };
        // A share of 0 % cannot be written, and none of these two is left to a hash.
        let split = match self.percent {
            0 => format!("    * {id}_{owner};\n"),
            100 => format!("    * {id}_{other};\n"),
            share => format!("    {share}% {id}_{other};\n    * {id}_{owner};\n"),
        };
        let _ = write!(text, "split_clients \"{}\" ${id}_reader {{\n{split}}}\n", self.key);
        let reads: String = self.reads.iter().map(|method| format!("    {method} ${id}_reader;\n")).collect();
        let _ = write!(text, "map $request_method ${id}_side {{\n    default {id}_{owner};\n{reads}}}\n");
        let drawn = match self.mirror {
            0 => "    * \"\";\n".to_owned(),
            100 => "    * yes;\n".to_owned(),
            share => format!("    {share}% yes;\n    * \"\";\n"),
        };
        let _ = write!(text, "split_clients \"$request_id\" ${id}_drawn {{\n{drawn}}}\n");
        let copied: String = self.reads.iter().map(|method| format!("    {method}:yes yes;\n")).collect();
        let _ =
            write!(text, "map $request_method:${id}_drawn ${id}_copied {{\n    default \"\";\n{copied}}}\n");
        Ok(text)
    }

    fn server(&self, id: &str) -> String {
        format!(
            "location = /{id}_copy {{\n    internal;\n    if (${id}_copied = \"\") {{ return 204; }}\n    \
             proxy_pass http://{id}_target$request_uri;\n    proxy_http_version 1.1;\n    proxy_set_header Connection \"\";\n    \
             proxy_set_header Host $http_host;\n    proxy_pass_request_body off;\n    proxy_set_header Content-Length \"\";\n    \
             proxy_connect_timeout 1s;\n    proxy_read_timeout 5s;\n}}\n"
        )
    }

    fn location(&self, id: &str) -> String {
        let mirror = match self.mirror {
            0 => String::new(),
            _ => format!("mirror /{id}_copy;\nmirror_request_body off;\n"),
        };
        format!(
            "{mirror}proxy_pass http://${id}_side;\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\n\
             proxy_set_header Host $http_host;\nproxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_set_header X-Forwarded-Proto $scheme;\nproxy_next_upstream off;\n"
        )
    }
}

impl Nginx {
    /// Writes the files into `folder` once `nginx -t` has taken them, and reloads where an nginx runs whose configuration
    /// includes them. Gives the files that changed, and what the reload was.
    ///
    /// # Errors
    /// When nginx refuses them: then those that were there are there again.
    pub async fn write_alone(
        &self,
        alone: &Alone,
        folder: &Path,
        quiet: &dyn Quiet,
    ) -> Result<(Vec<PathBuf>, Option<TakenUp>), EntryError> {
        let pieces = alone.pieces()?;
        self.test_alone(&pieces).await?;
        let folder = std::fs::canonicalize(folder).map_err(failed(folder))?;
        let _guard = quiet::ask(quiet).await?;
        let mut former = Vec::new();
        for piece in &pieces {
            let path = folder.join(&piece.name);
            let before = if path.exists() { Some(files::read_bytes(&path)?) } else { None };
            if before.as_deref() != Some(piece.text.as_bytes()) {
                put(&path, piece.text.as_bytes(), before.is_some())?;
                former.push((path, before));
            }
        }
        let changed: Vec<PathBuf> = former.iter().map(|(path, _)| path.clone()).collect();
        match self.take_up_alone(&changed).await {
            Ok(taken_up) => Ok((changed, taken_up)),
            Err(error) => {
                for (path, before) in former {
                    match before {
                        Some(bytes) => files::replace(&path, &bytes)?,
                        None => std::fs::remove_file(&path).map_err(failed(&path))?,
                    }
                }
                Err(EntryError::NotProven { what: error.to_string(), undone: true })
            }
        }
    }

    async fn take_up_alone(&self, changed: &[PathBuf]) -> Result<Option<TakenUp>, EntryError> {
        if changed.is_empty() || !self.config.exists() {
            return Ok(None);
        }
        let tree = Tree::read(&self.config)?;
        if !tree.files.iter().any(|source| changed.contains(&source.original.real)) {
            return Ok(None);
        }
        self.test(&self.config).await?;
        if !self.can_reload(&tree).await {
            return Ok(None);
        }
        Running { nginx: self, questions: &[] }.take_up(&[]).await.map(Some)
    }

    /// The three files in a configuration of nothing else.
    async fn test_alone(&self, pieces: &[Piece]) -> Result<(), EntryError> {
        let folder = tempfile::tempdir().map_err(failed(Path::new("/tmp")))?;
        let into = |name: &str| {
            let texts = pieces.iter().filter(|piece| piece.goes_into == name);
            texts.map(|piece| piece.text.as_str()).collect::<String>()
        };
        let at = folder.path().display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .collect();
        let text = format!(
            "pid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}{}server {{\nlisten unix:{at}/s;\n{}\
             location / {{\n{}}}\n}}\n}}\n",
            into("http"),
            into("server"),
            into("location")
        );
        let path = folder.path().join("nginx.conf");
        files::write_private(&path, text.as_bytes())?;
        self.test(&path).await
    }
}

/// nginx's workers read no configuration: the master does, so the files are its owner's alone to write and anybody's to read.
fn put(path: &Path, bytes: &[u8], exists: bool) -> Result<(), EntryError> {
    if exists {
        return files::replace(path, bytes);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    (|| {
        let mut beside = tempfile::Builder::new().prefix(".rehome-new-").tempfile_in(folder)?;
        beside.write_all(bytes)?;
        beside.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        beside.as_file().sync_all()?;
        beside.persist_noclobber(path).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    })()
    .map_err(failed(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Alone {
        Alone {
            service: "shop".into(),
            source: vec![Address::parse("http://10.0.0.5:8000").unwrap()],
            target: vec![Address::parse("http://10.8.0.5:8000").unwrap()],
            target_owns: false,
            percent: 0,
            reads: vec!["GET".into()],
            key: "$remote_addr".into(),
            mirror: 0,
        }
    }

    #[test]
    fn nothing_that_is_no_name_gets_into_a_file() {
        for change in [
            |alone: &mut Alone| alone.service = "../x".into(),
            |alone: &mut Alone| alone.key = "$a\" { } x \"".into(),
            |alone: &mut Alone| alone.reads = vec!["GET; x".into()],
            |alone: &mut Alone| alone.percent = 101,
            |alone: &mut Alone| alone.source.clear(),
        ] {
            let mut wrong = alone();
            change(&mut wrong);
            assert!(wrong.pieces().is_err(), "{wrong:?}");
        }
        assert_eq!(alone().pieces().unwrap().len(), 3);
    }
}
