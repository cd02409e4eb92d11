//! What `rehome doctor` says of an objects part: credentials, permissions, bucket, clocks, conditions, policies, feeds. It
//! tries calls that change nothing but one reserved key, which it takes away again.

use crate::fence::{FenceMeans, PROBE_KEY};
use crate::follow::Feed;
use crate::http::{Endpoint, Http};
use crate::mover::RetryPolicy;
use crate::open::{Opened, Secrets, open};
use crate::store::{Attributes, Condition, Store};
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use rehome_part::{Error, ErrorKind, Finding, Severity, Side};
use rehome_spec::Objects;
use std::sync::Arc;
use std::time::Duration;

const DOCTOR_KEY: &str = ".rehome/doctor";
const CONTENT: &[u8] = b"rehome doctor\n";
/// SigV4 is refused at 15 minutes; a clock that is a minute off is going there, and nothing is moved with it.
pub(crate) const SKEW_LIMIT_MILLIS: i64 = 60_000;
const HTTP_LIMIT: Duration = Duration::from_secs(10);

/// Everything that can be said of `spec` by trying. Without findings all is well.
pub async fn doctor(spec: &Objects, secret: &Secrets<'_>) -> Vec<Finding> {
    let opened = match open(spec, secret) {
        Ok(opened) => opened,
        Err(error) => return vec![of_error("cannot-open", &error, None)],
    };
    let endpoints = [(Side::Source, &spec.source.endpoint), (Side::Target, &spec.target.endpoint)];
    let mut findings = examine(&opened).await;
    for (side, endpoint) in endpoints {
        if let Some(endpoint) = endpoint {
            findings.extend(clock_skew(endpoint, side).await);
        }
    }
    findings
}

fn of_error(id: &str, error: &Error, side: Option<Side>) -> Finding {
    Finding {
        id: id.into(),
        severity: Severity::Blocker,
        side: error.side.or(side),
        text: error.text.clone(),
        remedy: error.hint.clone(),
    }
}

struct Exam {
    findings: Vec<Finding>,
    retry: RetryPolicy,
}

impl Exam {
    fn say(&mut self, id: &str, severity: Severity, side: Side, text: impl Into<String>, remedy: &str) {
        self.findings.push(Finding {
            id: id.into(),
            severity,
            side: Some(side),
            text: text.into(),
            remedy: Some(remedy.into()),
        });
    }
}

pub(crate) async fn examine(opened: &Opened) -> Vec<Finding> {
    let retry = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
    let mut exam = Exam { findings: Vec::new(), retry };
    let stores = &opened.stores;
    let sides = [
        (Side::Source, &stores.source, stores.source_application.as_ref(), stores.source_feed.as_ref()),
        (Side::Target, &stores.target, stores.target_application.as_ref(), stores.target_feed.as_ref()),
    ];
    for (side, store, application, feed) in sides {
        if !store.capabilities().met_vendor {
            let text = format!("the driver of {} is untested against the real service", store.address());
            exam.say("driver-untested", Severity::Warning, side, text, "rehearse with a copy first");
        }
        exam.feed(side, feed).await;
        if exam.bucket(side, store).await {
            exam.writes(side, store).await;
            exam.application(side, application).await;
        }
        exam.fence(side, store, &opened.fence).await;
    }
    exam.findings
}

impl Exam {
    /// Is the bucket there, and may we list and read? Gives whether there is a bucket to go on with.
    async fn bucket(&mut self, side: Side, store: &Arc<dyn Store>) -> bool {
        match self.retry.run(|| store.check()).await {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::NotFound && side == Side::Target => {
                let text = format!("{} does not exist; prepare creates it", store.address());
                self.say("target-missing", Severity::Info, side, text, "nothing, or create it yourself");
                return false;
            }
            Err(error) => {
                let (id, remedy) = match error.kind {
                    ErrorKind::NotFound => ("bucket-missing", "check the bucket's name and region"),
                    ErrorKind::Credentials => {
                        ("credentials-refused", "check the keys, and that they may list the bucket")
                    }
                    ErrorKind::Network => ("endpoint-unreachable", "check the endpoint and the way to it"),
                    _ => ("bucket-check-failed", "see the text"),
                };
                self.say(id, Severity::Blocker, side, error.text, remedy);
                return false;
            }
        }
        let first = store.list("", None).next().await;
        match first {
            Some(Ok(entry)) => {
                let range = (entry.size > 1).then_some(0..1);
                if let Err(error) = self.retry.run(|| store.get(&entry.key, range.clone(), None)).await {
                    self.say(
                        "read-refused",
                        Severity::Blocker,
                        side,
                        error.text,
                        "allow the migration's keys to read objects",
                    );
                }
            }
            Some(Err(error)) if error.kind != ErrorKind::Unsupported => {
                self.say(
                    "list-refused",
                    Severity::Blocker,
                    side,
                    error.text,
                    "allow the migration's keys to list the bucket",
                );
            }
            _ => {}
        }
        true
    }

    /// Both sides are written to: the target by the copy, the source by the marker and the way back.
    async fn writes(&mut self, side: Side, store: &Arc<dyn Store>) {
        let put = |condition: Condition| async {
            store.put(DOCTOR_KEY, &Attributes::default(), Bytes::from_static(CONTENT), condition).await
        };
        if let Err(error) = self.retry.run(|| put(Condition::Always)).await {
            self.say(
                "write-refused",
                Severity::Blocker,
                side,
                error.text,
                "allow the migration's keys to put objects",
            );
            return;
        }
        match put(Condition::Matches("rehome-impossible".into())).await {
            Err(error) if matches!(error.kind, ErrorKind::Changed | ErrorKind::NotFound) => {}
            Ok(_) => self.say(
                "conditional-put",
                Severity::Info,
                side,
                format!(
                    "{} ignores conditions on writes; the probe writes and removes a key",
                    store.address()
                ),
                "nothing",
            ),
            Err(_) => self.say(
                "conditional-put",
                Severity::Info,
                side,
                format!("{} takes no conditions on writes", store.address()),
                "nothing; the fence is then not proved by a write",
            ),
        }
        if let Err(error) = self.retry.run(|| store.delete(DOCTOR_KEY)).await {
            self.say(
                "delete-refused",
                Severity::Blocker,
                side,
                error.text,
                "allow the migration's keys to delete objects",
            );
        }
    }

    async fn application(&mut self, side: Side, application: Option<&Arc<dyn Store>>) {
        let Some(application) = application else {
            let text = format!("without the application's own keys the fence of the {side} cannot be proved");
            self.say("fence-not-provable", Severity::Warning, side, text, "name them under `application`");
            return;
        };
        let condition = Condition::Matches("rehome-impossible".into());
        let tried =
            application.put(PROBE_KEY, &Attributes::default(), Bytes::from_static(CONTENT), condition).await;
        match tried {
            Ok(_) => {
                if let Err(error) = application.delete(PROBE_KEY).await {
                    self.say(
                        "delete-refused",
                        Severity::Warning,
                        side,
                        error.text,
                        "remove .rehome/probe by hand",
                    );
                }
            }
            Err(error) if error.kind == ErrorKind::Credentials => {
                let text = format!("the application's own keys may not write to the {side}: {error}");
                self.say(
                    "application-refused",
                    Severity::Warning,
                    side,
                    text,
                    "check the keys under `application`; with wrong ones the probe proves nothing",
                );
            }
            Err(_) => {}
        }
    }

    async fn fence(&mut self, side: Side, store: &Arc<dyn Store>, means: &FenceMeans) {
        match means {
            FenceMeans::Policy { source_principal, target_principal } => {
                let principal = if side == Side::Source { source_principal } else { target_principal };
                let Some(principal) = principal else {
                    let text =
                        format!("the fence of the {side} needs the name of the migration's own principal");
                    self.say(
                        "principal-missing",
                        Severity::Blocker,
                        side,
                        text,
                        "set `principal`, or fence by command or hook",
                    );
                    return;
                };
                let policy = match store.policy().await {
                    Ok(policy) => policy,
                    Err(error) if error.kind == ErrorKind::NotFound => None,
                    Err(error) => {
                        self.say("policy-refused", Severity::Blocker, side, error.text, "allow the migration's keys to read and set the bucket policy, or fence by command or hook");
                        return;
                    }
                };
                if let Err(error) = store.fence_policy(policy.as_deref(), principal) {
                    self.say(
                        "policy-unsupported",
                        Severity::Blocker,
                        side,
                        error.text,
                        "fence by command or hook",
                    );
                }
            }
            FenceMeans::Command { close, open } => {
                if close.is_empty() || open.is_empty() {
                    self.say(
                        "fence-command-missing",
                        Severity::Blocker,
                        side,
                        "no command closes and opens the fence",
                        "set `fence.close` and `fence.open`",
                    );
                }
            }
            FenceMeans::Hook { source, target } => {
                if (if side == Side::Source { source } else { target }).is_none() {
                    self.say(
                        "fence-hook-missing",
                        Severity::Blocker,
                        side,
                        format!("no hook fences the {side}"),
                        "set `fence.source` and `fence.target`",
                    );
                }
            }
            FenceMeans::None => self.say(
                "no-fence",
                Severity::Warning,
                side,
                "without a fence nothing proves that one side only is written to",
                "fence by policy, command or hook",
            ),
        }
    }

    async fn feed(&mut self, side: Side, feed: Option<&Arc<dyn Feed>>) {
        let Some(feed) = feed else {
            let text =
                format!("changes of the {side} are found by listing; a drain takes as long as a listing");
            self.say("listing-only", Severity::Info, side, text, "name a change hook (docs/change-hook.md)");
            return;
        };
        let asked = self
            .retry
            .run(|| async {
                let head = feed.head().await?;
                feed.changes(head, 1, Duration::ZERO).await
            })
            .await;
        match asked {
            Ok(Some(_)) => {}
            Ok(None) => self.say(
                "feed-forgetful",
                Severity::Blocker,
                side,
                "the change hook does not keep its own newest position",
                "see docs/change-hook.md: 410 is for positions that are too old",
            ),
            Err(error) => {
                let id = if error.kind == ErrorKind::Network { "feed-unreachable" } else { "feed-refused" };
                self.say(
                    id,
                    Severity::Blocker,
                    side,
                    error.text,
                    "check the hook's url and token (docs/change-hook.md)",
                );
            }
        }
    }
}

/// Compares our clock with the one in the endpoint's answers.
async fn clock_skew(endpoint: &str, side: Side) -> Option<Finding> {
    let url = url::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let http = Http::new().ok()?;
    let answer = http.send(Method::HEAD, &Endpoint { url, token: None }, &[], None, HTTP_LIMIT).await.ok()?;
    let skew = jiff::Timestamp::now().as_millisecond() - answer.date?;
    (skew.abs() > SKEW_LIMIT_MILLIS).then(|| Finding {
        id: "clock-skew".into(),
        severity: Severity::Blocker,
        side: Some(side),
        text: format!("our clock and that of {endpoint} differ by {} s", skew.abs() / 1_000),
        remedy: Some("set this machine's clock (NTP); signatures are refused at 15 minutes".into()),
    })
}
