//! How a dependency stands, for people.

use std::time::Duration;

use super::breaker::Numbers;
use crate::{limit, steer::Mode};

/// How a dependency stands, seen from this worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The state of the breaker: `closed`, `open`, `half_open`. While it observes, the state that
    /// it would be in.
    pub state: &'static str,
    /// Who decides.
    pub mode: Mode,
    /// Calls within the window while closed; 0 otherwise.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Those of them that were slow.
    pub slow: u64,
    /// Failures in a row while closed; 0 otherwise.
    pub consecutive: u32,
    /// Times the breaker opened by its own rules since the start.
    pub opened: u64,
    /// How long it stays open yet, where its own rules say so.
    pub open_for: Option<Duration>,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that may be under way at once now.
    pub max_in_flight: usize,
    /// Calls that may be begun a second, over all workers, where that is limited.
    pub rate: Option<f64>,
    /// Requests that wait here, without a slot, until there is room.
    pub waiting: usize,
}

impl Standing {
    pub(super) fn new(
        numbers: Numbers,
        in_flight: usize,
        max_in_flight: usize,
        bounds: limit::Standing,
    ) -> Self {
        let Numbers { phase, mode, counts, consecutive, opened, open_for } = numbers;
        Self {
            state: phase.name(),
            mode,
            calls: counts.calls,
            failed: counts.failed,
            slow: counts.slow,
            consecutive,
            opened,
            open_for,
            in_flight,
            max_in_flight,
            rate: bounds.per.map(|per| per.rate),
            waiting: bounds.waiting,
        }
    }
}
