//! The circuit breaker of one dependency, as a state machine without clock, chance or I/O.
//!
//! *Closed* lets calls through and counts how they end. When too many fail it *opens*: calls are
//! refused until the open time is over. Then it is *half-open*: a few calls at once are let
//! through as probes, and they decide whether it closes or opens again, for longer.
//!
//! `now` and `chance` (in `0.0..1.0`) are arguments and a change of phase is returned, so that
//! the caller can log it outside its lock and a test can drive years in a moment. Each call costs
//! the same however many went before.

mod settings;
mod transition;
mod window;

use std::time::Duration;

use tokio::time::Instant;

pub use settings::Settings;
pub(crate) use transition::{Phase, Transition, Why};
pub(crate) use window::Counts;
use window::Window;

/// How long a call that found all probes taken is sent away, before it is spread.
const PROBES_TAKEN_WAIT: Duration = Duration::from_secs(1);

/// What a call says about the health of the dependency. That is not what it says about the
/// request: a dependency that refuses a bad request is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered as a healthy service does.
    Success,
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
    /// The call was given up or never sent: it says nothing either way.
    Silent,
}

/// Leave for one call, to be handed back to [`Breaker::record`].
#[derive(Debug)]
#[must_use = "a permit that is not recorded holds a probe's place until it expires"]
pub(crate) struct Permit {
    generation: u64,
    id: u64,
    since: Instant,
}

/// A call that may go ahead.
#[derive(Debug)]
pub(crate) struct Admission {
    /// To be handed back with the verdict.
    pub(crate) permit: Permit,
    /// The change that letting it through made: from open to half-open.
    pub(crate) transition: Option<Transition>,
}

/// A call that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// When to ask again, spread so that those refused together do not come back together.
    pub(crate) retry_in: Duration,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each dependency, and it is closed most of the time"
)]
enum State {
    Closed { window: Window, consecutive: u32, since: Instant },
    Open { until: Instant },
    HalfOpen { probes: Vec<Probe>, succeeded: u32 },
}

/// A probe under way. It loses its place when it expires, but not its say: its verdict counts
/// whenever it comes, as long as the breaker is in the same half-open phase.
#[derive(Debug)]
struct Probe {
    id: u64,
    expires: Instant,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: Settings,
    state: State,
    /// Goes up with each change of phase: a permit of an older one has no say any more.
    generation: u64,
    next_id: u64,
    /// Times it opened for failures without a lasting recovery between.
    trips: u32,
    last_open: Duration,
}

impl Breaker {
    /// A closed breaker. The settings must have no [`Settings::problems`].
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let window = Window::new(settings.window, now);
        Self {
            settings,
            state: State::Closed { window, consecutive: 0, since: now },
            generation: 0,
            next_id: 0,
            trips: 0,
            last_open: Duration::ZERO,
        }
    }

    /// The phase it is in. An open breaker whose time is over says open until a call comes.
    pub(crate) fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Whether a call would be let through at `now`.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        match &self.state {
            State::Closed { .. } => true,
            State::Open { until } => *until <= now,
            State::HalfOpen { probes, .. } => {
                let under_way = probes.iter().filter(|probe| probe.expires > now).count();
                under_way < self.settings.probes as usize
            }
        }
    }

    /// Lets one call through, or says when to ask again.
    pub(crate) fn admit(&mut self, now: Instant, chance: f64) -> Result<Admission, Refusal> {
        let mut transition = None;
        if let State::Open { until } = self.state {
            if now < until {
                // The first of them find the probes; the others come in over the time that the
                // breaker would have been open anyway.
                let spread = self.settings.open_for.mul_f64(chance);
                return Err(Refusal { retry_in: until - now + spread });
            }
            let half_open = State::HalfOpen { probes: Vec::new(), succeeded: 0 };
            transition = Some(self.change(half_open, Why::OpenTimeOver, None));
        }
        let id = self.next_id;
        if let State::HalfOpen { probes, .. } = &mut self.state {
            probes.retain(|probe| probe.expires > now);
            if probes.len() >= self.settings.probes as usize {
                let wait = PROBES_TAKEN_WAIT.min(self.settings.open_for);
                return Err(Refusal { retry_in: wait.mul_f64(0.5 + chance) });
            }
            probes.push(Probe { id, expires: now + self.settings.probe_timeout });
        }
        self.next_id += 1;
        let permit = Permit { generation: self.generation, id, since: now };
        Ok(Admission { permit, transition })
    }

    /// Takes the verdict of a call that was let through.
    #[expect(clippy::needless_pass_by_value, reason = "the verdict uses the permit up")]
    pub(crate) fn record(
        &mut self,
        permit: Permit,
        verdict: Verdict,
        now: Instant,
        chance: f64,
    ) -> Option<Transition> {
        let Permit { generation, id, since } = permit;
        if generation != self.generation {
            return None;
        }
        let slow = now.saturating_duration_since(since) >= self.settings.slow_call;
        match &mut self.state {
            State::Closed { window, consecutive, .. } => {
                let retry_after = match verdict {
                    Verdict::Success => {
                        *consecutive = 0;
                        None
                    }
                    Verdict::Failure { retry_after } => {
                        *consecutive = consecutive.saturating_add(1);
                        retry_after
                    }
                    Verdict::Throttled { retry_after: Some(asked) } if !asked.is_zero() => {
                        return Some(self.hold(asked, now));
                    }
                    Verdict::Throttled { .. } | Verdict::Silent => return None,
                };
                let failed = matches!(verdict, Verdict::Failure { .. });
                let counts = window.add(now, failed, slow);
                let why = self.settings.tripped(counts, *consecutive)?;
                Some(self.trip(why, retry_after, now, chance))
            }
            State::HalfOpen { probes, succeeded } => {
                probes.retain(|probe| probe.id != id);
                match verdict {
                    Verdict::Success if slow => {
                        Some(self.trip(Why::ProbeFailed, None, now, chance))
                    }
                    Verdict::Success => {
                        *succeeded += 1;
                        (*succeeded >= self.settings.successes).then(|| self.close(now))
                    }
                    Verdict::Failure { retry_after } => {
                        Some(self.trip(Why::ProbeFailed, retry_after, now, chance))
                    }
                    Verdict::Throttled { retry_after } => {
                        // Without a time given it still must not be probed in a tight loop.
                        let asked = retry_after.filter(|asked| !asked.is_zero());
                        let wait = asked.unwrap_or_else(|| self.open_time(chance));
                        Some(self.hold(wait, now))
                    }
                    Verdict::Silent => None,
                }
            }
            // No permit is given while open, so none has this generation.
            State::Open { .. } => None,
        }
    }

    /// Opens because of failures: each time for longer, until it has once stayed closed.
    fn trip(&mut self, why: Why, asked: Option<Duration>, now: Instant, chance: f64) -> Transition {
        if let State::Closed { since, .. } = self.state {
            // As long as it was open, and a whole window at least: a dependency that falls over
            // as soon as it gets its load back has not recovered.
            let lasting = self.last_open.max(self.settings.window);
            if now.saturating_duration_since(since) >= lasting {
                self.trips = 0;
            }
        }
        self.trips = self.trips.saturating_add(1);
        let wait =
            self.open_time(chance).max(asked.unwrap_or_default()).min(self.settings.open_max);
        self.last_open = wait;
        self.change(State::Open { until: now + wait }, why, Some(wait))
    }

    /// Opens because the dependency said so, which is no failure and lets no open time grow.
    fn hold(&mut self, asked: Duration, now: Instant) -> Transition {
        let wait = asked.min(self.settings.open_max);
        self.change(State::Open { until: now + wait }, Why::Throttled, Some(wait))
    }

    fn close(&mut self, now: Instant) -> Transition {
        let window = Window::new(self.settings.window, now);
        self.change(State::Closed { window, consecutive: 0, since: now }, Why::Recovered, None)
    }

    /// The open time after `trips` trips: doubled each time up to the longest, and between half
    /// of that and all of it, so that many workers do not probe in the same second.
    fn open_time(&self, chance: f64) -> Duration {
        // Thirty doublings of the shortest open time are past the longest one.
        let doublings = self.trips.saturating_sub(1).min(30);
        let full =
            self.settings.open_for.saturating_mul(1 << doublings).min(self.settings.open_max);
        full.mul_f64(0.5 + chance / 2.0)
    }

    fn change(&mut self, to: State, why: Why, open_for: Option<Duration>) -> Transition {
        let from = self.phase();
        let (counts, consecutive) = match &self.state {
            State::Closed { window, consecutive, .. } => (window.total(), *consecutive),
            State::Open { .. } | State::HalfOpen { .. } => (Counts::default(), 0),
        };
        self.state = to;
        self.generation += 1;
        Transition { from, to: self.phase(), why, counts, consecutive, open_for }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
