//! `rehome plan`: read only. What will be done, in which order, how long it takes, what is risky, what cannot be undone.

use super::{Context, resolve};
use crate::daemon::world;
use crate::exit::{self, CliError, Exit, with_path};
use crate::printer::{count, size, span, style};
use crate::{paths, view};
use clap::Args;
use rehome_part::{Assessment, Capabilities, Finding, Follows, Part, Severity};
use rehome_spec::Migration;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Say what a migration will do, in which order, for how long, and what cannot be undone
///
/// Nothing is changed. With `-o` the plan is kept: `rehome apply plan.json` refuses it once the migration file or the
/// world it was made from has changed.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Keep the plan in this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Exit 10 when something is in the way
    #[arg(long)]
    pub exit_code: bool,
}

pub const PLAN_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    pub name: String,
    pub made_at: String,
    /// blake3 over the migration file's bytes.
    pub file_hash: String,
    /// blake3 over what was observed, ordinary traffic left out.
    pub world_hash: String,
    pub parts: Vec<PlannedPart>,
    pub steps: Vec<PlannedStep>,
    pub findings: Vec<Finding>,
    /// Expected time of the first copy, if it can be told.
    pub copy_seconds: Option<f64>,
    /// Time the reads are watched on the target before the switch.
    pub shift_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedPart {
    pub name: String,
    pub kind: String,
    pub source: String,
    pub target: String,
    pub capabilities: Capabilities,
    pub assessment: Assessment,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// `+` makes, `>` copies, `~` changes, `=` looks only, `!` cannot be undone.
    pub mark: char,
    pub phase: String,
    pub text: String,
    /// What takes it back; `None` where there is nothing to take back or no way.
    pub undo: Option<String>,
}

pub async fn run(context: &Context<'_>, args: &PlanArgs) -> Result<Exit, CliError> {
    let (path, migration) = context.migration()?;
    let plan = make(&path, &migration).await?;
    if let Some(output) = &args.output {
        let text = serde_json::to_vec_pretty(&plan).map_err(|error| CliError::failed(error.to_string()))?;
        paths::write_private(output, &text)?;
    }
    show(context, &plan);
    if let Some(output) = args.output.as_ref().filter(|_| !context.global.json) {
        context.printer.hint(&format!("go on with `rehome apply {}`", output.display()));
    }
    let verdict = exit::of_findings(&plan.findings);
    Ok(if args.exit_code { verdict } else { Exit::Done })
}

/// Looks at both sides and writes down what would be done.
pub async fn make(path: &Path, migration: &Migration) -> Result<Plan, CliError> {
    let bytes = std::fs::read(path).map_err(with_path(path))?;
    let scratch = tempfile::tempdir().map_err(with_path(Path::new("a temporary folder")))?;
    let parts = world::parts(migration, scratch.path(), &resolve, &[])?;
    let mut planned = Vec::new();
    for part in &parts {
        planned.push(look(part, migration).await?);
    }
    let findings = planned.iter().flat_map(|part| {
        part.assessment.findings.iter().cloned().map(|mut finding| {
            finding.text = format!("{}: {}", part.name, finding.text);
            finding
        })
    });
    let findings: Vec<Finding> = findings.chain(risks(migration, &planned)).collect();
    let mut hasher = blake3::Hasher::new();
    for part in &planned {
        hasher
            .update(part.name.as_bytes())
            .update(&[0])
            .update(part.assessment.fingerprint.as_bytes())
            .update(&[0]);
    }
    let known: Option<Vec<f64>> = planned.iter().map(|part| part.assessment.copy_seconds).collect();
    let steps = migration.switch.read_steps.len() as f64;
    let compares = migration.services.iter().any(|service| service.shadow.share > 0);
    let shadowed = compares.then_some(migration.switch.shadow_time);
    Ok(Plan {
        version: PLAN_VERSION,
        name: migration.migration.name.clone(),
        made_at: jiff::Timestamp::now().to_string(),
        file_hash: blake3::hash(&bytes).to_hex().to_string(),
        world_hash: hasher.finalize().to_hex().to_string(),
        steps: steps_of(migration, &planned),
        copy_seconds: known.map(|seconds| seconds.into_iter().fold(0.0, f64::max)),
        shift_seconds: shadowed.map_or(0.0, |time| time.0.as_secs_f64())
            + steps * migration.switch.read_step_time.0.as_secs_f64(),
        parts: planned,
        findings,
    })
}

async fn look(part: &Arc<dyn Part>, migration: &Migration) -> Result<PlannedPart, CliError> {
    let assessment = part
        .assess()
        .await
        .map_err(|error| CliError::from(error).within(&format!("cannot look at {}", part.name())))?;
    let objects =
        migration.objects.iter().map(|objects| (&objects.name, &objects.source.url, &objects.target.url));
    let databases = migration.databases.iter().map(|one| (&one.name, &one.source.url, &one.target.url));
    let (source, target) = objects
        .chain(databases)
        .find(|(name, ..)| *name == part.name())
        .map(|(_, source, target)| (source.clone(), target.clone()))
        .unwrap_or_default();
    Ok(PlannedPart {
        name: part.name().to_owned(),
        kind: part.kind().to_owned(),
        source,
        target,
        capabilities: part.capabilities(),
        assessment,
    })
}

/// What the shape of the migration itself makes risky.
fn risks(migration: &Migration, parts: &[PlannedPart]) -> Vec<Finding> {
    let warn = |id: &str, text: String, remedy: &str| Finding {
        id: id.into(),
        severity: Severity::Warning,
        side: None,
        text,
        remedy: Some(remedy.into()),
    };
    let mut found = Vec::new();
    for part in parts {
        let name = &part.name;
        if !part.capabilities.can_fence {
            let text = format!("{name}: no fence, so \"one writable side\" will not be proven");
            found.push(warn("no-fence", text, "give the part a fence (policy, command or hook)"));
        } else if !part.capabilities.can_probe {
            let text = format!("{name}: the fence cannot be tried out");
            found.push(warn(
                "fence-not-probed",
                text,
                "give the application's credentials under `application`",
            ));
        }
        if part.capabilities.follows == Follows::Listing {
            let text = format!(
                "{name}: changes are found by listing everything again; one listing is part of the write pause"
            );
            found.push(warn("no-change-feed", text, "give the part a change hook under `changes`"));
        }
        let is_behind =
            |database: &rehome_spec::Database| database.name == *name && database.is_behind_gateway();
        if !migration.services.iter().any(|service| service.uses.contains(name))
            && !migration.databases.iter().any(is_behind)
        {
            let text = format!(
                "{name}: no service uses it; writers that reach it another way are stopped by the fence alone"
            );
            found.push(warn(
                "part-without-service",
                text,
                "name it in the `uses` of the services that show it",
            ));
        }
    }
    if !migration.needs_gateways() {
        let text =
            "no service: nothing holds writes while the owner changes, writers will see refusals".to_owned();
        found.push(warn(
            "no-service",
            text,
            "put the application's users behind the gateway with `[[services]]`",
        ));
    }
    found
}

fn steps_of(migration: &Migration, parts: &[PlannedPart]) -> Vec<PlannedStep> {
    let step = |mark: char, phase: &str, text: String, undo: Option<&str>| PlannedStep {
        mark,
        phase: phase.into(),
        text,
        undo: undo.map(Into::into),
    };
    let names = parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
    let switch = &migration.switch;
    let mut steps = Vec::new();
    for part in parts {
        let make =
            format!("make what {} needs at {}, closed to every writer but rehome", part.name, part.target);
        steps.push(step('+', "copying", make, Some("removed again, if rehome made it")));
        let copy = format!(
            "copy {}: {} objects, {}",
            part.name,
            count(part.assessment.objects),
            size(part.assessment.bytes)
        );
        steps.push(step(
            '>',
            "copying",
            copy,
            Some("the copy is left or removed; the source is never touched"),
        ));
    }
    steps.push(step('>', "following", format!("follow every change of {names}"), Some("stop following")));
    steps.push(step('=', "ready", format!("verify {names}: an independent comparison"), None));
    for service in migration.services.iter().filter(|service| service.shadow.share > 0) {
        let text = format!(
            "compare {} % of the reads of {} with the target's answers, for {}",
            service.shadow.share,
            service.name,
            view::unit(switch.shadow_time)
        );
        steps.push(step('=', "ready", text, None));
    }
    if !migration.services.is_empty() {
        let shares: Vec<String> = switch.read_steps.iter().map(|share| format!("{share} %")).collect();
        let text = format!(
            "send {} of reads to the target, {} each",
            shares.join(", "),
            view::unit(switch.read_step_time)
        );
        steps.push(step('~', "shifting", text, Some("all reads back to the source within milliseconds")));
        let text = format!("hold writes at the gateway (at most {})", view::unit(switch.max_pause));
        steps.push(step('~', "switching", text, Some("release them to the source")));
    }
    for database in migration.databases.iter().filter(|database| !database.pgbouncers.is_empty()) {
        let text = format!("pause the clients of {} in PgBouncer, between two transactions", database.name);
        steps.push(step('~', "switching", text, Some("resume them on the source")));
    }
    for database in migration.databases.iter().filter(|database| database.front.is_some()) {
        let text =
            format!("hold the clients of {} at the front door, between two transactions", database.name);
        steps.push(step('~', "switching", text, Some("release them to the source")));
    }
    for worker in &migration.workers {
        steps.push(step('~', "switching", format!("stop worker {}", worker.name), Some("start it again")));
    }
    steps.push(step(
        '~',
        "switching",
        "close the source to writes, prove it, drain, seal".into(),
        Some("open the source again"),
    ));
    steps.push(step(
        '!',
        "switching",
        "commit: the target owns the next epoch".into(),
        Some("`rehome reverse` (a switch back)"),
    ));
    steps.push(step(
        '~',
        "switched",
        "open the target, release writes, follow target -> source".into(),
        Some("`rehome reverse`"),
    ));
    let soak = format!(
        "keep the way back ready for {}; then `rehome complete`, which cannot be undone",
        view::unit(switch.soak)
    );
    steps.push(step('!', "completed", soak, None));
    steps
}

/// Is this kept plan still true? Only the file and the observed world count, not the time.
pub fn check_fresh(kept: &Plan, now: &Plan) -> Result<(), CliError> {
    if kept.version != PLAN_VERSION {
        let text = format!("the plan has format {}, this rehome reads {PLAN_VERSION}", kept.version);
        return Err(CliError::failed(text).hint("make it again: `rehome plan -o plan.json`"));
    }
    let moved = match (kept.file_hash == now.file_hash, kept.world_hash == now.world_hash) {
        (true, true) => return Ok(()),
        (false, _) => "the migration file has changed",
        (true, false) => {
            "what it was made from has changed (a bucket, an endpoint, or what is already on the target)"
        }
    };
    Err(CliError::failed(format!("the plan of {} is stale: {moved}; nothing was done", kept.made_at))
        .hint("look at a new one: `rehome plan -o plan.json`"))
}

pub fn show(context: &Context<'_>, plan: &Plan) {
    let printer = context.printer;
    if printer.json {
        return printer.json(&serde_json::json!({ "ui": "1.0", "plan": plan }));
    }
    let (bold, dim) = (style::BOLD, style::DIM);
    printer.line(&format!("{bold}plan for {}{}", plan.name, bold.render_reset()));
    let mut phase = "";
    for step in &plan.steps {
        if step.phase != phase {
            phase = &step.phase;
            printer.line(&format!("  {dim}{phase}{}", dim.render_reset()));
        }
        let color = if step.mark == '!' { style::WARN } else { style::GOOD };
        printer.line(&format!("    {color}{}{} {}", step.mark, color.render_reset(), step.text));
        if let Some(undo) = &step.undo {
            printer.line(&format!("        {dim}undo: {undo}{}", dim.render_reset()));
        }
    }
    for finding in plan.findings.iter().filter(|finding| finding.severity != Severity::Info) {
        printer.line(&format!("  {}", super::doctor::line(finding)));
        if let Some(remedy) = &finding.remedy {
            printer.line(&format!("      {}remedy:{} {remedy}", style::HINT, style::HINT.render_reset()));
        }
    }
    let copy = plan
        .copy_seconds
        .map_or_else(|| "unknown time".to_owned(), |seconds| format!("about {}", span(seconds)));
    let objects = plan.parts.iter().map(|part| part.assessment.objects).sum();
    let bytes = plan.parts.iter().map(|part| part.assessment.bytes).sum();
    printer.line(&format!(
        "{} parts, {} objects, {}: copy {copy}, shifting {}; the point of no return is the commit (`!`), and until `complete` there is a way back",
        plan.parts.len(),
        count(objects),
        size(bytes),
        span(plan.shift_seconds),
    ));
}
