//! What to do about a message that kills each connection it is delivered to.
//!
//! The client library cannot read a name or header that is not UTF-8, and gives up the whole
//! connection. Nothing of ours ever sees such a message; only the broker's delivery limit ends it.
//! Each of those deaths also counts against whatever was prefetched beside it, so until the
//! culprit is gone one message is fetched at a time. A pure machine.

use std::time::{Duration, Instant};

/// This many readable deliveries in a row end a quarantine.
const GOOD_DELIVERIES: u32 = 20;
/// So does an empty queue for this long.
const QUIET: Duration = Duration::from_secs(5);
/// The delay before the next connection: short, for each one brings the culprit nearer to its
/// limit, and the broker is well.
pub(super) const DELAY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Quarantine(Option<Ward>);

#[derive(Debug)]
struct Ward {
    good: u32,
    quiet_since: Instant,
    deaths: u32,
}

impl Quarantine {
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How many connections have died in it.
    pub(super) fn deaths(&self) -> u32 {
        self.0.as_ref().map_or(0, |ward| ward.deaths)
    }

    /// A connection died of something unreadable; true when this begins a quarantine.
    pub(super) fn poisoned(&mut self, now: Instant) -> bool {
        let entered = self.0.is_none();
        let ward = self.0.get_or_insert(Ward { good: 0, quiet_since: now, deaths: 0 });
        ward.good = 0;
        ward.quiet_since = now;
        ward.deaths += 1;
        entered
    }

    /// A subscription began: silence counts from here.
    pub(super) fn subscribed(&mut self, now: Instant) {
        if let Some(ward) = &mut self.0 {
            ward.quiet_since = now;
        }
    }

    /// A readable delivery came; true when this ends the quarantine.
    pub(super) fn good(&mut self, now: Instant) -> bool {
        let Some(ward) = &mut self.0 else { return false };
        ward.good += 1;
        ward.quiet_since = now;
        let over = ward.good >= GOOD_DELIVERIES;
        if over {
            self.0 = None;
        }
        over
    }

    /// Looks whether nothing has come for long enough; true when this ends the quarantine.
    /// `outstanding` deliveries use up the prefetch, and then silence says nothing.
    pub(super) fn look(&mut self, now: Instant, outstanding: u64) -> bool {
        let Some(ward) = &mut self.0 else { return false };
        if outstanding > 0 {
            ward.quiet_since = now;
            return false;
        }
        let over = now.saturating_duration_since(ward.quiet_since) >= QUIET;
        if over {
            self.0 = None;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_once_and_ends_after_enough_readable_deliveries() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        assert!(!quarantine.good(now) && !quarantine.is_on());
        assert!(quarantine.poisoned(now));
        assert!(!quarantine.poisoned(now), "it is on already");
        for _ in 1..GOOD_DELIVERIES {
            assert!(!quarantine.good(now));
        }
        assert!(!quarantine.poisoned(now), "a relapse counts from the start");
        for _ in 1..GOOD_DELIVERIES {
            assert!(!quarantine.good(now));
        }
        assert!(quarantine.good(now) && !quarantine.is_on());
    }

    #[test]
    fn an_empty_queue_ends_it_but_a_busy_worker_does_not() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        quarantine.poisoned(now);
        assert!(!quarantine.look(now + QUIET, 1), "the one message that may be out is out");
        assert!(!quarantine.look(now + QUIET + QUIET / 2, 0));
        assert!(quarantine.look(now + QUIET * 2, 0));
    }
}
