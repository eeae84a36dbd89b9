//! The account of a drain.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::outcome::Outcome;

/// What became of the work that was under way when a stop was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Attempts that came to their own end.
    pub finished: u64,
    /// Requests given back to the queue, those included that were never begun.
    pub given_back: u64,
    /// Attempts that were cut off when the grace was over.
    pub interrupted: u64,
    /// Acknowledgements that did not reach the broker: it will deliver these again.
    pub lost: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether the grace ended, or a second signal came, before everything had.
    pub forced: bool,
}

impl Drained {
    /// A stop came before anything had begun.
    pub(crate) fn unstarted() -> Self {
        Tally::default().drained(Duration::ZERO, false)
    }
}

/// Counts what ends once the drain has begun.
#[derive(Debug, Default)]
pub(super) struct Tally {
    draining: AtomicBool,
    finished: AtomicU64,
    given_back: AtomicU64,
    interrupted: AtomicU64,
}

impl Tally {
    pub(super) fn start(&self) {
        self.draining.store(true, Relaxed);
    }

    pub(super) fn interrupted(&self) {
        self.interrupted.fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self, outcome: &Outcome) {
        if self.draining.load(Relaxed) {
            let counter = if matches!(outcome, Outcome::GivenBack { .. }) {
                &self.given_back
            } else {
                &self.finished
            };
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn drained(&self, took: Duration, forced: bool) -> Drained {
        let interrupted = self.interrupted.load(Relaxed);
        Drained {
            finished: self.finished.load(Relaxed),
            given_back: self.given_back.load(Relaxed),
            interrupted,
            lost: 0,
            took,
            forced,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::GiveBack;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Asked,
        Finished,
        GivenBack,
        Interrupted,
    }

    proptest! {
        /// The account is what somebody would have counted who wrote everything down.
        #[test]
        fn the_account_counts_what_ended_in_the_drain(steps in prop::collection::vec(
            prop_oneof![
                1 => Just(Step::Asked), 4 => Just(Step::Finished), 4 => Just(Step::GivenBack),
                4 => Just(Step::Interrupted),
            ],
            0..40,
        )) {
            let tally = Tally::default();
            for step in &steps {
                match step {
                    Step::Asked => tally.start(),
                    Step::Finished => tally.ended(&Outcome::Done),
                    Step::GivenBack => tally.ended(&Outcome::GivenBack { why: GiveBack::Stop }),
                    Step::Interrupted => tally.interrupted(),
                }
            }
            let from = steps.iter().position(|step| matches!(step, Step::Asked));
            let in_drain = from.map_or(&[][..], |from| &steps[from..]);
            let count = |of: &[Step], which: fn(&Step) -> bool| {
                of.iter().filter(|step| which(step)).count() as u64
            };
            let drained = tally.drained(Duration::from_secs(1), false);
            prop_assert_eq!(drained.finished, count(in_drain, |step| matches!(step, Step::Finished)));
            prop_assert_eq!(drained.given_back, count(in_drain, |step| matches!(step, Step::GivenBack)));
            prop_assert_eq!(drained.interrupted, count(&steps, |step| matches!(step, Step::Interrupted)));
        }
    }
}
