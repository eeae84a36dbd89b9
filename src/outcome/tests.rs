use super::*;

fn failure() -> Failure {
    Failure::new(ErrorCode::CallFailed, "no answer")
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 3,
        initial_delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(60),
        multiplier: 2.0,
    }
}

fn transient(retry_in: Option<Duration>) -> StepError {
    StepError::Transient { failure: failure(), retry_in }
}

#[test]
fn every_outcome_has_one_settlement() {
    let due_in = Duration::ZERO;
    for (outcome, settlement) in [
        (Outcome::Done, Settlement::Ack),
        (Outcome::Duplicate, Settlement::Ack),
        (Outcome::Retry { failure: failure(), due_in }, Settlement::Ack),
        (Outcome::Parked { on: "mailer".into(), due_in: Some(due_in) }, Settlement::Ack),
        (Outcome::Dead { failure: failure() }, Settlement::Ack),
        (Outcome::GivenBack { why: GiveBack::Stop }, Settlement::GiveBack),
        (Outcome::Rejected { failure: failure() }, Settlement::Reject),
    ] {
        assert_eq!(outcome.settlement(), settlement, "{}", outcome.name());
    }
}

#[test]
fn a_refusal_is_final_at_the_first_attempt() {
    assert_eq!(
        after_failure(StepError::Refused(failure()), 1, &policy(), 0.5),
        Outcome::Dead { failure: failure() }
    );
}

#[test]
fn a_transient_failure_is_retried_until_the_attempts_are_used_up() {
    let delay = |attempt| match after_failure(transient(None), attempt, &policy(), 0.0) {
        Outcome::Retry { due_in, .. } => Some(due_in.as_millis()),
        _ => None,
    };
    assert_eq!([delay(1), delay(2), delay(3)], [Some(500), Some(1_000), None]);
    let Outcome::Dead { failure } = after_failure(transient(None), 3, &policy(), 0.0) else {
        panic!("the last attempt is the last")
    };
    assert_eq!(failure.code, ErrorCode::Attempts);
    assert_eq!(failure.error, "attempt 3 of 3 failed: call_failed: no answer");
}

#[test]
fn who_asks_us_to_come_back_later_is_believed_within_bounds() {
    let due_in =
        |asked| match after_failure(transient(Some(Duration::from_secs(asked))), 1, &policy(), 0.0)
        {
            Outcome::Retry { due_in, .. } => due_in,
            other => panic!("{other:?}"),
        };
    assert_eq!(due_in(7), Duration::from_secs(7));
    assert_eq!(due_in(0), Duration::from_millis(500), "not sooner than our own patience");
    assert_eq!(due_in(100_000), Duration::from_secs(60), "not later than max_delay");
}

#[test]
fn what_was_not_admitted_is_parked_whatever_the_attempt() {
    let refused = StepError::NotAdmitted { on: "mailer".into(), retry_in: Duration::from_secs(9) };
    let parked = Outcome::Parked { on: "mailer".into(), due_in: Some(Duration::from_secs(9)) };
    assert_eq!(after_failure(refused, 99, &policy(), 0.5), parked);
}

#[test]
fn codes_have_distinct_names_and_a_meaning() {
    let names: std::collections::BTreeSet<&str> =
        ErrorCode::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), ErrorCode::ALL.len());
    assert!(ErrorCode::ALL.iter().all(|code| !code.meaning().trim().is_empty()));
}
