//! Which lane a finish takes.

use std::{sync::Arc, time::Duration};

use super::{Finish, Finished, Hold, Verdict};
use crate::{
    ledger::{
        error::LedgerError,
        lanes::{Batch, Bounds, Lanes},
    },
    outcome::StepError,
};

/// Nobody waits for what is put down without an attempt, and each batch of it is a transaction: beside
/// a dependency that is slow, those for two or three parked requests at a time cost more than calls do.
const LINGER: Duration = Duration::from_millis(20);

/// The lanes of finishes. What is alike shares a lane: a batch of all sorts is a transaction of several
/// statements, and those who are done would be late whenever a dependency gives the others much to
/// write. Nor does any transaction apply both what has a row and what has none, so each goes through
/// its users in one order. What one claim leads to stays in one lane, an end and a stop in the middle of
/// it as well.
pub(crate) struct Finishes<B: Batch> {
    /// Done, without a row yet.
    fresh: Lanes<B>,
    /// With a row of ours.
    claimed: Lanes<B>,
    /// Not done, without a row yet: parked, put off, given up.
    rest: Lanes<B>,
}

impl<B> Finishes<B>
where
    B: Batch<Job = Finish, Answer = Result<Finished, StepError>>,
{
    /// Starts `fresh` lanes of the first sort, and `others` of either other.
    pub(crate) fn start(batch: &Arc<B>, fresh: usize, others: usize, bounds: Bounds) -> Self {
        let lanes = |count| Lanes::start(Arc::clone(batch), count, bounds);
        let patient = Bounds { linger: LINGER, ..bounds };
        let rest = Lanes::start(Arc::clone(batch), others, patient);
        Self { fresh: lanes(fresh), claimed: lanes(others), rest }
    }

    /// Has a finish done in its lane.
    pub(crate) async fn file(&self, finish: Finish) -> Result<Finished, LedgerError> {
        let again = match finish.hold {
            Hold::Claimed(fence) => Some(Finish { hold: Hold::Fresh(fence), ..finish.clone() }),
            Hold::Fresh(_) => None,
        };
        let mut finished = self.submit(finish).await;
        // A failover that lost the claim: what we hold may be the only copy, so it is filed anew.
        if let (Ok(Ok(Finished::Gone)), Some(again)) = (&finished, again) {
            finished = self.submit(again).await;
        }
        finished.and_then(|applied| applied.map_err(LedgerError::Step))
    }

    async fn submit(&self, finish: Finish) -> Result<B::Answer, LedgerError> {
        let request = Arc::clone(&finish.request);
        let lanes = match (finish.hold, &finish.verdict) {
            (Hold::Claimed(_), _) => &self.claimed,
            (Hold::Fresh(_), Verdict::Done) => &self.fresh,
            (Hold::Fresh(_), _) => &self.rest,
        };
        lanes.submit(&request.user_id, finish).await
    }
}
