//! What a person sees of a run: the tree, the plain lines, the report. All of it is drawn from the journal's views.

pub mod follow;
pub mod lines;
pub mod progress;
pub mod report;
pub mod screen;
pub mod service;
pub mod tree;

/// A span of the migration file as people write it: `2s`, `24h`.
pub fn unit(span: rehome_spec::Span) -> String {
    span.to_string()
}

/// How many of a copy's findings are losses; remarks (a store that reports no checksum) are none.
pub fn lost(findings: &[rehome_part::Finding]) -> u64 {
    findings.iter().filter(|finding| finding.severity > rehome_part::Severity::Info).count() as u64
}
