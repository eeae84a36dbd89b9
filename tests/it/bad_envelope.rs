//! Envelopes that break the contract, one field at a time, and ids that come again.

use futures_util::future::join_all;
use serde_json::json;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Place, Publish, Worker, envelope, until};

#[tokio::test]
async fn a_request_without_a_usable_id_is_kept_among_the_unreadable() {
    let place = Place::new("no_id").await;
    let worker = place.worker().await;
    for (id, fault) in [
        (json!(null), "request_id is missing"),
        (json!(""), "request_id is empty"),
        (json!("x".repeat(10_000)), "request_id has 10000 characters"),
        (json!("a b"), "request_id has the character ' '"),
        (json!("a\u{0}b"), "request_id has the character '\\0'"),
        (json!(7), "request_id must be a string"),
    ] {
        let message = envelope("", json!({"request_id": id}));
        let kept = place.until_unreadable(&worker, message, "invalid_envelope").await;
        assert!(kept.error.starts_with(fault), "{} is not {fault}", kept.error);
        assert_eq!(kept.request_id, None);
    }
    assert_eq!(place.database.count("dead").await, 0);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn an_id_may_stand_in_the_body_or_in_message_id_but_not_differ() {
    let place = Place::new("two_ids").await;
    let worker = place.worker().await;
    let message = envelope("i-1", json!({})).message_id("i-2");
    let kept = place.until_unreadable(&worker, message, "invalid_envelope").await;
    assert!(kept.error.contains("`i-1` differs from the property message_id `i-2`"));
    place.broker.publish(envelope("i-3", json!({})).message_id("i-3")).await;
    place.broker.publish(envelope("", json!({"request_id": null})).message_id("i-4")).await;
    for id in ["i-3", "i-4"] {
        place.until_state(id, "done").await;
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_kind_that_differs_from_the_type_is_refused() {
    let place = Place::new("two_kinds").await;
    let worker = place.worker().await;
    let message = envelope("k-1", json!({})).with(|p| p.with_type("user.profile.get".into()));
    place.broker.publish(message).await;
    let row = place.until_dead(&worker, "k-1", "invalid_envelope").await;
    assert!(row.error.unwrap().contains("differs from the property type `user.profile.get`"));
    assert_eq!(row.attempt, 0);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_kind_that_nobody_configured_is_dead_and_no_label() {
    let place = Place::new("unknown_kind").await;
    let worker = place.worker().await;
    place.broker.publish(envelope("k-2", json!({"kind": "user.profile.explode"}))).await;
    let row = place.until_dead(&worker, "k-2", "unknown_kind").await;
    assert_eq!(row.attempt, 0);
    let series = r#"longshore_requests_total{kind="unknown",outcome="dead"}"#;
    assert_eq!(worker.metric(series).await, Some(1.0));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_user_is_a_string_or_an_integer_and_nothing_else() {
    let place = Place::new("users").await;
    let worker = place.worker().await;
    for (id, user, found) in [
        ("user-null", json!(null), "not null"),
        ("user-float", json!(1.5), "not the number 1.5"),
        ("user-object", json!({"id": 1}), "not an object"),
        ("user-list", json!([1]), "not an array"),
        ("user-empty", json!(""), "is empty"),
        ("user-nul", json!("a\u{0}b"), "has the character '\\0'"),
    ] {
        place.broker.publish(envelope(id, json!({"user_id": user}))).await;
        let row = place.until_dead(&worker, id, "invalid_envelope").await;
        let error = row.error.unwrap();
        assert!(error.starts_with("user_id ") && error.contains(found), "{error}");
    }
    place.broker.publish(envelope("user-integer", json!({"user_id": 42}))).await;
    place.until_state("user-integer", "done").await;
    assert_eq!(place.database.version("42").await, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_request_past_its_deadline_is_not_begun() {
    let place = Place::new("deadline").await;
    let worker = place.worker().await;
    for (id, kind) in [("dl-1", "user.profile.update"), ("dl-2", "user.welcome.send")] {
        let past = json!({"kind": kind, "deadline": "2020-01-01T00:00:00Z"});
        place.broker.publish(envelope(id, past)).await;
        assert_eq!(place.until_dead(&worker, id, "deadline").await.attempt, 0);
    }
    assert_eq!((place.database.version("1").await, place.stub.arrivals("mailer")), (0, 0));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_time_that_is_no_time_is_refused() {
    let place = Place::new("no_time").await;
    let worker = place.worker().await;
    for (id, field, value) in [
        ("tm-1", "deadline", json!("tomorrow")),
        ("tm-2", "not_before", json!("2026-01-01")),
        ("tm-3", "deadline", json!(1_700_000_000)),
        ("tm-4", "deadline", json!("9999-12-31T23:59:59-01:00")),
    ] {
        place.broker.publish(envelope(id, json!({field: value}))).await;
        let row = place.until_dead(&worker, id, "invalid_envelope").await;
        assert!(row.error.unwrap().starts_with(field));
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_request_is_parked_until_its_not_before_and_then_done() {
    let place = Place::new("not_before").await;
    let worker = place.worker().await;
    let start = OffsetDateTime::now_utc() + Duration::seconds(3);
    for (id, kind) in [("nb-1", "user.profile.update"), ("nb-2", "user.welcome.send")] {
        let later = json!({"kind": kind, "not_before": start.format(&Rfc3339).unwrap()});
        place.broker.publish(envelope(id, later)).await;
        let line = worker.until_outcome(id, "parked").await;
        assert_eq!((&line["parked_on"], &line["level"]), (&json!("not_before"), &json!("INFO")));
        let row = place.until_state(id, "parked").await;
        assert_eq!((row.attempt, row.parked_on.as_deref()), (0, Some("not_before")));
    }
    for id in ["nb-1", "nb-2"] {
        assert_eq!(place.until_state(id, "done").await.attempt, 1);
        let early = format!(
            "select count(*) from longshore.requests where request_id = '{id}' and finished_at < '{}'",
            start.format(&Rfc3339).unwrap()
        );
        assert_eq!(place.database.number(&early).await, 0);
        assert_eq!(worker.until_outcome(id, "done").await["source"], "due");
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn copies_that_arrive_together_are_one_request() {
    let place = Place::new("together").await;
    let worker = place.worker().await;
    let copies = |id, kind| {
        join_all(
            (0..40)
                .map(move |_| envelope(id, json!({"kind": kind})))
                .map(|copy| place.broker.publish(copy)),
        )
    };
    tokio::join!(copies("c-1", "user.profile.update"), copies("c-2", "user.welcome.send"));
    for id in ["c-1", "c-2"] {
        until_told(&worker, id, 40).await;
        let done = worker.story(id).iter().filter(|line| line["outcome"] == "done").count();
        let again = worker.story(id).iter().filter(|line| line["outcome"] == "duplicate").count();
        assert_eq!((done, again), (1, 39));
        assert_eq!(place.until_state(id, "done").await.attempt, 1);
    }
    assert_eq!(place.database.version("1").await, 1);
    let calls = place.stub.calls()["c-2"].clone();
    assert_eq!((calls.calls, calls.effects), (1, 1));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_copy_that_arrives_later_is_a_duplicate_whatever_became_of_the_first() {
    let place = Place::new("later").await;
    let worker = place.worker().await;
    let first = [
        ("la-1", "user.profile.update", json!({"name": "Ada"}), "done"),
        ("la-2", "user.welcome.send", json!({}), "done"),
        ("la-3", "user.profile.update", json!({"email": "nowhere"}), "dead"),
    ];
    for (id, kind, payload, state) in first {
        place.publish(id, kind, "1", payload.clone()).await;
        let before = place.until_state(id, state).await;
        place.publish(id, kind, "1", payload).await;
        worker.until_outcome(id, "duplicate").await;
        assert_eq!(place.database.row(id).await, Some(before));
    }
    assert_eq!(place.database.version("1").await, 1);
    assert_eq!(place.stub.calls()["la-2"].calls, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn an_id_that_is_used_again_for_another_body_is_kept_apart_and_the_first_counts() {
    let place = Place::new("reused").await;
    let worker = place.worker().await;
    for (id, kind) in [("re-1", "user.profile.update"), ("re-2", "user.welcome.send")] {
        place.publish(id, kind, "1", json!({"name": "Ada"})).await;
        let first = place.until_state(id, "done").await;
        let other = envelope(id, json!({"kind": kind, "payload": {"name": "Eve"}}));
        let kept = place.until_unreadable(&worker, other, "id_reused").await;
        assert_eq!(kept.request_id.as_deref(), Some(id));
        assert_eq!(place.database.row(id).await, Some(first), "the first is as it was");
    }
    let name = "select count(*) from app.users where name = 'Ada' and version = 1";
    assert_eq!(place.database.number(name).await, 1);
    assert_eq!(place.stub.calls()["re-2"].calls, 1);
    // So is what is no request at all under a known id; and once more is counted, not kept twice.
    let garbage = Publish::raw("hello").message_id("re-1");
    place.until_unreadable(&worker, garbage.clone(), "id_reused").await;
    place.broker.publish(garbage.header("origin", "a producer")).await;
    until("it is counted", async || {
        let kept = place.database.unreadable().await;
        (kept.len() == 3 && kept.iter().any(|kept| kept.seen == 2)).then_some(())
    })
    .await;
    place.goes_on(worker).await;
}

async fn until_told(worker: &Worker, id: &str, times: usize) {
    worker
        .until_line(&format!("ends {times} deliveries of {id}"), |_| {
            worker.story(id).len() == times
        })
        .await;
}
