//! The breaker against a slow model of it that keeps every call and reads the rules off them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use proptest::{collection::vec, prelude::*};

use super::{tests::settings, *};

/// One call of the present phase that ended with a success or a failure.
struct Ended {
    at: Instant,
    failed: bool,
    slow: bool,
}

/// A probe of the present phase, reported or not.
struct Sent {
    id: usize,
    at: Instant,
    reported: bool,
    succeeded: bool,
}

struct Model {
    settings: Settings,
    mode: Mode,
    phase: Phase,
    since: Instant,
    until: Instant,
    ended: Vec<Ended>,
    sent: Vec<Sent>,
    /// Open times for failures since the last lasting recovery.
    opened: Vec<Duration>,
    /// Phases so far.
    phases: usize,
    /// Those of them that it opened with by its own rules.
    openings: u64,
}

impl Model {
    fn new(settings: Settings, now: Instant) -> Self {
        Self {
            mode: settings.mode,
            settings,
            phase: Phase::Closed,
            since: now,
            until: now,
            ended: Vec::new(),
            sent: Vec::new(),
            opened: Vec::new(),
            phases: 0,
            openings: 0,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
        self.ended.clear();
        self.sent.clear();
        self.phases += 1;
    }

    fn set_mode(&mut self, mode: Mode, now: Instant) {
        if mode == self.mode {
            return;
        }
        self.mode = mode;
        let forced = match mode {
            Mode::Open => Phase::Open,
            Mode::Closed => Phase::Closed,
            Mode::Automatic | Mode::Observe => return,
        };
        self.until = now;
        if self.phase != forced {
            self.enter(forced, now);
        }
    }

    fn lets_through(&self, last: bool, now: Instant) -> bool {
        match self.mode {
            Mode::Open => false,
            Mode::Observe => true,
            Mode::Closed | Mode::Automatic => self.would_admit(last, now),
        }
    }

    fn would_admit(&self, last: bool, now: Instant) -> bool {
        let probes_since = if self.phase == Phase::Open { self.until } else { self.since };
        if last && self.phase != Phase::Closed && now < probes_since + self.settings.open_for {
            return false;
        }
        let held = |probe: &&Sent| !probe.reported && now < probe.at + self.settings.probe_timeout;
        match self.phase {
            Phase::Closed => true,
            Phase::Open => now >= self.until,
            Phase::HalfOpen => {
                self.sent.iter().filter(held).count() < self.settings.probes as usize
            }
        }
    }

    /// Whether the call has a say.
    fn admit(&mut self, id: usize, last: bool, now: Instant) -> bool {
        let admitted = self.mode != Mode::Open && self.would_admit(last, now);
        if admitted && self.phase == Phase::Open {
            self.enter(Phase::HalfOpen, now);
        }
        if admitted && self.phase == Phase::HalfOpen {
            self.sent.push(Sent { id, at: now, reported: false, succeeded: false });
        }
        admitted
    }

    fn open(&mut self, asked: Option<Duration>, failed: bool, now: Instant, chance: f64) {
        let cap = self.settings.open_max;
        let lasting = self
            .opened
            .last()
            .map_or(self.settings.window, |last| (*last).max(self.settings.window));
        if failed && self.phase == Phase::Closed && now - self.since >= lasting {
            self.opened.clear();
        }
        let mut full = self.settings.open_for;
        for _ in 0..(self.opened.len() + usize::from(failed)).saturating_sub(1) {
            full = (full * 2).min(cap);
        }
        let own = full.mul_f64(0.5 + chance / 2.0);
        let told = asked.map(|asked| {
            let believed = asked.min(self.settings.retry_after_max);
            believed + (believed / 2).min(self.settings.open_for).mul_f64(chance)
        });
        let wait = match told {
            Some(told) if failed => own.max(told),
            Some(told) => told,
            None => own,
        };
        self.openings += 1;
        if failed {
            self.opened.push(wait);
        }
        self.until = now + wait;
        self.enter(Phase::Open, now);
    }

    fn recent(&self, now: Instant) -> Vec<&Ended> {
        let width = self.settings.window / 10;
        let tenth = |at: Instant| (at - self.since).as_nanos() / width.as_nanos();
        self.ended.iter().filter(|call| tenth(call.at) + 10 > tenth(now)).collect()
    }

    fn counts(&self, now: Instant) -> Counts {
        let recent = self.recent(now);
        let count = |which: fn(&Ended) -> bool| recent.iter().filter(|call| which(call)).count();
        Counts {
            calls: recent.len() as u64,
            failed: count(|call| call.failed) as u64,
            slow: count(|call| call.slow) as u64,
        }
    }

    fn must_trip(&self, now: Instant) -> bool {
        let recent = self.recent(now);
        let share = |bad: usize| bad as f64 / recent.len() as f64;
        let row = self.ended.iter().rev().take_while(|call| call.failed).count();
        row >= self.settings.consecutive_failures as usize
            || recent.len() >= self.settings.minimum_calls as usize
                && (share(recent.iter().filter(|call| call.failed).count())
                    >= self.settings.failure_rate
                    || share(recent.iter().filter(|call| call.slow).count())
                        >= self.settings.slow_call_rate)
    }

    fn record(&mut self, id: usize, sent_at: Instant, verdict: Verdict, now: Instant, chance: f64) {
        let slow = verdict == Verdict::Slow || now - sent_at >= self.settings.slow_call;
        let asked = match verdict {
            Verdict::Failure { retry_after } | Verdict::Throttled { retry_after } => retry_after,
            Verdict::Success | Verdict::Slow | Verdict::Ignored => None,
        };
        let forced = self.mode == Mode::Closed;
        match (self.phase, verdict) {
            (Phase::Closed, Verdict::Success | Verdict::Slow | Verdict::Failure { .. }) => {
                let failed = matches!(verdict, Verdict::Failure { .. });
                self.ended.push(Ended { at: now, failed, slow });
                if !forced && self.must_trip(now) {
                    self.open(asked, true, now, chance);
                }
            }
            (Phase::Closed, Verdict::Throttled { .. }) if asked.is_some() && !forced => {
                self.open(asked, false, now, chance);
            }
            (Phase::HalfOpen, _) => {
                let probe = self.sent.iter_mut().find(|probe| probe.id == id).unwrap();
                probe.reported = true;
                match verdict {
                    Verdict::Success if !slow => {
                        probe.succeeded = true;
                        let good = self.sent.iter().filter(|probe| probe.succeeded).count();
                        if good == self.settings.successes as usize {
                            self.enter(Phase::Closed, now);
                        }
                    }
                    Verdict::Success | Verdict::Slow | Verdict::Failure { .. } => {
                        self.open(asked, true, now, chance);
                    }
                    Verdict::Throttled { .. } => self.open(asked, false, now, chance),
                    Verdict::Ignored => {}
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    /// A call comes, with or without an attempt left after it.
    Admit {
        last: bool,
    },
    Steer(Mode),
    /// The outstanding call at this place (modulo their number) ends.
    End(usize, Verdict),
    /// The outstanding call at this place is never heard of again.
    Lose(usize),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let asked = || proptest::option::of((1_u64..90_000).prop_map(Duration::from_millis));
    prop_oneof![
        6 => Just(Verdict::Success),
        1 => Just(Verdict::Slow),
        6 => Just(Verdict::Failure { retry_after: None }),
        1 => asked().prop_map(|retry_after| Verdict::Failure { retry_after }),
        1 => asked().prop_map(|retry_after| Verdict::Throttled { retry_after }),
        1 => Just(Verdict::Ignored),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u64..1_500).prop_map(Step::Pass),
        1 => (1_500_u64..40_000).prop_map(Step::Pass),
        8 => proptest::bool::weighted(0.2).prop_map(|last| Step::Admit { last }),
        1 => (0..Mode::ALL.len()).prop_map(|mode| Step::Steer(Mode::ALL[mode])),
        8 => (any::<usize>(), verdict()).prop_map(|(place, verdict)| Step::End(place, verdict)),
        1 => any::<usize>().prop_map(Step::Lose),
    ];
    vec(step, 1..250)
}

proptest! {
    #[test]
    fn the_breaker_does_what_the_model_does(steps in steps(), chance in 0.0..1.0_f64, row in 2_u32..20) {
        let settings = Settings { consecutive_failures: row, minimum_calls: 5, ..settings() };
        let mut now = Instant::now();
        let mut breaker = Breaker::new(settings.clone(), now);
        let mut model = Model::new(settings.clone(), now);
        // Of a call without a say no phase is remembered.
        let mut outstanding: Vec<(usize, Option<usize>, Instant, Permit)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Steer(mode) => {
                    let before = model.phases;
                    model.set_mode(mode, now);
                    let transition = breaker.set_mode(mode, now);
                    prop_assert_eq!(transition.is_some(), model.phases != before);
                }
                Step::Admit { last } => {
                    prop_assert_eq!(breaker.admits(now), model.lets_through(false, now));
                    let goes = model.lets_through(last, now);
                    let was = model.phase;
                    let counts = model.admit(id, last, now);
                    match breaker.admit(last, now, chance) {
                        Ok(Admission { permit, transition, unenforced }) => {
                            prop_assert!(goes);
                            prop_assert_eq!(unenforced, !counts);
                            prop_assert_eq!(transition.is_some(), was != model.phase);
                            outstanding.push((id, counts.then_some(model.phases), now, permit));
                        }
                        Err(Refusal { retry_in }) => {
                            prop_assert!(!goes && !retry_in.is_zero());
                            let over = model.phase == Phase::HalfOpen || now + retry_in >= model.until;
                            prop_assert!(over, "sent back into the open time");
                        }
                    }
                }
                Step::End(place, verdict) if !outstanding.is_empty() => {
                    let (id, phases, sent_at, permit) = outstanding.swap_remove(place % outstanding.len());
                    let before = model.phases;
                    if phases == Some(before) {
                        model.record(id, sent_at, verdict, now, chance);
                    }
                    let transition = breaker.record(permit, verdict, now, chance);
                    prop_assert_eq!(transition.is_some(), model.phases != before);
                    if let Some(Transition { to: Phase::Open, open_for, .. }) = transition {
                        prop_assert_eq!(open_for, Some(model.until - now));
                        let longest = settings.retry_after_max + settings.open_for;
                        prop_assert!(open_for <= Some(settings.open_max.max(longest)));
                        if let Verdict::Failure { retry_after: Some(asked) }
                        | Verdict::Throttled { retry_after: Some(asked) } = verdict
                        {
                            let believed = asked.min(settings.retry_after_max);
                            prop_assert!(open_for >= Some(believed), "sooner than it was told");
                        }
                    }
                }
                Step::Lose(place) if !outstanding.is_empty() => {
                    drop(outstanding.swap_remove(place % outstanding.len()));
                }
                Step::End(..) | Step::Lose(_) => {}
            }
            prop_assert_eq!(breaker.phase(), model.phase);
            let numbers = breaker.numbers(now);
            prop_assert_eq!((numbers.mode, numbers.opened), (model.mode, model.openings));
            prop_assert_eq!(numbers.counts, model.counts(now));
        }
    }
}
