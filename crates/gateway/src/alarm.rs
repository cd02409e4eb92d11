//! A timer for what nearly always happens in time: set again for every request, and heard of only when it is late. The runtime's
//! own timer behind it is moved only when it rings, so setting it costs next to nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

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
