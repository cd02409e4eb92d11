//! From an `[[objects]]` table of the migration file to a part: stores, feeds, fence, the application's hands.
//! Opening sends nothing and reads only the secrets that the table names.

use crate::fence::{FenceHook, FenceMeans};
use crate::follow::{Feed, HookFeed};
use crate::mover::Settings;
use crate::part::{ObjectsPart, Stores};
use crate::store::{self, Address};
use rehome_part::{Error, ErrorKind, Part, Result, Side};
use rehome_spec::{FenceBy, Hook, Objects, Secret};
use std::path::Path;
use std::sync::Arc;

/// Gives the secret behind a reference, or says why it cannot.
pub type Secrets<'s> = dyn Fn(&Secret) -> Result<String, String> + 's;

/// The part of `spec`, with its memory in `state_dir`.
///
/// # Errors
/// `Unsupported` for an address that is none, `Credentials` for a secret that cannot be had; both name the side.
pub fn part(spec: &Objects, state_dir: &Path, secret: &Secrets<'_>) -> Result<Arc<dyn Part>> {
    part_with(spec, state_dir, secret, Settings::default())
}

/// The same with other settings; `concurrency` of the table still holds.
///
/// # Errors
/// As [`part`].
pub fn part_with(
    spec: &Objects,
    state_dir: &Path,
    secret: &Secrets<'_>,
    settings: Settings,
) -> Result<Arc<dyn Part>> {
    let opened = open(spec, secret)?;
    let concurrency = spec.concurrency.map_or(settings.concurrency, |n| n.max(1) as usize);
    let settings = Settings { concurrency, ..settings };
    Ok(Arc::new(ObjectsPart::with_stores(&spec.name, opened.stores, opened.fence, settings, state_dir)?))
}

/// Everything a table names, opened.
pub(crate) struct Opened {
    pub stores: Stores,
    pub fence: FenceMeans,
}

pub(crate) fn open(spec: &Objects, secret: &Secrets<'_>) -> Result<Opened> {
    let opened = |side: Side| store::open(of(spec, side), side, secret);
    let application = |side: Side| {
        let Some(application) = &spec.application else { return Ok(None) };
        let keys = match side {
            Side::Source => &application.source,
            Side::Target => &application.target,
        };
        let spec = rehome_spec::Store {
            access_key: Some(keys.access_key.clone()),
            secret_key: Some(keys.secret_key.clone()),
            ..of(spec, side).clone()
        };
        store::open(&spec, side, secret).map(Some)
    };
    let feed = |side: Side| -> Result<Option<Arc<dyn Feed>>> {
        let Some(changes) = &spec.changes else { return Ok(None) };
        let hook = match side {
            Side::Source => Some(&changes.source),
            Side::Target => changes.target.as_ref(),
        };
        let Some(hook) = hook else { return Ok(None) };
        let prefix = Address::from_spec(of(spec, side), side, secret)?.prefix;
        let feed = HookFeed::new(&hook.url, token(hook, side, secret)?, &prefix).map_err(|e| e.on(side))?;
        Ok(Some(Arc::new(feed)))
    };
    let stores = Stores {
        source: opened(Side::Source)?,
        target: opened(Side::Target)?,
        source_application: application(Side::Source)?,
        target_application: application(Side::Target)?,
        source_feed: feed(Side::Source)?,
        target_feed: feed(Side::Target)?,
    };
    Ok(Opened { stores, fence: means(spec, secret)? })
}

fn of(spec: &Objects, side: Side) -> &rehome_spec::Store {
    match side {
        Side::Source => &spec.source,
        Side::Target => &spec.target,
    }
}

fn token(hook: &Hook, side: Side, secret: &Secrets<'_>) -> Result<Option<String>> {
    hook.token.as_ref().map(secret).transpose().map_err(|text| {
        Error::permanent(ErrorKind::Credentials, format!("the token of {}: {text}", hook.url)).on(side)
    })
}

fn means(spec: &Objects, secret: &Secrets<'_>) -> Result<FenceMeans> {
    let hook = |hook: &Option<Hook>, side: Side| -> Result<Option<FenceHook>> {
        let Some(hook) = hook else { return Ok(None) };
        FenceHook::new(&hook.url, token(hook, side, secret)?).map(Some).map_err(|e| e.on(side))
    };
    let plan = &spec.fence;
    Ok(match plan.by {
        FenceBy::Policy => FenceMeans::Policy {
            source_principal: spec.source.principal.clone(),
            target_principal: spec.target.principal.clone(),
        },
        FenceBy::Command => FenceMeans::Command { close: plan.close.clone(), open: plan.open.clone() },
        FenceBy::Hook => FenceMeans::Hook {
            source: hook(&plan.source, Side::Source)?,
            target: hook(&plan.target, Side::Target)?,
        },
        FenceBy::None => FenceMeans::None,
    })
}
