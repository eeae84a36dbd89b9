//! The time of day. Everything else is measured with [`tokio::time::Instant`], which no one can
//! step; this is for what producers and people write down, such as a deadline.

/// What the clock on the wall says.
#[cfg(not(test))]
#[inline]
pub(crate) fn now() -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc()
}

#[cfg(test)]
pub(crate) use simulated::{now, simulate};

/// A clock that goes with tokio's, for tests in which that one is paused.
#[cfg(test)]
mod simulated {
    use std::cell::Cell;

    use time::{Duration, OffsetDateTime};
    use tokio::time::Instant;

    thread_local! {
        static SHOWS: Cell<Option<(OffsetDateTime, Instant)>> = const { Cell::new(None) };
    }

    pub(crate) fn now() -> OffsetDateTime {
        match SHOWS.get() {
            Some((shown, since)) => shown + Duration::try_from(since.elapsed()).unwrap_or_default(),
            None => OffsetDateTime::now_utc(),
        }
    }

    /// On this thread the clock shows this time now, and goes on from it.
    pub(crate) fn simulate(shown: OffsetDateTime) {
        SHOWS.set(Some((shown, Instant::now())));
    }
}
