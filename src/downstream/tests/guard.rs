//! Work of any sort under a dependency's breaker, in paused time.

use std::future;

use super::*;

fn well() -> future::Ready<Judged<u8>> {
    future::ready(Judged { result: Ok(1), verdict: Verdict::Success })
}

fn sick() -> future::Ready<Judged<u8>> {
    let failure = Failure::new(ErrorCode::CallFailed, "no");
    future::ready(Err(StepError::Transient { failure, retry_in: None }).into())
}

fn subject(change: impl FnOnce(&mut Settings)) -> Downstream {
    let mut settings = settings("http://localhost:1");
    change(&mut settings);
    downstream(settings)
}

fn is_not_admitted(result: &Result<u8, StepError>) -> bool {
    matches!(result, Err(StepError::NotAdmitted { .. }))
}

#[tokio::test(start_paused = true)]
async fn an_outage_opens_the_breaker_and_a_probe_closes_it() {
    let downstream = subject(|_| {});
    let dependency = downstream.get("geocoder").unwrap();
    for _ in 0..3 {
        assert_eq!(dependency.state(), "closed");
        transient(dependency.guard(AMPLE, sick()).await.unwrap_err());
    }
    let mut begun = false;
    let refused = dependency
        .guard(AMPLE, async {
            begun = true;
            well().await
        })
        .await;
    assert!(is_not_admitted(&refused) && !begun, "the work is not begun");
    tokio::time::advance(10 * SECOND).await;
    assert!(dependency.admits());
    assert_eq!(dependency.guard(AMPLE, well()).await, Ok(1));
    assert_eq!(dependency.state(), "closed");
}

#[tokio::test(start_paused = true)]
async fn while_half_open_only_the_probes_go_through_and_a_dropped_one_frees_its_place() {
    let downstream = subject(|_| {});
    let dependency = downstream.get("geocoder").unwrap();
    for _ in 0..3 {
        transient(dependency.guard(AMPLE, sick()).await.unwrap_err());
    }
    tokio::time::advance(10 * SECOND).await;
    let mut probe = Box::pin(dependency.guard(AMPLE, future::pending::<Judged<u8>>()));
    assert!(futures_util::poll!(&mut probe).is_pending());
    assert_eq!((dependency.state(), dependency.admits()), ("half_open", false));
    assert!(is_not_admitted(&dependency.guard(AMPLE, well()).await));
    drop(probe);
    assert_eq!((dependency.state(), dependency.admits()), ("half_open", true));
    assert_eq!(dependency.guard(AMPLE, well()).await, Ok(1));
    assert_eq!(dependency.state(), "closed");
}

#[tokio::test(start_paused = true)]
async fn running_out_of_the_request_s_own_time_counts_only_if_it_was_long_enough_to_tell() {
    let hang = || future::pending::<Judged<u8>>();
    for (budget, state) in [(2 * SECOND, "closed"), (3 * SECOND, "open")] {
        let downstream = subject(|_| {});
        let dependency = downstream.get("geocoder").unwrap();
        for _ in 0..3 {
            let (error, _) = transient(dependency.guard(budget, hang()).await.unwrap_err());
            assert!(error.starts_with("call to geocoder did not end within"), "{error}");
            assert!(error.ends_with("(the request's time left)"), "{error}");
        }
        assert_eq!(dependency.state(), state, "{budget:?} of a timeout of 30 s");
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_out_of_time_is_counted_at_once_and_keeps_its_place_for_a_moment() {
    let downstream = subject(|settings| settings.max_in_flight = 1);
    let dependency = downstream.get("geocoder").unwrap();
    for _ in 0..3 {
        assert_eq!((dependency.state(), dependency.standing().in_flight), ("closed", 0));
        // Who called has no more time either, and waits no longer.
        let hang = dependency.guard(3 * SECOND, future::pending::<Judged<u8>>());
        assert!(tokio::time::timeout(3 * SECOND, hang).await.is_err());
    }
    assert_eq!(dependency.state(), "open", "three have failed");
    let downstream = subject(|settings| settings.max_in_flight = 1);
    let dependency = downstream.get("geocoder").unwrap();
    let mut hang = Box::pin(dependency.guard(3 * SECOND, future::pending::<Judged<u8>>()));
    assert!(tokio::time::timeout(3 * SECOND, &mut hang).await.is_err());
    assert_eq!(dependency.standing().in_flight, 1, "its connection is being closed");
    transient(hang.await.unwrap_err());
    assert_eq!(dependency.standing().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn without_time_left_nothing_is_begun() {
    let downstream = subject(|_| {});
    let error =
        downstream.get("geocoder").unwrap().guard(Duration::ZERO, well()).await.unwrap_err();
    assert!(transient(error).0.contains("was not begun"));
}

#[tokio::test(start_paused = true)]
async fn work_that_panics_gives_its_place_back() {
    let downstream = std::sync::Arc::new(subject(|settings| settings.max_in_flight = 1));
    let theirs = downstream.clone();
    let panicked = tokio::spawn(async move {
        let work = async { panic!("as a test") };
        theirs.get("geocoder").unwrap().guard::<u8>(AMPLE, work).await
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(downstream.get("geocoder").unwrap().guard(AMPLE, well()).await, Ok(1));
}

#[test]
fn the_usual_judgement_blames_the_service_for_what_may_pass_only() {
    let failure = Failure::new(ErrorCode::CallFailed, "no");
    let later = Some(SECOND);
    for (result, verdict) in [
        (Ok(1), Verdict::Success),
        (Err(StepError::Refused(failure.clone())), Verdict::Success),
        (
            Err(StepError::Transient { failure, retry_in: later }),
            Verdict::Failure { retry_after: later },
        ),
        (Err(StepError::NotAdmitted { on: "other".into(), retry_in: SECOND }), Verdict::Ignored),
    ] {
        assert_eq!(Judged::from(result).verdict, verdict);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_on_the_limits_goes_first_but_probes_are_those_that_are_parked_on_the_breaker()
 {
    let downstream = subject(|settings| settings.max_in_flight = 8);
    let dependency = downstream.get("geocoder").unwrap();
    assert_eq!(dependency.of_limits(), 0, "nobody is known to be parked there");
    dependency.bounds().parked.note();
    assert!(dependency.of_limits() > 8, "as many as have room, and a line");
    assert!(dependency.may_let_go().0 > 0, "others may have parked some on the breaker");
    for _ in 0..3 {
        transient(dependency.guard(AMPLE, sick()).await.unwrap_err());
    }
    assert_eq!((dependency.of_limits(), dependency.may_let_go().0), (0, 0), "it is open");
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(dependency.of_limits(), 1, "if nobody else is there to be a probe");
    dependency.parked();
    assert_eq!((dependency.of_limits(), dependency.may_let_go()), (0, (1, true)));
    dependency.steer(Some(Mode::Closed), None, None);
    assert_eq!((dependency.of_limits(), dependency.may_let_go().0), (1, 0), "one pace for both");
    let gone: Vec<_> = dependency.let_go_of_limits(1).collect();
    assert_eq!((gone.len(), dependency.of_limits()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_steered_holds_at_once_and_taken_back_the_settings_hold_again() {
    let downstream = subject(|settings| settings.max_in_flight = 1);
    let dependency = downstream.get("geocoder").unwrap();
    let steered = |what: &'static str, now: &str| vec![(what, now.to_owned())];
    assert_eq!(dependency.steer(Some(Mode::Open), None, None), steered("breaker", "open"));
    assert_eq!(dependency.steer(Some(Mode::Open), None, None), [], "once");
    assert!(is_not_admitted(&dependency.guard(AMPLE, well()).await) && !dependency.admits());
    assert_eq!(dependency.steer(Some(Mode::Closed), None, None), steered("breaker", "closed"));
    for _ in 0..10 {
        transient(dependency.guard(AMPLE, sick()).await.unwrap_err());
    }
    assert_eq!((dependency.state(), dependency.standing().failed), ("closed", 10));
    let hang = || Box::pin(dependency.guard(AMPLE, future::pending::<Judged<u8>>()));
    let mut first = hang();
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(is_not_admitted(&dependency.guard(AMPLE, well()).await), "one at once");
    let changed = dependency.steer(None, Some(2), None);
    assert_eq!(changed, [steered("breaker", "automatic"), steered("limit", "2")].concat());
    assert_eq!(dependency.guard(AMPLE, well()).await, Ok(1), "two at once");
    let standing = dependency.standing();
    assert_eq!((standing.in_flight, standing.max_in_flight), (1, 2));
    assert_eq!(dependency.steer(None, None, None), steered("limit", "1"));
    drop(first);
    assert_eq!(dependency.standing().in_flight, 0);
}
