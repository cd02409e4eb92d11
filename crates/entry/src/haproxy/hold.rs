//! A hold in HAProxy alone, for those who insist: a few lines of Lua in which writes wait while a map says so. Nothing else that
//! HAProxy 2.6 offers holds a request without failing it (docs/entry-haproxy.md has what was tried): `maxconn 0` of a server is "no
//! limit", that of a frontend holds new connections only and the process dies when it is raised again, `maint`, `drain` and
//! weight 0 answer 503. This is no fence, and proves nothing about what is under way.

use super::config::{Config, Section};
use super::runtime::Runtime;
use crate::EntryError;
use crate::edit::{Edits, indent, line_around, line_end};
use crate::files::FileChange;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ACTION: &str = "lua.rehome_hold";

/// How the hold is bounded.
#[derive(Debug, Clone)]
pub struct Hold {
    /// Where script and map lie; HAProxy reads both at its start.
    pub folder: PathBuf,
    pub age: Duration,
    pub requests: u32,
    /// Methods that never wait.
    pub reads: Vec<String>,
}

impl Hold {
    pub fn script_path(&self) -> PathBuf {
        self.folder.join("rehome-hold.lua")
    }

    pub fn map_path(&self) -> PathBuf {
        self.folder.join("rehome-hold.map")
    }

    /// The script and the map, to be written before the configuration names them.
    ///
    /// # Errors
    /// When the folder's name cannot stand in a Lua string or a line of the configuration.
    pub fn files(&self) -> Result<[(PathBuf, String); 2], EntryError> {
        let map = self.map_path();
        let map_name = map.display().to_string();
        if !self.folder.is_absolute()
            || map_name
                .chars()
                .any(|sign| sign.is_whitespace() || sign.is_control() || "\"'\\#$".contains(sign))
        {
            return Err(EntryError::unfit(
                format!("{} cannot be named in a configuration", self.folder.display()),
                "use an absolute path of plain letters",
            ));
        }
        let script = format!(
            "-- Written by `rehome entry haproxy`: writes wait here while the map says so.\n\
             local map\nlocal waiting = 0\n\
             core.register_init(function() map = Map.new(\"{map_name}\", Map._str) end)\n\
             core.register_action(\"rehome_hold\", {{ \"http-req\" }}, function(txn)\n\
             \x20 if map:lookup(\"hold\") ~= \"yes\" then return end\n\
             \x20 if waiting >= {requests} then txn:set_var(\"txn.rehome_over\", true) return end\n\
             \x20 waiting = waiting + 1\n\
             \x20 local began = core.now()\n\
             \x20 while map:lookup(\"hold\") == \"yes\" do\n\
             \x20   local now = core.now()\n\
             \x20   if (now.sec - began.sec) * 1000 + (now.usec - began.usec) / 1000 > {age} then\n\
             \x20     txn:set_var(\"txn.rehome_over\", true)\n\
             \x20     break\n\
             \x20   end\n\
             \x20   core.msleep(20)\n\
             \x20 end\n\
             \x20 waiting = waiting - 1\n\
             end)\n",
            requests = self.requests,
            age = self.age.as_millis(),
        );
        Ok([(self.script_path(), script), (map, "hold no\n".into())])
    }

    /// What has to stand in the configuration for it; no change where it stands there already.
    ///
    /// # Errors
    /// When the configuration cannot be read, or a method is none.
    pub fn plan(&self, configs: &[PathBuf]) -> Result<Vec<FileChange>, EntryError> {
        let is_method =
            |method: &String| !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
        if let Some(wrong) = self.reads.iter().find(|method| !is_method(method)) {
            return Err(EntryError::unfit(format!("`{wrong}` is no method"), "write it like GET"));
        }
        let config = Config::read(configs, &[])?;
        let mut edits: Vec<Edits> = config.files.iter().map(|_| Edits::default()).collect();
        let load = format!("lua-load {}", self.script_path().display());
        if config.global(&["lua-load", &self.script_path().display().to_string()]).is_none() {
            let global = config.sections.iter().find(|section| section.kind() == "global");
            let global = global
                .ok_or_else(|| EntryError::unfit("the configuration has no `global` section", "add one"))?;
            add(&config, &mut edits, global, &[load]);
        }
        let unless = match self.reads.is_empty() {
            true => String::new(),
            false => format!(" unless {{ method {} }}", self.reads.join(" ")),
        };
        let lines = [
            format!("http-request {ACTION}{unless}"),
            "http-request return status 503 hdr Retry-After 1 if { var(txn.rehome_over) -m bool }".to_owned(),
        ];
        let is_http = |section: &&Section| {
            section.has_binds()
                && config.setting(section, &["mode"]).is_some_and(|line| line.word(1) == "http")
        };
        for section in config.sections.iter().filter(is_http) {
            if !section.lines.iter().any(|line| line.begins(&["http-request", ACTION])) {
                add(&config, &mut edits, section, &lines);
            }
        }
        let mut changes = Vec::new();
        for (original, edits) in config.files.iter().zip(&edits).filter(|(_, edits)| !edits.is_empty()) {
            changes.push(edits.apply(&original.real, &original.bytes)?);
        }
        Ok(changes)
    }
}

/// Lines at the beginning of a section: before any rule that could answer first.
fn add(config: &Config, edits: &mut [Edits], section: &Section, lines: &[String]) {
    let (Some(original), Some(edits)) =
        (config.files.get(section.head.file), edits.get_mut(section.head.file))
    else {
        return;
    };
    let bytes = &original.bytes;
    let indent = section
        .lines
        .first()
        .map_or_else(|| "    ".to_owned(), |line| indent(bytes, line_around(bytes, line.span.start)));
    let end = section.head.span.end;
    for line in lines {
        edits.put(end..end, format!("{}{indent}{line}  # rehome", line_end(bytes)));
    }
}

/// Makes writes wait, or lets them go.
///
/// # Errors
/// When HAProxy has not read the map: the hold is not prepared there.
pub async fn set(runtime: &Runtime, map: &Path, hold: bool) -> Result<(), EntryError> {
    let name = map.display().to_string();
    let word = if hold { "yes" } else { "no" };
    runtime.command(&["set", "map", &name, "hold", word]).await?;
    if is_held(runtime, map).await? == hold {
        return Ok(());
    }
    Err(EntryError::Refused { whom: format!("haproxy at {runtime}"), text: "the map did not take it".into() })
}

/// # Errors
/// As [`set`].
pub async fn is_held(runtime: &Runtime, map: &Path) -> Result<bool, EntryError> {
    let name = map.display().to_string();
    let answer = runtime.command(&["show", "map", &name]).await?;
    let value = answer.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "hold", value] => Some(*value == "yes"),
            _ => None,
        }
    });
    value.ok_or_else(|| {
        EntryError::unfit(
            format!("haproxy at {runtime} has no hold prepared ({name} is no map of it)"),
            "prepare it with `rehome entry haproxy hold --prepare`, then reload",
        )
    })
}
