//! How many came lately, as a machine without a clock.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The time that counts as lately.
pub(crate) const LATELY: Duration = Duration::from_secs(1);

/// Counts who comes.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    /// From then on, and in the same time before.
    now: usize,
    before: usize,
    /// The first who came after a rest came since then, and had not waited.
    first: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, now: 0, before: 0, first: false }
    }

    /// So many more came. Where they `waited`, nobody had come for so long because it did not go on.
    pub(super) fn count(&mut self, more: usize, waited: bool, now: Instant) {
        self.roll(now);
        if (self.now, self.before) == (0, 0) {
            self.since = now;
            self.first = !waited;
        }
        self.now += more;
    }

    /// How many came within [`LATELY`], at least: a whole one of the past, or the one that is under way.
    pub(super) fn lately(&mut self, now: Instant) -> usize {
        self.roll(now);
        self.now.max(self.before)
    }

    /// Whether those who came are the first of all, or after a rest, so that nobody knows yet how many it
    /// will be.
    pub(super) fn is_new(&mut self, now: Instant) -> bool {
        self.roll(now);
        self.first
    }

    fn roll(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < LATELY {
            return;
        }
        self.before = if passed < 2 * LATELY { self.now } else { 0 };
        self.now = 0;
        self.since = if passed < 2 * LATELY { self.since + LATELY } else { now };
        self.first = false;
    }
}

/// Everybody who comes, counted where nobody may pay for it: the clock is only looked at when somebody
/// asks.
#[derive(Debug)]
pub(crate) struct Crowd {
    since: AtomicUsize,
    pace: Mutex<Pace>,
}

impl Crowd {
    pub(crate) fn new() -> Self {
        Self { since: AtomicUsize::new(0), pace: Mutex::new(Pace::new(Instant::now())) }
    }

    /// One more came.
    pub(crate) fn comes(&self) {
        self.since.fetch_add(1, Relaxed);
    }

    /// How many came within [`LATELY`]; more where nobody has asked for longer.
    pub(crate) fn lately(&self) -> usize {
        let (now, more) = (Instant::now(), self.since.swap(0, Relaxed));
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.count(more, false, now);
        pace.lately(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_long_ago_does_not_count() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut now = begin;
        for _ in 0..300 {
            now += Duration::from_millis(10);
            pace.count(1, false, now);
        }
        assert_eq!(pace.lately(now), 100, "one in 10 ms");
        now += LATELY;
        assert_eq!(pace.lately(now), 100, "the last whole one");
        now += LATELY;
        assert_eq!(pace.lately(now), 0);
        pace.count(1, false, now);
        assert_eq!(pace.lately(now + 3 * LATELY), 0);
    }

    #[test]
    fn nobody_knows_the_pace_of_the_first_ones_for_a_while() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert!(!pace.is_new(begin), "nobody has come");
        let first = begin + LATELY * 9 / 10;
        pace.count(1, false, first);
        assert!(pace.is_new(first + LATELY * 9 / 10));
        assert!(!pace.is_new(first + LATELY), "it is one in that time");
        pace.count(1, false, first + LATELY);
        assert!(!pace.is_new(first + LATELY));
        let rested = first + 4 * LATELY;
        assert!(!pace.is_new(rested));
        pace.count(1, false, rested);
        assert!(pace.is_new(rested));
    }

    #[test]
    fn a_halt_is_no_rest() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for half in 1..30 {
            now += LATELY / 2;
            // One each four seconds and a half, and the others wait.
            if half % 9 == 0 {
                pace.count(1, true, now);
            }
            assert!(!pace.is_new(now), "{half}");
        }
    }

    #[test]
    fn a_burst_counts_while_it_is_under_way() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        (0..40).for_each(|_| pace.count(1, false, now));
        assert_eq!(pace.lately(now), 40);
    }
}
