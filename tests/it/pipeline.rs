//! The good way: every kind, once, answered and accounted for.

use serde_json::json;

use crate::support::{Place, Publish};

#[tokio::test]
async fn an_update_is_applied_once_however_often_it_is_published() {
    let place = Place::new("update").await;
    let worker = place.worker().await;
    for _ in 0..3 {
        place.publish("u-1", "user.profile.update", "42", json!({"name": "Ada"})).await;
    }
    place.until_state("u-1", "done").await;
    worker
        .until_line("tells two duplicates", |_| {
            worker.story("u-1").iter().filter(|line| line["outcome"] == "duplicate").count() == 2
        })
        .await;
    assert_eq!(place.database.version("42").await, 1);
    place.broker.until_empty().await;
}

#[tokio::test]
async fn a_question_is_answered_to_reply_to_with_its_correlation_id() {
    let place = Place::new("reply").await;
    let _worker = place.worker().await;
    place
        .publish(
            "g-0",
            "user.profile.update",
            "7",
            json!({"name": "Grace", "email": "grace@example.com"}),
        )
        .await;
    place.until_state("g-0", "done").await;
    let answers = format!("{}.answers", place.name);
    place.broker.declare(&answers).await;
    let question = json!({"request_id": "g-1", "kind": "user.profile.get", "user_id": 7});
    let publish = Publish::json(&question)
        .with(|p| p.with_reply_to(answers.as_str().into()).with_correlation_id("c-1".into()));
    place.broker.publish(publish).await;
    let answer = place.broker.take(&answers).await;
    assert_eq!(
        answer.properties.correlation_id().as_ref().map(lapin::types::ShortString::as_str),
        Some("c-1")
    );
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&body["request_id"], &body["outcome"]), (&json!("g-1"), &json!("done")));
    assert_eq!(body["result"]["profile"]["name"], "Grace");
}

#[tokio::test]
async fn a_call_is_made_with_its_idempotency_key_and_its_answer_is_applied() {
    let place = Place::new("call").await;
    let worker = place.worker().await;
    place.publish("a-1", "user.address.verify", "9", json!({"address": "1 Main Street"})).await;
    let row = place.until_state("a-1", "done").await;
    assert_eq!((row.attempt, row.result), (1, Some(json!({"verified": true}))));
    assert_eq!(place.stub.calls()["a-1"].calls, 1);
    let verified = "select count(*) from app.addresses where user_id = '9' and verified and address = '1 MAIN STREET'";
    assert_eq!(place.database.number(verified).await, 1);
    place.publish("w-1", "user.welcome.send", "9", json!({})).await;
    assert_eq!(place.until_state("w-1", "done").await.result, None);
    let line = worker.until_outcome("a-1", "done").await;
    for part in ["claim_ms", "call_ms", "finish_ms", "duration_ms", "age_ms"] {
        assert!(line[part].is_number(), "{part} is missing in {line}");
    }
    assert!(!line.to_string().contains("Main Street"), "a payload is in the log");
}
