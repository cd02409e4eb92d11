//! What a driver noticed in somebody's configuration: where, what it means for the move, what to do.

use crate::EntryError;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// Good to know.
    Note,
    /// Works, and may surprise.
    Look,
    /// Nothing is changed while this stands.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    pub gravity: Gravity,
    /// `file:line`.
    pub place: String,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub(crate) fn new(
        id: &'static str,
        gravity: Gravity,
        place: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self { id, gravity, place: place.into(), text: text.into(), remedy: None }
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Findings without repetition, the gravest first.
pub(crate) fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.gravity));
    let mut kept: Vec<Finding> = Vec::with_capacity(findings.len());
    for finding in findings {
        if !kept.contains(&finding) {
            kept.push(finding);
        }
    }
    kept
}

/// # Errors
/// When something stands in the way; the text names all of it.
pub(crate) fn refuse_stops(findings: &[Finding]) -> Result<(), EntryError> {
    let stops: Vec<&Finding> = findings.iter().filter(|finding| finding.gravity == Gravity::Stop).collect();
    if stops.is_empty() {
        return Ok(());
    }
    let what: Vec<String> =
        stops.iter().map(|finding| format!("{}: {}", finding.place, finding.text)).collect();
    let hint = stops.iter().find_map(|finding| finding.remedy.clone());
    Err(EntryError::unfit(what.join("\n"), hint.unwrap_or_else(|| "nothing was changed".into())))
}
