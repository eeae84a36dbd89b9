//! The limits of a dependency before its calls: a door for those that come next, and a rate.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Dependency, LIMIT_WAIT};
use crate::{limit::Bounds, outcome::StepError, telemetry::metrics};

/// Ready are at least this part of those that may be under way, and otherwise this part of those that
/// were let in within the last second: a claim takes much less than a quarter of one.
const FEW: usize = 4;
const READY: usize = 4;

impl Dependency {
    /// Its limits, as those see them who have not begun yet.
    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The same, to be passed: as many as may be under way at once are let in, and some more, so that
    /// calls are ready when others end. How many more goes with how fast they go on: where each takes
    /// its time, whoever is let in early only holds a slot, and is parked when it has waited too long.
    pub(crate) fn door(&self, widest: usize) -> &Bounds {
        self.widest.store(widest, Relaxed);
        self.adjust_door();
        &self.bounds
    }

    /// To be told when calls end or the limit is changed: those in line do not wait for somebody to come.
    pub(super) fn adjust_door(&self) {
        let (limit, widest) = (self.limit.wanted(), self.widest.load(Relaxed));
        let few = limit.div_ceil(FEW);
        let many = widest.saturating_sub(limit).max(limit);
        let ready = (self.bounds.lately() / READY).clamp(few, many);
        self.bounds.set_most(Some(limit + ready));
    }

    /// A token, where it has a rate; false where there was none for so long.
    pub(super) async fn pay(&self, patience: Duration) -> bool {
        let rate = self.bounds.rate();
        rate.per().is_none() || tokio::time::timeout(patience, rate.take(true)).await.is_ok()
    }

    /// A call that was begun found no place: its request is parked on the limit, or behind those that
    /// are parked on the dependency.
    pub(super) fn full(&self) -> StepError {
        metrics::call(&self.name, "not_admitted", None);
        let on = if self.is_waited_for() { &self.name } else { self.bounds.on() };
        StepError::NotAdmitted { on: on.to_owned(), retry_in: LIMIT_WAIT }
    }
}
