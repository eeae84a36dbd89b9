//! Properties and headers that no client of good faith sends, and answers that nobody can get.

use serde_json::json;

use crate::support::{
    Place, Publish, RawAmqp, Worker, envelope, nested_header, request, text_header, until,
};

#[tokio::test]
async fn headers_nested_two_thousand_deep_do_not_hurt_the_worker() {
    let place = Place::new("deep_headers").await;
    let worker = place.worker().await;
    let mut raw = RawAmqp::connect(&place.broker.url).await;
    let good = request("h-1", "user.profile.update", "1", r#"{"name":"Ada"}"#);
    raw.publish(&place.broker.exchange, &nested_header(b"deep", 2_000), good.as_bytes()).await;
    place.until_state("h-1", "done").await;
    let line = worker.until_outcome("h-1", "done").await;
    assert_eq!(line["redelivered"], false, "it came through at the first try");
    // What is kept of such headers ends where nobody reads on.
    raw.publish(&place.broker.exchange, &nested_header(b"deep", 2_000), b"hello").await;
    let kept =
        until("it is kept", async || place.database.unreadable().await.into_iter().next()).await;
    assert_eq!((kept.error_code.as_str(), &kept.body[..]), ("malformed_json", &b"hello"[..]));
    assert!(kept.properties["headers"].to_string().contains("nested too deep"));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_header_name_that_no_client_can_read_ends_in_the_dead_queue_and_harms_nobody_else() {
    let place = Place::new("poison").await;
    let worker = limited(&place).await;
    let mut raw = RawAmqp::connect(&place.broker.url).await;
    let poison = text_header(b"n\xffme", b"value");
    let neighbour = |index: usize| {
        let id = format!("n-{index}");
        Publish::raw(request(&id, "user.profile.update", &id, r#"{"name":"Ada"}"#))
    };
    for index in 0..10 {
        place.broker.publish(neighbour(index)).await;
    }
    raw.publish(&place.broker.exchange, &poison, b"hello").await;
    for index in 10..20 {
        place.broker.publish(neighbour(index)).await;
    }
    let found = raw.take(&place.broker.dead).await;
    assert_eq!(found.body, b"hello");
    assert!(found.header.windows(poison.len()).any(|part| part == poison), "headers and all");
    worker.until_event("queue.quarantine_entered").await;
    for index in 0..20 {
        let id = format!("n-{index}");
        assert_eq!(place.until_state(&id, "done").await.attempt, 1);
        assert_eq!(place.database.version(&id).await, 1);
    }
    worker.until_event("queue.quarantine_left").await;
    until("it consumes at full pace", async || {
        (worker.metric("longshore_consumer_up").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(place.database.unreadable().await, []);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_counted_and_changes_nothing() {
    let place = Place::new("reply_nowhere").await;
    let worker = place.worker().await;
    let question = envelope("q-1", json!({"kind": "user.profile.get"}))
        .with(|p| p.with_reply_to("nobody.waits.here".into()));
    place.broker.publish(question).await;
    place.until_state("q-1", "done").await;
    worker.until_outcome("q-1", "done").await;
    until("the answer is counted as unroutable", async || {
        let count = worker.metric(r#"longshore_replies_total{result="unroutable"}"#).await;
        (count == Some(1.0)).then_some(())
    })
    .await;
    place.goes_on(worker).await;
}

#[tokio::test]
async fn an_answer_is_not_sent_into_a_queue_of_the_worker() {
    let place = Place::new("reply_self").await;
    let worker = place.worker().await;
    for (id, queue) in [("q-2", &place.broker.queue), ("q-3", &place.broker.dead)] {
        let question = envelope(id, json!({"kind": "user.profile.get"}))
            .with(|p| p.with_reply_to(queue.as_str().into()));
        place.broker.publish(question).await;
        place.until_state(id, "done").await;
        worker.until_outcome(id, "done").await;
    }
    worker
        .until_line("tells of two refused answers", |_| {
            worker.log().iter().filter(|line| line["event"] == "reply.refused").count() == 2
        })
        .await;
    place.goes_on(worker).await;
}

/// A worker whose queue lets a message be delivered five times more.
async fn limited(place: &Place) -> Worker {
    let worker = place.worker_unready(&[("LONGSHORE__QUEUE__DELIVERY_LIMIT", "5")]).await;
    worker.until_ready().await;
    worker
}
