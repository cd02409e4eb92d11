//! Keeping writers out of a side, and proving it: by bucket policy, by the service's own command, or by its hook. What was
//! there before is remembered before anything is changed; what others changed meanwhile is theirs. It never decides when.

use crate::http::{Endpoint, Http, refused};
use crate::mover::Mover;
use crate::store::{Attributes, Condition, Store};
use bytes::Bytes;
use http::Method;
use rehome_part::{Error, ErrorKind, Fence, Finding, Result, Severity, Side};
use serde_json::Value;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The reserved key that the probe tries to write; an impossible condition keeps it from ever being there.
pub(crate) const PROBE_KEY: &str = ".rehome/probe";
const IMPOSSIBLE_TAG: &str = "rehome-impossible";
/// What is kept of a command's complaints.
const COMPLAINT_BYTES: u64 = 4_096;

/// How a side is closed.
#[derive(Debug, Clone)]
pub enum FenceMeans {
    /// A bucket policy that denies writes to everybody but this principal (per side).
    Policy {
        source_principal: Option<String>,
        target_principal: Option<String>,
    },
    /// Programs with arguments, run without a shell; `{side}` becomes `source` or `target`.
    Command {
        close: Vec<String>,
        open: Vec<String>,
    },
    /// An address per side that takes `POST {"fence": true|false, "side": "source"|"target"}`.
    Hook {
        source: Option<FenceHook>,
        target: Option<FenceHook>,
    },
    None,
}

/// A fence hook of one side.
#[derive(Debug, Clone)]
pub struct FenceHook(pub(crate) Endpoint);

impl FenceHook {
    /// # Errors
    /// When `url` is no http(s) address.
    pub fn new(url: &str, token: Option<String>) -> Result<Self> {
        let url =
            url::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(
                || Error::permanent(ErrorKind::Unsupported, format!("`{url}` is not an http(s) address")),
            )?;
        Ok(Self(Endpoint { url, token }))
    }
}

fn fact(side: Side) -> String {
    format!("fence:{side}")
}

/// What is remembered of a fence: the policy that was there before it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Before {
    policy: Option<String>,
}

pub(crate) fn is_set(mover: &Mover, side: Side) -> Result<bool> {
    Ok(mover.state.fact(&fact(side))?.is_some())
}

/// Closes `side`. Calling it again closes it again; what is remembered stays what stood before the first time.
/// `read` is the policy as it was read a moment ago, if it was.
pub(crate) async fn close(
    mover: &Mover,
    means: &FenceMeans,
    side: Side,
    read: Option<Option<String>>,
) -> Result<()> {
    match means {
        FenceMeans::None => return Ok(()),
        FenceMeans::Policy { source_principal, target_principal } => {
            let principal = pick(side, source_principal, target_principal);
            close_by_policy(mover, side, principal.map(String::as_str), read).await?;
        }
        FenceMeans::Command { close, .. } => {
            mover.state.set_fact(&fact(side), "{\"policy\":null}")?;
            run(close, side, mover.settings.fence_limit).await?;
        }
        FenceMeans::Hook { source, target } => {
            mover.state.set_fact(&fact(side), "{\"policy\":null}")?;
            call(pick(side, source, target), side, true, mover.settings.fence_limit).await?;
        }
    }
    abort_foreign_uploads(mover, side).await
}

/// Opens `side` as it was before [`close`], but for what others changed meanwhile; nothing happens when it was not closed
/// by us. `read` is the policy as it was read a moment ago, if it was.
pub(crate) async fn open(
    mover: &Mover,
    means: &FenceMeans,
    side: Side,
    read: Option<Option<String>>,
) -> Result<()> {
    let Some(before) = mover.state.fact(&fact(side))? else { return Ok(()) };
    match means {
        FenceMeans::None => {}
        FenceMeans::Policy { source_principal, target_principal } => {
            let principal = pick(side, source_principal, target_principal);
            let before: Before = serde_json::from_str(&before)
                .map_err(|e| Error::permanent(ErrorKind::Corrupt, format!("the remembered policy: {e}")))?;
            open_by_policy(mover, side, principal.map(String::as_str), before.policy, read).await?;
        }
        FenceMeans::Command { open, .. } => run(open, side, mover.settings.fence_limit).await?,
        FenceMeans::Hook { source, target } => {
            call(pick(side, source, target), side, false, mover.settings.fence_limit).await?;
        }
    }
    mover.state.forget_fact(&fact(side))
}

async fn close_by_policy(
    mover: &Mover,
    side: Side,
    principal: Option<&str>,
    read: Option<Option<String>>,
) -> Result<()> {
    let store = mover.store(side);
    let principal = principal.ok_or_else(|| {
        let text = format!(
            "the policy of {} cannot exempt the migration: its principal is not known",
            store.address()
        );
        Error::permanent(ErrorKind::Unsupported, text)
            .on(side)
            .hint(format!("set `principal` of the {side} in the migration file"))
    })?;
    let now = policy_now(mover, side, read).await?;
    let name = fact(side);
    if mover.state.fact(&name)?.is_none() {
        // A fence that an earlier migration left is not the owner's: put back, it would keep the side closed.
        let policy = without_fence(store.as_ref(), now.as_deref()).map_err(|e| e.on(side))?;
        let before = serde_json::to_string(&Before { policy })
            .map_err(|e| Error::permanent(ErrorKind::Other, format!("cannot remember the policy: {e}")))?;
        // On disk before anything changes: after a kill the former policy is still known.
        mover.state.set_fact(&name, &before)?;
    }
    // From what stands now, not from what is remembered: what others changed since the first time stays.
    let fenced = store.fence_policy(now.as_deref(), principal).map_err(|e| e.on(side))?;
    mover.settings.retry.run(|| store.set_policy(Some(&fenced))).await.map_err(|e| e.on(side))
}

/// Puts the former policy back byte for byte, unless somebody edited the policy behind the fence: then only the fence goes.
async fn open_by_policy(
    mover: &Mover,
    side: Side,
    principal: Option<&str>,
    former: Option<String>,
    read: Option<Option<String>>,
) -> Result<()> {
    let store = mover.store(side);
    let now = policy_now(mover, side, read).await?;
    let rest = without_fence(store.as_ref(), now.as_deref()).map_err(|e| e.on(side))?;
    let opened = if is_unedited(store.as_ref(), principal, &former, &now, &rest).map_err(|e| e.on(side))? {
        former
    } else {
        // Told before it is done, and in words that stay true: after a kill in between it is told again, as one notice.
        mover.state.notice(&edited_behind_fence(store.address(), side))?;
        if rest == now {
            return Ok(());
        }
        rest
    };
    mover.settings.retry.run(|| store.set_policy(opened.as_deref())).await.map_err(|e| e.on(side))
}

async fn policy_now(mover: &Mover, side: Side, read: Option<Option<String>>) -> Result<Option<String>> {
    match read {
        Some(policy) => Ok(policy),
        None => mover.settings.retry.run(|| mover.store(side).policy()).await.map_err(|error| error.on(side)),
    }
}

fn without_fence(store: &dyn Store, policy: Option<&str>) -> Result<Option<String>> {
    policy.map_or(Ok(None), |text| store.unfence_policy(text))
}

/// Is the policy that stands `now` (`rest` without its fence) what [`close`] made of the `former` one? Compared without the
/// fence, since a store may give our statement back in another form; what is around it has been through the store before.
fn is_unedited(
    store: &dyn Store,
    principal: Option<&str>,
    former: &Option<String>,
    now: &Option<String>,
    rest: &Option<String>,
) -> Result<bool> {
    // A fence that is gone already: an earlier call was killed between its act and its note of it, or the store still tells
    // what stood before the fence. The former policy is right either way, once more.
    if value(now) == value(former) {
        return Ok(true);
    }
    // The fence also adds a version where there is none. Without a principal the side must open all the same.
    let fenced = principal.and_then(|principal| store.fence_policy(former.as_deref(), principal).ok());
    let wanted = without_fence(store, fenced.as_ref().or(former.as_ref()).map(String::as_str))?;
    Ok(value(rest) == value(&wanted))
}

/// A policy that is not JSON equals nothing but another such text.
fn value(policy: &Option<String>) -> Option<Value> {
    let text = policy.as_deref()?;
    Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
}

fn edited_behind_fence(address: &str, side: Side) -> Finding {
    Finding {
        id: "policy-edited-behind-fence".into(),
        severity: Severity::Warning,
        side: Some(side),
        text: format!(
            "{address}: somebody edited the bucket policy while the fence of the {side} stood; the edit was kept"
        ),
        remedy: Some(format!("see that the bucket policy of the {side} says what it should")),
    }
}

/// An upload that was begun before the fence must not be completed behind it where the fence is the service's own.
async fn abort_foreign_uploads(mover: &Mover, side: Side) -> Result<()> {
    let store = mover.store(side);
    let uploads = match mover.settings.retry.run(|| store.open_uploads()).await {
        Ok(uploads) => uploads,
        Err(error) if matches!(error.kind, ErrorKind::Unsupported | ErrorKind::NotFound) => return Ok(()),
        Err(error) => return Err(error.on(side)),
    };
    let ours = mover.state.uploads(side)?;
    for upload in uploads {
        if ours.iter().any(|(key, id)| *key == upload.key && *id == upload.id) {
            continue;
        }
        let aborted = mover.settings.retry.run(|| store.abort_upload(&upload.key, &upload.id)).await;
        match aborted {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.on(side)),
        }
        tracing::warn!(key = upload.key, id = upload.id, %side, "an unfinished upload was aborted behind the fence");
        mover.state.notice(&Finding {
            id: "upload-aborted".into(),
            severity: Severity::Warning,
            side: Some(side),
            text: format!(
                "{}: the unfinished upload {} was aborted behind the fence of the {side}",
                upload.key, upload.id
            ),
            remedy: Some("have its writer begin again on the owner".into()),
        })?;
    }
    Ok(())
}

fn pick<'s, T>(side: Side, source: &'s Option<T>, target: &'s Option<T>) -> Option<&'s T> {
    match side {
        Side::Source => source.as_ref(),
        Side::Target => target.as_ref(),
    }
}

async fn call(hook: Option<&FenceHook>, side: Side, fence: bool, limit: Duration) -> Result<()> {
    let hook = hook.ok_or_else(|| {
        Error::permanent(ErrorKind::Unsupported, format!("no fence hook is named for the {side}"))
            .on(side)
            .hint(format!("set `fence.{side}.url` in the migration file"))
    })?;
    let body = serde_json::json!({ "fence": fence, "side": side }).to_string();
    let http = Http::new()?;
    let answer = http.send(Method::POST, &hook.0, &[], Some(body), limit).await.map_err(|e| e.on(side))?;
    if answer.status.is_success() { Ok(()) } else { Err(refused(&hook.0.url, &answer).on(side)) }
}

/// Runs one program to its end.
async fn run(command: &[String], side: Side, limit: Duration) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        let text = format!("no command is named that fences the {side}");
        return Err(Error::permanent(ErrorKind::Unsupported, text)
            .on(side)
            .hint("set `fence.close` and `fence.open` in the migration file"));
    };
    let name = side.to_string();
    let mut child = tokio::process::Command::new(program)
        .args(arguments.iter().map(|argument| argument.replace("{side}", &name)))
        .env("REHOME_SIDE", &name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Error::permanent(ErrorKind::Other, format!("cannot start `{program}`: {e}")).on(side))?;
    let stderr = child.stderr.take();
    let ended = tokio::time::timeout(limit, async {
        let complaint = async {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(COMPLAINT_BYTES).read_to_end(&mut text).await;
                // Whatever else it says must not block it.
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
            text
        };
        tokio::join!(child.wait(), complaint)
    });
    let Ok((status, complaint)) = ended.await else {
        let text = format!("`{program}` did not end within {} ms", limit.as_millis());
        return Err(Error::temporary(ErrorKind::Deadline, text).on(side));
    };
    let status = status
        .map_err(|e| Error::temporary(ErrorKind::Other, format!("waiting for `{program}`: {e}")).on(side))?;
    if status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&complaint);
    Err(Error::permanent(ErrorKind::Other, format!("`{program}` ended with {status}: {}", complaint.trim()))
        .on(side))
}

/// Tries a write with the application's own credentials that cannot succeed: was it refused for the credentials, or only
/// for its condition?
pub(crate) async fn probe(
    mover: &Mover,
    means: &FenceMeans,
    application: Option<&Arc<dyn Store>>,
    side: Side,
) -> Result<Fence> {
    if matches!(means, FenceMeans::None) {
        return Ok(Fence::None);
    }
    let by_word = || Ok(if is_set(mover, side)? { Fence::Closed } else { Fence::Open });
    let Some(application) = application else { return by_word() };
    let attributes = Attributes::default();
    let condition = || Condition::Matches(IMPOSSIBLE_TAG.into());
    let content = Bytes::from_static(b"rehome probe\n");
    let tried = mover
        .settings
        .retry
        .run(|| application.put(PROBE_KEY, &attributes, content.clone(), condition()))
        .await;
    match tried {
        // A store that ignores conditions wrote it: then it is open, and the probe is taken away again.
        Ok(_) => {
            mover.settings.retry.run(|| mover.store(side).delete(PROBE_KEY)).await.map_err(|e| e.on(side))?;
            Ok(Fence::Open)
        }
        Err(error) => match error.kind {
            ErrorKind::Credentials => Ok(Fence::ProvedClosed),
            // Let in, and then refused by the condition (some stores say "no such key").
            ErrorKind::Changed | ErrorKind::NotFound => Ok(Fence::Open),
            ErrorKind::Unsupported => by_word(),
            _ => Err(error.on(side)),
        },
    }
}
