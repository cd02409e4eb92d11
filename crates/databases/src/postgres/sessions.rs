//! Sessions of a part: opened when they are wanted, kept for the next who wants one, thrown away when they are broken.

use super::connect::{May, Session, connect_to};
use crate::end::{End, Ends};
use rehome_part::{Result, Side};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};

/// Kept at most per side, beyond what is in use.
const KEPT: usize = 8;

/// The sessions of the migration's own principal, on both sides.
#[derive(Debug)]
pub(super) struct Sessions {
    pub ends: Ends,
    idle: Mutex<Vec<Session>>,
}

/// A session in use; it goes back when dropped. Statements that were not waited for end before the next one's.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    session: Option<Session>,
    from: &'a Sessions,
}

impl Sessions {
    pub fn new(ends: Ends) -> Self {
        Self { ends, idle: Mutex::default() }
    }

    pub fn end(&self, side: Side) -> &End {
        self.ends.of(side)
    }

    /// # Errors
    /// None was left, and the server lets nobody in.
    pub async fn on(&self, side: Side) -> Result<Lent<'_>> {
        let kept = {
            let mut idle = self.idle();
            idle.retain(|session| !session.is_closed());
            let place = idle.iter().position(|session| session.side() == side);
            place.map(|place| idle.swap_remove(place))
        };
        let session = match kept {
            Some(session) => session,
            None => self.fresh(side).await?,
        };
        Ok(Lent { session: Some(session), from: self })
    }

    /// One for settings that nobody else should find.
    ///
    /// # Errors
    /// As [`Self::on`].
    pub async fn fresh(&self, side: Side) -> Result<Session> {
        let end = self.end(side);
        tracing::debug!(%side, "a session is opened");
        Box::pin(connect_to(&end.address, end.password.as_deref(), side, May::Write)).await
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
        let mut idle = self.idle();
        let here = idle.iter().filter(|other| other.side() == session.side()).count();
        if !session.is_closed() && here < KEPT {
            idle.push(session);
        }
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
