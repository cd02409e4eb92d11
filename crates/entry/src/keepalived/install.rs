//! Puts a node's configuration in its place and takes it out again: shown first, tested by Keepalived itself, written whole, with what
//! was there kept beside it. Never starts or reloads anything.

use super::files;
use super::machine::{self, arp_settings};
use super::pair::{Node, Pair};
use super::render::{self, MARK};
use super::words;
use crate::{EntryError, program};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
/// Configurations may hold passwords of VRRP version 2.
const PRIVATE: u32 = 0o600;
const READABLE: u32 = 0o644;

/// Where things are on this machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// keepalived.conf; our part and the record of what was there go into its folder.
    pub config: PathBuf,
    /// The file that sets the kernel's settings at its start.
    pub sysctl: PathBuf,
    pub keepalived: PathBuf,
}

impl Place {
    fn beside(&self, name: &str) -> PathBuf {
        self.config.with_file_name(name)
    }

    /// The file that holds the pair: keepalived.conf, or our part beside that of somebody else.
    ///
    /// # Errors
    /// It cannot be read, or there is none.
    pub fn read_pair(&self) -> Result<String, EntryError> {
        for path in [self.part(), self.config.clone()] {
            if let Some(text) = files::read(&path)?.filter(|text| text.starts_with(MARK)) {
                return Ok(text);
            }
        }
        Err(EntryError::unfit(
            format!("{} is not of `rehome entry keepalived`", self.config.display()),
            "put one there first: rehome entry keepalived install",
        ))
    }

    fn part(&self) -> PathBuf {
        self.beside("rehome.conf")
    }

    fn record(&self) -> PathBuf {
        self.beside("rehome-before.json")
    }
}

/// What is to become of a file; `None` is no file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    pub path: PathBuf,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// The same for a setting of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub path: PathBuf,
    pub before: String,
    pub after: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub files: Vec<FileChange>,
    pub settings: Vec<Setting>,
    /// What to know before saying yes.
    #[serde(default)]
    pub remarks: Vec<String>,
    #[serde(skip)]
    removal: bool,
}

impl Change {
    pub fn is_nothing(&self) -> bool {
        self.files.iter().all(|file| file.before == file.after)
            && self.settings.iter().all(|setting| setting.before == setting.after)
    }
}

/// What installing this node here would change. Tests it with Keepalived; changes nothing.
///
/// # Errors
/// It does not fit this machine, or Keepalived refuses it.
pub async fn plan_install(pair: &Pair, node: Node, place: &Place) -> Result<Change, EntryError> {
    fits_here(pair, node).await?;
    let present = files::read(&place.config)?;
    let others =
        present.as_deref().filter(|text| !text.starts_with(MARK) && !words::statements(text).is_empty());
    let mut change = Change::default();
    match others {
        None => {
            let text = render::config(pair, node, false);
            test(place, &text, None, pair, &mut change.remarks).await?;
            change.files.push(FileChange { path: place.config.clone(), before: present, after: Some(text) });
        }
        Some(theirs) => {
            if let Some(name) = words::same_id(theirs, &pair.interface, pair.router_id) {
                return Err(EntryError::unfit(
                    format!(
                        "{name} already has the virtual router id {} on {}",
                        pair.router_id, pair.interface
                    ),
                    "choose another with --router-id",
                ));
            }
            let (part, text) = (place.part(), render::config(pair, node, true));
            let line = include(&part);
            let with = match theirs.lines().any(|one| one.trim() == line) {
                true => theirs.to_owned(),
                false => format!("{}\n{line}\n", theirs.trim_end()),
            };
            test(place, &with, Some((&line, &text)), pair, &mut change.remarks).await?;
            if !theirs.contains("enable_script_security") {
                let remark = "your global_defs have no enable_script_security; with it Keepalived refuses scripts of root that others \
                              can change";
                change.remarks.push(remark.into());
            }
            change.files.push(FileChange { before: files::read(&part)?, path: part, after: Some(text) });
            change.files.push(FileChange {
                path: place.config.clone(),
                before: present.clone(),
                after: Some(with),
            });
        }
    }
    if let Some(text) = render::sysctl(pair) {
        let before = files::read(&place.sysctl)?;
        change.files.push(FileChange { path: place.sysctl.clone(), before, after: Some(text) });
        for (path, after) in arp_settings(&pair.interface) {
            change.settings.push(Setting { before: files::setting(&path)?, path, after: after.into() });
        }
    }
    Ok(change)
}

/// The line that brings our part into the file of somebody else.
fn include(part: &Path) -> String {
    format!("include {}", part.display())
}

async fn fits_here(pair: &Pair, node: Node) -> Result<(), EntryError> {
    let here = machine::addresses(&pair.interface).await?;
    let own = pair.own(node);
    if !here.iter().any(|address| address.ip == own) {
        let other = if here.iter().any(|address| address.ip == pair.peer(node)) {
            ": is it the other node?"
        } else {
            ""
        };
        return Err(EntryError::unfit(
            format!("this machine does not have {own} on {}{other}", pair.interface),
            "choose the node with --as 1 or --as 2",
        ));
    }
    let stray = pair.addresses.iter().find(|address| !machine::is_reached(&here, address.ip));
    match stray {
        Some(address) => Err(EntryError::unfit(
            format!("{address} is in no network that {} has here", pair.interface),
            "a shared address moves within one network; see what there is: ip -brief address",
        )),
        None => Ok(()),
    }
}

/// `keepalived --config-test` on what would be there.
async fn test(
    place: &Place,
    main: &str,
    part: Option<(&str, &str)>,
    pair: &Pair,
    remarks: &mut Vec<String>,
) -> Result<(), EntryError> {
    let folder = tempfile::Builder::new()
        .prefix("rehome-keepalived-")
        .tempdir()
        .map_err(|source| EntryError::File { path: std::env::temp_dir(), source })?;
    let (path, part_path) = (folder.path().join("keepalived.conf"), folder.path().join("rehome.conf"));
    let as_user =
        |text: &str, user: &str| text.replace(&format!("user {}\n", pair.user), &format!("user {user}\n"));
    let write = |user: &str| -> Result<(), EntryError> {
        let mut main = main.to_owned();
        if let Some((line, text)) = part {
            main = main.replace(line, &include(&part_path));
            files::replace(&part_path, &as_user(text, user), PRIVATE)?;
        } else {
            main = as_user(&main, user);
        }
        files::replace(&path, &main, PRIVATE)
    };
    write(&pair.user)?;
    let mut ran = run_test(place, &path).await?;
    if ended_itself(&ran) {
        // 2.2.0 to 2.2.7 end themselves at the first script of a user other than root (their issue 2617).
        write("root")?;
        ran = run_test(place, &path).await?;
        remarks.push(format!(
            "this Keepalived cannot test scripts of users other than root; it was tested with root in place of {}",
            pair.user
        ));
    }
    if ended_itself(&ran) {
        remarks.push(
            "this Keepalived ends itself when it is to test your scripts; the configuration is untested"
                .into(),
        );
        return Ok(());
    }
    if ran.status.success() {
        return Ok(());
    }
    let said = ran.complaint().replace(&folder.path().display().to_string(), "[new]");
    Err(EntryError::Program {
        program: place.keepalived.display().to_string(),
        text: format!("it does not accept the configuration ({}): {said}", ran.status),
    })
}

async fn run_test(place: &Place, path: &Path) -> Result<program::Ran, EntryError> {
    let arguments = ["--config-test".as_ref(), "--use-file".as_ref(), path.as_os_str()];
    program::run(&place.keepalived, &arguments, PATIENCE).await
}

fn ended_itself(ran: &program::Ran) -> bool {
    use std::os::unix::process::ExitStatusExt;
    ran.status.signal() == Some(15)
}

/// What taking it out would change: everything as it was. `edited`: also when somebody changed the files since.
///
/// # Errors
/// Nothing of ours is here, or the files were edited.
pub fn plan_removal(place: &Place, edited: bool) -> Result<Change, EntryError> {
    let Some(record) = read_record(place)? else {
        return Err(EntryError::unfit(
            format!("{} is missing, so nothing was installed here", place.record().display()),
            "see what is there: rehome entry keepalived status",
        ));
    };
    let mut change = Change { removal: true, ..Change::default() };
    let line = include(&place.part());
    for file in record.files {
        let present = files::read(&file.path)?;
        let after = if present == file.after || edited || present.is_none() {
            file.before
        } else if let Some(text) = present.as_ref().filter(|text| text.lines().any(|one| one.trim() == line))
        {
            // Somebody else's file went on living: only our line leaves it.
            let kept: Vec<&str> = text.lines().filter(|one| one.trim() != line).collect();
            Some(kept.join("\n") + "\n")
        } else {
            return Err(EntryError::Changed { what: file.path.display().to_string() });
        };
        change.files.push(FileChange { path: file.path, before: present, after });
    }
    for setting in record.settings {
        let present = files::setting(&setting.path)?;
        // Whoever set it to something else meanwhile had a reason.
        let after = if present == setting.after { setting.before } else { present.clone() };
        change.settings.push(Setting { path: setting.path, before: present, after });
    }
    Ok(change)
}

fn read_record(place: &Place) -> Result<Option<Change>, EntryError> {
    let path = place.record();
    let Some(text) = files::read(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        EntryError::unfit(
            format!("{} cannot be read: {error}", path.display()),
            "restore it, or put the files back by hand",
        )
    })
}

/// Does what was planned.
///
/// # Errors
/// A file is no longer what it was at planning; nothing was changed then. Or one cannot be written.
pub fn apply(change: &Change, place: &Place) -> Result<(), EntryError> {
    for file in &change.files {
        if files::read(&file.path)? != file.before {
            return Err(EntryError::Changed { what: file.path.display().to_string() });
        }
    }
    if !change.removal {
        keep_record(change, place)?;
    }
    // The settings first: an address on lo must be quiet from its first moment.
    for setting in &change.settings {
        if setting.before != setting.after {
            files::write_into(&setting.path, &setting.after)?;
        }
    }
    for file in &change.files {
        let mode = if file.path == place.sysctl { READABLE } else { 0o640 };
        match &file.after {
            Some(text) if file.before.as_ref() != Some(text) => files::replace(&file.path, text, mode)?,
            Some(_) => {}
            None => files::remove(&file.path)?,
        }
    }
    if change.removal {
        files::remove(&place.record())?;
    }
    Ok(())
}

/// What was there before the first installation stays what is put back, however often it is repeated.
fn keep_record(change: &Change, place: &Place) -> Result<(), EntryError> {
    let mut record = Change { remarks: Vec::new(), ..change.clone() };
    if let Some(former) = read_record(place)? {
        for file in &mut record.files {
            if let Some(first) = former.files.iter().find(|first| first.path == file.path) {
                file.before.clone_from(&first.before);
            }
        }
        for setting in &mut record.settings {
            if let Some(first) = former.settings.iter().find(|first| first.path == setting.path) {
                setting.before.clone_from(&first.before);
            }
        }
        let left = |first: &&FileChange| !record.files.iter().any(|file| file.path == first.path);
        let left: Vec<FileChange> = former.files.iter().filter(left).cloned().collect();
        record.files.extend(left);
    }
    let text = serde_json::to_string_pretty(&record).map_err(|error| {
        EntryError::unfit(
            format!("what was there cannot be kept: {error}"),
            "report this: it is a fault of rehome",
        )
    })?;
    files::replace(&place.record(), &text, PRIVATE)
}
