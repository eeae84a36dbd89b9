//! Stopping: what is begun is finished, the rest is given back, and the account adds up.

use std::time::{Duration, Instant};

use longshore_dev::{proxy::Proxy, stub::Behaviour};
use serde_json::{Value, json};

use crate::support::{Load, Place, address, through, until};

/// A stop with nothing to wait for is over within this.
const AT_ONCE: Duration = Duration::from_secs(5);

/// When a line was written, in seconds; the tests of one day are compared.
fn written(line: &Value) -> f64 {
    let text = line["timestamp"].as_str().unwrap();
    let parts: Vec<f64> =
        text[11..text.len() - 1].split(':').map(|part| part.parse().unwrap()).collect();
    parts[0] * 3_600.0 + parts[1] * 60.0 + parts[2]
}

#[tokio::test]
async fn a_stop_under_load_finishes_what_is_begun_and_gives_the_rest_back() {
    let place = Place::new("stop_load").await;
    // So long that the slots are full of calls, and what is prefetched waits.
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 300 });
    let mut first = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 4_000, 2).await;
    first.until_done(300).await;
    let signalled = Instant::now();
    let (code, drained) = first.drain().await;
    assert_eq!(code, Some(0), "{drained}");
    assert!(signalled.elapsed() < Duration::from_secs(10), "within the grace: {drained}");
    assert_eq!(
        (&drained["interrupted"], &drained["lost"], &drained["forced"]),
        (&json!(0), &json!(0), &json!(false))
    );

    let log = first.log();
    let asked = log.iter().find(|line| line["event"] == "worker.draining").unwrap();
    let mut ended_later = 0;
    for line in log.iter().filter(|line| line["event"] == "request.finished") {
        let took = line["duration_ms"].as_f64().unwrap() / 1_000.0;
        // A line is written a moment after what it tells of.
        let begun = written(line) - took;
        assert!(begun < written(asked) + 0.1, "begun after the signal: {line}");
        ended_later += u64::from(written(line) > written(asked));
    }
    // Those in the slots, and those that were begun in the moment until everybody knew.
    assert!(ended_later <= 2 * 32, "{ended_later} ended after the signal, there are 32 slots");
    assert!(drained["finished"].as_u64().unwrap() <= ended_later, "{drained}");

    let done = place.database.count("done").await;
    let rows = place.database.number("select count(*) from longshore.requests").await;
    assert_eq!(done, rows, "nothing is left half done in the ledger");
    assert!(done < 4_000, "the stop came under load");
    until("what is not done is in the queue again", async || {
        let ready = i64::from(place.broker.ready(&place.broker.queue).await);
        (done + ready == 4_000).then_some(())
    })
    .await;

    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let mut second = place.worker().await;
    place.until_accounted(&load).await;
    for id in &load.calls {
        assert_eq!(place.stub.calls()[id].calls, 1, "{id} was worked twice");
    }
    place.assert_no_attempt_was_burnt().await;
    second.drain().await;
    let again = second
        .log()
        .iter()
        .filter(|line| line["event"] == "request.finished" && line["redelivered"] == true)
        .count() as u64;
    let given_back = drained["given_back"].as_u64().unwrap();
    // What a quorum queue still sends after it has agreed to the cancellation never reaches us: it
    // goes back uncounted, with the channel. All in all it is never more than the prefetch.
    assert!(given_back <= again && again <= 64, "{again} came back: {drained}");
    assert!(again > 0, "something was prefetched");
}

#[tokio::test]
async fn what_the_grace_cuts_off_is_put_down_uncharged_and_done_by_the_next_worker() {
    let mut place = Place::new("stop_grace").await;
    for name in ["DEFAULTS__KIND__TIMEOUT", "WORKER__GRACE"] {
        place.set_value(name, "1s");
    }
    for name in ["QUEUE__OPERATION_TIMEOUT", "LEDGER__STATEMENT_TIMEOUT"] {
        place.set_value(name, "1s");
    }
    place.stub.behave("geocoder", Behaviour::Hang);
    // A kind's timeout is not longer than the grace, so only what comes before its time is counted,
    // a claim that was held up, lets the grace end first.
    let line = Proxy::start(address(&place.database.url)).await.unwrap();
    let slow = through(&place.database.url, &line);
    let mut first = place.worker_with(&[("DATABASE_URL", &slow)]).await;
    place
        .database
        .execute(
            "begin; insert into longshore.requests (request_id, kind, user_id, state, attempt, fence,
                 from_queue, due_at, digest, body, received_at)
             values ('a-1', 'held.up', '1', 'parked', 0, 0, true, now(), '', '', now())",
        )
        .await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    until("its claim waits for ours", async || {
        let waiting = "select count(*) from pg_locks
            where not granted and transactionid = pg_current_xact_id()::xid";
        (place.database.number(waiting).await == 1).then_some(())
    })
    .await;
    first.signal("TERM");
    first.until_event("worker.draining").await;
    line.delay(Duration::from_millis(400));
    place.database.execute("rollback").await;
    place.stub.until_arrivals("geocoder", 1).await;
    line.pass();
    assert_eq!(first.ended().await.code(), Some(2));
    let drained = first.until_event("worker.drained").await;
    assert_eq!((&drained["interrupted"], &drained["forced"]), (&json!(1), &json!(true)));
    let row = place.database.row("a-1").await.unwrap();
    assert_eq!(
        (row.state.as_str(), row.parked_on.as_deref(), row.attempt),
        ("parked", Some("stop"), 0)
    );

    place.stub.behave("geocoder", Behaviour::default());
    let _second = place.worker().await;
    assert_eq!(place.until_state("a-1", "done").await.attempt, 1);
    assert_eq!((place.stub.calls()["a-1"].calls, place.stub.calls()["a-1"].effects), (2, 1));
    place.broker.until_empty().await;
}

#[tokio::test]
async fn a_second_signal_stops_at_once_and_leaves_the_request_for_the_next_worker() {
    let mut place = Place::new("stop_twice").await;
    place.patient_dependencies("5s");
    place.stub.behave("geocoder", Behaviour::Hang);
    let mut worker = place.worker().await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    place.stub.until_arrivals("geocoder", 1).await;
    worker.signal("TERM");
    worker.until_event("worker.draining").await;
    let second = Instant::now();
    worker.signal("INT");
    assert_eq!(worker.ended().await.code(), Some(2));
    assert!(second.elapsed() < Duration::from_secs(3), "{:?}", second.elapsed());
    let drained = worker.until_event("worker.drained").await;
    assert_eq!((&drained["interrupted"], &drained["forced"]), (&json!(1), &json!(true)));
    let row = place.database.row("a-1").await.unwrap();
    assert_eq!(
        (row.state.as_str(), row.parked_on.as_deref(), row.attempt),
        ("parked", Some("stop"), 0)
    );
    place.stub.behave("geocoder", Behaviour::default());
    let _next = place.worker().await;
    assert_eq!(place.until_state("a-1", "done").await.attempt, 1);
    assert_eq!(place.stub.calls()["a-1"].effects, 1);
}

#[tokio::test]
async fn while_the_last_request_is_finished_the_rest_is_back_and_the_probes_answer() {
    let mut place = Place::new("stop_order").await;
    place.set_value("WORKER__CONCURRENCY", "1");
    place.patient_dependencies("5s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 3_000 });
    let mut worker = place.worker().await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    place.stub.until_arrivals("geocoder", 1).await;
    for number in 0..10 {
        place.publish(&format!("u-{number}"), "user.profile.update", "1", json!({})).await;
    }
    until("all are delivered, each counted once", async || {
        let delivered = worker.metric("longshore_deliveries_total{redelivered=\"false\"}").await?;
        (delivered >= 11.0).then(|| assert_eq!(delivered, 11.0))
    })
    .await;
    // SIGINT means the same as SIGTERM.
    worker.signal("INT");
    worker.until_event("worker.draining").await;
    let (status, body) = worker.get("/health/ready").await.unwrap();
    assert!(status == 503 && body.contains("draining"), "{status} {body}");
    assert_eq!(worker.until_event("queue.intake_ended").await["given_back"], 10);
    until("what was not begun is back in the queue", async || {
        (place.broker.ready(&place.broker.queue).await == 10).then_some(())
    })
    .await;
    assert_eq!(worker.metric("longshore_consumer_up").await, Some(0.0));
    assert_eq!(worker.get("/health/live").await.unwrap().0, 200);
    assert_eq!(worker.story("a-1").len(), 0, "it is still under way while they answer");
    assert_eq!(worker.ended().await.code(), Some(0));
    let drained = worker.until_event("worker.drained").await;
    assert_eq!((&drained["finished"], &drained["given_back"]), (&json!(1), &json!(10)));
    assert_eq!(place.database.row("a-1").await.unwrap().state, "done");
    assert_eq!(place.database.number("select count(*) from longshore.requests").await, 1);
}

#[tokio::test]
async fn a_stop_while_the_broker_is_away_ends_at_once() {
    let place = Place::new("stop_broker").await;
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    line.refuse();
    let mut never = place.worker_unready(&[("AMQP_URL", &far)]).await;
    never.until_event("queue.disconnected").await;
    let asked = Instant::now();
    let (code, drained) = never.drain().await;
    assert_eq!((code, &drained["forced"]), (Some(0), &json!(false)));

    line.pass();
    let mut lost = place.worker_with(&[("AMQP_URL", &far)]).await;
    line.refuse();
    line.cut();
    lost.until_event("queue.disconnected").await;
    let took = asked.elapsed();
    assert!(took < 2 * AT_ONCE, "{took:?}");
    let asked = Instant::now();
    assert_eq!(lost.drain().await.0, Some(0));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_stop_while_postgres_is_away_ends_at_once() {
    let place = Place::new("stop_postgres").await;
    let line = Proxy::start(address(&place.database.url)).await.unwrap();
    let far = through(&place.database.url, &line);
    line.refuse();
    let mut never = place.worker_unready(&[("DATABASE_URL", &far)]).await;
    never.until_event("ledger.away").await;
    let asked = Instant::now();
    let (code, drained) = never.drain().await;
    assert_eq!((code, &drained["finished"]), (Some(0), &json!(0)));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());

    line.pass();
    let mut lost = place.worker_with(&[("DATABASE_URL", &far)]).await;
    line.refuse();
    line.cut();
    place.publish("u-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    lost.until_event("ledger.away").await;
    let asked = Instant::now();
    let (code, _) = lost.drain().await;
    assert_eq!(code, Some(0));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    let _next = place.worker().await;
    assert_eq!(place.until_state("u-1", "done").await.attempt, 1);
}

#[tokio::test]
async fn a_stop_in_the_middle_of_the_start_is_clean_too() {
    let place = Place::new("stop_start").await;
    let mut worker = place.worker_unready(&[]).await;
    worker.until_event("worker.starting").await;
    let asked = Instant::now();
    let (code, drained) = worker.drain().await;
    assert_eq!((code, &drained["finished"]), (Some(0), &json!(0)));
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
}
