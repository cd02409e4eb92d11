//! Making a call again when that can help: full jitter, bounded attempts. It never retries what is permanent.

use rehome_part::{Error, Result, Retry};
use std::time::Duration;

/// How often and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls in all, the first included.
    pub attempts: u32,
    /// The longest wait before the second call; doubles with every further one.
    pub base: Duration,
    /// The longest wait of all.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 8, base: Duration::from_millis(100), cap: Duration::from_secs(10) }
    }
}

impl RetryPolicy {
    /// A random wait before the call after `failures` failed ones ("full jitter": anything from 0 to the bound).
    pub fn wait(&self, failures: u32) -> Duration {
        let bound = self.base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.cap);
        bound.mul_f64(fastrand::f64())
    }

    /// Calls until it succeeds, fails for good, or the attempts are used up (then `Exhausted`).
    pub async fn run<T, F: Future<Output = Result<T>>>(&self, mut call: impl FnMut() -> F) -> Result<T> {
        let mut failures = 0;
        loop {
            match call().await {
                Err(error) if error.is_temporary() => {
                    failures += 1;
                    if failures >= self.attempts {
                        return Err(Error { retry: Retry::Exhausted, ..error });
                    }
                    tracing::debug!(%error, failures, "trying again");
                    tokio::time::sleep(self.wait(failures)).await;
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_part::ErrorKind;
    use std::cell::Cell;

    fn quick() -> RetryPolicy {
        RetryPolicy { attempts: 3, base: Duration::from_micros(1), cap: Duration::from_micros(2) }
    }

    #[tokio::test]
    async fn temporary_is_tried_again_and_then_exhausted() {
        let calls = Cell::new(0);
        let result: Result<()> = quick()
            .run(|| async {
                calls.set(calls.get() + 1);
                Err(Error::temporary(ErrorKind::Network, "reset"))
            })
            .await;
        assert_eq!(calls.get(), 3);
        assert_eq!(result.unwrap_err().retry, Retry::Exhausted);
    }

    #[tokio::test]
    async fn permanent_is_not() {
        let calls = Cell::new(0);
        let result: Result<()> = quick()
            .run(|| async {
                calls.set(calls.get() + 1);
                Err(Error::permanent(ErrorKind::Credentials, "no"))
            })
            .await;
        assert_eq!((calls.get(), result.unwrap_err().retry), (1, Retry::Permanent));
    }

    #[test]
    fn waits_stay_below_the_cap() {
        let policy = RetryPolicy::default();
        assert!((0..200).all(|failures| policy.wait(failures) <= policy.cap));
    }
}
