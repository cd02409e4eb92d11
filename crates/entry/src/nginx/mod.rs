//! nginx: the gateway becomes its upstream in one planned reload, and leaves again the same way. Weights, hold and switch are the
//! gateway's; nginx only passes requests on. What nginx can do alone is in [`alone`].

pub mod alone;
mod lexer;
mod plan;
mod server;
mod settings;
mod survey;
mod tree;

use crate::EntryError;
use crate::address::Names;
use crate::change::{Back, Change, Done, To};
use crate::files::FileChange;
use crate::quiet::Quiet;
use crate::record::{Record, Records, Stage};
use crate::service::{Service, Towards, gateways_answer, nothing_leads_here};
use plan::Planner;
pub use plan::{Plan, Route};
pub use server::Nginx;
use server::Running;
use survey::{Leads, Survey};
pub use tree::Tree;

const DRIVER: &str = "nginx";

impl Nginx {
    /// Reads the configuration and says what is there and what would change. Nothing is written and nothing is run.
    ///
    /// # Errors
    /// When a file cannot be read or understood.
    pub async fn plan(&self, services: &[Service], towards: Towards) -> Result<Plan, EntryError> {
        plan_of(&Tree::read(&self.config)?, services, towards).await
    }

    /// Puts what was proposed in place. What a killed run began is finished instead.
    ///
    /// # Errors
    /// As [`Change::install`].
    pub async fn install(
        &self,
        services: &[Service],
        plan: &Plan,
        quiet: &dyn Quiet,
    ) -> Result<Done, EntryError> {
        if plan.files.is_empty()
            && self.record()?.is_none()
            && !plan.routes.iter().any(|route| route.leads_to == "gateway")
        {
            return Err(nothing_leads_here(services));
        }
        gateways_answer(services).await?;
        let records = Records::open(&self.state, DRIVER, &self.config)?;
        let running = Running { nginx: self, questions: &plan.questions };
        let begun =
            matches!(records.load()?, Some(Record { stage: Stage::Installing | Stage::Removing, .. }));
        let files: &[FileChange] = if begun { &[] } else { &plan.files };
        Change { records: &records, served: &running, quiet }.install(files).await
    }

    /// What a removal would change, for people to see before it happens.
    ///
    /// # Errors
    /// When the record or a file cannot be read.
    pub async fn removal(&self, services: &[Service], to: To) -> Result<Vec<FileChange>, EntryError> {
        let Some(record) = self.record()? else { return Ok(Vec::new()) };
        let goals = self.goals(&record, services, to).await?;
        let back = match to {
            To::Source => Back::Source,
            To::Target => Back::Target(&goals),
        };
        crate::change::preview(&record, &back)
    }

    /// Takes the gateway out again.
    ///
    /// # Errors
    /// As [`Change::remove`].
    pub async fn remove(&self, services: &[Service], to: To, quiet: &dyn Quiet) -> Result<Done, EntryError> {
        let records = Records::open(&self.state, DRIVER, &self.config)?;
        let questions = self.plan(services, Towards::Gateway).await?.questions;
        let running = Running { nginx: self, questions: &questions };
        let change = Change { records: &records, served: &running, quiet };
        let Some(record) = records.load()? else { return change.remove(Back::Source).await };
        let goals = self.goals(&record, services, to).await?;
        match to {
            To::Source => change.remove(Back::Source).await,
            To::Target => change.remove(Back::Target(&goals)).await,
        }
    }

    /// What is recorded of a change here.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self) -> Result<Option<Record>, EntryError> {
        Records::peek(&self.state, DRIVER, &self.config)
    }

    /// The files as they would be if not the gateway but the target had been put in.
    async fn goals(
        &self,
        record: &Record,
        services: &[Service],
        to: To,
    ) -> Result<Vec<FileChange>, EntryError> {
        if to == To::Source {
            return Ok(Vec::new());
        }
        let before: Vec<FileChange> = record
            .files
            .iter()
            .map(|kept| FileChange {
                path: kept.path.clone(),
                before: kept.after.clone(),
                after: kept.before.clone(),
            })
            .collect();
        let tree = Tree::read_with(&self.config, &before)?;
        Ok(plan_of(&tree, services, Towards::Target).await?.unless_stopped()?.files)
    }
}

async fn plan_of(tree: &Tree, services: &[Service], towards: Towards) -> Result<Plan, EntryError> {
    let survey = Survey::of(tree);
    let hosts = survey.passes.iter().filter_map(|pass| match &pass.leads {
        Leads::Direct(place) => Some(place.host.clone()),
        _ => None,
    });
    let servers = survey.upstreams.iter().flat_map(|upstream| &upstream.servers);
    let servers = servers.filter_map(|server| crate::address::HostPort::parse(server.value(), 80));
    let hosts = hosts.chain(servers.map(|place| place.host)).chain(services.iter().flat_map(Service::hosts));
    let names = Names::look_up(hosts).await;
    Planner::new(tree, &survey, &names, services, towards).plan()
}
