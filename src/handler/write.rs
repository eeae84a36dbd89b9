//! What the handler has the ledger write: claims, verdicts, and what cannot be read.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Attempt, Handler, reply};
use crate::{
    kind::{Kind, Work},
    ledger::{Claim, Claimed, Finished, Hold, Keeper, LedgerError, Verdict},
    outcome::{ErrorCode, Failure, GiveBack, Outcome, StepError},
    pause::Reason,
    request::{Malformed, Message, Request},
    telemetry::metrics,
};

/// So often in a row Postgres may go away with the same request before its lease is no longer
/// renewed.
const SUSPECT: u32 = 3;

/// How many probe intervals a request that Postgres goes away with is held back at most.
const MOST_AWAY: u32 = 10;

impl<K: Keeper> Handler<K> {
    /// Claims, and asks again with the same fence while Postgres is away: whether a claim whose
    /// answer was lost is in the ledger can only be learnt there, and giving it back could charge it
    /// an attempt that nobody made.
    pub(super) async fn claim(
        &self,
        kind: &Kind,
        request: &Arc<Request>,
        redelivered: bool,
        attempt: &mut Attempt,
    ) -> Result<Claimed, LedgerError> {
        let started = Instant::now();
        let claim = Claim {
            request: Arc::clone(request),
            fence: attempt.fence,
            redelivered,
            lease: self.lease(&kind.name),
            received_at: attempt.received_at,
        };
        attempt.claiming(request, self.holding.hold(&request.id, attempt.fence, claim.lease));
        loop {
            match self.ledger.claim(claim.clone()).await {
                Err(LedgerError::Away(_)) => self.pauses.until_without(&Reason::Postgres).await,
                Err(error) => {
                    // It is given back and comes again at once: not faster than this.
                    sleep(self.ledger.probe_interval()).await;
                    return Err(error);
                }
                other => {
                    attempt.claim = Some(started.elapsed());
                    return other;
                }
            }
        }
    }

    /// Has the ledger write a verdict. A claimed request is held while Postgres is away, with what
    /// its call answered; one that has no row yet is given back instead, for others may reach
    /// Postgres.
    #[expect(clippy::too_many_arguments, reason = "one call that gathers what a row consists of")]
    pub(super) async fn finish(
        &self,
        request: &Arc<Request>,
        verdict: Verdict,
        charged: bool,
        response: Option<String>,
        kind: &Kind,
        ends: Option<Instant>,
        attempt: &mut Attempt,
    ) -> Result<Finished, LedgerError> {
        let started = Instant::now();
        let steps = match &kind.work {
            Work::Rust(steps) if verdict == Verdict::Done => Some(Arc::clone(steps)),
            Work::Rust(_) | Work::Configured { .. } => None,
        };
        let mut finish = attempt.finish(request, verdict, charged);
        finish.response = response;
        finish.wants_result = reply::wanted(kind, request).is_some();
        finish.steps = steps;
        finish.ends = ends;
        let mut away = 0;
        loop {
            match self.ledger.finish(finish.clone()).await {
                Err(LedgerError::Away(_)) if matches!(finish.hold, Hold::Claimed(_)) => {
                    self.pauses.until_without(&Reason::Postgres).await;
                    // Back at once and away again: it may be this request that ends its connection
                    // each time. Until its lease runs out the others get their turn between.
                    sleep(self.ledger.probe_interval() * away).await;
                    away = (away + 1).min(MOST_AWAY);
                    if away == SUSPECT {
                        // Then it must be counted like one that ends its worker, and it is no
                        // bystander: who takes it over charges it at once. Where this cannot be
                        // noted, it is found out like any other.
                        let _noted = self.ledger.suspect(&request.id, attempt.fence).await.is_ok();
                        attempt.let_lease_run();
                    }
                }
                finished => {
                    attempt.finish = Some(started.elapsed());
                    return finished;
                }
            }
        }
    }

    /// Writes a verdict on a request whose steps were not begun, uncharged.
    pub(super) async fn settle_unstarted(
        &self,
        request: Arc<Request>,
        verdict: Verdict,
        hold: Hold,
        attempt: &mut Attempt,
    ) -> Outcome {
        let outcome = match &verdict {
            Verdict::Parked { on, due_in } => Outcome::Parked { on: on.clone(), due_in: *due_in },
            Verdict::Dead { failure } => Outcome::Dead { failure: failure.clone() },
            Verdict::Done | Verdict::Waiting { .. } => {
                unreachable!("a request that was not started is parked or dead")
            }
        };
        let mut finish = attempt.finish(&request, verdict, false);
        finish.hold = hold;
        loop {
            match self.ledger.finish(finish.clone()).await {
                Ok(Finished::Committed { .. }) => {
                    if let (Outcome::Dead { failure }, Some(kind)) =
                        (&outcome, self.kinds.get(&request.kind))
                    {
                        self.reply(kind, &request, Err(failure));
                    }
                    return outcome;
                }
                Ok(other) => return self.known(other, &request).await,
                Err(LedgerError::Away(_)) if matches!(hold, Hold::Claimed(_)) => {
                    self.pauses.until_without(&Reason::Postgres).await;
                }
                Err(error) => return unwritten(error),
            }
        }
    }

    /// Files a message that is no request: under its id where it has a usable one, whole among the
    /// unreadable where it has none.
    pub(super) async fn refuse(
        &self,
        malformed: Malformed,
        message: Message,
        hold: Hold,
        attempt: &mut Attempt,
    ) -> Outcome {
        let failure = Failure::new(malformed.code, malformed.reason.clone());
        attempt.is_malformed(&malformed);
        let Some(request) = malformed.into_request(message.clone()) else {
            return match self.ledger.keep_unreadable(&message, None, &failure).await {
                Ok(()) => Outcome::Dead { failure },
                Err(error) => unwritten(error),
            };
        };
        self.settle_unstarted(Arc::new(request), Verdict::Dead { failure }, hold, attempt).await
    }

    /// What follows from the ledger knowing more than we did.
    pub(super) async fn known(&self, finished: Finished, request: &Request) -> Outcome {
        match finished {
            Finished::Committed { .. } => Outcome::Done,
            Finished::Duplicate => Outcome::Duplicate,
            Finished::Reused => self.reused(request).await,
            Finished::Gone => Outcome::GivenBack { why: GiveBack::Postgres },
            Finished::Fenced => {
                metrics::fenced();
                Outcome::Duplicate
            }
        }
    }

    /// Another request under a known id: refused, and kept for a person to see.
    pub(super) async fn reused(&self, request: &Request) -> Outcome {
        let error = format!(
            "request_id {} was used before with another body, and the first one counts",
            request.id
        );
        let failure = Failure::new(ErrorCode::IdReused, error);
        match self.ledger.keep_unreadable(&request.message, Some(&request.id), &failure).await {
            Ok(()) => Outcome::Dead { failure },
            Err(error) => unwritten(error),
        }
    }

    /// What becomes of a request whose handling panicked outside its steps, which is a defect of
    /// ours: a claimed one is tried again like after any failure, any other goes to the broker's
    /// dead-letter queue, whole.
    pub(crate) async fn panicked(&self, failure: Failure, attempt: &mut Attempt) -> Outcome {
        let held =
            attempt.held().and_then(|request| Some((self.kinds.get(&request.kind)?, request)));
        let Some((kind, request)) = held else { return Outcome::Rejected { failure } };
        let error = StepError::Transient { failure, retry_in: None };
        self.failed(kind, request, error, attempt).await
    }

    /// What becomes of a request that the stop has interrupted: a claimed one is put down in the
    /// ledger for the next worker, uncharged; of any other nothing is known to be in the ledger, and
    /// it is given back.
    pub(crate) async fn interrupted(&self, attempt: &mut Attempt) -> Outcome {
        let Some(request) = attempt.held() else {
            return Outcome::GivenBack { why: GiveBack::Stop };
        };
        let on_stop = || "stop".to_owned();
        let parked = Verdict::Parked { on: on_stop(), due_in: Some(Duration::ZERO) };
        let finish = attempt.finish(&request, parked, false);
        match self.ledger.finish(finish).await {
            Ok(Finished::Committed { .. }) => {
                Outcome::Parked { on: on_stop(), due_in: Some(Duration::ZERO) }
            }
            // Its claim may not have been made yet: only the next delivery can tell.
            Ok(_) | Err(_) => Outcome::GivenBack { why: GiveBack::Stop },
        }
    }
}

/// What follows from a ledger that did not write what needs no step. What may pass, such as a lock
/// on its table, comes again; where it refuses the row itself, giving the message back would only
/// bring it again.
pub(super) fn unwritten(error: LedgerError) -> Outcome {
    match error {
        LedgerError::Step(StepError::Refused(failure)) => Outcome::Rejected { failure },
        LedgerError::Away(_)
        | LedgerError::Step(StepError::Transient { .. } | StepError::NotAdmitted { .. }) => {
            Outcome::GivenBack { why: GiveBack::Postgres }
        }
    }
}
