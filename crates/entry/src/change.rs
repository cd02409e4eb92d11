//! The one way in which a driver changes files of a running server: ask whether it is quiet, write down what is there, try the
//! new files aside, put them in place, let the server take them up, prove it by requests, or put everything back. It can be
//! killed between any two steps; running it again goes on, running the removal undoes. It knows nothing of nginx or HAProxy.

use crate::EntryError;
use crate::files::{self, FileChange};
use crate::quiet::{self, Quiet};
use crate::record::{Kept, Record, Records, Stage};
use async_trait::async_trait;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the proof may be asked for again: new workers open their sockets, checks of servers run.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

/// What one request saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Which way through the configuration, `http://shop.example/api`.
    pub route: String,
    /// The status of the answer, or why there was none.
    pub answer: Result<u16, String>,
    /// The answer carries the gateway's `Via` and the request's own fresh id.
    pub through_gateway: bool,
}

/// How the server took the files up, and what that may have cost its users.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TakenUp {
    /// `reload`, `runtime` or `none` (nothing had to change).
    pub by: &'static str,
    pub milliseconds: u64,
    /// Connections of clients that were open right before. Each may lose at most the one request that it sends in just that moment.
    pub open_connections: Option<u64>,
    /// Old processes that still finish what they had begun.
    pub still_finishing: usize,
    /// What to know about it, in sentences.
    pub notes: Vec<String>,
}

/// What a change did.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    pub changed: bool,
    pub taken_up: TakenUp,
    pub seen: Vec<Seen>,
}

/// A server whose files are changed.
#[async_trait]
pub trait Served: std::fmt::Debug + Send + Sync {
    /// Would it take these files? Tried aside where that can be done; the files in place are not touched.
    async fn would_take(&self, files: &[FileChange]) -> Result<(), EntryError>;
    /// Does it take what lies in place now?
    async fn takes(&self) -> Result<(), EntryError>;
    /// Makes the running server use what lies in place, and returns once it does.
    async fn take_up(&self, files: &[FileChange]) -> Result<TakenUp, EntryError>;
    /// Sends a request along every route that is changed.
    async fn look(&self) -> Vec<Seen>;
}

/// Whom answers must come from for the change to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Gateway,
    NotGateway,
}

/// Whom users reach once the gateway is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Source,
    Target,
}

/// Where a removal leads.
#[derive(Debug, Clone)]
pub enum Back<'a> {
    /// To what was there before.
    Source,
    /// To the target: these contents instead of those that were there before.
    Target(&'a [FileChange]),
}

#[derive(Debug)]
pub struct Change<'a> {
    pub records: &'a Records,
    pub served: &'a dyn Served,
    pub quiet: &'a dyn Quiet,
}

impl Change<'_> {
    /// Puts `files` in place. A change that was begun and not finished is finished instead; one that was made already is proven
    /// again.
    ///
    /// # Errors
    /// [`EntryError::Changed`] when a file is not what was read; [`EntryError::NotProven`] when the change was made, failed its
    /// proof, and was taken back (or not: it says).
    pub async fn install(&self, files: &[FileChange]) -> Result<Done, EntryError> {
        let kept = match self.records.load()? {
            Some(record) if record.stage == Stage::Installed && !files.is_empty() => {
                return Err(EntryError::unfit(
                    "the gateway is installed here, and the configuration has new ways past it",
                    "take it out with `remove --to source`, then install it again",
                ));
            }
            Some(record) if record.stage == Stage::Installed => {
                return self.prove_again().await.inspect(|_| drop(record));
            }
            Some(record) => record.files,
            None if files.is_empty() => {
                return self.prove_again().await;
            }
            None => files.iter().map(kept).collect(),
        };
        let goals = kept.iter().map(|kept| (kept.path.as_path(), kept.after.as_slice()));
        let steps = steps(goals, &kept)?;
        let clean: Vec<Kept> = kept.into_iter().map(|kept| Kept { goal: None, ..kept }).collect();
        let _guard = quiet::ask(self.quiet).await?;
        let before = self.served.look().await;
        self.served.would_take(&steps).await?;
        self.records.save(&Record { stage: Stage::Installing, files: clean.clone() })?;
        let done = match self.make(&steps, &before, Proof::Gateway).await {
            Ok(done) => done,
            Err(error) => {
                let former = clean.iter().map(|kept| (kept.path.as_path(), kept.before.as_slice()));
                return Err(self.put_back(former, error, None).await);
            }
        };
        self.records.save(&Record { stage: Stage::Installed, files: clean })?;
        Ok(done)
    }

    /// Takes the change out again. Without one there is nothing to do.
    ///
    /// # Errors
    /// As [`Change::install`]; [`EntryError::Changed`] also when somebody edited the very lines that were changed.
    pub async fn remove(&self, back: Back<'_>) -> Result<Done, EntryError> {
        let Some(record) = self.records.load()? else {
            let seen = self.served.look().await;
            return Ok(Done { changed: false, taken_up: nothing_taken_up(), seen });
        };
        let files = goals(&record.files, &back)?;
        let goals = files.iter().filter_map(|kept| Some((kept.path.as_path(), kept.goal.as_deref()?)));
        let steps = steps_now(goals)?;
        let _guard = quiet::ask(self.quiet).await?;
        let before = self.served.look().await;
        self.served.would_take(&steps).await?;
        self.records.save(&Record { stage: Stage::Removing, files: files.clone() })?;
        match self.make(&steps, &before, Proof::NotGateway).await {
            Ok(done) => {
                self.records.forget()?;
                Ok(done)
            }
            Err(error) => {
                let former = steps.iter().map(|step| (step.path.as_path(), step.before.as_slice()));
                let stays = Record { stage: record.stage, files: record.files };
                Err(self.put_back(former, error, Some(stays)).await)
            }
        }
    }

    async fn prove_again(&self) -> Result<Done, EntryError> {
        let seen = self.look_until(&[], Proof::Gateway).await?;
        Ok(Done { changed: false, taken_up: nothing_taken_up(), seen })
    }

    async fn make(&self, steps: &[FileChange], before: &[Seen], proof: Proof) -> Result<Done, EntryError> {
        files::sweep(steps.iter().map(|step| step.path.as_path()));
        for step in steps {
            let now = files::read_bytes(&step.path)?;
            if now != step.before && now != step.after {
                return Err(EntryError::Changed { what: step.path.display().to_string() });
            }
            if now != step.after {
                files::replace(&step.path, &step.after)?;
            }
        }
        self.served.takes().await?;
        let taken_up = self.served.take_up(steps).await?;
        let seen = self.look_until(before, proof).await?;
        Ok(Done { changed: true, taken_up, seen })
    }

    /// Asks until it is proven, or its time is over.
    async fn look_until(&self, before: &[Seen], proof: Proof) -> Result<Vec<Seen>, EntryError> {
        let begun = Instant::now();
        loop {
            let seen = self.served.look().await;
            match judge(before, &seen, proof) {
                Ok(()) => return Ok(seen),
                Err(what) if begun.elapsed() > PROOF_PATIENCE => {
                    return Err(EntryError::NotProven { what, undone: false });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Undoes what was begun and returns the error with the word whether that worked.
    async fn put_back<'f>(
        &self,
        former: impl Iterator<Item = (&'f Path, &'f [u8])>,
        error: EntryError,
        stays: Option<Record>,
    ) -> EntryError {
        let undone = self.undo(former, stays).await;
        let what = match error {
            // Somebody else's edit is not ours to overwrite: say it as it is.
            EntryError::Changed { what } if undone.is_ok() => return EntryError::Changed { what },
            EntryError::NotProven { what, .. } => what,
            other => other.to_string(),
        };
        match undone {
            Ok(()) => EntryError::NotProven { what, undone: true },
            Err(second) => EntryError::NotProven {
                what: format!(
                    "{what}; and putting the former files back failed: {second} (they are kept beside {})",
                    self.records.path().display()
                ),
                undone: false,
            },
        }
    }

    async fn undo<'f>(
        &self,
        former: impl Iterator<Item = (&'f Path, &'f [u8])>,
        stays: Option<Record>,
    ) -> Result<(), EntryError> {
        let known = self.records.load()?.map(|record| record.files).unwrap_or_default();
        let mut steps = Vec::new();
        for (path, bytes) in former {
            let now = files::read_bytes(path)?;
            // Only what we wrote is taken back; a file that somebody else wrote meanwhile stays theirs.
            let is_ours = known.iter().any(|kept| {
                kept.path == path
                    && (now == kept.after || kept.goal.as_ref().is_some_and(|goal| now == *goal))
            });
            if is_ours && now != bytes {
                files::replace(path, bytes)?;
                steps.push(FileChange { path: path.to_owned(), before: now, after: bytes.to_vec() });
            }
        }
        self.served.takes().await?;
        if !steps.is_empty() {
            self.served.take_up(&steps).await?;
        }
        match stays {
            Some(record) => self.records.save(&record),
            None => self.records.forget(),
        }
    }
}

/// What a removal would do to each file, without doing it.
///
/// # Errors
/// As [`Change::remove`].
pub fn preview(record: &Record, back: &Back<'_>) -> Result<Vec<FileChange>, EntryError> {
    let files = goals(&record.files, back)?;
    let goals = files.iter().filter_map(|kept| Some((kept.path.as_path(), kept.goal.as_deref()?)));
    Ok(steps_now(goals)?.into_iter().filter(|step| step.before != step.after).collect())
}

fn kept(change: &FileChange) -> Kept {
    Kept { path: change.path.clone(), before: change.before.clone(), after: change.after.clone(), goal: None }
}

fn nothing_taken_up() -> TakenUp {
    TakenUp { by: "none", ..TakenUp::default() }
}

/// From what lies there now to the goals. What lies there must be known: nobody else's edit is written over.
fn steps<'f>(
    goals: impl Iterator<Item = (&'f Path, &'f [u8])>,
    known: &[Kept],
) -> Result<Vec<FileChange>, EntryError> {
    let steps = steps_now(goals)?;
    for step in &steps {
        let is_known = known.iter().filter(|kept| kept.path == step.path).any(|kept| {
            step.before == kept.before
                || step.before == kept.after
                || kept.goal.as_ref().is_some_and(|goal| step.before == *goal)
        });
        if !is_known {
            return Err(EntryError::Changed { what: step.path.display().to_string() });
        }
    }
    Ok(steps)
}

fn steps_now<'f>(goals: impl Iterator<Item = (&'f Path, &'f [u8])>) -> Result<Vec<FileChange>, EntryError> {
    goals
        .map(|(path, after)| {
            Ok(FileChange { path: path.to_owned(), before: files::read_bytes(path)?, after: after.to_vec() })
        })
        .collect()
}

/// What every file shall hold once the change is taken out, with the edits of others since.
fn goals(known: &[Kept], back: &Back<'_>) -> Result<Vec<Kept>, EntryError> {
    let mut files = Vec::new();
    for kept in known {
        let wanted = match back {
            Back::Source => &kept.before,
            Back::Target(changes) => changes
                .iter()
                .find(|change| change.path == kept.path)
                .map_or(&kept.before, |change| &change.after),
        };
        let now = files::read_bytes(&kept.path)?;
        let is_there =
            now == *wanted || kept.goal.as_ref().is_some_and(|goal| now == *goal && goal == wanted);
        let goal = if is_there || now == kept.before && matches!(back, Back::Source) {
            now
        } else if now == kept.before || kept.goal.as_ref() == Some(&now) {
            wanted.clone()
        } else {
            crate::diff::carry_over(&kept.after, &now, wanted)
                .ok_or_else(|| EntryError::Changed { what: kept.path.display().to_string() })?
        };
        files.push(Kept { goal: Some(goal), ..kept.clone() });
    }
    Ok(files)
}

/// Whether the answers prove it. A route that answers worse than before fails; one that the server answers by itself (a
/// redirect, a password) says nothing.
fn judge(before: &[Seen], after: &[Seen], proof: Proof) -> Result<(), String> {
    for seen in after {
        let former = before.iter().find(|former| former.route == seen.route).map(|former| &former.answer);
        let was_well = matches!(former, Some(Ok(..500)));
        let is_well = matches!(seen.answer, Ok(..500));
        if was_well && !is_well {
            let now = match &seen.answer {
                Ok(status) => status.to_string(),
                Err(why) => why.clone(),
            };
            return Err(format!("{} answered before and not any more: {now}", seen.route));
        }
    }
    let through = after.iter().filter(|seen| seen.through_gateway).count();
    match proof {
        Proof::Gateway if through == 0 => Err(format!(
            "no request was seen to go through the gateway ({})",
            after.iter().map(describe).collect::<Vec<_>>().join(", ")
        )),
        Proof::NotGateway if through > 0 => Err("requests still go through the gateway".into()),
        _ => Ok(()),
    }
}

fn describe(seen: &Seen) -> String {
    match &seen.answer {
        Ok(status) => format!("{}: {status}", seen.route),
        Err(why) => format!("{}: {why}", seen.route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quiet::NoRun;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A server that takes everything, answers by what its files say, and stops for ever at its n-th call, as a kill does.
    #[derive(Debug)]
    struct Stops {
        config: PathBuf,
        at: usize,
        calls: AtomicUsize,
    }

    impl Stops {
        async fn step(&self) {
            if self.calls.fetch_add(1, Ordering::SeqCst) == self.at {
                std::future::pending::<()>().await;
            }
        }
    }

    #[async_trait]
    impl Served for Stops {
        async fn would_take(&self, _: &[FileChange]) -> Result<(), EntryError> {
            self.step().await;
            Ok(())
        }
        async fn takes(&self) -> Result<(), EntryError> {
            self.step().await;
            Ok(())
        }
        async fn take_up(&self, _: &[FileChange]) -> Result<TakenUp, EntryError> {
            self.step().await;
            Ok(TakenUp { by: "reload", ..TakenUp::default() })
        }
        async fn look(&self) -> Vec<Seen> {
            self.step().await;
            let through_gateway =
                std::fs::read(&self.config).is_ok_and(|bytes| bytes.starts_with(b"gateway"));
            vec![Seen { route: "/".into(), answer: Ok(200), through_gateway }]
        }
    }

    fn place() -> (tempfile::TempDir, Vec<FileChange>) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| std::fs::canonicalize(folder.path()).unwrap().join(name);
        let change = |name: &str| {
            std::fs::write(path(name), b"source \xff").unwrap();
            FileChange { path: path(name), before: b"source \xff".to_vec(), after: b"gateway \xff".to_vec() }
        };
        let changes = vec![change("one.conf"), change("two.conf")];
        (folder, changes)
    }

    /// Runs until it is done or stands still.
    async fn killed<T>(work: impl Future<Output = Result<T, EntryError>>) -> Option<Result<T, EntryError>> {
        tokio::time::timeout(Duration::from_millis(50), work).await.ok()
    }

    fn holds(changes: &[FileChange], what: &[u8]) -> bool {
        changes.iter().all(|change| std::fs::read(&change.path).unwrap().starts_with(what))
    }

    #[tokio::test]
    async fn killed_at_any_step_it_goes_on_or_back() {
        for goes_on in [true, false] {
            for at in 0..8 {
                let (folder, changes) = place();
                let config = changes[0].path.clone();
                let server = |at| Stops { config: config.clone(), at, calls: AtomicUsize::new(0) };
                let open = || Records::open(folder.path(), "test", &config).unwrap();
                let (records, stops) = (open(), server(at));
                let change = Change { records: &records, served: &stops, quiet: &NoRun };
                let first = killed(change.install(&changes)).await;
                assert_eq!(first.is_some(), at > 4, "five calls: look, would_take, takes, take_up, look");
                drop(records);

                let (records, runs) = (open(), server(usize::MAX));
                let change = Change { records: &records, served: &runs, quiet: &NoRun };
                if goes_on {
                    let again = if first.is_some() { &[][..] } else { &changes[..] };
                    change.install(again).await.unwrap();
                    assert!(holds(&changes, b"gateway"));
                    assert_eq!(records.load().unwrap().unwrap().stage, Stage::Installed);
                }
                change.remove(Back::Source).await.unwrap();
                assert!(holds(&changes, b"source \xff"), "killed at {at}");
                assert!(records.load().unwrap().is_none());
            }
        }
    }

    #[tokio::test]
    async fn a_removal_killed_at_any_step_goes_on_or_back() {
        for goes_on in [true, false] {
            for at in 0..5 {
                let (folder, changes) = place();
                let config = changes[0].path.clone();
                let server = |at| Stops { config: config.clone(), at, calls: AtomicUsize::new(0) };
                let open = || Records::open(folder.path(), "test", &config).unwrap();
                let (records, runs, stops) = (open(), server(usize::MAX), server(at));
                let whole = Change { records: &records, served: &runs, quiet: &NoRun };
                whole.install(&changes).await.unwrap();
                let change = Change { records: &records, served: &stops, quiet: &NoRun };
                assert!(killed(change.remove(Back::Source)).await.is_none());
                if goes_on {
                    whole.remove(Back::Source).await.unwrap();
                    assert!(holds(&changes, b"source") && records.load().unwrap().is_none());
                } else {
                    whole.install(&[]).await.unwrap();
                    assert!(holds(&changes, b"gateway"), "killed at {at}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_edit_of_others_is_refused_also_after_a_kill() {
        let (folder, changes) = place();
        let config = changes[0].path.clone();
        let records = Records::open(folder.path(), "test", &config).unwrap();
        let stops = Stops { config: config.clone(), at: 3, calls: AtomicUsize::new(0) };
        let change = Change { records: &records, served: &stops, quiet: &NoRun };
        assert!(killed(change.install(&changes)).await.is_none());
        std::fs::write(&changes[1].path, "theirs").unwrap();
        let runs = Stops { config, at: usize::MAX, calls: AtomicUsize::new(0) };
        let change = Change { records: &records, served: &runs, quiet: &NoRun };
        for error in
            [change.install(&changes).await.unwrap_err(), change.remove(Back::Source).await.unwrap_err()]
        {
            assert!(matches!(error, EntryError::Changed { .. }), "{error}");
        }
        assert_eq!(std::fs::read(&changes[1].path).unwrap(), b"theirs");
    }
}
