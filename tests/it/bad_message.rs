//! Bodies that are no requests: refused by a name, kept whole, and no obstacle to the next one.

use lapin::types::ShortString;
use serde_json::json;

use crate::support::{Place, Publish, request};

const LIMIT: usize = 1_048_576;

#[tokio::test]
async fn what_is_not_json_is_kept_whole_among_the_unreadable() {
    let place = Place::new("not_json").await;
    let worker = place.worker().await;
    for body in ["hello", "", "{\"request_id\":\"a\"} and more", "\u{feff}{}"] {
        let kept = place.until_unreadable(&worker, Publish::raw(body), "malformed_json").await;
        assert_eq!(kept.request_id, None);
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_truncated_body_is_kept_whole_among_the_unreadable() {
    let place = Place::new("truncated").await;
    let worker = place.worker().await;
    let whole = request("t-1", "user.profile.update", "1", r#"{"name":"Ada"}"#);
    let half = Publish::raw(&whole.as_bytes()[..whole.len() / 2]);
    place.until_unreadable(&worker, half, "malformed_json").await;
    assert_eq!(place.database.row("t-1").await, None);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_body_that_is_not_utf8_is_kept_byte_for_byte() {
    let place = Place::new("not_utf8").await;
    let worker = place.worker().await;
    let mut body = request("x-1", "user.profile.update", "1", r#"{"name":"Ada"}"#).into_bytes();
    body[20] = 0xff;
    let kept = place.until_unreadable(&worker, Publish::raw(body), "malformed_json").await;
    assert!(kept.error.contains("not UTF-8 from byte 20 on"), "{}", kept.error);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn json_that_is_no_object_is_no_envelope() {
    let place = Place::new("no_object").await;
    let worker = place.worker().await;
    for body in ["[]", "null", "42", "\"text\""] {
        place.until_unreadable(&worker, Publish::raw(body), "invalid_envelope").await;
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_body_nested_ten_thousand_deep_is_refused_and_not_followed() {
    let place = Place::new("nested").await;
    let worker = place.worker().await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let body = request("n-1", "user.profile.update", "1", &deep);
    let kept = place.until_unreadable(&worker, Publish::raw(body), "malformed_json").await;
    assert!(kept.error.contains("nested 10001 deep"), "{}", kept.error);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn what_is_not_json_but_has_a_message_id_is_filed_under_it() {
    let place = Place::new("filed").await;
    let worker = place.worker().await;
    place.broker.publish(Publish::raw("hello").message_id("f-1")).await;
    let row = place.until_dead(&worker, "f-1", "malformed_json").await;
    assert_eq!((row.attempt, row.body.as_deref()), (0, Some(&b"hello"[..])));
    // Postgres has no place for NUL in a text.
    let strange = Publish::raw("hello").message_id("f-2").with(|p| p.with_type("a\0b".into()));
    place.broker.publish(strange).await;
    let row = place.until_dead(&worker, "f-2", "malformed_json").await;
    assert_eq!(row.properties.unwrap()["type"], "a\0b");
    assert_eq!(place.database.unreadable().await, []);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_field_of_the_envelope_that_is_given_twice_is_refused() {
    let place = Place::new("twice").await;
    let worker = place.worker().await;
    let body = r#"{"request_id":"d-1","kind":"user.profile.update","user_id":"1","user_id":"2"}"#;
    place.broker.publish(Publish::raw(body)).await;
    let row = place.until_dead(&worker, "d-1", "invalid_envelope").await;
    assert_eq!(row.error.as_deref(), Some("user_id is given twice"));
    assert_eq!(row.body.as_deref(), Some(body.as_bytes()));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_key_that_is_given_twice_within_the_payload_is_the_producers_affair() {
    let place = Place::new("twice_inside").await;
    let worker = place.worker().await;
    let body = request("p-1", "user.profile.update", "1", r#"{"name":"Ada","name":"Eve"}"#);
    place.broker.publish(Publish::raw(body)).await;
    place.until_state("p-1", "done").await;
    worker.until_outcome("p-1", "done").await;
    let last = "select count(*) from app.users where user_id = '1' and name = 'Eve'";
    assert_eq!(place.database.number(last).await, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn one_byte_over_the_limit_goes_to_the_dead_queue_whole() {
    let place = Place::new("too_large").await;
    let worker = place.worker().await;
    let body = sized("l-1", LIMIT + 1);
    let message = Publish::raw(body.clone()).message_id("l-1").header("origin", "a producer");
    place.broker.publish(message).await;
    let line = worker
        .until_line("tells of a rejection", |line| {
            line["event"] == "request.finished" && line["outcome"] == "rejected"
        })
        .await;
    assert_eq!((&line["error_code"], &line["level"]), (&json!("too_large"), &json!("ERROR")));
    let found = place.broker.take(&place.broker.dead).await;
    assert!(found.body == body, "the body is as it was");
    assert_eq!(found.properties.message_id().as_ref().map(ShortString::as_str), Some("l-1"));
    let headers = found.properties.headers().clone().unwrap();
    let origin = headers.inner().get("origin").and_then(|value| value.as_long_string()).unwrap();
    assert_eq!(origin.as_bytes(), b"a producer");
    assert_eq!(place.database.row("l-1").await, None);
    assert_eq!(place.database.unreadable().await, []);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_done() {
    let place = Place::new("largest").await;
    let worker = place.worker().await;
    place.broker.publish(Publish::raw(sized("l-2", LIMIT))).await;
    place.until_state("l-2", "done").await;
    worker.until_outcome("l-2", "done").await;
    let name =
        place.database.number("select length(name)::bigint from app.users where user_id = '1'");
    assert!(usize::try_from(name.await).unwrap() > LIMIT - 200);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_nul_character_is_refused_where_postgres_would_have_to_hold_it() {
    let place = Place::new("nul").await;
    let worker = place.worker().await;
    let body = request("z-1", "user.profile.update", "1", r#"{"name":"a\u0000b"}"#);
    place.broker.publish(Publish::raw(body.clone())).await;
    let row = place.until_dead(&worker, "z-1", "apply_refused").await;
    assert_eq!(row.body.as_deref(), Some(body.as_bytes()), "byte for byte");
    assert_eq!(row.attempt, 1);
    // Here it comes back in the answer of the call.
    let body = request("z-2", "user.address.verify", "1", r#"{"address":"a\u0000b"}"#);
    place.broker.publish(Publish::raw(body.clone())).await;
    let row = place.until_dead(&worker, "z-2", "apply_refused").await;
    assert_eq!(row.body.as_deref(), Some(body.as_bytes()), "byte for byte");
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_nul_character_passes_where_nothing_is_applied() {
    let place = Place::new("nul_called").await;
    let worker = place.worker().await;
    let body = request("z-3", "user.welcome.send", "1", r#"{"text":"a\u0000b"}"#);
    place.broker.publish(Publish::raw(body)).await;
    place.until_state("z-3", "done").await;
    worker.until_outcome("z-3", "done").await;
    assert_eq!(place.stub.calls()["z-3"].effects, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_number_counts_as_far_as_postgres_can_hold_it() {
    let place = Place::new("numbers").await;
    let worker = place.worker().await;
    let update = |id, number: &str| {
        Publish::raw(request(id, "user.profile.update", id, &format!(r#"{{"name":{number}}}"#)))
    };
    place.broker.publish(update("e-400", "1e400")).await;
    place.until_state("e-400", "done").await;
    worker.until_outcome("e-400", "done").await;
    let exact = "select count(*) from app.users where user_id = 'e-400' and name::numeric = 1e400";
    assert_eq!(place.database.number(exact).await, 1, "no digit went through a float");
    place.broker.publish(update("e-999999", "1e999999")).await;
    let row = place.until_dead(&worker, "e-999999", "apply_refused").await;
    assert!(row.error.unwrap().contains("SQLSTATE 22003"));
    place.until_unreadable(&worker, update("e-none", "1e"), "malformed_json").await;
    place.goes_on(worker).await;
}

/// A request whose body has exactly this many bytes.
fn sized(id: &str, bytes: usize) -> Vec<u8> {
    let frame = request(id, "user.profile.update", "1", r#"{"name":""}"#).len();
    let name = format!(r#"{{"name":"{}"}}"#, "x".repeat(bytes - frame));
    request(id, "user.profile.update", "1", &name).into_bytes()
}
