//! One dependency: its breaker, its limit and its client, behind one door.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::RootCertStore;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{
    CallSettings, Settings,
    breaker::{Admission, Breaker, Permit, Phase, Refusal, Transition, Verdict},
    classify,
    client::Client,
};
use crate::{
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    telemetry::metrics,
};

/// How long a call waits for a place when `max_in_flight` others are under way, and how long it is
/// sent away, before that is spread, when it got none.
const LIMIT_WAIT: Duration = Duration::from_secs(1);

/// A call that was given less than this part of the dependency's timeout and ran out of it says
/// nothing about the dependency.
const TELLING_PART: u32 = 10;

/// How a guarded piece of work ended: for the request, and for the breaker.
#[derive(Debug)]
pub struct Judged<T> {
    /// What the request gets.
    pub result: Result<T, StepError>,
    /// What the breaker learns.
    pub verdict: Verdict,
}

/// The usual judgement: a refusal shows a healthy dependency, a transient failure does not.
impl<T> From<Result<T, StepError>> for Judged<T> {
    fn from(result: Result<T, StepError>) -> Self {
        let verdict = match &result {
            Ok(_) | Err(StepError::Refused(_)) => Verdict::Success,
            Err(StepError::Transient { retry_in, .. }) => {
                Verdict::Failure { retry_after: *retry_in }
            }
            Err(StepError::NotAdmitted { .. }) => Verdict::Silent,
        };
        Self { result, verdict }
    }
}

/// A named downstream service with its own breaker, timeout and limit.
#[derive(Debug)]
pub struct Dependency {
    name: String,
    client: Client,
    timeout: Duration,
    limit: Semaphore,
    breaker: Mutex<Breaker>,
}

impl Dependency {
    /// The settings must have no [`Settings::problems`].
    pub(super) fn new(
        name: &str,
        settings: &Settings,
        roots: RootCertStore,
    ) -> Result<Self, String> {
        let breaker = Breaker::new(settings.breaker.clone(), Instant::now());
        metrics::breaker_state(name, breaker.phase().name());
        Ok(Self {
            name: name.to_owned(),
            client: Client::new(settings, roots)?,
            timeout: settings.timeout,
            limit: Semaphore::new(settings.max_in_flight),
            breaker: Mutex::new(breaker),
        })
    }

    /// The name in settings, metrics and logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state of the breaker: `closed`, `open` or `half_open`. An open one whose time is over
    /// says `open` until the next call.
    pub fn state(&self) -> &'static str {
        self.breaker().phase().name()
    }

    /// Whether the breaker would let a call through now.
    pub fn admits(&self) -> bool {
        self.breaker().admits(Instant::now())
    }

    /// Runs any work under the breaker, the limit and the timeout of this dependency, for
    /// handlers written in Rust. The work is polled only once it is let through; it gets `budget`
    /// or the dependency's timeout, whichever is less. Work that is dropped gives its place back
    /// and counts neither way.
    ///
    /// # Errors
    /// What the work returned; `NotAdmitted` when it was not begun; `Transient` when it did not
    /// end in time.
    pub async fn guard<T>(
        &self,
        budget: Duration,
        work: impl Future<Output = Judged<T>>,
    ) -> Result<T, StepError> {
        self.guarded(&format!("call to {}", self.name), budget, work).await
    }

    /// See [`super::Downstream::call`].
    pub(super) async fn call(
        &self,
        call: &CallSettings,
        request: &Request,
        budget: Duration,
    ) -> Result<Option<String>, StepError> {
        let what = format!("{} to {}", call.method, self.name);
        match self.client.prepare(call, request) {
            Ok(prepared) => self.guarded(&what, budget, self.client.send(&what, prepared)).await,
            Err(why) => {
                metrics::call(&self.name, "refused", None);
                let error = format!("{what} was not sent: {why}");
                Err(StepError::Refused(Failure::new(ErrorCode::CallRefused, error)))
            }
        }
    }

    /// See [`super::Downstream::reach`].
    pub(super) async fn reach(&self) -> Result<(), String> {
        self.client.reach(self.timeout).await
    }

    async fn guarded<T>(
        &self,
        what: &str,
        budget: Duration,
        work: impl Future<Output = Judged<T>>,
    ) -> Result<T, StepError> {
        if budget.is_zero() {
            return Err(classify::transient(
                format!("{what} was not begun: no time is left"),
                None,
            ));
        }
        let asked = Instant::now();
        let leave = self.admit(budget).await?;
        let time = budget.saturating_sub(asked.elapsed()).min(self.timeout);
        let Judged { result, verdict } = match tokio::time::timeout(time, work).await {
            Ok(judged) => judged,
            Err(_elapsed) => {
                let whose =
                    if time == self.timeout { "its timeout" } else { "the request's time left" };
                let time_text = humantime::format_duration(time);
                let error = format!("{what} did not end within {time_text} ({whose})");
                let telling = time >= self.timeout / TELLING_PART;
                let verdict =
                    if telling { Verdict::Failure { retry_after: None } } else { Verdict::Silent };
                Judged { result: Err(classify::transient(error, None)), verdict }
            }
        };
        leave.report(verdict, result.as_ref().err());
        result
    }

    /// A place under the limit first, so that no probe is spent on a call without one. Who finds
    /// none waits in line for it, unless the breaker would refuse it anyway.
    async fn admit(&self, budget: Duration) -> Result<Leave<'_>, StepError> {
        let not_admitted = |retry_in| {
            metrics::call(&self.name, "not_admitted", None);
            StepError::NotAdmitted { on: self.name.clone(), retry_in }
        };
        let chance = fastrand::f64();
        let place = match self.limit.try_acquire() {
            Ok(place) => Some(place),
            Err(_) if !self.admits() => None,
            // No longer than half of its time, so that a place is worth having.
            Err(_) => tokio::time::timeout(LIMIT_WAIT.min(budget / 2), self.limit.acquire())
                .await
                .ok()
                .and_then(Result::ok),
        };
        let Some(place) = place else {
            return Err(not_admitted(LIMIT_WAIT.mul_f64(0.5 + chance)));
        };
        let now = Instant::now();
        let admitted = self.breaker().admit(now, chance);
        match admitted {
            Ok(Admission { permit, transition }) => {
                self.announce(transition);
                Ok(Leave { dependency: self, permit: Some(permit), since: now, _place: place })
            }
            Err(Refusal { retry_in }) => Err(not_admitted(retry_in)),
        }
    }

    fn record(&self, permit: Permit, verdict: Verdict) {
        let transition = self.breaker().record(permit, verdict, Instant::now(), fastrand::f64());
        self.announce(transition);
    }

    /// Tells a change to the log and the metrics; to be called without the lock.
    fn announce(&self, transition: Option<Transition>) {
        let Some(Transition { from, to, why, counts, consecutive, open_for }) = transition else {
            return;
        };
        metrics::breaker_transition(&self.name, to.name());
        macro_rules! line {
            ($level:ident, $text:literal) => {
                tracing::$level!(
                    event = "breaker.transition",
                    dependency = %self.name,
                    from = from.name(),
                    to = to.name(),
                    why = why.name(),
                    calls = counts.calls,
                    failed = counts.failed,
                    slow = counts.slow,
                    consecutive,
                    open_ms = open_for.map(|time| time.as_millis() as u64),
                    $text
                )
            };
        }
        match to {
            Phase::Open => line!(warn, "breaker opened: calls to this dependency are held back"),
            Phase::HalfOpen => line!(info, "breaker is half-open: a few calls are let through"),
            Phase::Closed => {
                line!(info, "breaker closed: calls to this dependency go through again");
            }
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // A panic under the lock leaves a breaker that still decides; to stop all calls for it
        // would be worse than a count that is off by one.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way. Dropped without a report it was cancelled, which says nothing about the
/// dependency, and gives its places back.
struct Leave<'a> {
    dependency: &'a Dependency,
    permit: Option<Permit>,
    since: Instant,
    _place: SemaphorePermit<'a>,
}

impl Leave<'_> {
    fn report(mut self, verdict: Verdict, error: Option<&StepError>) {
        let result = match error {
            None => "ok",
            Some(StepError::Refused(_)) => "refused",
            Some(StepError::Transient { .. }) => "transient",
            Some(StepError::NotAdmitted { .. }) => "not_admitted",
        };
        self.end(verdict, result);
    }

    fn end(&mut self, verdict: Verdict, result: &'static str) {
        if let Some(permit) = self.permit.take() {
            self.dependency.record(permit, verdict);
            metrics::call(&self.dependency.name, result, Some(self.since.elapsed()));
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.end(Verdict::Silent, "cancelled");
    }
}
