//! One request from start to outcome: decode → claim → call → finish. No step goes back.
//!
//! The handler only names an outcome; what the broker is told follows from the table in
//! [`crate::outcome`]. An outcome that acknowledges is named only after the ledger has committed.

mod attempt;
mod reply;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::time::Instant;

pub(crate) use self::attempt::{Attempt, Started};
use crate::{
    downstream::Downstream,
    kind::{Kind, Kinds, Work},
    ledger::{Claim, Claimed, Finished, Hold, Ledger, LedgerError, Verdict},
    outcome::{self, ErrorCode, Failure, GiveBack, Outcome, StepError},
    pause::{Pauses, Reason},
    queue::Replies,
    request::{self, Malformed, Message, Request},
    steps::StepResult,
    telemetry::metrics,
};

/// The rooms that a request passes through.
pub(crate) struct Handler {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) downstream: Arc<Downstream>,
    pub(crate) kinds: Kinds,
    pub(crate) replies: Replies,
    pub(crate) pauses: Pauses,
    /// Larger bodies are not read.
    pub(crate) max_message_bytes: usize,
}

impl Handler {
    /// Works one request to its outcome. `attempt` learns on the way what the log line and an
    /// interruption need to know.
    pub(crate) async fn handle(&self, started: Started, attempt: &mut Attempt) -> Outcome {
        match started {
            Started::Delivered { message, redelivered } => {
                self.delivered(message, redelivered, attempt).await
            }
            Started::Due(due) => match due.request {
                Ok(request) => self.claimed(request, attempt).await,
                Err(refused) => {
                    let (malformed, message) = *refused;
                    self.refuse(malformed, message, Hold::Claimed(due.fence), attempt).await
                }
            },
        }
    }

    async fn delivered(
        &self,
        message: Message,
        redelivered: bool,
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
        let request = match request::decode(message.clone()) {
            Ok(request) => Arc::new(request),
            Err(malformed) => {
                return self.refuse(*malformed, message, Hold::Fresh(attempt.fence), attempt).await;
            }
        };
        drop(message);
        attempt.is_of(&request);
        if request.unknown_fields > 0 && self.kinds.get(&request.kind).is_some() {
            metrics::unknown_fields(&request.kind);
        }
        if let Some(early) = self.before(&request, OffsetDateTime::now_utc()) {
            return self
                .settle_unstarted(request, early, Hold::Fresh(attempt.fence), attempt)
                .await;
        }
        let Some(kind) = self.kinds.get(&request.kind) else {
            // `before` has refused it.
            return Outcome::GivenBack { why: GiveBack::Stop };
        };
        // What came before is claimed before it runs, whatever its kind: should it kill the process
        // again, that is counted.
        if kind.has_call() || redelivered {
            match self.claim(kind, &request, redelivered, attempt).await {
                Ok(Claimed::Run { attempt: number, taken_over }) => {
                    attempt.claimed(&request, number);
                    if taken_over {
                        metrics::taken_over();
                    }
                    self.claimed(request, attempt).await
                }
                Ok(Claimed::Duplicate) => Outcome::Duplicate,
                Ok(Claimed::Reused) => self.reused(&request).await,
                Err(_) => Outcome::GivenBack { why: GiveBack::Postgres },
            }
        } else {
            self.run(kind, request, attempt).await
        }
    }

    /// What is known without starting it: an unknown kind, a deadline that has passed, a start that
    /// is yet to come.
    fn before(&self, request: &Request, now: OffsetDateTime) -> Option<Verdict> {
        if self.kinds.get(&request.kind).is_none() {
            let error = format!("no kind `{}` is configured", request.kind);
            return Some(Verdict::Dead { failure: Failure::new(ErrorCode::UnknownKind, error) });
        }
        if request.time_left(now) == Some(Duration::ZERO) {
            let error = "the deadline had passed before it could be started";
            return Some(Verdict::Dead { failure: Failure::new(ErrorCode::Deadline, error) });
        }
        let until =
            Duration::try_from(request.not_before? - now).ok().filter(|until| !until.is_zero())?;
        Some(Verdict::Parked { on: "not_before".to_owned(), due_in: until })
    }

    /// A request with a running row of ours.
    async fn claimed(&self, request: Arc<Request>, attempt: &mut Attempt) -> Outcome {
        attempt.is_of(&request);
        let hold = Hold::Claimed(attempt.fence);
        if let Some(early) = self.before(&request, OffsetDateTime::now_utc()) {
            return self.settle_unstarted(request, early, hold, attempt).await;
        }
        let Some(kind) = self.kinds.get(&request.kind) else {
            return Outcome::GivenBack { why: GiveBack::Stop };
        };
        attempt.max = Some(kind.policy.max_attempts);
        if attempt.number > kind.policy.max_attempts {
            let error = format!(
                "{} attempts were begun and none came to an end: the worker died or lost its way each time",
                kind.policy.max_attempts
            );
            let dead = Verdict::Dead { failure: Failure::new(ErrorCode::CrashLoop, error) };
            return self.settle_unstarted(request, dead, hold, attempt).await;
        }
        self.run(kind, request, attempt).await
    }

    /// The two steps.
    async fn run(&self, kind: &Kind, request: Arc<Request>, attempt: &mut Attempt) -> Outcome {
        attempt.max = Some(kind.policy.max_attempts);
        let ends = Instant::now() + budget(kind, &request, OffsetDateTime::now_utc());
        let called = Instant::now();
        let response = self.call(kind, &request, ends).await;
        if kind.has_call() {
            attempt.call = Some(called.elapsed());
        }
        let applied = match response {
            Ok(response) => {
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
            Ok(other) => return self.known(other, &request).await,
            Err(LedgerError::Away(_)) => return Outcome::GivenBack { why: GiveBack::Postgres },
            Err(LedgerError::Step(error)) => error,
        };
        self.failed(kind, request, error, attempt).await
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
        let next = outcome::after_failure(error, attempt.number, &kind.policy, fastrand::f64());
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

    async fn call(&self, kind: &Kind, request: &Request, ends: Instant) -> StepResult {
        let left = ends.saturating_duration_since(Instant::now());
        match &kind.work {
            Work::Configured { call: None } => Ok(None),
            Work::Configured { call: Some(call) } => {
                self.downstream.call(call, request, left).await
            }
            Work::Rust(steps) if !steps.has_call() => Ok(None),
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

    /// Claims, and asks again with the same fence while Postgres is away: whether a claim whose
    /// answer was lost is in the ledger can only be learnt there, and giving it back could charge it
    /// an attempt that nobody made.
    async fn claim(
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
            lease: kind.timeout + self.ledger.lease_margin(),
            received_at: attempt.received_at,
        };
        attempt.claiming(request);
        loop {
            match self.ledger.claim(claim.clone()).await {
                Err(LedgerError::Away(_)) => self.pauses.until_without(&Reason::Postgres).await,
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
    async fn finish(
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
        finish.steps = steps;
        let mut away = 0;
        loop {
            if let Some(ends) = ends {
                // What a call has already answered deserves a fair try at being applied.
                finish.budget = ends.saturating_duration_since(Instant::now()).max(LEAST_TO_APPLY);
            }
            match self.ledger.finish(finish.clone()).await {
                Err(LedgerError::Away(_)) if matches!(finish.hold, Hold::Claimed(_)) => {
                    self.pauses.until_without(&Reason::Postgres).await;
                    // Back at once and away again: it may be this request that ends its connection
                    // each time. Until its lease runs out the others get their turn between.
                    tokio::time::sleep(self.ledger.probe_interval() * away).await;
                    away = (away + 1).min(MOST_AWAY);
                }
                finished => {
                    attempt.finish = Some(started.elapsed());
                    return finished;
                }
            }
        }
    }

    /// Writes a verdict on a request whose steps were not begun, uncharged.
    async fn settle_unstarted(
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
    async fn refuse(
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
    async fn known(&self, finished: Finished, request: &Request) -> Outcome {
        match finished {
            Finished::Committed { .. } => Outcome::Done,
            Finished::Duplicate => Outcome::Duplicate,
            Finished::Reused => self.reused(request).await,
            Finished::Fenced => {
                metrics::fenced();
                Outcome::Duplicate
            }
        }
    }

    /// Another request under a known id: refused, and kept for a person to see.
    async fn reused(&self, request: &Request) -> Outcome {
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
        let parked = Verdict::Parked { on: "stop".to_owned(), due_in: Duration::ZERO };
        let finish = attempt.finish(&request, parked, false);
        match self.ledger.finish(finish).await {
            Ok(Finished::Committed { .. }) => {
                Outcome::Parked { on: "stop".to_owned(), due_in: Duration::ZERO }
            }
            // Its claim may not have been made yet: only the next delivery can tell.
            Ok(_) | Err(_) => Outcome::GivenBack { why: GiveBack::Stop },
        }
    }
}

/// What follows from a ledger that did not write what needs no step. What may pass, such as a lock
/// on its table, comes again; where it refuses the row itself, giving the message back would only
/// bring it again.
fn unwritten(error: LedgerError) -> Outcome {
    match error {
        LedgerError::Step(StepError::Refused(failure)) => Outcome::Rejected { failure },
        LedgerError::Away(_)
        | LedgerError::Step(StepError::Transient { .. } | StepError::NotAdmitted { .. }) => {
            Outcome::GivenBack { why: GiveBack::Postgres }
        }
    }
}

/// The least time that an apply step is given, however little its call has left.
const LEAST_TO_APPLY: Duration = Duration::from_millis(250);

/// How many probe intervals a request that Postgres goes away with is held back at most.
const MOST_AWAY: u32 = 10;

/// How long this attempt may take: the kind's timeout, or less where the deadline is nearer.
fn budget(kind: &Kind, request: &Request, now: OffsetDateTime) -> Duration {
    request.time_left(now).map_or(kind.timeout, |left| left.min(kind.timeout))
}
