//! The limit beside a dependency that is simulated, in a time of its own.

use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::{collection::vec, prelude::*};

use super::*;

const CEILING: usize = 400;

/// A dependency for which more than `at_best` calls at once are no better: one that hinders itself
/// does less then, and takes twice as long at its best; one that lines them up does as much, and each
/// waits for its turn.
#[derive(Clone, Copy)]
struct Dependency {
    alone: Duration,
    at_best: f64,
    lines_up: bool,
}

impl Dependency {
    fn takes(self, at_once: usize, chance: &mut fastrand::Rng) -> Duration {
        let crowd = at_once as f64 / self.at_best;
        let longer = if self.lines_up { crowd.max(1.0) } else { 1.0 + crowd * crowd };
        self.alone.mul_f64(longer * (0.8 + 0.4 * chance.f64()))
    }
}

/// Calls one after another, as many at once as the limit and the demand allow.
struct Simulation {
    begin: Instant,
    now: Duration,
    /// End, begin, how many at once, whether it fails.
    under_way: BinaryHeap<Reverse<(Duration, Duration, usize, bool)>>,
    chance: fastrand::Rng,
    /// More than this many never want to be under way at once.
    demand: usize,
    failing: f64,
}

impl Simulation {
    fn new() -> Self {
        Self {
            begin: Instant::now(),
            now: Duration::ZERO,
            under_way: BinaryHeap::new(),
            chance: fastrand::Rng::with_seed(7),
            demand: usize::MAX,
            failing: 0.0,
        }
    }

    /// Calls for this long, and returns how many were done; `limit` is asked anew each time.
    fn run(
        &mut self,
        dependency: Dependency,
        time: Duration,
        mut learn: impl FnMut(Option<Sample>, Instant) -> usize,
    ) -> u64 {
        let (until, mut done) = (self.now + time, 0);
        let mut limit = learn(None, self.begin + self.now);
        loop {
            while self.under_way.len() < limit.min(self.demand) {
                let at_once = self.under_way.len() + 1;
                let took = dependency.takes(at_once, &mut self.chance);
                let fails = self.chance.f64() < self.failing;
                self.under_way.push(Reverse((self.now + took, self.now, at_once, fails)));
            }
            let Some(Reverse((end, begun, at_once, fails))) = self.under_way.pop() else {
                return done;
            };
            if end > until {
                self.under_way.push(Reverse((end, begun, at_once, fails)));
                self.now = until;
                return done;
            }
            self.now = end;
            done += u64::from(!fails);
            let sample = Sample { begun: self.begin + begun, at_once, took: end - begun };
            limit = learn((!fails).then_some(sample), self.begin + self.now);
        }
    }

    fn adaptive(&mut self, limit: &mut Adaptive, dependency: Dependency, time: Duration) -> u64 {
        self.run(dependency, time, |sample, now| {
            if let Some(sample) = sample {
                limit.succeeded(sample, now);
            }
            limit.limit()
        })
    }
}

/// What the best of all fixed limits does in this time.
fn best_fixed(dependency: Dependency, time: Duration) -> u64 {
    (0..40)
        .map(|step| 1.15_f64.powi(step) as usize)
        .map(|fixed| Simulation::new().run(dependency, time, |_, _| fixed))
        .max()
        .unwrap_or_default()
}

fn new() -> Adaptive {
    Adaptive::new(1, CEILING, Instant::now())
}

#[test]
fn it_finds_a_limit_that_does_nearly_as_much_as_the_best_fixed_one() {
    for (at_best, millis) in [(2.0, 50), (10.0, 20), (40.0, 100), (150.0, 10)] {
        for lines_up in [false, true] {
            let alone = Duration::from_millis(millis);
            let dependency = Dependency { alone, at_best, lines_up };
            let (mut limit, mut simulation) = (new(), Simulation::new());
            let time = alone * 1_000;
            simulation.adaptive(&mut limit, dependency, time);
            let (done, best) =
                (simulation.adaptive(&mut limit, dependency, time), best_fixed(dependency, time));
            assert!(done as f64 >= 0.85 * best as f64, "{done} of {best} at best {at_best}");
            // As much is done with many more in line, but each of them waits.
            let much = 2.0 * at_best + 1.0;
            assert!(limit.limit <= much, "{} at best {at_best}", limit.limit);
        }
    }
}

#[test]
fn it_follows_when_the_optimum_moves() {
    let (mut limit, mut simulation) = (new(), Simulation::new());
    let alone = Duration::from_millis(50);
    for at_best in [40.0, 8.0, 100.0, 20.0] {
        let dependency = Dependency { alone, at_best, lines_up: false };
        // It is given the time that a thousand calls take one after another, alone.
        simulation.adaptive(&mut limit, dependency, alone * 1_000);
        let time = alone * 1_000;
        let (done, best) =
            (simulation.adaptive(&mut limit, dependency, time), best_fixed(dependency, time));
        assert!(done as f64 >= 0.85 * best as f64, "{done} of {best} at best {at_best}");
    }
}

#[test]
fn a_dependency_that_becomes_slower_for_everybody_does_not_drive_it_to_the_floor() {
    let (mut limit, mut simulation) = (new(), Simulation::new());
    let quick = Dependency { alone: Duration::from_millis(20), at_best: 40.0, lines_up: false };
    simulation.adaptive(&mut limit, quick, Duration::from_secs(20));
    let slow = Dependency { alone: Duration::from_millis(200), ..quick };
    let mut lowest = usize::MAX;
    for _ in 0..100 {
        simulation.adaptive(&mut limit, slow, Duration::from_secs(1));
        lowest = lowest.min(limit.limit());
    }
    assert!(lowest >= 8, "it fell to {lowest} of about 40");
}

#[test]
fn errors_that_have_nothing_to_do_with_load_do_not_move_it() {
    let (mut limit, mut simulation) = (new(), Simulation::new());
    simulation.failing = 0.3;
    let dependency =
        Dependency { alone: Duration::from_millis(20), at_best: 40.0, lines_up: false };
    simulation.adaptive(&mut limit, dependency, Duration::from_secs(30));
    assert!((20..=90).contains(&(limit.limit())), "{}", limit.limit);
}

#[test]
fn it_does_not_grow_while_nobody_reaches_it() {
    let (mut limit, mut simulation) = (new(), Simulation::new());
    simulation.demand = 3;
    let dependency =
        Dependency { alone: Duration::from_millis(20), at_best: 100.0, lines_up: false };
    simulation.adaptive(&mut limit, dependency, Duration::from_secs(60));
    assert_eq!(limit.limit(), FEWEST);
}

#[test]
fn a_look_at_half_of_it_ends_when_nobody_comes() {
    let mut limit = new();
    let begin = Instant::now();
    let took = Duration::from_millis(100);
    let mut now = begin;
    for _ in 0..FEWEST {
        now += took;
        limit.succeeded(Sample { begun: begin, at_once: FEWEST, took }, now);
    }
    assert_eq!(limit.limit(), FEWEST / 2, "it looks at half");
    now += took * (PATIENCE + 1);
    limit.succeeded(Sample { begun: now - took, at_once: 1, took }, now);
    assert_eq!(limit.limit(), FEWEST);
}

#[test]
fn being_told_that_it_is_too_much_lowers_it_once_for_each_look() {
    let mut limit = new();
    for _ in 0..50 {
        limit.throttled();
    }
    assert_eq!(limit.limit(), 9);
}

#[derive(Debug, Clone)]
enum Step {
    Succeed { at_once: usize, micros: u64 },
    Throttle,
    Bound { floor: usize, ceiling: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (1_usize..500, 1_u64..10_000_000)
            .prop_map(|(at_once, micros)| Step::Succeed { at_once, micros }),
        2 => Just(Step::Throttle),
        1 => (0_usize..50, 0_usize..500).prop_map(|(floor, ceiling)| Step::Bound { floor, ceiling }),
    ];
    vec(step, 1..500)
}

proptest! {
    #[test]
    fn whatever_comes_it_stays_within_its_bounds(steps in steps()) {
        let mut now = Instant::now();
        let mut limit = Adaptive::new(4, 300, now);
        let (mut lowest, mut highest) = (4, 300);
        for step in steps {
            match step {
                Step::Succeed { at_once, micros } => {
                    let (begun, took) = (now, Duration::from_micros(micros));
                    now += took;
                    limit.succeeded(Sample { begun, at_once, took }, now);
                }
                Step::Throttle => limit.throttled(),
                Step::Bound { floor, ceiling } => {
                    limit.bound(floor, ceiling);
                    highest = ceiling.max(1);
                    lowest = floor.clamp(1, highest);
                }
            }
            prop_assert!(limit.limit() <= highest && limit.limit() >= 1);
            prop_assert!(limit.limit >= lowest as f64 && limit.limit <= highest as f64);
        }
    }
}
