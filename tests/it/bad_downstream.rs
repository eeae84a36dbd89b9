//! Downstream services that are away, slow, hostile or overwhelmed.

use futures_util::future::join_all;
use longshore_dev::stub::Behaviour;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Place, Worker, until};

#[tokio::test]
async fn a_dependency_that_refuses_connections_uses_up_the_attempts() {
    let place = Place::new("refused").await;
    // Nothing ever listens on port 1.
    let closed = ("LONGSHORE__DEPENDENCIES__GEOCODER__URL", "http://127.0.0.1:1");
    let worker = place.worker_unready(&[closed]).await;
    worker.until_ready().await;
    place.publish("v-1", "user.address.verify", "1", json!({"address": "Main Street"})).await;
    let line = worker.until_outcome("v-1", "retry").await;
    assert_eq!((&line["error_code"], &line["level"]), (&json!("call_failed"), &json!("WARN")));
    let row = place.until_dead(&worker, "v-1", "attempts").await;
    assert_eq!(row.attempt, 3);
    assert!(row.error.unwrap().contains("POST to geocoder could not connect"));
    assert_eq!(worker.story("v-1").len(), 3);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_dependency_that_hangs_is_left_at_its_timeout_and_called_again() {
    fails_until_it_recovers("hangs", Behaviour::Hang, "did not end within 1s (its timeout)").await;
}

#[tokio::test]
async fn a_dependency_that_trickles_is_left_at_its_timeout_and_called_again() {
    fails_until_it_recovers("trickles", Behaviour::Trickle, "did not end within 1s").await;
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let fifty = Behaviour::Big { bytes: 50 << 20 };
    let worker = fails_until_it_recovers("big", fifty, "answered more than 1048576 bytes").await;
    assert!(worker < 48 << 20, "the worker grew by {worker} bytes");
}

#[tokio::test]
async fn a_dependency_that_breaks_is_called_again() {
    let broken = Behaviour::Status { code: 500, retry_after_secs: None };
    fails_until_it_recovers("broken", broken, "answered 500 Internal Server Error").await;
}

#[tokio::test]
async fn a_dependency_that_resets_the_connection_is_called_again() {
    fails_until_it_recovers("resets", Behaviour::Reset, "POST to geocoder got no answer").await;
}

#[tokio::test]
async fn a_redirect_is_refused_and_not_followed() {
    let place = Place::new("redirects").await;
    let worker = place.worker().await;
    let to = format!("{}/elsewhere/verify", place.stub.url);
    place.stub.behave("geocoder", Behaviour::Redirect { to });
    place.publish("v-2", "user.address.verify", "1", json!({"address": "Main Street"})).await;
    let row = place.until_dead(&worker, "v-2", "call_refused").await;
    assert_eq!(row.attempt, 1);
    assert!(row.error.unwrap().contains("307"));
    assert_eq!((place.stub.arrivals("geocoder"), place.stub.arrivals("elsewhere")), (1, 0));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_refusal_is_final_after_one_attempt() {
    let place = Place::new("refuses").await;
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Refused);
    place.publish("v-3", "user.address.verify", "1", json!({"address": "Main Street"})).await;
    let row = place.until_dead(&worker, "v-3", "call_refused").await;
    assert_eq!(row.attempt, 1);
    assert!(row.error.unwrap().contains("422"));
    assert_eq!((worker.story("v-3").len(), place.stub.calls()["v-3"].calls), (1, 1));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_dependency_that_asks_for_time_gets_it() {
    let place = Place::new("throttles").await;
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Status { code: 429, retry_after_secs: Some(1) });
    place.publish("v-4", "user.address.verify", "1", json!({"address": "Main Street"})).await;
    let told = worker.until_outcome("v-4", "retry").await;
    place.stub.behave("geocoder", Behaviour::default());
    assert_eq!((&told["error_code"], &told["due_in_ms"]), (&json!("call_failed"), &json!(1_000)));
    assert_eq!(place.until_state("v-4", "done").await.attempt, 2);
    let done = worker.until_outcome("v-4", "done").await;
    let waited = at(&done) - at(&told);
    assert!(waited.whole_milliseconds() >= 900, "it was called again after {waited}");
    assert_eq!(place.stub.calls()["v-4"].calls, 2);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_call_that_is_made_twice_takes_effect_once() {
    let mut place = Place::new("again").await;
    place
        .database
        .execute(
            "create sequence app.tries;
             create function app.shaky(request jsonb, response jsonb) returns jsonb
             language plpgsql as $$ begin
                 if nextval('app.tries') = 1 then
                     raise exception 'not now' using errcode = 'serialization_failure';
                 end if;
                 return response;
             end $$",
        )
        .await;
    place.set(
        "[kinds.shaky]\napply = \"app.shaky\"\n[kinds.shaky.call]\ndependency = \"mailer\"\npath = \"/shaky\"",
    );
    let worker = place.worker().await;
    place.publish("v-5", "shaky", "1", json!({"text": "hello"})).await;
    let row = place.until_state("v-5", "done").await;
    assert_eq!((row.attempt, row.result), (2, Some(json!({"queued": true}))));
    worker.until_outcome("v-5", "done").await;
    // The stub keeps its accounts by Idempotency-Key.
    let calls = place.stub.calls();
    assert_eq!(calls.keys().collect::<Vec<_>>(), ["v-5"]);
    assert_eq!((calls["v-5"].calls, calls["v-5"].effects), (2, 1));
    assert!(!calls["v-5"].bodies_differ);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn an_open_breaker_parks_what_needs_it_uncharged_and_lets_the_rest_pass() {
    let place = patient("breaker").await;
    let worker = place
        .worker_unready(&[
            ("LONGSHORE__DEFAULTS__DEPENDENCY__BREAKER__OPEN_FOR", "8s"),
            ("LONGSHORE__DEFAULTS__DEPENDENCY__BREAKER__OPEN_MAX", "8s"),
        ])
        .await;
    worker.until_ready().await;
    let verify = async |id: String| {
        place.publish(&id, "patient", &id, json!({"address": "Main Street"})).await;
    };
    place.stub.behave("geocoder", Behaviour::Status { code: 503, retry_after_secs: None });
    // Ten failures in a row open it.
    join_all((0..10).map(|n| verify(format!("failed-{n}")))).await;
    let opened = worker
        .until_line("tells that the breaker opened", |line| {
            line["event"] == "breaker.transition" && line["to"] == "open"
        })
        .await;
    assert_eq!(
        (&opened["dependency"], &opened["why"]),
        (&json!("geocoder"), &json!("consecutive_failures"))
    );
    for n in 0..10 {
        // Those that were under way when it opened have come to their end as well.
        let id = format!("failed-{n}");
        worker.until_line(&format!("tells of {id}"), |line| line["request_id"] == id).await;
    }
    place.stub.behave("geocoder", Behaviour::default());
    let called = place.stub.arrivals("geocoder");
    join_all((0..20).map(|n| verify(format!("parked-{n}")))).await;
    place.publish("flows", "user.profile.update", "flows", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
    for n in 0..20 {
        let id = format!("parked-{n}");
        let row = place.until_state(&id, "parked").await;
        assert_eq!((row.attempt, row.parked_on.as_deref()), (0, Some("geocoder")));
        assert_eq!(worker.until_outcome(&id, "parked").await["parked_on"], "geocoder");
    }
    assert_eq!(place.stub.arrivals("geocoder"), called, "nobody was called meanwhile");
    until("the metrics tell what is parked", async || {
        (worker.metric(r#"longshore_parked{on="geocoder"}"#).await? >= 20.0).then_some(())
    })
    .await;
    assert_eq!(place.database.count("dead").await, 0);
    for n in 0..20 {
        assert_eq!(place.until_state(&format!("parked-{n}"), "done").await.attempt, 1);
    }
    for n in 0..10 {
        let id = format!("failed-{n}");
        let row = place.until_state(&id, "done").await;
        worker.until_outcome(&id, "done").await;
        assert_eq!(row.attempt, charged(&worker, &id), "parking costs no attempt");
    }
    worker
        .until_line("tells that the breaker closed", |line| {
            line["event"] == "breaker.transition" && line["to"] == "closed"
        })
        .await;
    assert!(place.stub.calls().values().all(|calls| calls.effects == 1));
    place.goes_on(worker).await;
}

/// A request meets this behaviour, is tried again because of it, and is done once it is over.
/// Returns by how much the worker's memory grew.
async fn fails_until_it_recovers(test: &str, behaviour: Behaviour, error: &str) -> u64 {
    let place = patient(test).await;
    let worker = place.worker().await;
    let before = worker.resident();
    place.stub.behave("geocoder", behaviour);
    place.publish("p-1", "patient", "1", json!({"address": "Main Street"})).await;
    let line = worker.until_outcome("p-1", "retry").await;
    assert_eq!((&line["error_code"], &line["level"]), (&json!("call_failed"), &json!("WARN")));
    assert!(line["error"].as_str().unwrap().contains(error), "{line}");
    let grown = worker.resident().saturating_sub(before);
    place.stub.behave("geocoder", Behaviour::default());
    let row = place.until_state("p-1", "done").await;
    assert!(row.attempt >= 2, "{row:?}");
    let done = worker.until_outcome("p-1", "done").await;
    assert_eq!(done["attempt"], row.attempt);
    assert_eq!(charged(&worker, "p-1"), row.attempt, "each attempt has its line");
    assert_eq!(place.stub.calls()["p-1"].effects, 1);
    place.goes_on(worker).await;
    grown
}

/// A place with the kind `patient`, whose attempts do not run out while a test looks on.
async fn patient(test: &str) -> Place {
    let mut place = Place::new(test).await;
    place.set(
        "[kinds.patient]\napply = \"app.verify_address\"\nmax_attempts = 50\n\
         [kinds.patient.call]\ndependency = \"geocoder\"\npath = \"/verify\"",
    );
    place
}

/// How many attempts of a request were told of, those apart that were only parked.
fn charged(worker: &Worker, id: &str) -> i32 {
    let charged = worker.story(id).iter().filter(|line| line["outcome"] != "parked").count();
    i32::try_from(charged).unwrap()
}

fn at(line: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).unwrap()
}
