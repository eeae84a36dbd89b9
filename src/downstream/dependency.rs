//! One dependency: its breaker, its limit and its client, behind one door.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::RootCertStore;
use tokio::time::Instant;

use super::{
    CallSettings, Settings,
    breaker::{Admission, Breaker, Permit, Refusal, Verdict},
    classify,
    client::Client,
    standing::Standing,
    tell,
};
use crate::{
    limit::{AT_THE_LATEST, Bounds, Limit, PerSecond, Place},
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    steer::Mode,
    telemetry::metrics,
};

/// How long a call that was begun waits for a place when `max_in_flight` others are under way, or for
/// a token.
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
            Err(StepError::NotAdmitted { .. }) => Verdict::Ignored,
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
    limit: Limit,
    /// The door before the calls: room for those under way, and for those that come next.
    bounds: Bounds,
    breaker: Mutex<Breaker>,
    /// What holds where nobody steers.
    configured: (Mode, usize),
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
        metrics::breaker_mode(name, breaker.mode().name());
        Ok(Self {
            name: name.to_owned(),
            client: Client::new(settings, roots)?,
            timeout: settings.timeout,
            limit: match settings.adaptive {
                true => {
                    let (fewest, most) = (settings.min_in_flight, settings.max_in_flight);
                    Limit::learning(fewest, most, Instant::now())
                }
                false => Limit::fixed(settings.max_in_flight),
            },
            bounds: Bounds::new(
                &format!("dependency:{name}"),
                Some(2 * settings.max_in_flight),
                PerSecond::of(settings.rate, settings.burst),
                settings.when_full,
            ),
            breaker: Mutex::new(breaker),
            configured: (settings.breaker.mode, settings.max_in_flight),
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

    /// How many of those that are parked on its limits are to be brought up now.
    pub(crate) fn room(&self) -> usize {
        let free = self.limit.wanted().saturating_sub(self.limit.taken());
        if free > 0 && self.admits() { self.bounds.room() } else { 0 }
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        let numbers = self.breaker().numbers(Instant::now());
        Standing::new(numbers, self.limit.taken(), self.limit.wanted(), self.bounds.standing())
    }

    /// Steers it: who decides about its breaker, and how many calls may be under way at once.
    /// how many may be begun a second. `None` is what the settings say. Returns what was changed, name
    /// and new value.
    pub fn steer(
        &self,
        mode: Option<Mode>,
        limit: Option<usize>,
        rate: Option<f64>,
    ) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        let (mode, limit) = (mode.unwrap_or(self.configured.0), limit.unwrap_or(self.configured.1));
        let (before, transition) = {
            let mut breaker = self.breaker();
            (breaker.mode(), breaker.set_mode(mode, Instant::now()))
        };
        if mode != before {
            metrics::breaker_mode(&self.name, mode.name());
            changed.push(("breaker", mode.name().to_owned()));
        }
        tell::transition(&self.name, transition);
        if self.limit.most() != limit {
            self.limit.set(limit);
            changed.push(("limit", limit.to_string()));
        }
        if self.bounds.steer(self.bounds.most(), rate).1 {
            let now = self.bounds.rate().per();
            changed.push(("rate", now.map_or("none".to_owned(), |per| per.rate.to_string())));
        }
        changed
    }

    /// Exports what changes without a call.
    pub fn export(&self) {
        let standing = self.standing();
        metrics::breaker_state(&self.name, standing.state);
        metrics::calls_in_flight(&self.name, standing.in_flight, standing.max_in_flight);
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
        let asked = Instant::now();
        let what = format!("call to {}", self.name);
        let patience = LIMIT_WAIT.min(budget / 2);
        if self.bounds.rate().per().is_some()
            && self.admits()
            && tokio::time::timeout(patience, self.bounds.rate().take(true)).await.is_err()
        {
            return Err(self.full());
        }
        self.guarded(&what, false, budget.saturating_sub(asked.elapsed()), work).await
    }

    /// See [`super::Downstream::call`].
    pub(super) async fn call(
        &self,
        call: &CallSettings,
        request: &Request,
        last: bool,
        budget: Duration,
    ) -> Result<Option<String>, StepError> {
        let what = format!("{} to {}", call.method, self.name);
        match self.client.prepare(call, request) {
            Ok(prepared) => {
                self.guarded(&what, last, budget, self.client.send(&what, prepared)).await
            }
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
        last: bool,
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
        let leave = self.admit(last, budget).await?;
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
                    if telling { Verdict::Failure { retry_after: None } } else { Verdict::Ignored };
                Judged { result: Err(classify::transient(error, None)), verdict }
            }
        };
        leave.report(verdict, result.as_ref().err());
        result
    }

    /// A place under the limit first, so that no probe is spent on a call without one. Who finds
    /// none waits in line for it, unless the breaker would refuse it anyway.
    async fn admit(&self, last: bool, budget: Duration) -> Result<Leave<'_>, StepError> {
        let not_admitted = |retry_in| {
            metrics::call(&self.name, "not_admitted", None);
            StepError::NotAdmitted { on: self.name.clone(), retry_in }
        };
        let chance = fastrand::f64();
        let place = match self.limit.try_take() {
            Some(place) => Some(place),
            None if !self.admits() => None,
            // No longer than half of its time, so that a place is worth having.
            None => tokio::time::timeout(LIMIT_WAIT.min(budget / 2), self.limit.take())
                .await
                .ok()
                .flatten(),
        };
        let Some(place) = place else {
            return Err(self.full());
        };
        let now = Instant::now();
        let admitted = self.breaker().admit(last, now, chance);
        match admitted {
            Ok(Admission { permit, transition, unenforced }) => {
                tell::transition(&self.name, transition);
                if unenforced {
                    metrics::breaker_unenforced(&self.name);
                }
                Ok(Leave { dependency: self, permit: Some(permit), since: now, place })
            }
            Err(Refusal { retry_in }) => Err(not_admitted(retry_in)),
        }
    }

    /// It is brought up again when there is room.
    fn full(&self) -> StepError {
        metrics::call(&self.name, "not_admitted", None);
        StepError::NotAdmitted { on: self.bounds.on().to_owned(), retry_in: AT_THE_LATEST }
    }

    fn record(&self, permit: Permit, verdict: Verdict) {
        let transition = self.breaker().record(permit, verdict, Instant::now(), fastrand::f64());
        tell::transition(&self.name, transition);
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
    place: Place<'a>,
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
            match verdict {
                Verdict::Success => self.place.succeeded(self.since, Instant::now()),
                Verdict::Throttled { .. } => self.place.throttled(),
                Verdict::Slow | Verdict::Failure { .. } | Verdict::Ignored => {}
            }
            self.dependency.record(permit, verdict);
            metrics::call(&self.dependency.name, result, Some(self.since.elapsed()));
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.end(Verdict::Ignored, "cancelled");
    }
}
