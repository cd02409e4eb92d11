//! Sessions of a part: opened when they are wanted, kept for the next who wants one, thrown away when they are broken or silent.
//!
//! A statement whose answer did not come may be on its way, or wait for a lock: it could close a side behind the statement that opens
//! it again. So before anything else is asked of that server, the session it was sent on is ended there.

use super::connect::{May, Session, connect_to};
use crate::end::{End, Ends};
use rehome_part::{Result, Side};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Kept at most per side, beyond what is in use.
const KEPT: usize = 8;
/// Between two looks whether a session has ended.
const LOOK: Duration = Duration::from_millis(10);

/// The sessions of the migration's own principal, on both sides.
#[derive(Debug)]
pub(super) struct Sessions {
    pub ends: Ends,
    idle: Mutex<Vec<Session>>,
    /// By the server's numbers, those whose last word is not known.
    doubtful: Mutex<Vec<(Side, i32)>>,
}

/// A session in use; it goes back when dropped. Reads that were not waited for end before the next one's.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    session: Option<Session>,
    from: &'a Sessions,
}

impl Sessions {
    pub fn new(ends: Ends) -> Self {
        Self { ends, idle: Mutex::default(), doubtful: Mutex::default() }
    }

    pub fn end(&self, side: Side) -> &End {
        self.ends.of(side)
    }

    /// # Errors
    /// None was left, and the server lets nobody in.
    pub async fn on(&self, side: Side) -> Result<Lent<'_>> {
        self.end_doubts(side).await?;
        let kept = {
            let mut idle = self.idle();
            idle.retain(|session| !session.is_closed());
            let place = idle.iter().position(|session| session.side() == side);
            place.map(|place| idle.swap_remove(place))
        };
        let session = match kept {
            Some(session) => session,
            None => self.open(side).await?,
        };
        Ok(Lent { session: Some(session), from: self })
    }

    /// One for settings that nobody else should find.
    ///
    /// # Errors
    /// As [`Self::on`].
    pub async fn fresh(&self, side: Side) -> Result<Session> {
        self.end_doubts(side).await?;
        self.open(side).await
    }

    async fn open(&self, side: Side) -> Result<Session> {
        let end = self.end(side);
        tracing::debug!(%side, "a session is opened");
        Box::pin(connect_to(&end.address, end.password.as_deref(), side, May::Write)).await
    }

    /// Until no statement of ours that was given up can be done any more on a side.
    async fn end_doubts(&self, side: Side) -> Result<()> {
        let numbers: Vec<i32> =
            self.doubts().iter().filter(|(of, _)| *of == side).map(|(_, number)| *number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        tracing::info!(%side, ?numbers, "sessions with an unknown outcome are ended");
        let session = self.open(side).await?;
        let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE pid = ANY ($1) AND usename = current_user AND application_name = 'rehome'";
        while !session
            .rows("end a session whose outcome is unknown", statement, &[&numbers])
            .await?
            .is_empty()
        {
            tokio::time::sleep(LOOK).await;
        }
        self.doubts().retain(|(of, number)| *of != side || !numbers.contains(number));
        self.give_back(session);
        Ok(())
    }

    /// Opens sessions until so many are kept on a side.
    ///
    /// # Errors
    /// As [`Self::on`].
    pub async fn keep(&self, side: Side, wanted: usize) -> Result<()> {
        let here = self.idle().iter().filter(|session| session.side() == side).count();
        let opened = (here..wanted).map(|_| self.fresh(side));
        for session in futures::future::try_join_all(opened).await? {
            self.give_back(session);
        }
        Ok(())
    }

    /// Closes what is kept on a side.
    pub fn forget(&self, side: Side) {
        self.idle().retain(|session| session.side() != side);
    }

    fn give_back(&self, session: Session) {
        let side = session.side();
        if let Some(number) = session.in_doubt() {
            self.doubts().push((side, number));
        }
        if session.in_doubt().is_some() || session.is_silent() {
            // The others went the same way; better a new one than another that says nothing.
            self.forget(side);
            return;
        }
        let mut idle = self.idle();
        let here = idle.iter().filter(|other| other.side() == session.side()).count();
        if !session.is_closed() && here < KEPT {
            idle.push(session);
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<(Side, i32)>> {
        self.doubtful.lock().expect("no code panics while it holds this lock")
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().expect("no code panics while it holds this lock")
    }
}

impl Deref for Lent<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.from.give_back(session);
        }
    }
}
