//! A bad line to the broker: deaf in one ear, slow, cut in the middle of a word. The work is done
//! once, and nobody is charged for the line.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use longshore_dev::{
    proxy::{Direction, Proxy},
    stub::Behaviour,
};
use serde_json::Value;

use crate::support::{Echo, Load, Place, Worker, address, by_way_of, through, until};

/// A place whose worker reaches the broker by way of a proxy.
async fn behind_a_line(test: &str, heartbeat: &str) -> (Place, Proxy, Worker) {
    let mut place = Place::new(test).await;
    place.set_value("QUEUE__HEARTBEAT", heartbeat).set_value("QUEUE__CONNECT_TIMEOUT", "1s");
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    let worker = place.worker_with(&[("AMQP_URL", &far)]).await;
    (place, line, worker)
}

/// Waits until the worker tells that it lost its line, which stays bad; that line of its log.
async fn until_lost(worker: &Worker) -> Value {
    let lost = worker.until_event("queue.disconnected").await;
    until("the readiness probe says so", async || {
        let (status, body) = worker.get("/health/ready").await?;
        (status == 503 && body.contains("\"reconnecting\"")).then_some(())
    })
    .await;
    lost
}

/// All of the load is done once, by attempts that were charged once, and the worker stops in order.
async fn nothing_was_harmed(place: &Place, load: &Load, mut worker: Worker) {
    place.until_accounted(load).await;
    place.assert_no_attempt_was_burnt().await;
    for id in &load.calls {
        assert_eq!(place.stub.calls()[id].calls, 1, "{id} was called again");
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_worker_that_the_broker_no_longer_hears_is_dropped_by_it_and_comes_back() {
    let (place, line, worker) = behind_a_line("half_open", "1s").await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 2).await;
    worker.until_done(200).await;
    // Heartbeats and acknowledgements vanish; deliveries and the broker's heartbeats still come.
    line.half_open();
    let lost = until_lost(&worker).await;
    assert_eq!(lost["cause"], "lost", "{lost}");
    line.pass();
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_broker_whose_heartbeats_no_longer_come_is_given_up() {
    let (place, line, worker) = behind_a_line("mute", "1s").await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 2).await;
    worker.until_done(200).await;
    line.mute();
    let lost = until_lost(&worker).await;
    assert_eq!(lost["cause"], "lost", "{lost}");
    let why = lost["error"].as_str().unwrap();
    assert!(why.contains("the broker's heartbeats stopped"), "{why}");
    line.pass();
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_line_that_swallows_everything_is_given_up() {
    let (place, line, worker) = behind_a_line("black_hole", "1s").await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 2).await;
    worker.until_done(200).await;
    line.black_hole();
    let lost = until_lost(&worker).await;
    assert_eq!(lost["cause"], "lost", "{lost}");
    line.pass();
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_slow_line_makes_the_work_slow_and_is_no_outage() {
    const BYTES_A_SECOND: u32 = 20_000;
    let (place, line, worker) = behind_a_line("slow_line", "3s").await;
    line.delay(Duration::from_millis(100));
    line.limit_bytes_per_second(BYTES_A_SECOND);
    let (begun, before) = (Instant::now(), line.counters().from_upstream);
    let mut load = Load::default();
    place.publish_load(&mut load, 400, 4).await;
    worker.until_done(load.ids.len()).await;
    // Deliveries come on one connection, so this is how long they must have taken at least; a
    // little came on the other.
    let carried = (line.counters().from_upstream - before) as f64;
    let least = carried * 0.8 / f64::from(BYTES_A_SECOND);
    assert!(least > 2.0, "the line was hardly used: {carried} bytes");
    assert!(begun.elapsed().as_secs_f64() > least, "{:?} for {carried} bytes", begun.elapsed());
    let log = worker.log();
    let lost: Vec<&Value> =
        log.iter().filter(|line| line["event"] == "queue.disconnected").collect();
    assert_eq!(lost, Vec::<&Value>::new());
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_line_that_is_reset_in_the_middle_of_a_frame_changes_no_account() {
    let (place, line, worker) = behind_a_line("mid_frame", "3s").await;
    let mut load = Load::default();
    place.publish_load(&mut load, 4_000, 4).await;
    for number in 0..20_u64 {
        worker.until_done(usize::try_from(100 * number + 50).unwrap()).await;
        // A delivery is some 350 bytes in three frames, an acknowledgement 21: at offsets by chance
        // hardly one of these cuts falls between two frames.
        let (way, bytes) = if number % 2 == 0 {
            (Direction::FromUpstream, fastrand::u64(1..5_000))
        } else {
            (Direction::FromClient, fastrand::u64(1..200))
        };
        let before = line.counters().cut;
        line.cut_after_bytes(bytes, way);
        until("the line is cut", async || (line.counters().cut > before).then_some(())).await;
    }
    assert!(line.counters().cut >= 20);
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_channel_closed_over_an_unknown_tag_under_load_changes_no_account() {
    let mut place = Place::new("unknown_tag").await;
    place.patient_dependencies("5s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let line = Echo::start(address(&place.broker.url)).await;
    let far = by_way_of(&place.broker.url, line.addr);
    let worker = place.worker_with(&[("AMQP_URL", &far)]).await;
    let mut load = Load::default();
    for time in 1..=5 {
        place.publish_load(&mut load, 200, 4).await;
        worker.until_done(400 * (time - 1) + 50).await;
        line.once_more();
        // However quick the worker was, there is more to be acknowledged.
        place.publish_load(&mut load, 200, 4).await;
        let closed = Cell::new(0);
        let of_this_time = |line: &Value| {
            let error = line["error"].as_str().unwrap_or_default();
            let tells = line["event"] == "queue.disconnected";
            closed.set(closed.get() + usize::from(tells && error.contains("unknown delivery tag")));
            closed.get() == time
        };
        worker.until_line("tells why the channel was closed", of_this_time).await;
    }
    nothing_was_harmed(&place, &load, worker).await;
}
