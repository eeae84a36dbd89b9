//! Notices a subscription that is there and brings nothing. A pure machine.

use std::time::{Duration, Instant};

/// Since when messages have been waiting that should have come. Not since the last delivery: in a
/// queue that was empty for hours, the first message is ready for a moment before it is delivered.
#[derive(Debug, Default)]
pub(super) struct Watchdog(Option<Instant>);

impl Watchdog {
    /// Something came.
    pub(super) fn fed(&mut self) {
        self.0 = None;
    }

    /// `ready` messages wait in the broker; `owed` is whether it could deliver one: somebody waits
    /// for it, and the prefetch is not used up. True when it has owed one for `patience`.
    pub(super) fn look(
        &mut self,
        now: Instant,
        ready: u64,
        owed: bool,
        patience: Duration,
    ) -> bool {
        if ready == 0 || !owed {
            self.0 = None;
            return false;
        }
        now.saturating_duration_since(*self.0.get_or_insert(now)) >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn it_barks_only_when_messages_were_owed_all_the_time() {
        let (mut dog, now) = (Watchdog::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!dog.look(at(0), 5, true, PATIENCE));
        assert!(!dog.look(at(59), 5, true, PATIENCE));
        assert!(dog.look(at(60), 5, true, PATIENCE));
        assert!(!dog.look(at(61), 0, true, PATIENCE), "the queue is empty");
        assert!(!dog.look(at(130), 1, true, PATIENCE), "the first message after a long silence");
        assert!(!dog.look(at(189), 1, false, PATIENCE), "nobody waited");
        assert!(!dog.look(at(191), 1, true, PATIENCE));
        dog.fed();
        assert!(!dog.look(at(260), 1, true, PATIENCE));
    }
}
