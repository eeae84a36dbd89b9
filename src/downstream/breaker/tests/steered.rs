//! A person decides, or the caller does.

use super::*;

#[test]
fn what_the_caller_calls_slow_counts_as_slow_however_short_it_was() {
    let mut bench = Bench::new(settings());
    for _ in 0..9 {
        assert_eq!(bench.call(Verdict::Slow), None);
    }
    let opened = bench.call(Verdict::Slow).unwrap();
    assert_eq!((opened.why, opened.counts.slow, opened.counts.failed), (Why::SlowCallRate, 10, 0));
}

#[test]
fn forced_open_it_refuses_until_probes_decide_again() {
    let mut bench = Bench::new(settings());
    let early = bench.admit();
    let forced = bench.steer(Mode::Open).unwrap();
    assert_eq!((forced.to, forced.why, forced.open_for), (Phase::Open, Why::Steered, None));
    assert_eq!(bench.steer(Mode::Open), None, "it is already");
    bench.pass(Duration::from_secs(24 * 60 * 60));
    assert!(!bench.breaker.admits(bench.now), "no time ends what a person said");
    assert_eq!((bench.refused(0.0), bench.refused(0.5)), (4 * SECOND, 6 * SECOND));
    assert_eq!(bench.record(early, FAILURE), None);
    assert_eq!(bench.steer(Mode::Automatic), None, "nobody knows how it is, so it stays open");
    for _ in 0..3 {
        bench.call(Verdict::Success);
    }
    assert_eq!(bench.breaker.phase(), Phase::Closed);
    assert_eq!(bench.breaker.numbers(bench.now).opened, 0, "not by itself");
}

#[test]
fn forced_closed_it_lets_everything_through_and_counts() {
    let mut bench = Bench::new(settings());
    bench.open();
    let forced = bench.steer(Mode::Closed).unwrap();
    assert_eq!((forced.from, forced.to), (Phase::Open, Phase::Closed));
    for _ in 0..100 {
        assert_eq!(bench.call(Verdict::Failure { retry_after: Some(SECOND) }), None);
        assert_eq!(bench.call(Verdict::Throttled { retry_after: Some(SECOND) }), None);
    }
    assert_eq!(bench.breaker.numbers(bench.now).counts.failed, 100);
    assert_eq!(bench.steer(Mode::Automatic), None);
    assert_eq!(bench.call(FAILURE).unwrap().to, Phase::Open, "it knew all along");
}

#[test]
fn observing_it_lets_everything_through_and_tells_what_it_would_have_done() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.steer(Mode::Observe), None);
    let opened = bench.open();
    assert_eq!((opened.to, opened.mode), (Phase::Open, Mode::Observe));
    let admitted = bench.breaker.admit(false, bench.now, 0.5).unwrap();
    assert!(admitted.unenforced && bench.breaker.admits(bench.now));
    bench.pass(4 * SECOND);
    let probes = [bench.admit(), bench.admit()];
    let beyond = bench.breaker.admit(false, bench.now, 0.5).unwrap();
    assert!(beyond.unenforced, "a third one at once is no probe");
    assert_eq!(bench.record(beyond.permit, FAILURE), None, "and has no say");
    assert_eq!(bench.record(admitted.permit, FAILURE), None);
    for probe in probes {
        bench.record(probe, Verdict::Success);
    }
    assert_eq!(bench.call(Verdict::Success).unwrap().to, Phase::Closed);
    bench.open();
    assert_eq!(bench.steer(Mode::Automatic), None);
    assert!(!bench.breaker.admits(bench.now), "what it would do, it does from now on");
}

#[test]
fn a_last_attempt_is_a_probe_only_when_nobody_else_comes() {
    let mut bench = Bench::new(settings());
    bench.open();
    bench.pass(4 * SECOND);
    let refused = bench.breaker.admit(true, bench.now, 0.0).unwrap_err();
    assert_eq!(refused.retry_in, 4 * SECOND);
    assert_eq!(bench.breaker.phase(), Phase::Open, "it did not begin the half-open phase");
    bench.call(Verdict::Success);
    bench.pass(SECOND);
    assert_eq!(bench.breaker.admit(true, bench.now, 0.0).unwrap_err().retry_in, 3 * SECOND);
    bench.pass(3 * SECOND);
    let probe = bench.breaker.admit(true, bench.now, 0.0).unwrap().permit;
    assert_eq!(bench.record(probe, FAILURE).unwrap().to, Phase::Open);
    bench.pass(12 * SECOND);
    let alone = bench.breaker.admit(true, bench.now, 0.0).unwrap();
    assert_eq!(alone.transition.unwrap().to, Phase::HalfOpen, "nobody came: no deadlock");
}

#[test]
fn it_may_begin_as_the_settings_say() {
    let begun = |mode| Bench::new(Settings { mode, ..settings() }).breaker;
    assert_eq!(begun(Mode::Open).phase(), Phase::Open);
    assert!(!begun(Mode::Open).admits(Instant::now()));
    assert_eq!(begun(Mode::Observe).mode(), Mode::Observe);
    assert_eq!(begun(Mode::Closed).phase(), Phase::Closed);
}
