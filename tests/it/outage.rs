//! Outages: whatever goes away and comes back, the worker goes on by itself and burns nothing.

#![expect(clippy::print_stdout, reason = "what was measured is for people to read")]

use std::time::{Duration, Instant};

use longshore_dev::{
    place::Private,
    postgres::Postgres,
    proxy::{Direction, Proxy},
    rabbit::Rabbit,
    services::Services,
    stub::Behaviour,
};
use serde_json::json;

use crate::support::{Load, Place, Worker, address, through, until};

/// How long a worker may take to go on once everything is back. The longest delay between two
/// attempts to connect is half a second in these tests, but a broker that has just come back is
/// slow for a while.
const GOES_ON: Duration = Duration::from_secs(15);

/// Waits for the next request done, and tells how long after `back` it came.
async fn until_it_goes_on(worker: &Worker, back: Instant, after: &str) {
    worker.until_done(worker.done() + 1).await;
    let took = back.elapsed();
    println!("{after}: the first request was done {took:?} after the return");
    assert!(took < GOES_ON, "{after}: {took:?}");
}

/// Waits until the readiness probe answers with this status and state.
async fn until_probe(worker: &Worker, status: u16, state: &str) -> String {
    until(&format!("the probe says {status} {state}"), async || {
        let (answered, body) = worker.get("/health/ready").await?;
        (answered == status && body.contains(&format!("\"{state}\""))).then_some(body)
    })
    .await
}

#[tokio::test]
async fn a_broker_that_is_stopped_killed_or_closes_connections_is_survived_under_load() {
    let dir = Private::new("outage_broker").unwrap();
    let mut rabbit = Rabbit::start(dir.path().join("node"), "outage").await.unwrap();
    let postgres = Services::shared().await.unwrap().postgres;
    let mut place = Place::on("broker_outage", &rabbit.url(), &postgres.admin_url()).await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 100 });
    let mut worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 4_000, 2).await;

    worker.until_done(200).await;
    rabbit.stop().await.unwrap();
    until_probe(&worker, 503, "reconnecting").await;
    rabbit.start_again().await.unwrap();
    until_it_goes_on(&worker, Instant::now(), "stopped in order").await;

    worker.until_done(worker.done() + 200).await;
    rabbit.kill().await;
    until_probe(&worker, 503, "reconnecting").await;
    rabbit.start_again().await.unwrap();
    until_it_goes_on(&worker, Instant::now(), "killed").await;

    worker.until_done(worker.done() + 200).await;
    rabbit.ctl(&["close_all_connections", "a test"]).await.unwrap();
    let closed = Instant::now();
    worker
        .until_line("tells of a connection that the broker closed", |line| {
            line["event"] == "queue.disconnected" && line["cause"] == "closed"
        })
        .await;
    // Ours as well; and the command may have taken so long that all was done before.
    place.broker.reconnect().await;
    place.publish_load(&mut load, 200, 2).await;
    until_it_goes_on(&worker, closed, "closed by the broker").await;

    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_the_worker_is_declared_and_consumed_again() {
    let mut place = Place::new("queue_deleted").await;
    place.patient_dependencies("4s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 1_000 });
    let worker = place.worker().await;
    place.publish("u-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.until_state("u-1", "done").await;
    for number in 2..=3 {
        let under_way = format!("a-{number}");
        let address = json!({"address": "1 Main Street"});
        place.publish(&under_way, "user.address.verify", "1", address).await;
        place.stub.until_arrivals("geocoder", number - 1).await;
        place.broker.delete_queue().await;
        until("the broker's end of the subscription is told", async || {
            let told = worker.metric("longshore_reconnects_total{reason=\"cancelled\"}").await?;
            (told >= (number - 1) as f64).then_some(())
        })
        .await;
        worker.until_ready().await;
        let id = format!("u-{number}");
        place.publish(&id, "user.profile.update", "1", json!({"name": "Ada"})).await;
        place.until_state(&id, "done").await;
        // Its message is gone with the queue; it was claimed, and goes on to its end.
        assert_eq!(place.until_state(&under_way, "done").await.attempt, 1);
        assert_eq!(place.stub.calls()[&under_way].calls, 1);
    }
    assert_eq!(place.database.version("1").await, 3);
}

#[tokio::test]
async fn a_line_that_falls_silent_is_given_up_and_found_again() {
    let mut place = Place::new("silent").await;
    place.set_value("QUEUE__HEARTBEAT", "1s").set_value("QUEUE__CONNECT_TIMEOUT", "1s");
    place.set_value("QUEUE__OPERATION_TIMEOUT", "1s");
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    let mut worker = place.worker_with(&[("AMQP_URL", &far)]).await;
    line.black_hole();
    until_probe(&worker, 503, "reconnecting").await;
    place.publish("u-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    line.pass();
    place.until_state("u-1", "done").await;
    place.broker.until_empty().await;

    line.black_hole();
    until_probe(&worker, 503, "reconnecting").await;
    let asked = Instant::now();
    assert_eq!(worker.drain().await.0, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn while_postgres_is_away_nothing_is_consumed_and_no_attempt_is_burnt() {
    let dir = Private::new("outage_postgres").unwrap();
    let mut postgres = Postgres::start(dir.path().join("server")).await.unwrap();
    let rabbit = Services::shared().await.unwrap().rabbit;
    let mut place = Place::on("postgres_outage", &rabbit.url(), &postgres.admin_url()).await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let mut worker = place.worker().await;
    let mut load = Load::default();

    for orderly in [true, false] {
        place.publish_load(&mut load, 1_500, 2).await;
        worker.until_done(load.ids.len() - 1_300).await;
        if orderly {
            postgres.stop().await.unwrap();
        } else {
            postgres.kill().await;
        }
        let body = until_probe(&worker, 200, "paused").await;
        assert!(body.contains("postgres"), "{body}");
        // What is prefetched stays or is given back, and nothing else leaves the queue.
        place.publish_load(&mut load, 100, 2).await;
        let ready = until("what was published is in the queue", async || {
            Some(place.broker.ready(&place.broker.queue).await).filter(|ready| *ready >= 100)
        })
        .await;
        let done = worker.done();
        place.publish_load(&mut load, 100, 2).await;
        until("what was published is in the queue too", async || {
            (place.broker.ready(&place.broker.queue).await >= ready + 100).then_some(())
        })
        .await;
        assert_eq!(worker.done(), done, "nothing is done without a ledger");
        postgres.start_again().await.unwrap();
        let after = if orderly { "stopped in order" } else { "killed" };
        until_it_goes_on(&worker, Instant::now(), after).await;
        place.database.reconnect().await;
    }
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    for id in &load.calls {
        assert_eq!(place.stub.calls()[id].calls, 1, "{id} was called again after an outage");
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_of_a_commit_changes_no_account() {
    let place = Place::new("commit_cut").await;
    let line = Proxy::start(address(&place.database.url)).await.unwrap();
    let far = through(&place.database.url, &line);
    let mut worker = place.worker_with(&[("DATABASE_URL", &far)]).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 4_000, 4).await;
    for number in 0..20 {
        worker.until_done(100 * number + 50).await;
        // Either way of a statement: the question is lost, or only its answer.
        let way = if number % 2 == 0 { Direction::FromUpstream } else { Direction::FromClient };
        let before = line.counters().cut;
        line.cut_after_bytes(fastrand::u64(..4_000), way);
        until("the line is cut", async || (line.counters().cut > before).then_some(())).await;
    }
    place.until_accounted(&load).await;
    assert!(line.counters().cut >= 20);
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}
