//! A worker that is ended at each step of the way, and a request that ends its worker itself.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::json;

use crate::support::{Load, Place};

/// SIGKILL, as the shell counts it.
const KILLED: i32 = 9;
const ABORTED: i32 = 6;

/// A worker makes the queues and goes.
async fn queues(place: &Place) {
    assert_eq!(place.worker().await.drain().await.0, Some(0));
}

/// Has a worker die at the seventh request that comes to a step, with others in flight; another one
/// finds all of it.
async fn dies_at(step: &str) {
    let mut place = Place::new(&format!("dies_{step}")).await;
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "2s");
    queues(&place).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 200, 3).await;
    let mut doomed = place.worker_unready(&[("LONGSHORE_FAIL", &format!("{step}:kill@7"))]).await;
    assert_eq!(doomed.ended().await.signal(), Some(KILLED), "it was to end at {step}");
    let mut worker = place.worker().await;
    place.until_accounted(&load).await;
    let charged =
        place.database.number("select count(*) from longshore.requests where attempt > 1");
    assert_eq!(charged.await, 0, "nobody is charged for a worker that vanished");
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn killed_after_it_received_a_request() {
    dies_at("after_receive").await;
}

#[tokio::test]
async fn killed_after_the_claim() {
    dies_at("after_claim").await;
}

#[tokio::test]
async fn killed_after_the_call() {
    dies_at("after_call").await;
}

#[tokio::test]
async fn killed_before_the_commit() {
    dies_at("before_commit").await;
}

#[tokio::test]
async fn killed_when_the_commit_was_sent_and_not_answered() {
    dies_at("commit_sent").await;
}

#[tokio::test]
async fn killed_after_the_commit() {
    dies_at("after_commit").await;
}

#[tokio::test]
async fn killed_before_the_acknowledgement() {
    dies_at("before_ack").await;
}

#[tokio::test]
async fn killed_when_the_acknowledgement_was_sent() {
    dies_at("ack_sent").await;
}

#[tokio::test]
async fn killed_during_the_drain() {
    let mut place = Place::new("dies_draining").await;
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "2s");
    queues(&place).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 3).await;
    let mut doomed = place.worker_with(&[("LONGSHORE_FAIL", "during_drain:kill@1")]).await;
    doomed.until_done(50).await;
    doomed.signal("TERM");
    assert_eq!(doomed.ended().await.signal(), Some(KILLED));
    let mut worker = place.worker().await;
    place.until_accounted(&load).await;
    assert_eq!(worker.drain().await.0, Some(0));
}

/// Publishes a killer among its neighbours, starts workers until one of them lives, and looks at
/// what became of each.
async fn one_brings_its_worker_down(test: &str, step: &str, kind: &str) {
    let mut place = Place::new(test).await;
    place.set_value("WORKER__CONCURRENCY", "16");
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "2s");
    place.set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "3");
    queues(&place).await;
    let payload = |kind: &str| match kind {
        "user.address.verify" => json!({"address": "1 Main Street"}),
        _ => json!({"name": "A"}),
    };
    for number in 0..200 {
        if number == 40 {
            place.publish("killer", kind, "killer", payload(kind)).await;
        }
        let kind = ["user.profile.update", "user.address.verify"][number % 2];
        place.publish(&format!("good-{number}"), kind, &number.to_string(), payload(kind)).await;
    }
    let fail = format!("{step}:abort@killer");
    let mut deaths = 0;
    let mut worker = loop {
        let mut worker = place.worker_unready(&[("LONGSHORE_FAIL", &fail)]).await;
        tokio::select! {
            ended = worker.ended() => assert_eq!(ended.signal(), Some(ABORTED)),
            row = place.until_state("killer", "dead") => {
                assert_eq!(row.error_code.as_deref(), Some("crash_loop"), "{row:?}");
                break worker;
            }
        }
        deaths += 1;
        assert!(deaths < 10, "it should have been found out");
    };
    for number in 0..200 {
        let id = format!("good-{number}");
        let row = place.until_state(&id, "done").await;
        let history = place
            .database
            .query(
                "select row_to_json(a)::text from longshore.attempts a where request_id = $1",
                &[&id],
            )
            .await;
        let history: Vec<String> = history.iter().map(|row| row.get(0)).collect();
        assert_eq!(row.attempt, 1, "a neighbour is blamed: {row:?}, {history:?}");
    }
    // Its own three attempts, two that nobody was charged for, and the first one of a request that
    // is not claimed.
    assert!((5..=6).contains(&deaths), "{deaths}");
    place.broker.until_empty().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_call_that_aborts_its_worker_ends_as_crash_loop_and_its_neighbours_are_done() {
    one_brings_its_worker_down("abort_call", "after_call", "user.address.verify").await;
}

#[tokio::test]
async fn an_apply_step_that_aborts_its_worker_ends_as_crash_loop_and_its_neighbours_are_done() {
    one_brings_its_worker_down("abort_apply", "before_finish", "user.profile.update").await;
}
