//! A worker that dies: whatever the instant, its work is found again and done once.

use longshore_dev::{proxy::Proxy, stub::Behaviour};
use serde_json::json;

use crate::support::{Load, Place, address, through, until};

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_loses_nothing() {
    let mut place = Place::new("killed").await;
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "2s");
    place.set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "20");
    // Some calls fail, so that the kills also meet work that the ledger has brought up again.
    place.stub.behave("geocoder", Behaviour::Fail { share: 0.1, seed: 7 });
    let mut worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 2_000, 3).await;
    for _ in 0..5 {
        worker.until_done(150).await;
        worker.kill().await;
        worker = place.worker().await;
    }
    place.until_accounted(&load).await;
    assert_eq!(place.database.count("running").await, 0, "no lease is left behind");
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_request_that_kills_its_worker_each_time_ends_as_crash_loop_and_alone() {
    let mut place = Place::new("crash_loop").await;
    // One slot: the others are in the prefetch of each worker that dies.
    place.set_value("WORKER__CONCURRENCY", "1");
    place.patient_dependencies("5s");
    place.stub.behave("geocoder", Behaviour::Hang);
    let mut worker = place.worker().await;
    place.publish("bad", "user.address.verify", "0", json!({"address": "1 Main Street"})).await;
    for number in 0..20 {
        let user = number.to_string();
        place
            .publish(&format!("good-{number}"), "user.profile.update", &user, json!({"name": "A"}))
            .await;
    }
    for death in 1..=5 {
        place.stub.until_arrivals("geocoder", death).await;
        worker.kill().await;
        worker = place.worker_unready(&[]).await;
    }
    let row = place.until_state("bad", "dead").await;
    assert_eq!(row.error_code.as_deref(), Some("crash_loop"), "{row:?}");
    assert_eq!(
        place.stub.calls()["bad"].calls,
        5,
        "twice at nobody's charge, and as often as it may be tried"
    );
    for number in 0..20 {
        let row = place.until_state(&format!("good-{number}"), "done").await;
        assert_eq!(row.attempt, 1, "a neighbour is blamed: {row:?}");
        assert_eq!(place.database.version(&number.to_string()).await, 1);
    }
    place.broker.until_empty().await;
}

#[tokio::test]
async fn a_worker_that_lost_its_line_is_fenced_off_when_another_has_taken_over() {
    let mut place = Place::new("zombie").await;
    place.patient_dependencies("4s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 2_000 });
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    let zombie = place.worker_with(&[("AMQP_URL", &far)]).await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    place.stub.until_arrivals("geocoder", 1).await;
    let other = place.worker().await;
    line.refuse();
    line.cut();
    place.stub.until_arrivals("geocoder", 2).await;
    // Its call is answered first, and comes too late all the same.
    let late = zombie.until_outcome("a-1", "duplicate").await;
    assert_eq!((&late["attempt"], late["call_ms"].is_number()), (&json!(1), true));
    assert_eq!(zombie.metric("longshore_fenced_total").await, Some(1.0));
    assert_eq!(place.database.row("a-1").await.unwrap().state, "running");
    let done = other.until_outcome("a-1", "done").await;
    assert_eq!((&done["attempt"], &done["redelivered"]), (&json!(1), &json!(true)));
    assert_eq!(other.metric("longshore_takeovers_total").await, Some(1.0));
    let calls = place.stub.calls()["a-1"].clone();
    assert_eq!((calls.calls, calls.effects, calls.bodies_differ), (2, 1, false));
    assert_eq!(place.until_state("a-1", "done").await.attempt, 1);
    line.pass();
    until("the one that was cut off consumes again", async || {
        let (status, body) = zombie.get("/health/ready").await?;
        (status == 200 && body.contains("consuming")).then_some(())
    })
    .await;
    place.broker.until_empty().await;
}

#[tokio::test]
async fn a_worker_that_is_frozen_past_its_heartbeat_wakes_up_fenced_off() {
    let mut place = Place::new("frozen").await;
    place.set_value("QUEUE__HEARTBEAT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "10s").patient_dependencies("5s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 500 });
    let mut frozen = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 400, 4).await;
    // In the middle of everything: calls under way, commits under way, more in the prefetch.
    place.stub.until_arrivals("geocoder", 8).await;
    frozen.signal("STOP");
    // The broker gives it up after two heartbeats, and another one does all of it.
    let other = place.worker().await;
    place.until_accounted(&load).await;
    assert!(other.metric("longshore_takeovers_total").await.unwrap_or_default() >= 1.0);
    let took_effect = place.database.number("select sum(version)::bigint from app.users").await;
    frozen.signal("CONT");
    // It wakes up with answers to its calls and with commits that it believes to be its own.
    let lost = frozen.until_event("queue.disconnected").await;
    assert_eq!(lost["cause"], "lost", "{lost}");
    until("it consumes again", async || {
        let (status, body) = frozen.get("/health/ready").await?;
        (status == 200 && body.contains("consuming")).then_some(())
    })
    .await;
    until("what it held has met its fence", async || {
        let fenced = frozen.metric("longshore_fenced_total").await?;
        (fenced >= 1.0).then_some(())
    })
    .await;
    assert_eq!(
        place.database.number("select sum(version)::bigint from app.users").await,
        took_effect,
        "the one that woke up has changed something"
    );
    place.publish_load(&mut load, 100, 4).await;
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(frozen.drain().await.0, Some(0));
}
