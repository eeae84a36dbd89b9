//! One request from start to outcome: decode → claim → call → finish. No step goes back.
//!
//! The handler only names an outcome; what the broker is told follows from the table in
//! [`crate::outcome`]. An outcome that acknowledges is named only after the ledger has committed.

mod attempt;
mod claimed;
mod holding;
mod line;
mod lobby;
mod pull;
mod release;
mod reply;
mod slot;
mod suspects;
mod write;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::time::Instant;

pub(crate) use self::{
    attempt::{Attempt, Started},
    holding::Holding,
    line::Line,
    lobby::Lobby,
    slot::Slot,
    suspects::Suspects,
};
use self::{lobby::Passed, write::unwritten};
use crate::{
    clock,
    downstream::{self, Downstream},
    fail,
    kind::{Kind, Kinds, Work},
    ledger::{Finished, Hold, Keeper, Ledger, LedgerError, Verdict},
    outcome::{self, ErrorCode, Failure, GiveBack, Outcome, StepError},
    pause::Pauses,
    queue::Replies,
    request::{self, Message, Request},
    steps::StepResult,
    telemetry::metrics,
};

/// The rooms that a request passes through.
pub(crate) struct Handler<K: Keeper = Ledger> {
    pub(crate) ledger: Arc<K>,
    pub(crate) downstream: Arc<Downstream>,
    pub(crate) kinds: Kinds,
    pub(crate) replies: Replies,
    pub(crate) pauses: Pauses,
    pub(crate) holding: Holding,
    pub(crate) suspects: Suspects,
    pub(crate) line: Line,
    pub(crate) lobby: Lobby,
    /// Larger bodies are not read.
    pub(crate) max_message_bytes: usize,
}

impl<K: Keeper> Handler<K> {
    /// Works one request to its outcome. `attempt` learns on the way what the log line and an
    /// interruption need to know; `slot` is put back while it waits for a limit.
    pub(crate) async fn handle(
        &self,
        started: Started,
        slot: &mut Slot,
        attempt: &mut Attempt,
    ) -> Outcome {
        match started {
            Started::Delivered { message, redelivered } => {
                self.delivered(message, redelivered, slot, attempt).await
            }
            Started::Due { due, coming, .. } => match due.request {
                Ok(request) => {
                    let work = Box::pin(self.taken_up(request, slot, attempt));
                    Box::pin(downstream::let_go(coming, work)).await
                }
                Err(refused) => {
                    let (malformed, message) = *refused;
                    Box::pin(self.refuse(malformed, message, Hold::Claimed(due.fence), attempt))
                        .await
                }
            },
        }
    }

    async fn delivered(
        &self,
        message: Box<Message>,
        redelivered: bool,
        slot: &mut Slot,
        attempt: &mut Attempt,
    ) -> Outcome {
        let size = message.body.len();
        if size > self.max_message_bytes {
            let limit = self.max_message_bytes;
            return Outcome::Rejected {
                failure: Failure::new(
                    ErrorCode::TooLarge,
                    format!("body has {size} bytes, at most {limit} are allowed"),
                ),
            };
        }
        let request = match request::decode_or_return(*message) {
            Ok(request) => Arc::new(request),
            Err(refused) => {
                let (malformed, message) = *refused;
                let fresh = Hold::Fresh(attempt.fence);
                return Box::pin(self.refuse(malformed, message, fresh, attempt)).await;
            }
        };
        attempt.is_of(&request);
        self.lobby.comes();
        fail::at("after_receive", [&*request.id]);
        if request.unknown_fields > 0 && self.kinds.get(&request.kind).is_some() {
            metrics::unknown_fields(&request.kind);
        }
        if let Some(early) = self.before(&request, clock::now()) {
            let fresh = Hold::Fresh(attempt.fence);
            return Box::pin(self.settle_unstarted(request, early, fresh, attempt)).await;
        }
        let Some(kind) = self.kinds.get(&request.kind) else {
            // `before` has refused it.
            return Outcome::GivenBack { why: GiveBack::Stop };
        };
        if kind.ordered {
            return Box::pin(self.enter_elsewhere(kind, request, attempt)).await;
        }
        // One that came before may have a row that is running: it is claimed first.
        if !redelivered && let Some(parked) = self.turned_away(kind) {
            let fresh = Hold::Fresh(attempt.fence);
            return Box::pin(self.settle_unstarted(request, parked, fresh, attempt)).await;
        }
        let passed = if !redelivered && self.is_limited(kind) {
            let fresh = Hold::Fresh(attempt.fence);
            match Box::pin(self.let_in(kind, &request, fresh, slot, attempt)).await {
                Ok(passed) => passed,
                Err(outcome) => return outcome,
            }
        } else {
            None
        };
        if attempt.limit.is_some()
            && let Some(late) = self.before(&request, clock::now())
        {
            let fresh = Hold::Fresh(attempt.fence);
            return Box::pin(self.settle_unstarted(request, late, fresh, attempt)).await;
        }
        // What came before is claimed before it runs, whatever its kind: should it kill the process
        // again, that is counted.
        if kind.has_call() || redelivered {
            let passed = if redelivered { Err(slot) } else { Ok(passed) };
            Box::pin(self.claim_and_run(kind, request, passed, attempt)).await
        } else {
            self.run(kind, request, passed, attempt).await
        }
    }

    /// How long a claim on a request of this kind is left alone by others, unless it is renewed.
    pub(crate) fn lease(&self, kind: &str) -> Duration {
        let timeout =
            self.kinds.get(kind).map_or_else(|| self.kinds.longest_timeout(), |kind| kind.timeout);
        timeout + self.ledger.lease_margin()
    }

    /// What is known without starting it: an unknown kind, a deadline that has passed, a start that
    /// is yet to come, a kind that is paused.
    fn before(&self, request: &Request, now: OffsetDateTime) -> Option<Verdict> {
        let Some(kind) = self.kinds.get(&request.kind) else {
            let error = format!("no kind `{}` is configured", request.kind);
            return Some(Verdict::Dead { failure: Failure::new(ErrorCode::UnknownKind, error) });
        };
        if request.time_left(now) == Some(Duration::ZERO) {
            let error = "the deadline had passed before it could be started";
            return Some(Verdict::Dead { failure: Failure::new(ErrorCode::Deadline, error) });
        }
        let until = request.not_before.and_then(|start| Duration::try_from(start - now).ok());
        if let Some(due_in) = until.filter(|until| !until.is_zero()) {
            return Some(Verdict::Parked { on: "not_before".to_owned(), due_in: Some(due_in) });
        }
        // Let go in the order of coming, as soon as the kind goes on.
        kind.is_paused().then(|| Verdict::Parked { on: kind.parked_on(), due_in: None })
    }

    /// Where its dependency would not let it through, it is parked without a try.
    fn turned_away(&self, kind: &Kind) -> Option<Verdict> {
        let dependency = self.shut(kind)?;
        dependency.turned_away();
        Some(Verdict::Parked { on: dependency.name().to_owned(), due_in: None })
    }

    /// The two steps. What few requests meet is boxed here and above: a future is as large as its
    /// largest branch, and there is one for each request in work.
    async fn run(
        &self,
        kind: &Kind,
        request: Arc<Request>,
        mut passed: Passed<'_>,
        attempt: &mut Attempt,
    ) -> Outcome {
        attempt.max = Some(kind.policy.max_attempts);
        let ends = Instant::now() + budget(kind, &request, clock::now());
        let response = if kind.has_call() {
            let called = Instant::now();
            let last = attempt.number >= kind.policy.max_attempts;
            let response = Box::pin(self.call(kind, &request, last, ends)).await;
            fail::at("after_call", [&*request.id]);
            attempt.call = Some(called.elapsed());
            if let Some(passed) = &mut passed {
                passed.called();
            }
            response
        } else {
            Ok(None)
        };
        let applied = match response {
            Ok(response) => {
                fail::at("before_finish", [&*request.id]);
                self.finish(&request, Verdict::Done, true, response, kind, Some(ends), attempt)
                    .await
            }
            Err(error) => Err(LedgerError::Step(error)),
        };
        let error = match applied {
            Ok(Finished::Committed { result }) => {
                self.reply(kind, &request, Ok(result));
                return Outcome::Done;
            }
            Ok(other) => return Box::pin(self.known(other, &request)).await,
            Err(LedgerError::Away(_)) => return Outcome::GivenBack { why: GiveBack::Postgres },
            Err(LedgerError::Step(error)) => error,
        };
        Box::pin(self.failed(kind, request, error, attempt)).await
    }

    /// Has the ledger write what follows from a step that did not succeed.
    async fn failed(
        &self,
        kind: &Kind,
        request: Arc<Request>,
        error: StepError,
        attempt: &mut Attempt,
    ) -> Outcome {
        let charged = !matches!(error, StepError::NotAdmitted { .. });
        let mut next = outcome::after_failure(error, attempt.number, &kind.policy, fastrand::f64());
        if let Outcome::Parked { on, due_in } = &mut next
            && self.is_gate(on)
        {
            if let Some(dependency) = self.downstream.get(on) {
                dependency.parked();
            }
            *due_in = None;
        }
        let verdict = match &next {
            Outcome::Retry { failure, due_in } => {
                Verdict::Waiting { failure: failure.clone(), due_in: *due_in }
            }
            Outcome::Parked { on, due_in } => Verdict::Parked { on: on.clone(), due_in: *due_in },
            Outcome::Dead { failure } => Verdict::Dead { failure: failure.clone() },
            Outcome::Done
            | Outcome::Duplicate
            | Outcome::GivenBack { .. }
            | Outcome::Rejected { .. } => return next,
        };
        match self.finish(&request, verdict, charged, None, kind, None, attempt).await {
            Ok(Finished::Committed { .. }) => {
                if let Outcome::Dead { failure } = &next {
                    self.reply(kind, &request, Err(failure));
                }
                next
            }
            Ok(other) => self.known(other, &request).await,
            Err(error) => unwritten(error),
        }
    }

    async fn call(&self, kind: &Kind, request: &Request, last: bool, ends: Instant) -> StepResult {
        let left = ends.saturating_duration_since(Instant::now());
        match &kind.work {
            Work::Configured { call: None } => Ok(None),
            Work::Configured { call: Some(call) } => {
                self.downstream.call(call, request, last, left).await
            }
            Work::Rust(steps) => {
                let called = AssertUnwindSafe(async {
                    tokio::time::timeout(left, steps.call(request, left)).await
                });
                let failure = match called.catch_unwind().await {
                    Ok(Ok(result)) => return result,
                    Ok(Err(_)) => {
                        Failure::new(ErrorCode::Timeout, format!("call took longer than {left:?}"))
                    }
                    Err(panic) => {
                        Failure::new(ErrorCode::Panic, crate::telemetry::panic_text(&*panic))
                    }
                };
                Err(StepError::Transient { failure, retry_in: None })
            }
        }
    }
}

/// How long this attempt may take: the kind's timeout, or less where the deadline is nearer.
fn budget(kind: &Kind, request: &Request, now: OffsetDateTime) -> Duration {
    request.time_left(now).map_or(kind.timeout, |left| left.min(kind.timeout))
}
