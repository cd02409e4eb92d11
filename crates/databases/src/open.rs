//! From a `[[databases]]` table of the migration file to a part. Opening sends nothing and reads only the secrets that the table names.

use crate::address::{Address, Engine};
use crate::end::{End, Ends, FenceMeans, Login};
use crate::mysql::MysqlPart;
use crate::postgres::PostgresPart;
use crate::redis::RedisPart;
use rehome_part::{Error, ErrorKind, Finding, Part, Result, Severity, Side};
use rehome_spec::{Database, DatabaseEnd, DatabaseFence, Secret};
use std::path::Path;
use std::sync::Arc;

/// Gives the secret behind a reference, or says why it cannot.
pub type Secrets<'s> = dyn Fn(&Secret) -> std::result::Result<String, String> + 's;

/// The part of `spec`, with its memory in `folder`.
///
/// # Errors
/// `Unsupported` for an address that is none, `Credentials` for a secret that cannot be had; both name the side.
pub fn part(spec: &Database, folder: &Path, secret: &Secrets<'_>) -> Result<Arc<dyn Part>> {
    let ends = ends(spec, secret)?;
    match ends.source.address.engine {
        Engine::Postgres => Ok(Arc::new(PostgresPart::new(&spec.name, ends, means(spec.fence), folder)?)),
        Engine::Mysql => Ok(Arc::new(MysqlPart::new(&spec.name, ends, means(spec.fence), folder)?)),
        Engine::Redis => Ok(Arc::new(RedisPart::new(&spec.name, ends, means(spec.fence), folder)?)),
    }
}

fn means(fence: DatabaseFence) -> FenceMeans {
    match fence {
        DatabaseFence::Writes => FenceMeans::Writes,
        DatabaseFence::Logins => FenceMeans::Logins,
        DatabaseFence::None => FenceMeans::None,
    }
}

fn ends(spec: &Database, secret: &Secrets<'_>) -> Result<Ends> {
    Ok(Ends {
        source: end(&spec.source, Side::Source, secret)?,
        target: end(&spec.target, Side::Target, secret)?,
    })
}

fn end(spec: &DatabaseEnd, side: Side, secret: &Secrets<'_>) -> Result<End> {
    let parsed = |text: &str| {
        Address::parse(text)
            .map_err(|error| Error::permanent(ErrorKind::Unsupported, error.text).on(side).hint(error.hint))
    };
    let opened = |of: &str, reference: &Option<Secret>| {
        reference.as_ref().map(secret).transpose().map_err(|why| {
            Error::permanent(ErrorKind::Credentials, format!("the password of {of}: {why}")).on(side)
        })
    };
    let address = parsed(&spec.url)?;
    let logins = spec
        .applications
        .iter()
        .map(|login| Ok(Login { user: login.user.clone(), password: opened(&login.user, &login.password)? }));
    Ok(End {
        password: opened(&address.user, &spec.password)?,
        from_other: spec.seen_by_other.as_deref().map(parsed).transpose()?,
        applications: logins.collect::<Result<_>>()?,
        address,
    })
}

/// What can be checked of a database without changing anything: what `assess` finds, and that the application's logins work.
pub async fn doctor(spec: &Database, secret: &Secrets<'_>) -> Vec<Finding> {
    let trouble = |error: Error| {
        vec![Finding {
            id: match error.kind {
                ErrorKind::Credentials => "credentials",
                ErrorKind::Network => "unreachable",
                _ => "unusable",
            }
            .into(),
            severity: Severity::Blocker,
            side: error.side,
            text: error.text,
            remedy: error.hint,
        }]
    };
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            return trouble(Error::permanent(ErrorKind::Other, format!("a temporary folder: {error}")));
        }
    };
    let part = match part(spec, folder.path(), secret) {
        Ok(part) => part,
        Err(error) => return trouble(error),
    };
    match part.assess().await {
        Ok(assessment) => {
            let mut findings = assessment.findings;
            if let Err(error) = part.probe(Side::Source).await {
                findings.extend(trouble(error));
            }
            findings
        }
        Err(error) => trouble(error),
    }
}
