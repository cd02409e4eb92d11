//! The addresses of one side, equals of each other. The one with the fewest requests under way is next; those that are out are
//! passed over as long as another is not. Whoever cannot be reached was sent nothing, so the next may be tried, for writes too.

use super::{Connection, Dialing, Member};
use crate::config::Upstream;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Group {
    members: Box<[Arc<Member>]>,
    turn: AtomicUsize,
}

impl Group {
    /// `upstreams` is never empty: a side has an address.
    pub fn new(upstreams: &[Upstream], dialing: &Dialing, idle_limit: Duration) -> Self {
        let member = |upstream: &Upstream| Member::new(upstream.clone(), dialing.clone(), idle_limit);
        Self { members: upstreams.iter().map(member).collect(), turn: AtomicUsize::new(0) }
    }

    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Healthy when one member is; unknown while that is known of none.
    pub fn healthy(&self) -> Option<bool> {
        let known = self.members.iter().filter_map(|member| member.healthy());
        known.reduce(|one, other| one || other)
    }

    /// Connections that are open, of all members.
    pub fn open(&self) -> usize {
        self.members.iter().map(|member| member.open()).sum()
    }

    /// Opens connections until there are `wanted`, spread over those who are well. What cannot be made is made when it is needed.
    pub async fn warm(&self, wanted: usize) {
        let well: Vec<_> = self.members.iter().filter(|member| !member.is_out()).collect();
        let each = wanted.div_ceil(well.len().max(1));
        let warmed = well.into_iter().map(|member| async move {
            if let Err(error) = member.warm(each).await {
                tracing::debug!(upstream = member.upstream.authority, %error, "cannot connect ahead of time");
            }
        });
        futures::future::join_all(warmed).await;
    }

    /// A connection to the member that is next. Says how long connecting took, if it was needed.
    ///
    /// # Errors
    /// No member could be reached; nothing was sent.
    pub async fn take(&self, for_write: bool) -> io::Result<(Connection, Option<Duration>)> {
        let mut tried = Vec::new();
        loop {
            let next = self.next(&tried);
            match next.take(for_write).await {
                Ok(taken) => return Ok(taken),
                Err(error) => self.give_up_on(next, &mut tried, error)?,
            }
        }
    }

    /// The same on a new connection, on another member than `broken` if there is one.
    ///
    /// # Errors
    /// No member could be reached; nothing was sent.
    pub async fn connect(&self, broken: Option<&Arc<Member>>) -> io::Result<(Connection, Option<Duration>)> {
        let mut tried: Vec<_> = broken.filter(|_| self.members.len() > 1).cloned().into_iter().collect();
        loop {
            let next = self.next(&tried);
            match next.connect().await {
                Ok(taken) => return Ok(taken),
                Err(error) => self.give_up_on(next, &mut tried, error)?,
            }
        }
    }

    fn give_up_on(
        &self,
        member: &Arc<Member>,
        tried: &mut Vec<Arc<Member>>,
        error: io::Error,
    ) -> io::Result<()> {
        member.failed();
        tried.push(member.clone());
        if tried.len() < self.members.len() { Ok(()) } else { Err(error) }
    }

    fn next(&self, tried: &[Arc<Member>]) -> &Arc<Member> {
        if let [only] = &*self.members {
            return only;
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..self.members.len()).map(|step| &self.members[(first + step) % self.members.len()]);
        let cost = |member: &&Arc<Member>| {
            (tried.iter().any(|other| Arc::ptr_eq(other, member)), member.is_out(), member.under_way())
        };
        in_turn.min_by_key(cost).expect("a side has an address")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_spec::UpstreamHttp;
    use std::net::TcpListener;

    fn group(listeners: &[TcpListener]) -> Group {
        let upstream = |listener: &TcpListener| {
            Upstream::parse("api", "source", &format!("http://{}", listener.local_addr().unwrap())).unwrap()
        };
        let upstreams: Vec<_> = listeners.iter().map(upstream).collect();
        Group::new(&upstreams, &Dialing { http: UpstreamHttp::One, tls: None }, Duration::from_secs(60))
    }

    fn listeners() -> Vec<TcpListener> {
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
    }

    #[tokio::test]
    async fn the_one_with_the_fewest_requests_is_next() {
        let listeners = listeners();
        let group = group(&listeners);
        let mut taken = Vec::new();
        for round in 1..=4 {
            for _ in 0..3 {
                taken.push(group.take(false).await.unwrap().0);
            }
            assert!(group.members().iter().all(|member| member.under_way() == round));
        }
        taken.retain(|connection| !Arc::ptr_eq(connection.member(), &group.members()[1]));
        for _ in 0..4 {
            taken.push(group.take(true).await.unwrap().0);
        }
        assert_eq!(group.members()[1].under_way(), 4);
    }

    #[tokio::test]
    async fn who_is_out_or_gone_is_passed_over_as_long_as_there_is_another() {
        let mut listeners = listeners();
        let group = group(&listeners);
        group.members()[0].set_healthy(false);
        drop(listeners.remove(1));
        for _ in 0..6 {
            let (connection, _) = group.take(true).await.unwrap();
            assert!(Arc::ptr_eq(connection.member(), &group.members()[2]));
        }
        assert!(group.members()[1].is_out(), "nobody listens there");
        assert_eq!(group.healthy(), Some(false), "one is known, and is not");
        drop(listeners.pop());
        let (connection, _) = group.take(true).await.unwrap();
        assert!(Arc::ptr_eq(connection.member(), &group.members()[0]), "better one that is out than none");
        drop(listeners);
        assert!(group.connect(None).await.is_err());
    }
}
