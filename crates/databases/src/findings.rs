//! What a look at one side finds, gathered: each finding with its id, its figures and what to do.

use rehome_part::{Finding, Severity, Side};

pub(crate) struct Findings {
    pub side: Side,
    pub all: Vec<Finding>,
}

impl Findings {
    pub fn of(side: Side) -> Self {
        Self { side, all: Vec::new() }
    }

    /// An empty `remedy`: nothing is to be done.
    pub fn add(&mut self, severity: Severity, id: &str, text: impl Into<String>, remedy: &str) {
        self.all.push(Finding {
            id: id.to_owned(),
            severity,
            side: Some(self.side),
            text: text.into(),
            remedy: (!remedy.is_empty()).then(|| remedy.to_owned()),
        });
    }

    pub fn block(&mut self, id: &str, text: impl Into<String>, remedy: &str) {
        self.add(Severity::Blocker, id, text, remedy);
    }

    pub fn warn(&mut self, id: &str, text: impl Into<String>, remedy: &str) {
        self.add(Severity::Warning, id, text, remedy);
    }

    pub fn note(&mut self, id: &str, text: impl Into<String>) {
        self.add(Severity::Info, id, text, "");
    }
}
