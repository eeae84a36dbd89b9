//! What makes a breaker open and close.

use std::time::Duration;

use serde::Deserialize;

use super::{Counts, Why};
use crate::steer::Mode;

/// No duration of a breaker is longer: a day.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `[dependencies.<name>.breaker]`: when calls to a dependency are stopped, and for how long.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who decides, as long as nobody steers it otherwise.
    pub mode: Mode,
    /// Opens when this share of the calls in the window failed; above 0, at most 1.
    pub failure_rate: f64,
    /// How far back calls count, in ten steps: the oldest tenth is forgotten at a time.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// With fewer calls than this in the window, no rate opens the breaker.
    pub minimum_calls: u32,
    /// Opens after so many failures in a row, however few calls there were: a dependency that is
    /// seldom called never reaches `minimum_calls`.
    pub consecutive_failures: u32,
    /// A call that takes this long is slow, whether it succeeds or fails. A value from the
    /// dependency's `timeout` up means that only calls that time out are slow.
    #[serde(with = "humantime_serde")]
    pub slow_call: Duration,
    /// Opens when this share of the calls in the window was slow; above 0, at most 1.
    pub slow_call_rate: f64,
    /// How long it stays open the first time, before jitter (which takes off up to half). Doubled
    /// with each time that it opens again before it stayed closed as long as it was last open,
    /// and a window at least.
    #[serde(with = "humantime_serde")]
    pub open_for: Duration,
    /// It never stays open longer by its own rules.
    #[serde(with = "humantime_serde")]
    pub open_max: Duration,
    /// No `Retry-After` is honoured for longer. What is honoured is made longer by chance, by up
    /// to half of it and `open_for` at most, and never shorter.
    #[serde(with = "humantime_serde")]
    pub retry_after_max: Duration,
    /// Calls let through at once while half-open.
    pub probes: u32,
    /// Probes that must succeed to close it. One that fails, or is slow, opens it again.
    pub successes: u32,
    /// After this long a probe that has not reported gives up its place to another. At least the
    /// dependency's `timeout`.
    #[serde(with = "humantime_serde")]
    pub probe_timeout: Duration,
}

impl Settings {
    /// Every mistake, as (setting, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut check = |right: bool, setting: &str, wrong: String| {
            if !right {
                problems.push((setting.to_owned(), wrong));
            }
        };
        for (setting, rate) in
            [("failure_rate", self.failure_rate), ("slow_call_rate", self.slow_call_rate)]
        {
            check(
                rate > 0.0 && rate <= 1.0,
                setting,
                format!("is {rate}, must be above 0 and at most 1"),
            );
        }
        for (setting, count) in [
            ("minimum_calls", self.minimum_calls),
            ("consecutive_failures", self.consecutive_failures),
            ("probes", self.probes),
            ("successes", self.successes),
        ] {
            check(count > 0, setting, "is 0, must be at least 1".to_owned());
        }
        for (setting, duration) in [
            ("window", self.window),
            ("slow_call", self.slow_call),
            ("open_for", self.open_for),
            ("open_max", self.open_max),
            ("retry_after_max", self.retry_after_max),
            ("probe_timeout", self.probe_timeout),
        ] {
            let right = duration >= Duration::from_millis(10) && duration <= LONGEST;
            let found = humantime::format_duration(duration);
            check(right, setting, format!("is {found}, must be between 10ms and 24h"));
        }
        check(
            self.open_max >= self.open_for,
            "open_max",
            format!(
                "is {}, shorter than open_for ({}), must be at least as long",
                humantime::format_duration(self.open_max),
                humantime::format_duration(self.open_for)
            ),
        );
        problems
    }

    /// Which rule, if any, says that a closed breaker must open.
    pub(super) fn tripped(&self, counts: Counts, consecutive: u32) -> Option<Why> {
        let enough = counts.calls >= u64::from(self.minimum_calls);
        let reached = |part: u64, rate: f64| enough && part as f64 >= rate * counts.calls as f64;
        if consecutive >= self.consecutive_failures {
            Some(Why::ConsecutiveFailures)
        } else if reached(counts.failed, self.failure_rate) {
            Some(Why::FailureRate)
        } else if reached(counts.slow, self.slow_call_rate) {
            Some(Why::SlowCallRate)
        } else {
            None
        }
    }
}
