//! One dependency: its breaker, its limit and its client, behind one door.

mod limits;
mod parked;
mod steering;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use rustls::RootCertStore;
use tokio::time::{Instant, sleep};

use super::{
    CallSettings, Settings,
    breaker::{Admission, Breaker, Permit, Refusal, Verdict},
    classify,
    client::Client,
    release::Release,
    tell, turn,
};
use crate::{
    limit::{Bounds, Limit, PerSecond, Place},
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

/// A call that was given up ends where it was made only when its connection is closed, which happens
/// behind our back. Its place is kept for so long, so that the next one is not one too many.
const HANG_UP: Duration = Duration::from_millis(20);

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
    /// How wide that door may be where calls are fast and the limit is small.
    widest: AtomicUsize,
    breaker: Mutex<Breaker>,
    release: Mutex<Release>,
    /// Requests that were let go and have not called yet.
    coming: Arc<AtomicUsize>,
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
            widest: AtomicUsize::new(0),
            breaker: Mutex::new(breaker),
            release: Mutex::new(Release::new(settings.release.clone(), Instant::now())),
            coming: Arc::default(),
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
        self.guarded(&format!("call to {}", self.name), false, true, budget, |_| work).await
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
                let send = |time| self.client.send(&what, prepared, time);
                self.guarded(&what, last, false, budget, send).await
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

    /// `work` is begun with the time that it has. Who `pays` has no token of its rate yet.
    async fn guarded<T, F: Future<Output = Judged<T>>>(
        &self,
        what: &str,
        last: bool,
        pays: bool,
        budget: Duration,
        work: impl FnOnce(Duration) -> F,
    ) -> Result<T, StepError> {
        if budget.is_zero() {
            return Err(classify::transient(
                format!("{what} was not begun: no time is left"),
                None,
            ));
        }
        let asked = Instant::now();
        let mut leave = self.admit(last, pays, budget).await?;
        let time = budget.saturating_sub(asked.elapsed()).min(self.timeout);
        let judged = tokio::time::timeout(time, work(time)).await;
        let hangs = judged.is_err();
        let Judged { result, verdict } = judged.unwrap_or_else(|_elapsed| {
            let whose =
                if time == self.timeout { "its timeout" } else { "the request's time left" };
            let time_text = humantime::format_duration(time);
            let error = format!("{what} did not end within {time_text} ({whose})");
            let telling = time >= self.timeout / TELLING_PART;
            let verdict =
                if telling { Verdict::Failure { retry_after: None } } else { Verdict::Ignored };
            Judged { result: Err(classify::transient(error, None)), verdict }
        });
        leave.report(verdict, result.as_ref().err());
        self.adjust_door();
        if hangs {
            sleep(HANG_UP).await;
        }
        result
    }

    /// A place under the limit first, so that no probe is spent on a call without one. Who finds
    /// none waits in line for it, unless the breaker would refuse it anyway. While requests are
    /// parked, who has just come goes behind them: it is no probe, takes no place of the second half,
    /// and waits for none.
    async fn admit(
        &self,
        last: bool,
        pays: bool,
        budget: Duration,
    ) -> Result<Leave<'_>, StepError> {
        let let_go = turn::arrives(&self.name);
        let behind = let_go.is_none() && self.release().is_waiting();
        let not_admitted = |retry_in| {
            metrics::call(&self.name, "not_admitted", None);
            StepError::NotAdmitted { on: self.name.clone(), retry_in }
        };
        let chance = fastrand::f64();
        // No longer than half of its time, so that a place is worth having.
        let patience = LIMIT_WAIT.min(budget / 2);
        if pays && !behind && self.admits() && !self.pay(patience).await {
            return Err(self.full());
        }
        let place = match self.limit.try_take() {
            Some(place) if behind && !self.is_spare() => {
                drop(place);
                None
            }
            Some(place) => Some(place),
            None if behind || !self.admits() => None,
            None => match tokio::time::timeout(patience, self.limit.take()).await {
                Ok(Some(place)) => Some(place),
                Ok(None) | Err(_) => return Err(self.full()),
            },
        };
        let Some(place) = place else {
            return Err(not_admitted(LIMIT_WAIT.mul_f64(0.5 + chance)));
        };
        let now = Instant::now();
        let admitted = self.breaker().admit(last || behind, now, chance);
        match admitted {
            Ok(Admission { permit, transition, unenforced }) => {
                tell::transition(&self.name, transition);
                if unenforced {
                    metrics::breaker_unenforced(&self.name);
                }
                Ok(Leave { dependency: self, permit: Some(permit), since: now, place })
            }
            Err(Refusal { retry_in }) => {
                if last && let_go.is_some() {
                    self.release().turned_away(retry_in, now);
                }
                Err(not_admitted(retry_in))
            }
        }
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
    fn report(&mut self, verdict: Verdict, error: Option<&StepError>) {
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
