//! What is held in the middle of the way when something beside it fails: it is neither lost, nor
//! called again, nor charged.

use longshore_dev::{proxy::Proxy, stub::Behaviour};
use serde_json::json;

use crate::support::{Place, address, envelope, through, until};

#[tokio::test]
async fn a_broken_line_does_not_make_a_worker_take_over_its_own_request() {
    let mut place = Place::new("own").await;
    place.patient_dependencies("4s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 2_000 });
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    let worker = place.worker_with(&[("AMQP_URL", &far)]).await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    place.stub.until_arrivals("geocoder", 1).await;
    line.cut();
    let again = worker.until_outcome("a-1", "duplicate").await;
    assert_eq!(again["redelivered"], json!(true));
    assert_eq!(
        place.database.row("a-1").await.unwrap().state,
        "running",
        "it goes on being worked"
    );
    assert_eq!(place.until_state("a-1", "done").await.attempt, 1);
    assert_eq!(place.stub.calls()["a-1"].calls, 1);
    place.broker.until_empty().await;
}

#[tokio::test]
async fn a_claim_that_the_server_has_lost_is_filed_anew_and_done() {
    let mut place = Place::new("gone").await;
    place.patient_dependencies("4s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 1_000 });
    let worker = place.worker().await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    place.stub.until_arrivals("geocoder", 1).await;
    // As a failover to a standby that had not received the claim yet.
    place.database.execute("delete from longshore.requests where request_id = 'a-1'").await;
    worker.until_outcome("a-1", "done").await;
    assert_eq!(place.database.row("a-1").await.unwrap().state, "done");
    assert_eq!(place.database.number("select count(*) from app.addresses").await, 1);
    assert_eq!(place.stub.calls()["a-1"].calls, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_finish_that_waits_behind_slow_functions_is_no_dead_worker() {
    let mut place = Place::new("behind").await;
    place.set_value("LEDGER__LANES", "1").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("DEFAULTS__KIND__TIMEOUT", "1s");
    place.set(
        "[kinds.slow]\napply = \"app.slow\"\nmax_attempts = 1\n\
         [kinds.slow.call]\ndependency = \"mailer\"\npath = \"/slow\"",
    );
    place
        .database
        .execute(
            "create function app.slow(request jsonb, response jsonb) returns jsonb language plpgsql
             as $$ begin perform pg_sleep(60); return null; end $$",
        )
        .await;
    let worker = place.worker().await;
    for number in 0..8 {
        let slow = json!({"kind": "slow", "user_id": number});
        place.broker.publish(envelope(&format!("s-{number}"), slow)).await;
    }
    // Eight seconds of slow functions are in the lane before it: they have called, and it has not.
    place.stub.until_arrivals("mailer", 8).await;
    place.publish("a-1", "user.address.verify", "1", json!({"address": "1 Main Street"})).await;
    let row = place.until_state("a-1", "done").await;
    assert_eq!(row.attempt, 1, "its lease was renewed while it waited");
    assert_eq!(place.stub.calls()["a-1"].calls, 1);
    let line = worker.until_outcome("a-1", "done").await;
    assert!(line["finish_ms"].as_f64() > Some(2_000.0), "it did not wait past its lease: {line}");
    place.until_state("s-7", "dead").await;
}

#[tokio::test]
async fn leases_are_renewed_beside_a_row_that_is_locked() {
    let mut place = Place::new("locked").await;
    place.patient_dependencies("4s");
    place.set_value("LEDGER__LEASE_MARGIN", "2s");
    place.stub.behave("geocoder", Behaviour::Hang);
    let _worker = place.worker().await;
    for id in ["a-1", "a-2"] {
        place.publish(id, "user.address.verify", id, json!({"address": "1 Main Street"})).await;
    }
    place.stub.until_arrivals("geocoder", 2).await;
    // As a batch that is about to finish it has it locked. Who waited for that, with other rows locked
    // in an order of its own, could wait for somebody who waits for it.
    let lock = "begin; select from longshore.requests where request_id = 'a-1' for update";
    place.database.execute(lock).await;
    let renewed = "select coalesce(max((extract(epoch from due_at) * 1000)::bigint), 0)
                     from longshore.requests
                    where request_id = 'a-2' and state = 'running' and attempt = 1";
    let before = place.database.number(renewed).await;
    until("its lease is renewed", async || {
        (place.database.number(renewed).await > before).then_some(())
    })
    .await;
    place.database.execute("rollback").await;
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_pauses_and_condemns_nobody() {
    let place = Place::new("unwritable").await;
    let worker = place.worker().await;
    place.database.execute("alter table longshore.requests rename to elsewhere").await;
    for number in 0..50 {
        let id = format!("u-{number}");
        place.publish(&id, "user.profile.update", &id, json!({"name": "Ada"})).await;
        place.publish(&format!("c-{number}"), "user.welcome.send", &id, json!({})).await;
    }
    worker.until_event("ledger.away").await;
    until("the probes tell of the pause", async || {
        worker.get("/health/ready").await?.1.contains("postgres").then_some(())
    })
    .await;
    place.database.execute("alter table longshore.elsewhere rename to requests").await;
    for number in 0..50 {
        let row = place.until_state(&format!("u-{number}"), "done").await;
        assert_eq!(row.attempt, 1);
        assert_eq!(place.until_state(&format!("c-{number}"), "done").await.attempt, 1);
    }
    assert_eq!(place.broker.ready(&place.broker.dead).await, 0, "nobody was condemned");
    place.broker.until_empty().await;
}

#[tokio::test]
async fn what_postgres_says_of_a_value_is_kept_out_of_log_and_ledger() {
    let mut place = Place::new("quoting").await;
    place.set("[kinds.cast]\napply = \"app.cast_age\"");
    place
        .database
        .execute(
            "create function app.cast_age(request jsonb) returns jsonb language sql volatile
             as $$ select to_jsonb((request -> 'payload' ->> 'age')::int) $$",
        )
        .await;
    let worker = place.worker().await;
    let payload = json!({"age": "4111-1111-secret"});
    place.broker.publish(envelope("q-1", json!({"kind": "cast", "payload": payload}))).await;
    let row = place.until_state("q-1", "dead").await;
    assert_eq!(row.error.as_deref(), Some("a value does not fit (SQLSTATE 22P02)"));
    let line = worker.until_outcome("q-1", "dead").await;
    assert!(!line.to_string().contains("secret"), "{line}");
}
