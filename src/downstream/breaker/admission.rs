//! What goes in and out of a breaker: verdicts, permits, refusals.

use std::time::Duration;

use tokio::time::Instant;

use super::Transition;

/// What a call says about the health of the dependency. That is not what it says about the
/// request: a dependency that refuses a bad request is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered as a healthy service does.
    Success,
    /// It answered, but as a service in trouble does: counted like a call over `slow_call`,
    /// however short it was. For callers who know better than the clock.
    Slow,
    /// It failed: a timeout, no connection, an answer that admits a fault.
    Failure {
        /// When it asked to be called again, if it did. An open time is not shorter than this.
        retry_after: Option<Duration>,
    },
    /// It is well but wants fewer calls (HTTP 429). Not a failure; with a time given, no call is
    /// let through before that.
    Throttled {
        /// When it asked to be called again, if it did.
        retry_after: Option<Duration>,
    },
    /// The call was given up, never sent, or is to be left out: it says nothing either way.
    Ignored,
}

/// Leave for one call, to be handed back to [`Breaker::record`](super::Breaker::record).
#[derive(Debug)]
#[must_use = "a permit that is not recorded holds a probe's place until it expires"]
pub(crate) struct Permit {
    /// `None` for a call that the breaker would have refused, and which has no say.
    pub(super) generation: Option<u64>,
    pub(super) id: u64,
    pub(super) since: Instant,
}

/// A call that may go ahead.
#[derive(Debug)]
pub(crate) struct Admission {
    /// To be handed back with the verdict.
    pub(crate) permit: Permit,
    /// The change that letting it through made: from open to half-open.
    pub(crate) transition: Option<Transition>,
    /// It goes ahead only because the breaker does no more than observe.
    pub(crate) unenforced: bool,
}

/// A call that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// When to ask again, spread so that those refused together do not come back together.
    pub(crate) retry_in: Duration,
}
