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
    let mut interval = intervals.next_backoff().unwrap_or(max);
    for _ in 1..attempt {
        let next = intervals.next_backoff().unwrap_or(max);
        if next == interval {
            // So are all that follow.
            break;
        }
        interval = next;
    }
    interval.min(max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    proptest! {
        /// The schedule as a person would write it down: multiply, cut off, take half by chance.
        #[test]
        fn a_delay_is_what_multiplication_says(
            initial in 1..5_000_u64, longest in 1..600_000_u64, multiplier in 1.0..8.0_f64,
            attempt in 0..200_u32, chance in 0.0..1.0_f64,
        ) {
            let initial_delay = Duration::from_millis(initial);
            let max_delay = Duration::from_millis(longest).max(initial_delay);
            let policy = RetryPolicy { max_attempts: 5, initial_delay, max_delay, multiplier };
            let mut expected = initial_delay.as_secs_f64();
            for _ in 1..attempt {
                expected = (expected * multiplier).min(max_delay.as_secs_f64());
            }
            let delay = policy.delay(attempt, chance).as_secs_f64();
            let by_chance = expected * (0.5 + chance / 2.0);
            // Each interval is a whole number of nanoseconds.
            prop_assert!((delay - by_chance).abs() < 1e-6 + by_chance * 1e-6, "{delay}, {by_chance}");
            prop_assert!(policy.delay(attempt, chance) <= max_delay);
            let reconnect = reconnect_delay(initial_delay, max_delay, attempt, chance);
            prop_assert!(reconnect <= max_delay);
        }
    }
}
