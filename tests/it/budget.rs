//! One budget for a request: the producer's deadline or the kind's timeout, whichever is nearer,
//! bounds the call and the function, and is told downstream.

use axum::{Router, extract::State, http::HeaderMap, routing::any};
use longshore_dev::stub::Behaviour;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc;

use crate::support::{Place, Publish};

/// What a slot may be held for with a budget of a second, in milliseconds.
const HELD: f64 = 1_200.0;

fn in_millis(millis: i64) -> String {
    (OffsetDateTime::now_utc() + time::Duration::milliseconds(millis)).format(&Rfc3339).unwrap()
}

fn request(id: &str, kind: &str, deadline: &str) -> Publish {
    let payload = json!({"address": "Elm", "name": "Ada"});
    Publish::json(&json!({"request_id": id, "kind": kind, "user_id": id, "payload": payload,
        "deadline": deadline}))
}

fn held(line: &Value) -> f64 {
    line["duration_ms"].as_f64().unwrap()
}

#[tokio::test]
async fn a_call_that_takes_ten_seconds_holds_no_slot_longer_than_the_second_it_has() {
    let mut place = Place::new("budget_call").await;
    place.patient_dependencies("9s").set_value("DEFAULTS__KIND__TIMEOUT", "9s");
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 10_000 });
    for n in 0..4 {
        let request = request(&format!("b-{n}"), "user.address.verify", &in_millis(1_000));
        place.broker.publish(request).await;
    }
    for n in 0..4 {
        let id = format!("b-{n}");
        let row = place.until_state(&id, "dead").await;
        assert_eq!((row.attempt, row.error_code.as_deref()), (1, Some("deadline")));
        let story = worker.story(&id);
        assert!(story.iter().all(|line| held(line) <= HELD), "{story:#?}");
        assert!(story[0]["error"].as_str().unwrap().contains("the request's time left"));
    }
}

#[tokio::test]
async fn a_function_that_takes_ten_seconds_is_cancelled_in_the_server_when_the_second_is_over() {
    let mut place = Place::new("budget_apply").await;
    place
        .database
        .execute(
            "create function app.sleeps(request jsonb) returns jsonb language sql volatile
             as $$ select to_jsonb(pg_sleep(10)::text) $$",
        )
        .await;
    place.set("[kinds.sleeps]\napply = \"app.sleeps\"");
    place.set_value("LEDGER__STATEMENT_TIMEOUT", "8s").set_value("DEFAULTS__KIND__TIMEOUT", "8s");
    let worker = place.worker().await;
    place.broker.publish(request("s-1", "sleeps", &in_millis(1_000))).await;
    let line = worker.until_outcome("s-1", "retry").await;
    assert!(held(&line) <= HELD, "{line}");
    let asleep = "select count(*) from pg_stat_activity
                   where datname = current_database() and state = 'active' and query like '%sleeps%'
                     and pid <> pg_backend_pid()";
    assert_eq!(place.database.number(asleep).await, 0, "nothing runs on");
    // The connection is as good as before.
    place.publish("after", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.until_state("after", "done").await;
    assert_eq!(place.until_state("s-1", "dead").await.error_code.as_deref(), Some("deadline"));
}

#[tokio::test]
async fn what_is_left_is_told_to_the_dependency_unless_that_is_switched_off() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = async |State(told): State<mpsc::UnboundedSender<HeaderMap>>,
                        headers: HeaderMap| {
        told.send(headers).unwrap();
        "{}"
    };
    let router = Router::new().fallback(any(answer)).with_state(told);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut place = Place::new("budget_header").await;
    place.set_value("DEPENDENCIES__MAILER__URL", &url).set_value("DEFAULTS__KIND__TIMEOUT", "9s");
    let worker = place.worker_with(&[("LONGSHORE__DEFAULTS__DEPENDENCY__TIMEOUT", "2s")]).await;
    let millis = |headers: &HeaderMap, name: &str| -> u64 {
        headers[name].to_str().unwrap().parse().unwrap()
    };
    place.publish("whole", "user.welcome.send", "1", json!({})).await;
    let whole = millis(&heard.recv().await.unwrap(), "x-request-timeout-ms");
    assert!((1_000..=2_000).contains(&whole), "the timeout of the dependency: {whole}");
    place.broker.publish(request("short", "user.welcome.send", &in_millis(1_500))).await;
    let short = millis(&heard.recv().await.unwrap(), "x-request-timeout-ms");
    assert!(short <= 1_500, "what is left to the request: {short}");
    drop(worker);
    let named = ("LONGSHORE__DEPENDENCIES__MAILER__BUDGET_HEADER", "x-time-left");
    let mut worker = place.worker_with(&[named]).await;
    place.publish("named", "user.welcome.send", "1", json!({})).await;
    let headers = heard.recv().await.unwrap();
    assert!(millis(&headers, "x-time-left") > 0 && !headers.contains_key("x-request-timeout-ms"));
    worker.drain().await;
    let off = ("LONGSHORE__DEPENDENCIES__MAILER__BUDGET_HEADER", "");
    let _worker = place.worker_with(&[off]).await;
    place.publish("off", "user.welcome.send", "1", json!({})).await;
    let headers = heard.recv().await.unwrap();
    assert!(headers.keys().all(|name| !name.as_str().contains("timeout")), "{headers:?}");
}

#[tokio::test]
async fn what_waits_for_its_retry_past_its_deadline_is_not_begun_again() {
    let mut place = Place::new("budget_retry").await;
    place
        .set_value("DEFAULTS__KIND__INITIAL_DELAY", "2s")
        .set_value("DEFAULTS__KIND__MAX_DELAY", "2s");
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Status { code: 500, retry_after_secs: None });
    place.broker.publish(request("r-1", "user.address.verify", &in_millis(800))).await;
    worker.until_outcome("r-1", "retry").await;
    place.stub.behave("geocoder", Behaviour::default());
    let row = place.until_state("r-1", "dead").await;
    assert_eq!((row.attempt, row.error_code.as_deref()), (1, Some("deadline")));
    assert_eq!(place.stub.calls()["r-1"].calls, 1);
}
