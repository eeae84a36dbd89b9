//! What is parked on a dependency: let go the oldest first and ever faster, without a crowd, without
//! a second parking, and not at the cost of anybody else.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use longshore_dev::stub::Behaviour;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Place, Publish, Worker, until};

const DEAD: Behaviour = Behaviour::Status { code: 503, retry_after_secs: None };

async fn verify(place: &Place, ids: impl Iterator<Item = String>) {
    let publish = async |id: String| {
        place.publish(&id, "user.address.verify", &id, json!({"address": "Main Street"})).await;
    };
    // One after the other within a channel, so that they come in this order.
    for id in ids {
        publish(id).await;
    }
}

async fn steer(place: &Place, worker: &Worker, verb: &str, now: &str) {
    let steered = place.cli(&["steer", "breaker", "geocoder", verb]).await;
    assert!(steered.status.success(), "{}", String::from_utf8_lossy(&steered.stderr));
    worker
        .until_line(&format!("follows {verb}"), |line| {
            line["event"] == "steer.applied" && line["now"] == now
        })
        .await;
}

async fn until_parked(place: &Place, wanted: i64) {
    until(&format!("{wanted} are parked"), async || {
        (place.database.count("parked").await == wanted).then_some(())
    })
    .await;
}

/// How often each request was told to be parked.
fn parkings(worker: &Worker) -> BTreeMap<String, usize> {
    let mut parkings = BTreeMap::new();
    for line in worker.log() {
        if line["event"] == "request.finished" && line["outcome"] == "parked" {
            *parkings.entry(line["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    parkings
}

#[tokio::test]
async fn a_recovered_dependency_gets_what_was_parked_oldest_first_and_each_once() {
    let mut place = Place::new("let_go").await;
    place.set_value("DEFAULTS__DEPENDENCY__MAX_IN_FLIGHT", "4");
    let worker = place.worker().await;
    steer(&place, &worker, "open", "open").await;
    verify(&place, (0..300).map(|n| format!("v-{n:03}"))).await;
    until_parked(&place, 300).await;
    assert_eq!(place.stub.arrivals("geocoder"), 0);
    steer(&place, &worker, "auto", "automatic").await;
    until("all are done", async || (place.database.count("done").await == 300).then_some(())).await;
    let order = "select request_id from longshore.requests order by finished_at";
    let done = place.database.texts(order).await;
    // Four are under way at once and end in any order, and a look brings up what four others leave.
    for (place, id) in done.iter().enumerate() {
        let number: usize = id.strip_prefix("v-").unwrap().parse().unwrap();
        assert!(number.abs_diff(place) <= 16, "{id} was done in place {place}: {done:?}");
    }
    let attempts = "select count(*) from longshore.requests where attempt <> 1";
    assert_eq!(place.database.number(attempts).await, 0);
    let parkings = parkings(&worker);
    assert_eq!(
        (parkings.len(), parkings.values().max()),
        (300, Some(&1)),
        "nobody came up in vain"
    );
    assert!(worker.metric(r#"longshore_let_go_total{dependency="geocoder"}"#).await >= Some(300.0));
}

#[tokio::test]
async fn probes_are_those_that_wait_the_longest_and_the_rest_stays_where_it_is() {
    let mut place = Place::new("probes").await;
    place
        .set_value("DEFAULTS__DEPENDENCY__BREAKER__OPEN_FOR", "300ms")
        .set_value("DEFAULTS__DEPENDENCY__BREAKER__OPEN_MAX", "300ms")
        .set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "50");
    let worker = place.worker().await;
    steer(&place, &worker, "open", "open").await;
    verify(&place, (0..100).map(|n| format!("v-{n:03}"))).await;
    until_parked(&place, 100).await;
    place.stub.behave("geocoder", DEAD);
    steer(&place, &worker, "auto", "automatic").await;
    // It is probed again and again, and opens each time.
    place.stub.until_arrivals("geocoder", 8).await;
    // Two are on their way at once, and the second may be there before the first.
    until("the called are the oldest of those that were charged least", async || {
        let called: BTreeSet<String> = place.stub.calls().into_keys().collect();
        let oldest: BTreeSet<String> = (0..called.len()).map(|n| format!("v-{n:03}")).collect();
        (called == oldest).then_some(())
    })
    .await;
    // Each look brought up as many as there were probes.
    let brought_up = worker.metric(r#"longshore_let_go_total{dependency="geocoder"}"#).await;
    assert!(brought_up.unwrap() <= 2.0 * place.stub.arrivals("geocoder") as f64 + 4.0);
    // Who comes now goes behind.
    verify(&place, ["later".to_owned()].into_iter()).await;
    place.until_state("later", "parked").await;
    place.stub.behave("geocoder", Behaviour::default());
    until("all are done", async || (place.database.count("done").await == 101).then_some(())).await;
}

#[tokio::test]
async fn two_workers_let_go_slowly_at_first_and_never_more_than_the_limit() {
    let mut place = Place::new("two_let_go").await;
    place
        .set_value("DEFAULTS__DEPENDENCY__RELEASE__RATE", "5")
        .set_value("DEFAULTS__DEPENDENCY__RELEASE__GROWTH", "1.0");
    let first = place.worker().await;
    let second = place.worker().await;
    steer(&place, &first, "open", "open").await;
    second.until_event("steer.applied").await;
    verify(&place, (0..200).map(|n| format!("v-{n:03}"))).await;
    until_parked(&place, 200).await;
    steer(&place, &first, "close", "closed").await;
    place.stub.until_arrivals("geocoder", 20).await;
    let since = "select (1000 * extract(epoch from max(finished_at) - min(finished_at)))::bigint
                   from longshore.requests where state = 'done'";
    let took = place.database.number(since).await;
    // Five a second each, but for one that each had saved: nobody can be faster than that.
    assert!(took >= 1_500, "twenty went on within {took} ms");
    assert!(place.database.count("parked").await > 100, "and the rest waits");
}

#[tokio::test]
async fn a_full_dependency_parks_what_comes_and_its_neighbours_flow() {
    let mut place = Place::new("full").await;
    place.patient_dependencies("4s").set_value("DEFAULTS__DEPENDENCY__MAX_IN_FLIGHT", "2");
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 200 });
    verify(&place, (0..60).map(|n| format!("v-{n:03}"))).await;
    join_all((0..60).map(|n| {
        let id = format!("p-{n}");
        let place = &place;
        async move { place.publish(&id, "user.profile.update", &id, json!({"name": "Ada"})).await }
    }))
    .await;
    for n in 0..60 {
        place.until_state(&format!("p-{n}"), "done").await;
    }
    assert!(place.database.count("done").await < 120, "the neighbours did not wait");
    until("all are done", async || (place.database.count("done").await == 120).then_some(())).await;
    let attempts = "select count(*) from longshore.requests where attempt <> 1";
    assert_eq!(place.database.number(attempts).await, 0);
    drop(worker);
}

#[tokio::test]
async fn a_request_whose_time_is_over_while_it_is_parked_dies_there_uncharged() {
    let place = Place::new("parked_deadline").await;
    let worker = place.worker().await;
    steer(&place, &worker, "open", "open").await;
    let deadline =
        (OffsetDateTime::now_utc() + time::Duration::milliseconds(700)).format(&Rfc3339).unwrap();
    let body = json!({"request_id": "late", "kind": "user.address.verify", "user_id": "1",
        "payload": {"address": "Elm"}, "deadline": deadline});
    place.broker.publish(Publish::json(&body)).await;
    let row = place.until_state("late", "dead").await;
    assert_eq!((row.attempt, row.error_code.as_deref()), (0, Some("deadline")));
    assert_eq!(place.stub.arrivals("geocoder"), 0);
}

#[tokio::test]
async fn what_is_parked_on_a_dependency_that_is_no_more_goes_on() {
    let mut place = Place::new("stray").await;
    place.set(
        "[dependencies.old]\nurl = \"http://127.0.0.1:1\"\n[dependencies.old.breaker]\nmode = \"open\"\n\
         [kinds.moved]\n[kinds.moved.call]\ndependency = \"old\"\npath = \"/move\"",
    );
    let mut first = place.worker().await;
    place.publish("m-1", "moved", "1", json!({})).await;
    assert_eq!(place.until_state("m-1", "parked").await.parked_on.as_deref(), Some("old"));
    assert_eq!(first.drain().await.0, Some(0));
    // The next version calls another one.
    let mut next = Place::new("stray_next").await;
    next.set("[kinds.moved]\n[kinds.moved.call]\ndependency = \"mailer\"\npath = \"/move\"");
    let _second = next.worker_with(&[("DATABASE_URL", &place.database.url)]).await;
    assert_eq!(place.until_state("m-1", "done").await.attempt, 1);
}

#[tokio::test]
async fn too_much_parked_on_a_dependency_stops_consuming_until_it_has_recovered() {
    let mut place = Place::new("parked_full").await;
    place.set_value("DEFAULTS__DEPENDENCY__MAX_PARKED", "10");
    let worker = place.worker().await;
    steer(&place, &worker, "open", "open").await;
    verify(&place, (0..10).map(|n| format!("v-{n:03}"))).await;
    let full = worker.until_event("worker.parked_full").await;
    assert_eq!(full["on"], "geocoder");
    assert_eq!(worker.until_event("worker.paused").await["reason"], "breaker:geocoder");
    place.publish("later", "user.profile.update", "1", json!({"name": "Ada"})).await;
    let paused = r#"longshore_paused{reason="breaker:geocoder"}"#;
    until("it is exported", async || (worker.metric(paused).await? == 1.0).then_some(())).await;
    steer(&place, &worker, "auto", "automatic").await;
    for id in ["v-000", "v-009", "later"] {
        place.until_state(id, "done").await;
    }
}

#[tokio::test]
async fn where_every_kind_would_be_parked_nothing_is_taken_out_of_the_queue() {
    let mut place = Place::new("in_vain").await;
    // Here every kind calls somebody.
    place.set(
        "[kinds.\"user.profile.update\".call]\ndependency = \"geocoder\"\npath = \"/verify\"\n\
         [kinds.\"user.profile.get\".call]\ndependency = \"geocoder\"\npath = \"/verify\"",
    );
    let worker = place.worker().await;
    steer(&place, &worker, "open", "open").await;
    verify(&place, ["parked".to_owned()].into_iter()).await;
    place.until_state("parked", "parked").await;
    assert!(worker.log().iter().all(|line| line["event"] != "worker.paused"), "mail could flow");
    assert!(place.cli(&["steer", "breaker", "mailer", "open"]).await.status.success());
    worker
        .until_line("pauses", |line| {
            line["event"] == "worker.paused" && line["reason"] == "breaker:geocoder"
        })
        .await;
    verify(&place, (0..5).map(|n| format!("v-{n:03}"))).await;
    let depth = format!(r#"longshore_queue_depth{{queue="{}.requests"}}"#, place.name);
    until("the queue keeps them", async || (worker.metric(&depth).await? >= 5.0).then_some(()))
        .await;
    assert_eq!(place.database.count("parked").await, 1);
    steer(&place, &worker, "auto", "automatic").await;
    for n in 0..5 {
        assert_eq!(place.until_state(&format!("v-{n:03}"), "done").await.attempt, 1);
    }
}

#[tokio::test]
async fn all_that_is_not_done_is_counted_however_many_they_are() {
    let mut place = Place::new("counted").await;
    // More than are counted in one piece, and many with the same time.
    let rows = |from: u32, to: u32, state: &str, columns: &str, values: &str| {
        format!(
            "insert into longshore.requests (request_id, kind, user_id, state, attempt, fence, from_queue, digest,
                 body, properties, received_at, {columns})
             select 'r-' || n, 'user.profile.update', n % 1000, '{state}', 0, 0, true, '', '', '{{}}',
                    date_trunc('day', now()) - n / 3000 * interval '1 second', {values}
               from generate_series({from}, {to}) n"
        )
    };
    let hour = "now() + interval '1 hour'";
    let parked = |on: &str| format!("{hour}, '{on}'");
    let database = &place.database;
    let execute = async |sql: String| database.execute(&sql).await;
    execute(rows(1, 12_001, "parked", "due_at, parked_on", &parked("not_before"))).await;
    execute(rows(1_000_000, 1_001_499, "parked", "due_at, parked_on", &parked("stop"))).await;
    execute(rows(12_006, 18_005, "waiting", "due_at", hour)).await;
    execute(rows(18_006, 18_008, "running", "due_at", "now() + interval '2 hours'")).await;
    execute(rows(20_000, 25_000, "dead", "finished_at", "now() - n / 3000 * interval '1 s'")).await;
    // Its deadline was the last second that there is.
    let never = "timestamptz '9999-12-31 23:59:59Z' + interval '1 second', 'not_before'";
    execute(rows(30_000, 30_000, "parked", "due_at, parked_on", never)).await;
    place.set_value("WORKER__COUNTS_INTERVAL", "100ms");
    let worker = place.worker().await;
    for (metric, wanted) in [
        (r#"longshore_parked{on="not_before"}"#, 12_002.0),
        (r#"longshore_parked{on="stop"}"#, 1_500.0),
        (r#"longshore_ledger_requests{state="parked"}"#, 13_502.0),
        (r#"longshore_ledger_requests{state="waiting"}"#, 6_000.0),
        (r#"longshore_ledger_requests{state="dead"}"#, 5_001.0),
        (r#"longshore_ledger_requests{state="running"}"#, 3.0),
    ] {
        let counted = async || (worker.metric(metric).await? == wanted).then_some(());
        until(&format!("{metric} is {wanted}"), counted).await;
    }
}
