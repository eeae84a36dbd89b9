//! What a finish is asked to write, and what became of it.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{ledger::Fence, outcome::Failure, request::Request, steps::Steps};

/// What the ledger is to write about a request.
#[derive(Clone)]
pub struct Finish {
    /// The request.
    pub request: Arc<Request>,
    /// Whether it has a row already.
    pub hold: Hold,
    /// What its row shall say.
    pub verdict: Verdict,
    /// Whether the attempt counts.
    pub charged: bool,
    /// What the call answered, as JSON text: the second argument of the apply step.
    pub response: Option<String>,
    /// Whether anybody waits for what the apply step returns. Where nobody does, the answer may leave
    /// it out.
    pub wants_result: bool,
    /// The apply step, where it is written in Rust.
    pub steps: Option<Arc<dyn Steps>>,
    /// When the apply step is to be over. However late it is, it gets a fair try.
    pub ends: Option<Instant>,
    /// When it was received.
    pub received_at: OffsetDateTime,
}

/// How a request stands in the ledger while it is worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It has no row yet.
    Fresh(Fence),
    /// It has a running row under this fence.
    Claimed(Fence),
}

impl Hold {
    pub(in crate::ledger) fn fence(self) -> i64 {
        match self {
            Self::Fresh(fence) | Self::Claimed(fence) => fence.0,
        }
    }
}

/// What a row shall say.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Apply it, and it is done.
    Done,
    /// It failed and goes on later.
    Waiting {
        /// What failed.
        failure: Failure,
        /// How long until it goes on.
        due_in: Duration,
    },
    /// It waits for something, uncharged.
    Parked {
        /// What it waits for.
        on: String,
        /// How long until it goes on. `None`: until it is let go ([`Gate`](crate::ledger::Gate)), or
        /// its deadline is over, when it is looked at once more.
        due_in: Option<Duration>,
    },
    /// It is given up.
    Dead {
        /// Why.
        failure: Failure,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It is committed, with the apply step's value as JSON text.
    Committed {
        /// The value, if there is one.
        result: Option<String>,
    },
    /// The ledger knew it already; nothing was changed.
    Duplicate,
    /// The ledger knows another request under this id; nothing was changed.
    Reused,
    /// Another worker has taken it over; nothing was changed.
    Fenced,
    /// It was claimed, and its row is not there: the server lost it, by a failover or a restore.
    /// [`Ledger::finish`](crate::ledger::Ledger::finish) files it anew and never answers this.
    Gone,
}
