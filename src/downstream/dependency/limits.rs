//! The limits of a dependency before its calls: a door for those that come next, and a rate.

use std::time::Duration;

use super::{Dependency, LIMIT_WAIT};
use crate::{limit::Bounds, outcome::StepError, telemetry::metrics};

impl Dependency {
    /// Its limits, as those see them who have not begun yet.
    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The same, to be passed: twice as many as may be under way at once are let in, or so many if
    /// that is more, so that calls are ready when others end, and no more slots are held by them.
    pub(crate) fn door(&self, least: usize) -> &Bounds {
        self.bounds.set_most(Some(least.max(2 * self.limit.wanted())));
        &self.bounds
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
