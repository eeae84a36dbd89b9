//! When to try again: exponential delays with jitter.
//!
//! The only file that knows the crate `backoff`, and only as a source of intervals: attempts,
//! deadlines, sleeping and giving up belong to the callers.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff};

/// How often and how soon something is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1.
    pub max_attempts: u32,
    /// The delay after the first failure, before jitter.
    pub initial_delay: Duration,
    /// No delay is longer.
    pub max_delay: Duration,
    /// Each delay is this many times the one before.
    pub multiplier: f64,
}

impl RetryPolicy {
    /// The delay after `attempt` (from 1) failed: between half the interval and all of it, where
    /// `chance` in `0.0..1.0` says, so that what failed together does not come back together.
    pub fn delay(&self, attempt: u32, chance: f64) -> Duration {
        interval(self.initial_delay, self.max_delay, self.multiplier, attempt)
            .mul_f64(0.5 + chance / 2.0)
    }
}

/// The delay before reconnection number `attempt` (from 1): full jitter, anywhere between nothing
/// and the interval, for many workers lose the same broker at the same moment.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
pub fn reconnect_delay(initial: Duration, max: Duration, attempt: u32, chance: f64) -> Duration {
    interval(initial, max, 2.0, attempt).mul_f64(chance)
}

fn interval(initial: Duration, max: Duration, multiplier: f64, attempt: u32) -> Duration {
    let mut intervals = ExponentialBackoff {
        current_interval: initial,
        initial_interval: initial,
        // Chance is ours to pass in; see the callers.
        randomization_factor: 0.0,
        multiplier,
        max_interval: max,
        // Giving up is the caller's decision.
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    let mut interval = initial;
    // Past some sixty doublings every interval is the longest one.
    for _ in 0..attempt.clamp(1, 64) {
        interval = intervals.next_backoff().unwrap_or(max);
    }
    interval.min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            initial_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            multiplier: 2.0,
        }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<u64> =
            (1..=8).map(|attempt| policy().delay(attempt, 1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn chance_spreads_a_delay_over_its_upper_half() {
        assert_eq!(policy().delay(3, 0.0), Duration::from_secs(2));
        assert_eq!(policy().delay(3, 0.5), Duration::from_secs(3));
    }

    #[test]
    fn a_reconnection_may_come_at_once_or_after_the_whole_interval() {
        let delay =
            |chance| reconnect_delay(Duration::from_secs(1), Duration::from_secs(10), 9, chance);
        assert_eq!((delay(0.0), delay(1.0)), (Duration::ZERO, Duration::from_secs(10)));
    }
}
