//! A timer for what nearly always happens in time: set again for every request, and heard of only when it is late. The runtime's
//! own timer behind it is moved only when it rings, so setting it costs next to nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Is it `deadline` yet? Wakes the task then, or a little too often before.
    pub fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// The same as the timer of one client's connection, which asks for one wait at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct AlarmClock(Arc<Mutex<Alarm>>);

#[derive(Debug)]
struct Wait {
    alarm: AlarmClock,
    deadline: Instant,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.0.lock().expect("no code panics while it holds this lock");
        alarm.poll(self.deadline, cx)
    }
}

impl hyper::rt::Sleep for Wait {}

impl hyper::rt::Timer for AlarmClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Wait { alarm: self.clone(), deadline: Instant::now() + duration })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Wait { alarm: self.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_last_deadline_that_was_set() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        for (set, after) in [(60, 0), (10, 0), (90, 0)] {
            let deadline = start + Duration::from_secs(set + after);
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(deadline, cx))).await.is_pending());
        }
        let deadline = start + Duration::from_secs(90);
        poll_fn(|cx| alarm.poll(deadline, cx)).await;
        assert_eq!(start.elapsed().as_secs(), 90);
        let next = start + Duration::from_secs(100);
        poll_fn(|cx| alarm.poll(next, cx)).await;
        assert_eq!(start.elapsed().as_secs(), 100);
    }
}
