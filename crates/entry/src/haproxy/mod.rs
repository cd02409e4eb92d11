//! HAProxy: the gateway becomes the address of its servers, at runtime or in one reload, and leaves again the same way; weights and
//! drain by its runtime API for those who use it without a gateway.

mod config;
mod doors;
pub mod hold;
mod plan;
mod runtime;
mod server;
mod swap;

use crate::EntryError;
use crate::address::Names;
use crate::change::{Back, Change, Done, Served, TakenUp, To};
use crate::files::{self, FileChange};
use crate::quiet::{self, Quiet};
use crate::record::{Record, Records, Stage};
use crate::service::{Service, Towards, gateways_answer, nothing_leads_here};
use config::Config;
use hold::Hold;
pub use plan::{Plan, Route};
use plan::{Planner, address_of};
pub use runtime::{Info, RunningServer, Runtime};
pub use server::Haproxy;
use server::Running;
use std::path::Path;

const DRIVER: &str = "haproxy";

/// How a change reaches the running HAProxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At runtime where that is enough and a socket is there, else by a reload.
    Best,
    Reload,
}

impl Haproxy {
    fn first_config(&self) -> Result<&Path, EntryError> {
        self.configs
            .first()
            .map(std::path::PathBuf::as_path)
            .ok_or_else(|| EntryError::unfit("there is no configuration file", "name it with --config"))
    }

    /// Reads the configuration and says what is there and what would change. Nothing is written and nothing is run.
    ///
    /// # Errors
    /// When a file cannot be read or understood.
    pub async fn plan(&self, services: &[Service], towards: Towards) -> Result<Plan, EntryError> {
        plan_of(&Config::read(&self.configs, &[])?, services, towards).await
    }

    /// Puts what was proposed in place. What a killed run began is finished instead.
    ///
    /// # Errors
    /// As [`Change::install`].
    pub async fn install(
        &self,
        services: &[Service],
        plan: &Plan,
        way: Way,
        quiet: &dyn Quiet,
    ) -> Result<Done, EntryError> {
        if plan.files.is_empty()
            && self.record()?.is_none()
            && !plan.routes.iter().any(|route| route.leads_to == "gateway")
        {
            return Err(nothing_leads_here(services));
        }
        gateways_answer(services).await?;
        let records = Records::open(&self.state, DRIVER, self.first_config()?)?;
        let begun =
            records.load()?.filter(|record| matches!(record.stage, Stage::Installing | Stage::Removing));
        let only_addresses = match &begun {
            Some(record) => self.changes_only_addresses(record, services).await?,
            None => plan.only_addresses,
        };
        let by_runtime = way == Way::Best && self.runtime.is_some() && only_addresses;
        let running = Running { haproxy: self, services, questions: &plan.questions, by_runtime };
        let files: &[FileChange] = if begun.is_some() { &[] } else { &plan.files };
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
    pub async fn remove(
        &self,
        services: &[Service],
        to: To,
        way: Way,
        quiet: &dyn Quiet,
    ) -> Result<Done, EntryError> {
        let records = Records::open(&self.state, DRIVER, self.first_config()?)?;
        let questions = self.plan(services, Towards::Gateway).await?.questions;
        let record = records.load()?;
        let (goals, only_addresses) = match &record {
            Some(record) => {
                let only_addresses = self.changes_only_addresses(record, services).await?;
                (self.goals(record, services, to).await?, only_addresses)
            }
            None => (Vec::new(), false),
        };
        let by_runtime = way == Way::Best && self.runtime.is_some() && only_addresses;
        let running = Running { haproxy: self, services, questions: &questions, by_runtime };
        let change = Change { records: &records, served: &running, quiet };
        match to {
            To::Target if record.is_some() => change.remove(Back::Target(&goals)).await,
            _ => change.remove(Back::Source).await,
        }
    }

    /// The socket that the configuration names with the rights to change something.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub fn socket_in(configs: &[std::path::PathBuf]) -> Result<Option<Runtime>, EntryError> {
        let config = Config::read(configs, &[])?;
        let lines = config.sections.iter().filter(|section| section.kind() == "global");
        let mut lines = lines.flat_map(|section| &section.lines);
        let is_admin = |line: &&config::Line| {
            line.begins(&["stats", "socket"])
                && line.find(3, "level").is_some_and(|at| line.word(at + 1) == "admin")
        };
        let found = lines.find(is_admin).map(|line| line.word(2).trim_start_matches("unix@"));
        Ok(found.map(|text| Runtime::parse(text.trim_start_matches("ipv4@"))))
    }

    /// The servers of a backend that stand for a side, as they run now.
    ///
    /// # Errors
    /// When the socket does not answer.
    pub async fn servers_of_side(
        &self,
        runtime: &Runtime,
        services: &[Service],
        backend: &str,
        side: To,
    ) -> Result<Vec<String>, EntryError> {
        let names = Names::look_up(services.iter().flat_map(Service::hosts)).await;
        let is_it = |server: &RunningServer| {
            let Some(at) = address_of(&server.address) else { return false };
            let stands = plan::stands(&at, services, &names);
            match side {
                To::Source => matches!(stands, plan::Stands::Source(_)),
                To::Target => matches!(stands, plan::Stands::Target(_)),
            }
        };
        let running = runtime.servers().await?;
        let ours = running.into_iter().filter(|server| server.backend == backend).filter(is_it);
        Ok(ours.map(|server| server.server).collect())
    }

    /// Writes the hold's files and lines, and reloads once. Nothing happens where it is prepared already.
    ///
    /// # Errors
    /// When HAProxy refuses them: then what was there is there again.
    pub async fn prepare_hold(&self, hold: &Hold, quiet: &dyn Quiet) -> Result<TakenUp, EntryError> {
        // The same lock as for every other change of this configuration.
        let _records = Records::open(&self.state, DRIVER, self.first_config()?)?;
        let changes = hold.plan(&self.configs)?;
        let _guard = quiet::ask(quiet).await?;
        for (path, text) in hold.files()? {
            // The map's content is HAProxy's to begin with, and may say "yes" only in its memory.
            if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                files::write_private(&path, text.as_bytes())?;
            }
        }
        let running = Running { haproxy: self, services: &[], questions: &[], by_runtime: false };
        running.would_take(&changes).await?;
        for change in &changes {
            if files::read_bytes(&change.path)? != change.before {
                return Err(EntryError::Changed { what: change.path.display().to_string() });
            }
            files::replace(&change.path, &change.after)?;
        }
        if changes.is_empty() {
            return Ok(TakenUp { by: "none", ..TakenUp::default() });
        }
        match running.take_up(&changes).await {
            Ok(taken_up) => Ok(taken_up),
            Err(error) => {
                for change in &changes {
                    files::replace(&change.path, &change.before)?;
                }
                Err(EntryError::NotProven { what: error.to_string(), undone: true })
            }
        }
    }

    /// What is recorded of a change here.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self) -> Result<Option<Record>, EntryError> {
        Records::peek(&self.state, DRIVER, self.first_config()?)
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
        let config = Config::read(&self.configs, &former(record))?;
        Ok(plan_of(&config, services, Towards::Target).await?.unless_stopped()?.files)
    }

    /// Whether what was put in, and so what is taken out, was nothing but addresses.
    async fn changes_only_addresses(
        &self,
        record: &Record,
        services: &[Service],
    ) -> Result<bool, EntryError> {
        let config = Config::read(&self.configs, &former(record))?;
        Ok(plan_of(&config, services, Towards::Gateway).await?.only_addresses)
    }
}

/// The changes that lead back to what was there before.
fn former(record: &Record) -> Vec<FileChange> {
    let back = |kept: &crate::record::Kept| FileChange {
        path: kept.path.clone(),
        before: kept.after.clone(),
        after: kept.before.clone(),
    };
    record.files.iter().map(back).collect()
}

async fn plan_of(config: &Config, services: &[Service], towards: Towards) -> Result<Plan, EntryError> {
    let servers = config.sections.iter().flat_map(config::Section::servers);
    let hosts = servers.filter_map(|line| address_of(line.word(2))).map(|place| place.host);
    let names = Names::look_up(hosts.chain(services.iter().flat_map(Service::hosts))).await;
    Planner::new(config, &names, services, towards).plan()
}
