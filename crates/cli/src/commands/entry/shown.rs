//! What the drivers of proxies have to say, as people and programs read it.

use crate::exit::CliError;
use crate::printer::{Printer, style};
use rehome_entry::change::{Done, TakenUp};
use rehome_entry::files::{FileChange, Link};
use rehome_entry::finding::{Finding, Gravity};
use rehome_entry::record::{Record, Stage};
use serde_json::{Value, json};

/// What was noticed: data where it was asked for, talk where something else was.
pub fn findings(findings: &[Finding], say: impl Fn(&str)) {
    for finding in findings {
        let (mark, color) = match finding.gravity {
            Gravity::Note => ("note", style::DIM),
            Gravity::Look => ("look", style::WARN),
            Gravity::Stop => ("STOP", style::BAD),
        };
        say(&format!("{color}{mark}{} {} {}", color.render_reset(), finding.place, finding.text));
        if let Some(remedy) = &finding.remedy {
            say(&format!("    {}remedy:{} {remedy}", style::HINT, style::HINT.render_reset()));
        }
    }
}

pub fn links(printer: &Printer, links: &[Link]) {
    for link in links {
        printer.talk(&format!(
            "{} is a link: the file behind it changes, {}, and the link stays",
            link.link.display(),
            link.file.display()
        ));
    }
}

/// The diff, as data; `false` when there is none.
pub fn diff(printer: &Printer, files: &[FileChange]) -> bool {
    for line in files.iter().flat_map(|file| file.diff().lines().map(str::to_owned).collect::<Vec<_>>()) {
        let color = match line.chars().next() {
            Some('+') if !line.starts_with("+++") => style::GOOD,
            Some('-') if !line.starts_with("---") => style::BAD,
            Some('@') => style::HINT,
            _ => style::DIM,
        };
        // A line without colour is the patch itself.
        if printer.colored {
            printer.line(&format!("{color}{line}{}", color.render_reset()));
        } else {
            printer.line(&line);
        }
    }
    !files.is_empty()
}

pub fn diff_text(files: &[FileChange]) -> String {
    files.iter().map(FileChange::diff).collect()
}

pub fn stage(record: Option<&Record>) -> &'static str {
    match record.map(|record| record.stage) {
        None => "out",
        Some(Stage::Installed) => "in",
        Some(Stage::Installing) => "half in",
        Some(Stage::Removing) => "half out",
    }
}

/// What to say of a change that stopped half way.
pub fn unfinished(printer: &Printer, record: Option<&Record>) {
    if let Some(record) = record.filter(|record| record.stage != Stage::Installed) {
        let word = if record.stage == Stage::Installing { "installation" } else { "removal" };
        printer.warning(&format!(
            "an {word} was begun here and did not end: run `install` to have the gateway in, or `remove --to source` to have it out",
        ));
    }
}

pub fn taken_up(printer: &Printer, taken_up: &TakenUp) {
    if taken_up.by != "none" {
        printer.talk(&format!("taken up by {} in {} ms", taken_up.by, taken_up.milliseconds));
    }
    for note in &taken_up.notes {
        printer.talk(&format!("  {note}"));
    }
}

pub fn done(printer: &Printer, driver: &str, what: &str, done: &Done) {
    if printer.json {
        let mut document = json!({ "ui": "1.0", "driver": driver, "did": what });
        if let (Some(document), Ok(Value::Object(more))) =
            (document.as_object_mut(), serde_json::to_value(done))
        {
            document.extend(more);
        }
        return printer.json(&document);
    }
    for seen in &done.seen {
        let answer = match &seen.answer {
            Ok(status) => status.to_string(),
            Err(why) => why.clone(),
        };
        let way = if seen.through_gateway { "through the gateway" } else { "not through the gateway" };
        printer.line(&format!("{}: {answer}, {way}", seen.route));
    }
    taken_up(printer, &done.taken_up);
    printer.line(if done.changed { what } else { "nothing had to be changed" });
}

/// `systemctl reload nginx` as words; there is no shell.
pub fn words(text: Option<&String>) -> Option<Vec<String>> {
    text.map(|text| text.split_whitespace().map(str::to_owned).collect())
}

/// A program by its path, or by its name in the usual places.
pub fn program(name: &std::path::Path) -> Result<std::path::PathBuf, CliError> {
    if name.components().count() > 1 {
        return Ok(name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(Into::into));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        CliError::not_found(format!("there is no program `{}`", name.display())).hint("name it by its path")
    })
}
