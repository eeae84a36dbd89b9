//! The words for what a breaker did, as logs and metrics tell it.

use std::time::Duration;

use super::Counts;
use crate::steer::Mode;

/// Where the machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through, as probes.
    HalfOpen,
}

impl Phase {
    /// The name in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why the phase changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The share of failures in the window reached the limit.
    FailureRate,
    /// So many calls in a row failed.
    ConsecutiveFailures,
    /// The share of slow calls in the window reached the limit.
    SlowCallRate,
    /// The dependency asked to be left alone for a time.
    Throttled,
    /// A probe failed, or was slow.
    ProbeFailed,
    /// The open time is over.
    OpenTimeOver,
    /// Enough probes succeeded.
    Recovered,
    /// A person said so.
    Steered,
}

impl Why {
    /// The name in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::SlowCallRate => "slow_call_rate",
            Self::Throttled => "throttled",
            Self::ProbeFailed => "probe_failed",
            Self::OpenTimeOver => "open_time_over",
            Self::Recovered => "recovered",
            Self::Steered => "steered",
        }
    }
}

/// A change of phase, with the numbers that led to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transition {
    /// The phase before.
    pub(crate) from: Phase,
    /// The phase now.
    pub(crate) to: Phase,
    /// Which rule.
    pub(crate) why: Why,
    /// Who decides: in `observe` this is what it would have done.
    pub(crate) mode: Mode,
    /// The calls in the window when it opened from closed; nothing otherwise.
    pub(crate) counts: Counts,
    /// Failures in a row when it opened from closed; 0 otherwise.
    pub(crate) consecutive: u32,
    /// How long it stays open, where it opened.
    pub(crate) open_for: Option<Duration>,
}

/// How a breaker stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Numbers {
    /// The phase.
    pub(crate) phase: Phase,
    /// Who decides.
    pub(crate) mode: Mode,
    /// The calls in the window while closed; nothing otherwise.
    pub(crate) counts: Counts,
    /// Failures in a row while closed; 0 otherwise.
    pub(crate) consecutive: u32,
    /// Times it opened by its own rules since the start.
    pub(crate) opened: u64,
    /// How long it stays open yet, where its own rules say so.
    pub(crate) open_for: Option<Duration>,
}
