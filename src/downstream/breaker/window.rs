//! How the last calls ended, in a ring of ten buckets: one call costs the same whether ten or a
//! million went before it.

use std::time::Duration;

use tokio::time::Instant;

const BUCKETS: usize = 10;

/// Calls, and how many of them were bad in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Calls that ended with a success or a failure.
    pub(crate) calls: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Those that were slow, however they ended.
    pub(crate) slow: u64,
}

/// The counts of the last nine to ten tenths of the window.
#[derive(Debug)]
pub(super) struct Window {
    bucket_width: Duration,
    start: Instant,
    /// Of the newest bucket, counted from `start`.
    newest: u64,
    buckets: [Counts; BUCKETS],
    total: Counts,
}

impl Window {
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        Self {
            bucket_width: (length / BUCKETS as u32).max(Duration::from_nanos(1)),
            start: now,
            newest: 0,
            buckets: [Counts::default(); BUCKETS],
            total: Counts::default(),
        }
    }

    /// Counts one call and returns what the window now holds.
    pub(super) fn add(&mut self, now: Instant, failed: bool, slow: bool) -> Counts {
        self.forget(now);
        for counts in [&mut self.buckets[place(self.newest)], &mut self.total] {
            counts.calls += 1;
            counts.failed += u64::from(failed);
            counts.slow += u64::from(slow);
        }
        self.total
    }

    /// What the window holds now.
    pub(super) fn counts(&mut self, now: Instant) -> Counts {
        self.forget(now);
        self.total
    }

    /// What the window held when the last call was counted.
    pub(super) fn total(&self) -> Counts {
        self.total
    }

    fn forget(&mut self, now: Instant) {
        let passed =
            now.saturating_duration_since(self.start).as_nanos() / self.bucket_width.as_nanos();
        // Two threads may bring their instants in the wrong order: the newest bucket takes both.
        let current = u64::try_from(passed).unwrap_or(u64::MAX).max(self.newest);
        let stale = (current - self.newest).min(BUCKETS as u64);
        for step in 1..=stale {
            let bucket = std::mem::take(&mut self.buckets[place(self.newest + step)]);
            self.total.calls -= bucket.calls;
            self.total.failed -= bucket.failed;
            self.total.slow -= bucket.slow;
        }
        self.newest = current;
    }
}

fn place(bucket: u64) -> usize {
    (bucket % BUCKETS as u64) as usize
}
