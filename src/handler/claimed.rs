//! Requests with a running row of ours: claimed here, or brought up by the ledger.

use std::sync::Arc;

use super::{Attempt, Handler, Slot, lobby::Passed};
use crate::{
    clock, fail,
    kind::Kind,
    ledger::{Claimed, Hold, Keeper, Verdict},
    outcome::{ErrorCode, Failure, GiveBack, Outcome},
    request::Request,
    telemetry::metrics,
};

impl<K: Keeper> Handler<K> {
    /// What came before has passed nothing yet, and has its slot.
    pub(super) async fn claim_and_run(
        &self,
        kind: &Kind,
        request: Arc<Request>,
        passed: Result<Passed<'_>, &mut Slot>,
        attempt: &mut Attempt,
    ) -> Outcome {
        let redelivered = passed.is_err();
        match self.claim(kind, &request, redelivered, attempt).await {
            Ok(Claimed::Run { attempt: number, crashes }) => {
                fail::at("after_claim", [&*request.id]);
                attempt.claimed(number, crashes);
                if crashes > 0 {
                    metrics::taken_over();
                }
                match passed {
                    Ok(passed) => self.claimed(request, passed, attempt).await,
                    Err(slot) => self.taken_up(request, slot, attempt).await,
                }
            }
            Ok(Claimed::Duplicate) => Outcome::Duplicate,
            Ok(Claimed::Reused) => self.reused(&request).await,
            Err(_) => Outcome::GivenBack { why: GiveBack::Postgres },
        }
    }

    /// A request with a running row of ours that has passed nothing yet: the ledger brought it up, or
    /// it came before.
    pub(super) async fn taken_up(
        &self,
        request: Arc<Request>,
        slot: &mut Slot,
        attempt: &mut Attempt,
    ) -> Outcome {
        attempt.is_of(&request);
        let hold = Hold::Claimed(attempt.fence);
        if let Some(early) = self.before(&request, clock::now()) {
            return self.settle_unstarted(request, early, hold, attempt).await;
        }
        let passed = match self.kinds.get(&request.kind).filter(|kind| self.is_limited(kind)) {
            Some(kind) => match self.let_in(kind, &request, hold, slot, attempt).await {
                Ok(passed) => passed,
                Err(outcome) => return outcome,
            },
            None => None,
        };
        self.claimed(request, passed, attempt).await
    }

    /// A request with a running row of ours.
    async fn claimed(
        &self,
        request: Arc<Request>,
        passed: Passed<'_>,
        attempt: &mut Attempt,
    ) -> Outcome {
        attempt.is_of(&request);
        let hold = Hold::Claimed(attempt.fence);
        if let Some(early) = self.before(&request, clock::now()) {
            return self.settle_unstarted(request, early, hold, attempt).await;
        }
        let Some(kind) = self.kinds.get(&request.kind) else {
            return Outcome::GivenBack { why: GiveBack::Stop };
        };
        if !attempt.is_let_go()
            && let Some(parked) = self.turned_away(kind)
        {
            return self.settle_unstarted(request, parked, hold, attempt).await;
        }
        attempt.max = Some(kind.policy.max_attempts);
        if attempt.number > kind.policy.max_attempts {
            let error = format!(
                "{} attempts were begun and none came to an end: the worker died or lost its way each time",
                kind.policy.max_attempts
            );
            let dead = Verdict::Dead { failure: Failure::new(ErrorCode::CrashLoop, error) };
            return self.settle_unstarted(request, dead, hold, attempt).await;
        }
        let _place = match self.place(&request, attempt).await {
            Ok(place) => place,
            Err(outcome) => return outcome,
        };
        // It may have waited for its place.
        if let Some(early) = self.before(&request, clock::now()) {
            return self.settle_unstarted(request, early, hold, attempt).await;
        }
        self.run(kind, request, passed, attempt).await
    }
}
