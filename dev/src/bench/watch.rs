//! What processes take: processor time and memory, looked at while they work.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval};

use crate::process::Process;

/// Looks at a process again and again.
pub(super) struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    looking: tokio::task::AbortHandle,
}

/// What was seen, and when, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) at: f64,
    pub(super) worked: f64,
    /// Resident memory, in bytes.
    pub(super) resident: f64,
}

impl Watch {
    pub(super) fn over(process: Process, every: Duration) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&looks);
        let looking = tokio::spawn(async move {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while let (Some(worked), Some(resident)) = (process.worked(), process.resident()) {
                let look =
                    Look { at: now(), worked: worked.as_secs_f64(), resident: resident as f64 };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                ticks.tick().await;
            }
        });
        Self { looks, looking: looking.abort_handle() }
    }

    /// All that was seen so far.
    pub(super) fn looks(&self) -> Vec<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The processor time it took between two instants, and its memory at the second.
    pub(super) fn between(&self, first: f64, last: f64) -> anyhow::Result<(f64, f64)> {
        between(&self.looks(), first, last).context("the worker was never looked at")
    }
}

fn between(looks: &[Look], first: f64, last: f64) -> Option<(f64, f64)> {
    let before = looks.iter().rev().find(|look| look.at <= first).or(looks.first())?;
    let after = looks.iter().find(|look| look.at >= last).or(looks.last())?;
    Some((after.worked - before.worked, after.resident))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_of_the_span_does_not_count() {
        let look = |at: f64| Look { at, worked: at * 10.0, resident: at };
        let looks: Vec<Look> = [1.0, 2.0, 3.0, 4.0, 5.0].map(look).to_vec();
        assert_eq!(between(&looks, 2.5, 3.5), Some((20.0, 4.0)));
        assert_eq!(between(&looks, 0.0, 9.0), Some((40.0, 5.0)));
        assert_eq!(between(&[], 0.0, 1.0), None);
    }
}
