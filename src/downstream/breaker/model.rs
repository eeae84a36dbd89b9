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
    phase: Phase,
    since: Instant,
    until: Instant,
    ended: Vec<Ended>,
    sent: Vec<Sent>,
    /// Open times for failures since the last lasting recovery.
    opened: Vec<Duration>,
    /// Phases so far.
    phases: usize,
}

impl Model {
    fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            phase: Phase::Closed,
            since: now,
            until: now,
            ended: Vec::new(),
            sent: Vec::new(),
            opened: Vec::new(),
            phases: 0,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
        self.ended.clear();
        self.sent.clear();
        self.phases += 1;
    }

    fn would_admit(&self, now: Instant) -> bool {
        let held = |probe: &&Sent| !probe.reported && now < probe.at + self.settings.probe_timeout;
        match self.phase {
            Phase::Closed => true,
            Phase::Open => now >= self.until,
            Phase::HalfOpen => {
                self.sent.iter().filter(held).count() < self.settings.probes as usize
            }
        }
    }

    fn admit(&mut self, id: usize, now: Instant) -> bool {
        let admitted = self.would_admit(now);
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
        let wait = match asked {
            Some(asked) if failed => own.max(asked).min(cap),
            Some(asked) => asked.min(cap),
            None => own,
        };
        if failed {
            self.opened.push(wait);
        }
        self.until = now + wait;
        self.enter(Phase::Open, now);
    }

    fn must_trip(&self, now: Instant) -> bool {
        let width = self.settings.window / 10;
        let tenth = |at: Instant| (at - self.since).as_nanos() / width.as_nanos();
        let recent: Vec<&Ended> =
            self.ended.iter().filter(|call| tenth(call.at) + 10 > tenth(now)).collect();
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
        let slow = now - sent_at >= self.settings.slow_call;
        let asked = match verdict {
            Verdict::Failure { retry_after } | Verdict::Throttled { retry_after } => retry_after,
            Verdict::Success | Verdict::Silent => None,
        };
        match (self.phase, verdict) {
            (Phase::Closed, Verdict::Success | Verdict::Failure { .. }) => {
                let failed = verdict != Verdict::Success;
                self.ended.push(Ended { at: now, failed, slow });
                if self.must_trip(now) {
                    self.open(asked, true, now, chance);
                }
            }
            (Phase::Closed, Verdict::Throttled { .. }) if asked.is_some() => {
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
                    Verdict::Success | Verdict::Failure { .. } => {
                        self.open(asked, true, now, chance);
                    }
                    Verdict::Throttled { .. } => self.open(asked, false, now, chance),
                    Verdict::Silent => {}
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Admit,
    /// The outstanding call at this place (modulo their number) ends.
    End(usize, Verdict),
    /// The outstanding call at this place is never heard of again.
    Lose(usize),
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let asked = || proptest::option::of((1_u64..90_000).prop_map(Duration::from_millis));
    prop_oneof![
        6 => Just(Verdict::Success),
        6 => Just(Verdict::Failure { retry_after: None }),
        1 => asked().prop_map(|retry_after| Verdict::Failure { retry_after }),
        1 => asked().prop_map(|retry_after| Verdict::Throttled { retry_after }),
        1 => Just(Verdict::Silent),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u64..1_500).prop_map(Step::Pass),
        1 => (1_500_u64..40_000).prop_map(Step::Pass),
        8 => Just(Step::Admit),
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
        let mut outstanding: Vec<(usize, usize, Instant, Permit)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Admit => {
                    prop_assert_eq!(breaker.admits(now), model.would_admit(now));
                    let was = model.phase;
                    let admitted = model.admit(id, now);
                    match breaker.admit(now, chance) {
                        Ok(Admission { permit, transition }) => {
                            prop_assert!(admitted);
                            prop_assert_eq!(transition.is_some(), was != model.phase);
                            outstanding.push((id, model.phases, now, permit));
                        }
                        Err(Refusal { retry_in }) => {
                            prop_assert!(!admitted && !retry_in.is_zero());
                            let over = model.phase == Phase::HalfOpen || now + retry_in >= model.until;
                            prop_assert!(over, "sent back into the open time");
                        }
                    }
                }
                Step::End(place, verdict) if !outstanding.is_empty() => {
                    let (id, phases, sent_at, permit) = outstanding.swap_remove(place % outstanding.len());
                    let before = model.phases;
                    if phases == before {
                        model.record(id, sent_at, verdict, now, chance);
                    }
                    let transition = breaker.record(permit, verdict, now, chance);
                    prop_assert_eq!(transition.is_some(), model.phases != before);
                    if let Some(Transition { to: Phase::Open, open_for, .. }) = transition {
                        prop_assert_eq!(open_for, Some(model.until - now));
                        prop_assert!(open_for <= Some(settings.open_max));
                    }
                }
                Step::Lose(place) if !outstanding.is_empty() => {
                    drop(outstanding.swap_remove(place % outstanding.len()));
                }
                Step::End(..) | Step::Lose(_) => {}
            }
            prop_assert_eq!(breaker.phase(), model.phase);
        }
    }
}
