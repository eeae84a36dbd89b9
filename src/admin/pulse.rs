//! Notices a main runtime that runs nothing any more: every worker thread blocked, or all of them
//! in an endless loop. Dependencies have no part in this; a restart would not mend them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long the main runtime may be silent. A short stall (a stopped machine, a slow disk) must not
/// get the process killed, and with it all that it is working on.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(30);

const BEAT_EVERY: Duration = Duration::from_secs(1);

/// When the main runtime last ran a task of ours.
#[derive(Debug)]
pub(super) struct Pulse {
    stale_after: Duration,
    origin: Instant,
    /// Milliseconds after `origin`.
    last: AtomicU64,
}

impl Pulse {
    pub(super) fn new(stale_after: Duration) -> Self {
        Self { stale_after, origin: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Marks that the runtime runs.
    fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.origin).as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// For how long the runtime has been silent, where that is too long.
    pub(super) fn stale(&self, now: Instant) -> Option<Duration> {
        let last = self.origin + Duration::from_millis(self.last.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(last);
        (silent > self.stale_after).then_some(silent)
    }

    /// The task for the main runtime.
    pub(super) async fn beat_for_ever(&self) {
        loop {
            self.beat(Instant::now());
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_silent_for_too_long_is_stale_until_it_beats_again() {
        let pulse = Pulse::new(STALE_AFTER);
        let after = |seconds| pulse.origin + Duration::from_secs(seconds);
        assert_eq!(pulse.stale(after(30)), None);
        assert_eq!(pulse.stale(after(31)), Some(Duration::from_secs(31)));
        pulse.beat(after(31));
        assert_eq!(pulse.stale(after(61)), None);
        assert_eq!(pulse.stale(after(70)), Some(Duration::from_secs(39)));
    }
}
