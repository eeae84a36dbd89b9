//! The circuit breaker of one dependency, as a state machine without clock, chance or I/O.
//!
//! *Closed* lets calls through and counts how they end. When too many fail it *opens*: calls are
//! refused until the open time is over. Then it is *half-open*: a few calls at once are let
//! through as probes, and they decide whether it closes or opens again, for longer.
//!
//! `now` and `chance` (in `0.0..1.0`) are arguments and a change of phase is returned, so that
//! the caller can log it outside its lock and a test can drive years in a moment. Each call costs
//! the same however many went before.
//!
//! A person may force it open or closed, or have it observe only; see [`Mode`]. `docs/breaker.md`
//! has all rules, beside those of other breakers.

mod admission;
mod settings;
mod transition;
mod window;

use std::time::Duration;

use tokio::time::Instant;

pub use admission::Verdict;
pub(crate) use admission::{Admission, Permit, Refusal};
pub use settings::Settings;
pub(crate) use transition::{Numbers, Phase, Transition, Why};
pub(crate) use window::Counts;
use window::Window;

use crate::steer::Mode;

/// How long a call that found all probes taken is sent away, before it is spread.
const PROBES_TAKEN_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each dependency, and it is closed most of the time"
)]
enum State {
    Closed { window: Window, consecutive: u32, since: Instant },
    Open { until: Instant },
    HalfOpen { probes: Vec<Probe>, succeeded: u32, since: Instant },
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
    mode: Mode,
    state: State,
    /// Goes up with each change of phase: a permit of an older one has no say any more.
    generation: u64,
    next_id: u64,
    /// Times it opened for failures without a lasting recovery between.
    trips: u32,
    last_open: Duration,
    /// Times it opened by its own rules, ever.
    opened: u64,
}

impl Breaker {
    /// A closed breaker, or an open one where the settings force that. They must have no
    /// [`Settings::problems`].
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let window = Window::new(settings.window, now);
        let mut breaker = Self {
            mode: Mode::Automatic,
            state: State::Closed { window, consecutive: 0, since: now },
            generation: 0,
            next_id: 0,
            trips: 0,
            last_open: Duration::ZERO,
            opened: 0,
            settings,
        };
        // Nobody has to be told how it begins.
        let _begins = breaker.set_mode(breaker.settings.mode, now);
        breaker
    }

    /// The phase it is in. An open breaker whose time is over says open until a call comes.
    pub(crate) fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Who decides.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes who decides, and returns the change of phase that comes with it.
    ///
    /// Forced open it forgets what it knew, so that probes decide once it is automatic again.
    /// Forced closed it counts, so that it knows. Observing, it goes on as it stands, and so does
    /// what was observed when it is automatic again.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Instant) -> Option<Transition> {
        if mode == self.mode {
            return None;
        }
        self.mode = mode;
        let forced = match (mode, self.phase()) {
            (Mode::Open, _) => State::Open { until: now },
            (Mode::Closed, Phase::Open | Phase::HalfOpen) => self.fresh(now),
            (Mode::Closed, Phase::Closed) | (Mode::Automatic | Mode::Observe, _) => return None,
        };
        let transition = self.change(forced, Why::Steered, None);
        (transition.from != transition.to).then_some(transition)
    }

    /// Whether a call would be let through at `now`.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        self.room(now) != Some(0)
    }

    /// How many calls would be let through at `now`: `None` for as many as come.
    pub(crate) fn room(&self, now: Instant) -> Option<usize> {
        let probes = self.settings.probes as usize;
        match (self.mode, &self.state) {
            (Mode::Open, _) => Some(0),
            (Mode::Observe, _) | (_, State::Closed { .. }) => None,
            (_, State::Open { until }) if *until > now => Some(0),
            (_, State::Open { .. }) => Some(probes),
            (_, State::HalfOpen { probes: under_way, .. }) => {
                let under_way = under_way.iter().filter(|probe| probe.expires > now).count();
                Some(probes.saturating_sub(under_way))
            }
        }
    }

    /// Lets one call through, or says when to ask again. A `last` one has no attempt left after
    /// this: it is a probe only when nobody else has come to be one for a whole `open_for`.
    pub(crate) fn admit(
        &mut self,
        last: bool,
        now: Instant,
        chance: f64,
    ) -> Result<Admission, Refusal> {
        if self.mode == Mode::Open {
            return Err(Refusal { retry_in: self.settings.open_for.mul_f64(1.0 + chance) });
        }
        match self.judge(last, now, chance) {
            Err(_) if self.mode == Mode::Observe => {
                let permit = Permit { generation: None, id: 0, since: now };
                Ok(Admission { permit, transition: None, unenforced: true })
            }
            judged => judged,
        }
    }

    /// What its own rules say.
    fn judge(&mut self, last: bool, now: Instant, chance: f64) -> Result<Admission, Refusal> {
        let spread = self.settings.open_for.mul_f64(chance);
        let probes_since = match &self.state {
            State::Closed { .. } => None,
            // The first of them find the probes; the others come in over the time that the
            // breaker would have been open anyway.
            State::Open { until } if now < *until => {
                return Err(Refusal { retry_in: *until - now + spread });
            }
            State::Open { until } => Some(*until),
            State::HalfOpen { since, .. } => Some(*since),
        };
        if let Some(since) = probes_since.filter(|_| last) {
            let not_before = since + self.settings.open_for;
            if now < not_before {
                return Err(Refusal { retry_in: not_before - now + PROBES_TAKEN_WAIT.min(spread) });
            }
        }
        let mut transition = None;
        if let State::Open { .. } = self.state {
            let half_open = State::HalfOpen { probes: Vec::new(), succeeded: 0, since: now };
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
        let permit = Permit { generation: Some(self.generation), id, since: now };
        Ok(Admission { permit, transition, unenforced: false })
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
        if generation != Some(self.generation) {
            return None;
        }
        let slow = verdict == Verdict::Slow
            || now.saturating_duration_since(since) >= self.settings.slow_call;
        match &mut self.state {
            State::Closed { window, consecutive, .. } => {
                let retry_after = match verdict {
                    Verdict::Success | Verdict::Slow => {
                        *consecutive = 0;
                        None
                    }
                    Verdict::Failure { retry_after } => {
                        *consecutive = consecutive.saturating_add(1);
                        retry_after
                    }
                    Verdict::Throttled { retry_after: Some(asked) }
                        if !asked.is_zero() && self.mode != Mode::Closed =>
                    {
                        return Some(self.hold(self.told(asked, chance), now));
                    }
                    Verdict::Throttled { .. } | Verdict::Ignored => return None,
                };
                let failed = matches!(verdict, Verdict::Failure { .. });
                let counts = window.add(now, failed, slow);
                if self.mode == Mode::Closed {
                    return None;
                }
                let why = self.settings.tripped(counts, *consecutive)?;
                Some(self.trip(why, retry_after, now, chance))
            }
            State::HalfOpen { probes, succeeded, .. } => {
                probes.retain(|probe| probe.id != id);
                match verdict {
                    Verdict::Success if !slow => {
                        *succeeded += 1;
                        (*succeeded >= self.settings.successes)
                            .then(|| self.change(self.fresh(now), Why::Recovered, None))
                    }
                    Verdict::Success | Verdict::Slow => {
                        Some(self.trip(Why::ProbeFailed, None, now, chance))
                    }
                    Verdict::Failure { retry_after } => {
                        Some(self.trip(Why::ProbeFailed, retry_after, now, chance))
                    }
                    Verdict::Throttled { retry_after } => {
                        // Without a time given it still must not be probed in a tight loop.
                        let asked = retry_after.filter(|asked| !asked.is_zero());
                        let wait = asked.map(|asked| self.told(asked, chance));
                        Some(self.hold(wait.unwrap_or_else(|| self.open_time(chance)), now))
                    }
                    Verdict::Ignored => None,
                }
            }
            // No permit is given while open, so none has this generation.
            State::Open { .. } => None,
        }
    }

    /// How it stands, for people.
    pub(crate) fn numbers(&mut self, now: Instant) -> Numbers {
        let (counts, consecutive, open_for) = match &mut self.state {
            State::Closed { window, consecutive, .. } => (window.counts(now), *consecutive, None),
            State::Open { until } if self.mode != Mode::Open => {
                (Counts::default(), 0, Some(until.saturating_duration_since(now)))
            }
            State::Open { .. } | State::HalfOpen { .. } => (Counts::default(), 0, None),
        };
        let (phase, mode, opened) = (self.phase(), self.mode, self.opened);
        Numbers { phase, mode, counts, consecutive, opened, open_for }
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
        let told = asked.map(|asked| self.told(asked, chance)).unwrap_or_default();
        let wait = self.open_time(chance).max(told);
        self.last_open = wait;
        self.change(State::Open { until: now + wait }, why, Some(wait))
    }

    /// Opens because the dependency said so, which is no failure and lets no open time grow.
    fn hold(&mut self, wait: Duration, now: Instant) -> Transition {
        self.change(State::Open { until: now + wait }, Why::Throttled, Some(wait))
    }

    fn fresh(&self, now: Instant) -> State {
        let window = Window::new(self.settings.window, now);
        State::Closed { window, consecutive: 0, since: now }
    }

    /// The time that the dependency asked for, as far as it is believed, and a little more by
    /// chance: many workers were told the same, and none must come before.
    fn told(&self, asked: Duration, chance: f64) -> Duration {
        let asked = asked.min(self.settings.retry_after_max);
        asked + self.settings.open_for.min(asked / 2).mul_f64(chance)
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
        let to = self.phase();
        self.opened += u64::from(to == Phase::Open && why != Why::Steered);
        Transition { from, to, why, mode: self.mode, counts, consecutive, open_for }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
