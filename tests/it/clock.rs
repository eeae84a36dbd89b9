//! Clocks that are stepped by an hour under load, forward and back: the worker's own, and that of
//! the ledger. Deadlines go by the one, leases and due times by the other; the account by neither.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::types::AMQPValue;
use longshore_dev::{place::Private, postgres::Postgres, services::Services, stub::Behaviour};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Clock, Load, Place, Worker, envelope, until};

const HOUR: i64 = 3_600;

/// So much later, as producers write it.
fn in_seconds(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + time::Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

/// Waits until the worker logs by a clock that is about so many seconds off.
async fn until_it_goes_by(worker: &Worker, seconds: i64) {
    worker
        .until_line(&format!("was logged at {seconds:+} s"), |line| {
            let at = line["timestamp"].as_str().unwrap();
            let off = OffsetDateTime::parse(at, &Rfc3339).unwrap() - OffsetDateTime::now_utc();
            (off.whole_seconds() - seconds).abs() < HOUR / 4
        })
        .await;
}

#[tokio::test]
async fn a_worker_whose_clock_is_stepped_by_an_hour_each_way_changes_no_account() {
    let clock = Clock::new();
    let mut place = Place::new("clock").await;
    place.set_value("DEFAULTS__KIND__TIMEOUT", "10s").patient_dependencies("8s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    let environment = clock.environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut worker = place.worker_with(&environment).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 2).await;
    worker.until_done(100).await;

    clock.step_to(HOUR);
    until_it_goes_by(&worker, HOUR).await;
    assert!(worker.done() < 1_000, "the step met no work");
    // A deadline is held against the worker's clock, right or wrong.
    place.broker.publish(envelope("late", json!({"deadline": in_seconds(HOUR / 2)}))).await;
    place.until_dead(&worker, "late", "deadline").await;
    place.publish_load(&mut load, 500, 2).await;
    worker.until_done(1_100).await;

    clock.step_to(-HOUR);
    until_it_goes_by(&worker, -HOUR).await;
    assert!(worker.done() < 1_500, "the step met no work");
    // The same for `not_before`; until then it is put down, not asked about over and over.
    place.broker.publish(envelope("early", json!({"not_before": in_seconds(-HOUR / 2)}))).await;
    let early = place.until_state("early", "parked").await;
    assert_eq!((early.parked_on.as_deref(), early.attempt), (Some("not_before"), 0));
    // Published an hour from now, as it seems: an age is never below zero.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let mut message = envelope("young", json!({"user_id": "young"}));
    let published_at = AMQPValue::LongLongInt(i64::try_from(now).unwrap());
    message.headers.insert("published_at_ms".to_owned(), published_at);
    place.broker.publish(message).await;
    load.add("young", Some("young"));
    let young = worker.until_outcome("young", "done").await;
    assert_eq!(young["age_ms"], 0, "{young}");
    place.publish_load(&mut load, 500, 2).await;
    worker.until_done(1_700).await;
    clock.step_to(0);

    // They were told for themselves.
    let apart = "with gone as (delete from longshore.requests
                            where request_id in ('late', 'early') returning 1)
                 select count(*) from gone";
    assert_eq!(place.database.number(apart).await, 2);
    place.until_accounted(&load).await;
    let burnt = "select count(*) from longshore.requests where attempt <> 1 or crashes <> 0";
    assert_eq!(place.database.number(burnt).await, 0, "nobody lost a lease, nobody was charged");
    for id in &load.calls {
        assert_eq!(place.stub.calls()[id].calls, 1, "{id} was called again");
    }
    // Every wait goes by another clock: no line was given up, no lease ran out.
    let log = worker.log();
    let troubled = |line: &&Value| {
        ["queue.disconnected", "ledger.away", "ledger.fenced"]
            .contains(&line["event"].as_str().unwrap_or(""))
    };
    assert_eq!(log.iter().filter(troubled).collect::<Vec<_>>(), Vec::<&Value>::new());
    for line in log.iter().filter(|line| line["event"] == "request.finished") {
        for field in ["age_ms", "duration_ms"] {
            assert!(line[field].as_f64().is_none_or(|time| time >= 0.0), "{field}: {line}");
        }
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

/// How far the ledger's clock is off, in seconds.
async fn off(place: &Place) -> i64 {
    let theirs =
        place.database.number("select extract(epoch from clock_timestamp())::bigint").await;
    theirs - OffsetDateTime::now_utc().unix_timestamp()
}

async fn until_the_ledger_is(place: &Place, seconds: i64) {
    until(&format!("the ledger's clock is {seconds:+} s off"), async || {
        ((off(place).await - seconds).abs() < HOUR / 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_ledger_whose_clock_is_stepped_by_an_hour_each_way_does_nothing_twice() {
    let clock = Clock::new();
    let dir = Private::new("clock").unwrap();
    let server = dir.path().join("server");
    let postgres = Postgres::start_with(server, clock.environment()).await.unwrap();
    let rabbit = Services::shared().await.unwrap().rabbit;
    let mut place = Place::on("ledger_clock", &rabbit.url(), &postgres.admin_url()).await;
    place.set_value("DEFAULTS__KIND__TIMEOUT", "10s").patient_dependencies("8s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 500 });
    let (mut one, mut other) = (place.worker().await, place.worker().await);
    let mut load = Load::default();
    place.publish_load(&mut load, 400, 4).await;
    place.stub.until_arrivals("geocoder", 8).await;

    // All leases are over at once, in the middle of the calls that they were taken for.
    clock.step_to(HOUR);
    until_the_ledger_is(&place, HOUR).await;
    let fenced = async || {
        let both = [&one, &other].map(|worker| worker.metric("longshore_fenced_total"));
        let [one, other] = both;
        one.await.unwrap_or_default() + other.await.unwrap_or_default()
    };
    until("a finish has come too late", async || (fenced().await >= 1.0).then_some(())).await;
    place.publish_load(&mut load, 400, 4).await;
    let arrivals = u64::try_from(load.calls.len() / 2).unwrap();
    place.stub.until_arrivals("geocoder", arrivals).await;

    // Leases end an hour later than they should; whoever holds one finishes as ever.
    clock.step_to(0);
    until_the_ledger_is(&place, 0).await;
    place.publish_load(&mut load, 400, 4).await;
    until("nothing is worked or waits in the queue", async || {
        let running = place.database.count("running").await;
        let ready = place.broker.ready(&place.broker.queue).await;
        (running == 0 && ready == 0).then_some(())
    })
    .await;
    // What was put off while the clock was ahead is due an hour late. It comes.
    clock.step_to(2 * HOUR);
    place.until_accounted(&load).await;
    for worker in [&mut one, &mut other] {
        assert_eq!(worker.drain().await.0, Some(0));
    }
    place.assert_no_attempt_was_burnt().await;
}
