//! `rehome doctor`: everything that can be checked without changing anything, each with an id and a remedy.

use super::{Context, resolve};
use crate::daemon::gateways;
use crate::exit::{self, CliError, Exit};
use crate::paths;
use crate::printer::{Printer, style};
use clap::Args;
use rehome_gateway::Probed;
use rehome_part::{Finding, Severity};
use rehome_spec::{Database, Migration, Secret, Service};

/// Check credentials, permissions, clocks and endpoints before anything moves
///
/// Nothing is changed on either side. Exits 10 when something would stop the move.
#[derive(Debug, Args)]
pub struct DoctorArgs {}

pub async fn run(context: &Context<'_>, _: &DoctorArgs) -> Result<Exit, CliError> {
    let (path, migration) = context.migration()?;
    let mut findings = secrets(&migration);
    findings.extend(machine(context));
    for objects in &migration.objects {
        let found = rehome_objects::doctor(objects, &resolve).await;
        findings.extend(found.into_iter().map(|mut finding| {
            finding.text = format!("{}: {}", objects.name, finding.text);
            finding
        }));
    }
    for database in &migration.databases {
        let found = rehome_databases::doctor(database, &resolve).await;
        findings.extend(found.into_iter().map(|mut finding| {
            finding.text = format!("{}: {}", database.name, finding.text);
            finding
        }));
        findings.extend(pgbouncers(database).await);
        findings.extend(front_door(database));
    }
    findings.extend(services(&migration.services).await);
    findings.extend(gateways_answer(context, &migration).await);
    show(context.printer, &path.display().to_string(), &findings);
    Ok(exit::of_findings(&findings))
}

fn finding(id: &str, severity: Severity, text: String, remedy: Option<&str>) -> Finding {
    Finding { id: id.into(), severity, side: None, text, remedy: remedy.map(Into::into) }
}

fn secrets(migration: &Migration) -> Vec<Finding> {
    let named: Vec<(String, &Secret)> = migration.secrets();
    let mut findings: Vec<Finding> = named
        .iter()
        .filter_map(|(place, secret)| match secret.check() {
            Err(error) => {
                let remedy =
                    Some("set the variable or file it names, in the environment of every rehome process");
                Some(finding("secret-missing", Severity::Blocker, format!("{place}: {error}"), remedy))
            }
            Ok(check) => {
                let text = format!("{place}: {}", check.warning?);
                Some(finding("secret-readable", Severity::Warning, text, Some("give the file mode 0600")))
            }
        })
        .collect();
    if !findings.iter().any(|finding| finding.severity == Severity::Blocker) && !named.is_empty() {
        findings.push(finding("secrets", Severity::Info, format!("{} secrets resolve", named.len()), None));
    }
    findings
}

fn machine(context: &Context<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match paths::private_folder(&context.home).and_then(|()| {
        let probe = context.home.join(format!("probe-{}", std::process::id()));
        paths::write_private(&probe, b"probe")?;
        std::fs::remove_file(&probe).map_err(exit::with_path(&probe))
    }) {
        Ok(()) => {
            findings.push(finding(
                "state-folder",
                Severity::Info,
                format!("{} takes writes", context.home.display()),
                None,
            ));
        }
        Err(error) => findings.push(finding(
            "state-folder",
            Severity::Blocker,
            format!("the journal's folder does not take writes: {}", error.text),
            Some("make room or name another folder with `--state DIR`"),
        )),
    }
    if let Ok(stat) = rustix::fs::statvfs(&context.home) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < 1 << 30 {
            findings.push(finding(
                "state-folder-space",
                Severity::Warning,
                format!("only {} free where the journal lives", crate::printer::size(free)),
                Some("keep 1 GiB free: the journal must never be refused a write"),
            ));
        }
    }
    findings
}

/// Each address of each service, asked as the gateway would ask it: does it answer, and its health path with success?
async fn services(services: &[Service]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in services {
        match rehome_gateway::probe(service).await {
            Ok(all) => findings.extend(all.into_iter().map(|probed| service_finding(service, probed))),
            Err(error) => findings.push(finding(
                "service-health",
                Severity::Blocker,
                error.to_string(),
                Some("no gateway can start with this"),
            )),
        }
    }
    findings
}

fn service_finding(service: &Service, probed: Probed) -> Finding {
    let Probed { side, address, path, answer } = probed;
    let place = format!("{}: {address}{path}", service.name);
    let (severity, text, remedy) = match (answer, service.health.is_some()) {
        (Ok(200..300), _) | (Ok(_), false) => (Severity::Info, format!("{place} answers"), None),
        (Ok(code), true) => (
            Severity::Warning,
            format!("{place} answers {code}, not 200"),
            Some("mend that side, or name the right path in `health`"),
        ),
        (Err(error), _) => (
            Severity::Warning,
            format!("{place}: {error}"),
            Some("start the application on that side and let this machine reach it"),
        ),
    };
    Finding { side: Some(side), ..finding("service-health", severity, text, remedy) }
}

/// Can a gateway open the front door, and for whom?
fn front_door(database: &Database) -> Option<Finding> {
    let written = database.front.as_ref()?;
    Some(match super::gateway::front_door(database, written) {
        Ok(door) => {
            let users: Vec<&str> = door.logins.iter().map(|login| &*login.user).collect();
            let text = format!("the front door of {} lets in {}", database.name, users.join(", "));
            finding("front-door", Severity::Info, text, None)
        }
        Err(error) => {
            let text = format!("the front door of {}: {}", database.name, error.text);
            finding("front-door", Severity::Blocker, text, error.hints.first().map(String::as_str))
        }
    })
}

/// The PgBouncers beside this machine's gateway; those of other gateways are looked at there.
async fn pgbouncers(database: &Database) -> Vec<Finding> {
    let mut findings = Vec::new();
    for written in &database.pgbouncers {
        let checked = match super::gateway::pgbouncer(database, written) {
            Ok(bouncer) => {
                rehome_gateway::pgbouncer::check(&bouncer).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.text),
        };
        findings.push(match checked {
            Ok(()) => {
                let text = format!("PgBouncer of {} holds between transactions", database.name);
                finding("pgbouncer", Severity::Info, text, None)
            }
            Err(why) => {
                let remedy =
                    Some("see docs/databases.md, \"Behind PgBouncer\"; run doctor where its gateway runs");
                finding("pgbouncer", Severity::Blocker, why, remedy)
            }
        });
    }
    findings
}

async fn gateways_answer(context: &Context<'_>, migration: &Migration) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !migration.needs_gateways() {
        return findings;
    }
    for gateway in migration.gateways_or_default(&context.home) {
        let answer = gateways::status(&gateway).await;
        findings.push(match answer {
            Ok(status) => finding(
                "gateway",
                Severity::Info,
                format!("gateway {} answers: owner {}, epoch {}", gateway.name, status.owner, status.epoch),
                None,
            ),
            Err(error) => finding(
                "gateway",
                Severity::Warning,
                format!("gateway {} does not answer: {error}", gateway.name),
                Some("start it with `rehome gateway`, then let users in through it"),
            ),
        });
    }
    findings
}

pub fn show(printer: &Printer, what: &str, findings: &[Finding]) {
    if printer.json {
        let blockers = findings.iter().filter(|finding| finding.severity == Severity::Blocker).count();
        printer.json(
            &serde_json::json!({ "ui": "1.0", "checked": what, "blockers": blockers, "findings": findings }),
        );
        return;
    }
    for finding in findings {
        printer.line(&line(finding));
        if let Some(remedy) = finding.remedy.as_ref().filter(|_| finding.severity != Severity::Info) {
            printer.line(&format!("    {}remedy:{} {remedy}", style::HINT, style::HINT.render_reset()));
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (blockers, warnings) = (count(Severity::Blocker), count(Severity::Warning));
    printer.line(&format!(
        "{what}: {blockers} in the way, {warnings} to look at, {} well",
        count(Severity::Info)
    ));
}

/// One finding as a line: mark, id, side, text.
pub fn line(finding: &Finding) -> String {
    let (mark, color) = match finding.severity {
        Severity::Info => ("ok  ", style::GOOD),
        Severity::Warning => ("look", style::WARN),
        Severity::Blocker => ("STOP", style::BAD),
    };
    let side = finding.side.map(|side| format!(" {side}:")).unwrap_or_default();
    format!("{color}{mark}{} {}{side} {}", color.render_reset(), finding.id, finding.text)
}
