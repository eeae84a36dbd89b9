#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const FAILURE: Verdict = Verdict::Failure { retry_after: None };

pub(super) fn settings() -> Settings {
    Settings {
        mode: Mode::Automatic,
        failure_rate: 0.5,
        window: 10 * SECOND,
        minimum_calls: 10,
        consecutive_failures: 5,
        slow_call: 3 * SECOND,
        slow_call_rate: 0.8,
        open_for: 4 * SECOND,
        open_max: 60 * SECOND,
        retry_after_max: 100 * SECOND,
        probes: 2,
        successes: 3,
        probe_timeout: 5 * SECOND,
    }
}

/// A breaker with a clock of its own, and no jitter: the whole open time each time.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        assert_eq!(settings.problems(), []);
        let now = Instant::now();
        Self { breaker: Breaker::new(settings, now), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn admit(&mut self) -> Permit {
        self.breaker.admit(false, self.now, 1.0).unwrap().permit
    }

    fn record(&mut self, permit: Permit, verdict: Verdict) -> Option<Transition> {
        self.breaker.record(permit, verdict, self.now, 1.0)
    }

    fn call(&mut self, verdict: Verdict) -> Option<Transition> {
        let permit = self.admit();
        self.record(permit, verdict)
    }

    /// Fails until it opens and returns the transition.
    fn open(&mut self) -> Transition {
        (0..100).find_map(|_| self.call(FAILURE)).unwrap()
    }

    /// Waits out the open time and closes it with probes.
    fn recover(&mut self, open_for: Duration) {
        self.pass(open_for);
        for _ in 0..self.breaker.settings.successes {
            self.call(Verdict::Success);
        }
        assert_eq!(self.breaker.phase(), Phase::Closed);
    }

    fn refused(&mut self, chance: f64) -> Duration {
        self.breaker.admit(false, self.now, chance).unwrap_err().retry_in
    }

    fn steer(&mut self, mode: Mode) -> Option<Transition> {
        self.breaker.set_mode(mode, self.now)
    }
}

#[test]
fn failures_in_a_row_open_it_however_few_calls_there_were() {
    let mut bench = Bench::new(settings());
    for _ in 0..4 {
        assert_eq!(bench.call(FAILURE), None);
    }
    let opened = bench.call(FAILURE).unwrap();
    assert_eq!(
        (opened.from, opened.to, opened.why),
        (Phase::Closed, Phase::Open, Why::ConsecutiveFailures)
    );
    assert_eq!((opened.consecutive, opened.open_for), (5, Some(4 * SECOND)));
    assert!(!bench.breaker.admits(bench.now));
}

#[test]
fn the_failure_rate_opens_it_only_from_the_minimum_of_calls_on() {
    let mut bench = Bench::new(settings());
    for _ in 0..4 {
        assert_eq!(bench.call(FAILURE), None);
        assert_eq!(bench.call(Verdict::Success), None);
    }
    assert_eq!(bench.call(FAILURE), None, "five of nine");
    let opened = bench.call(Verdict::Success).unwrap();
    assert_eq!(opened.why, Why::FailureRate);
    assert_eq!((opened.counts.failed, opened.counts.calls), (5, 10));
}

#[test]
fn what_the_window_has_forgotten_does_not_open_it() {
    let mut bench = Bench::new(Settings { consecutive_failures: 100, ..settings() });
    for _ in 0..9 {
        assert_eq!(bench.call(FAILURE), None);
    }
    bench.pass(10 * SECOND);
    assert_eq!(bench.call(FAILURE), None, "the first in a new window");
    bench.pass(9 * SECOND);
    for _ in 0..8 {
        assert_eq!(bench.call(FAILURE), None);
    }
    assert_eq!(bench.call(FAILURE).unwrap().counts.calls, 10, "nine seconds are within the window");
}

#[test]
fn a_healthy_past_does_not_hide_a_sick_present() {
    let mut bench = Bench::new(Settings { consecutive_failures: 1000, ..settings() });
    for _ in 0..10_000 {
        bench.call(Verdict::Success);
    }
    bench.pass(10 * SECOND);
    let failures = (1..).find(|_| bench.call(FAILURE).is_some()).unwrap();
    assert_eq!(failures, 10);
}

#[test]
fn slow_calls_open_it_though_they_succeed() {
    let mut bench = Bench::new(settings());
    let permits: Vec<Permit> = (0..10).map(|_| bench.admit()).collect();
    bench.pass(3 * SECOND);
    let opened =
        permits.into_iter().find_map(|permit| bench.record(permit, Verdict::Success)).unwrap();
    assert_eq!((opened.why, opened.counts.slow), (Why::SlowCallRate, 10));
}

#[test]
fn the_ignored_and_throttling_without_a_time_count_neither_way_while_closed() {
    let mut bench = Bench::new(settings());
    for _ in 0..4 {
        bench.call(FAILURE);
    }
    for _ in 0..100 {
        assert_eq!(bench.call(Verdict::Ignored), None);
        assert_eq!(bench.call(Verdict::Throttled { retry_after: None }), None);
        assert_eq!(bench.call(Verdict::Throttled { retry_after: Some(Duration::ZERO) }), None);
    }
    assert_eq!(bench.call(FAILURE).unwrap().counts.calls, 5, "they did not break the row either");
}

#[test]
fn a_straggler_from_before_the_trip_does_not_close_the_circuit() {
    let mut bench = Bench::new(Settings { successes: 1, ..settings() });
    let (early, another, third) = (bench.admit(), bench.admit(), bench.admit());
    bench.open();
    assert_eq!(bench.record(early, Verdict::Success), None);
    assert_eq!(bench.breaker.phase(), Phase::Open);
    bench.pass(4 * SECOND);
    let probe = bench.admit();
    assert_eq!(bench.record(another, Verdict::Success), None);
    assert_eq!(bench.record(third, FAILURE), None);
    assert_eq!(bench.breaker.phase(), Phase::HalfOpen, "only its own probes decide");
    assert_eq!(bench.record(probe, Verdict::Success).unwrap().to, Phase::Closed);
}

#[test]
fn no_more_probes_at_once_than_allowed_and_enough_of_them_close_it() {
    let mut bench = Bench::new(settings());
    bench.open();
    bench.pass(4 * SECOND);
    let admission = bench.breaker.admit(false, bench.now, 1.0).unwrap();
    assert_eq!(admission.transition.unwrap().to, Phase::HalfOpen);
    assert!(bench.breaker.admits(bench.now));
    let second = bench.admit();
    assert!(!bench.breaker.admits(bench.now));
    assert_eq!(bench.refused(0.0), SECOND / 2, "soon, for the probes may be back by then");
    assert_eq!(bench.record(second, Verdict::Success), None);
    assert_eq!(bench.call(Verdict::Success), None);
    let closed = bench.record(admission.permit, Verdict::Success).unwrap();
    assert_eq!(
        (closed.from, closed.to, closed.why),
        (Phase::HalfOpen, Phase::Closed, Why::Recovered)
    );
}

#[test]
fn a_failed_or_slow_probe_opens_it_again() {
    for (takes, verdict) in [(Duration::ZERO, FAILURE), (3 * SECOND, Verdict::Success)] {
        let mut bench = Bench::new(settings());
        bench.open();
        bench.pass(4 * SECOND);
        let probe = bench.admit();
        bench.pass(takes);
        let opened = bench.record(probe, verdict).unwrap();
        assert_eq!(
            (opened.from, opened.to, opened.why),
            (Phase::HalfOpen, Phase::Open, Why::ProbeFailed)
        );
        assert_eq!(opened.open_for, Some(8 * SECOND));
    }
}

#[test]
fn an_ignored_probe_gives_its_place_back_and_decides_nothing() {
    let mut bench = Bench::new(Settings { probes: 1, successes: 1, ..settings() });
    bench.open();
    bench.pass(4 * SECOND);
    for _ in 0..10 {
        assert_eq!(bench.call(Verdict::Ignored), None);
    }
    assert_eq!(bench.call(Verdict::Success).unwrap().to, Phase::Closed);
}

#[test]
fn a_lost_probe_holds_its_place_only_until_it_expires() {
    let mut bench = Bench::new(Settings { probes: 1, successes: 2, ..settings() });
    bench.open();
    bench.pass(4 * SECOND);
    let lost = bench.admit();
    bench.pass(5 * SECOND - Duration::from_millis(1));
    assert!(bench.breaker.admit(false, bench.now, 0.5).is_err());
    bench.pass(Duration::from_millis(1));
    let second = bench.admit();
    assert_eq!(bench.record(second, Verdict::Success), None);
    let opened = bench.record(lost, FAILURE).unwrap();
    assert_eq!(opened.to, Phase::Open, "late, yet of this half-open phase");
}

#[test]
fn the_open_time_doubles_up_to_the_longest_and_is_spread_by_chance() {
    let mut bench = Bench::new(Settings { consecutive_failures: 1, ..settings() });
    let mut wait = bench.open().open_for.unwrap();
    let mut waits = vec![wait.as_secs()];
    for _ in 0..5 {
        bench.pass(wait);
        wait = bench.open().open_for.unwrap();
        waits.push(wait.as_secs());
    }
    assert_eq!(waits, [4, 8, 16, 32, 60, 60]);
    bench.pass(wait);
    let probe = bench.admit();
    let opened = bench.breaker.record(probe, FAILURE, bench.now, 0.0).unwrap();
    assert_eq!(opened.open_for, Some(30 * SECOND));
}

#[test]
fn it_forgets_that_it_grew_only_after_it_stayed_closed_as_long_as_it_was_open() {
    let mut bench = Bench::new(Settings { consecutive_failures: 1, ..settings() });
    for expected in [4, 8, 16] {
        let open_for = bench.open().open_for.unwrap();
        assert_eq!(open_for, expected * SECOND, "it falls over again at once");
        bench.recover(open_for);
    }
    bench.pass(16 * SECOND - Duration::from_millis(1));
    assert_eq!(bench.open().open_for, Some(32 * SECOND));
    bench.recover(32 * SECOND);
    bench.pass(32 * SECOND);
    assert_eq!(bench.open().open_for, Some(4 * SECOND));
}

#[test]
fn a_retry_after_is_never_cut_short_up_to_the_longest_that_is_believed() {
    for (asked, soonest, latest) in [(1, 2, 4), (20, 20, 24), (90, 90, 94), (100_000, 100, 104)] {
        for (chance, expected) in [(0.0, soonest), (1.0, latest)] {
            let mut bench = Bench::new(Settings { consecutive_failures: 1, ..settings() });
            let permit = bench.admit();
            let failure = Verdict::Failure { retry_after: Some(asked * SECOND) };
            let opened = bench.breaker.record(permit, failure, bench.now, chance).unwrap();
            assert_eq!(opened.open_for, Some(expected * SECOND), "{asked} s asked, {chance}");
        }
    }
}

#[test]
fn a_throttled_call_with_a_time_holds_the_others_until_then_and_lets_nothing_grow() {
    let mut bench = Bench::new(Settings { consecutive_failures: 1, ..settings() });
    for asked in [7, 7, 7] {
        let permit = bench.admit();
        let throttled = Verdict::Throttled { retry_after: Some(asked * SECOND) };
        let held = bench.breaker.record(permit, throttled, bench.now, 0.0).unwrap();
        assert_eq!(
            (held.to, held.why, held.open_for),
            (Phase::Open, Why::Throttled, Some(asked * SECOND))
        );
        assert_eq!(bench.refused(0.0), asked * SECOND);
        bench.recover(asked * SECOND);
    }
    assert_eq!(bench.open().open_for, Some(4 * SECOND), "the first trip for failures");
}

#[test]
fn a_throttled_probe_without_a_time_waits_one_open_time() {
    let mut bench = Bench::new(settings());
    bench.open();
    bench.pass(4 * SECOND);
    let held = bench.call(Verdict::Throttled { retry_after: None }).unwrap();
    assert_eq!((held.why, held.open_for), (Why::Throttled, Some(4 * SECOND)));
}

#[test]
fn those_refused_together_are_told_to_come_back_apart_and_not_before_it_is_over() {
    let mut bench = Bench::new(settings());
    bench.open();
    bench.pass(SECOND);
    let waits: Vec<Duration> = (0..4).map(|i| bench.refused(f64::from(i) / 4.0)).collect();
    assert_eq!(waits, [3 * SECOND, 4 * SECOND, 5 * SECOND, 6 * SECOND]);
}

#[test]
fn every_mistake_in_the_settings_is_named() {
    let wrong = Settings {
        mode: Mode::Automatic,
        failure_rate: f64::NAN,
        window: Duration::ZERO,
        minimum_calls: 0,
        consecutive_failures: 0,
        slow_call: Duration::MAX,
        slow_call_rate: 1.1,
        open_for: 2 * SECOND,
        open_max: SECOND,
        retry_after_max: Duration::ZERO,
        probes: 0,
        successes: 0,
        probe_timeout: Duration::ZERO,
    };
    let mut named: Vec<String> = wrong.problems().into_iter().map(|(setting, _)| setting).collect();
    named.sort();
    let all = "consecutive_failures failure_rate minimum_calls open_max probe_timeout probes \
               retry_after_max slow_call slow_call_rate successes window";
    assert_eq!(named.join(" "), all);
}

mod steered;
