//! SQL functions that refuse, fail, stall, or take the connection with them.

use std::ops::Range;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::support::{Place, until};

#[tokio::test]
async fn what_a_function_refuses_is_dead_and_its_neighbours_in_the_batch_are_done() {
    let body = "raise exception 'no such plan' using errcode = 'P0002', detail = 'the secret'";
    let place = odd("refuses", "", body).await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    let bad = place.publish("bad", "odd", "bad", json!({}));
    tokio::join!(neighbours(&place, 0..25), bad, neighbours(&place, 25..50));
    let row = place.until_dead(&worker, "bad", "apply_refused").await;
    assert_eq!(row.error.as_deref(), Some("no such plan (SQLSTATE P0002)"));
    assert_eq!(row.attempt, 1);
    until_done(&place, 0..50).await;
    let batches = worker.metric(r#"longshore_ledger_batch_rows_count{step="finish"}"#).await;
    assert!(batches.unwrap() < 51.0, "some shared a transaction: {batches:?}");
    assert!(!worker.log().iter().any(|line| line.to_string().contains("the secret")));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn where_every_third_is_refused_the_others_still_share_transactions() {
    let body = "if (request ->> 'user_id')::int % 3 = 0 then raise exception 'no plan % of this name', request ->> 'user_id'; end if;
                insert into app.effects values (request ->> 'request_id', 1); return '{\"well\": true}'";
    let place = odd("every_third", "", body).await;
    // The queue is there once a worker has been; a backlog makes full batches.
    place.worker().await.kill().await;
    join_all((0..300).map(|n| {
        let (place, id, user) = (&place, format!("r-{n}"), n.to_string());
        async move { place.publish(&id, "odd", &user, json!({})).await }
    }))
    .await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    for n in 0..300 {
        let id = format!("r-{n}");
        if n % 3 == 0 {
            let row = place.until_dead(&worker, &id, "apply_refused").await;
            let words = format!("no plan {n} of this name (SQLSTATE P0001)");
            assert_eq!(row.error, Some(words));
        } else {
            assert_eq!(place.until_state(&id, "done").await.attempt, 1);
        }
    }
    assert_eq!(effects(&place).await, 200, "what was refused left nothing behind");
    let kept = "select count(*) from longshore.requests where result = '{\"well\": true}'";
    assert_eq!(place.database.number(kept).await, 200);
    let batches = worker.metric(r#"longshore_ledger_batch_rows_count{step="finish"}"#).await;
    assert!(batches.unwrap() < 60.0, "400 writes took {batches:?} transactions");
    place.goes_on(worker).await;
}

#[tokio::test]
async fn words_that_quote_a_value_stay_out_of_ledger_and_log_in_company_too() {
    let body = "perform (request -> 'payload' ->> 'amount')::int; return null";
    let place = odd("quotes", "", body).await;
    place.worker().await.kill().await;
    join_all((0..40).map(|n| {
        let (place, id) = (&place, format!("r-{n}"));
        let amount = if n % 2 == 0 { "7".to_owned() } else { format!("secret{n}") };
        async move { place.publish(&id, "odd", &id, json!({"amount": amount})).await }
    }))
    .await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    for n in 0..40 {
        let id = format!("r-{n}");
        if n % 2 == 0 {
            place.until_state(&id, "done").await;
        } else {
            let row = place.until_dead(&worker, &id, "apply_refused").await;
            assert_eq!(row.error.as_deref(), Some("a value does not fit (SQLSTATE 22P02)"));
        }
    }
    assert!(!worker.log().iter().any(|line| line.to_string().contains("secret")));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_does_not_return_is_cut_off_at_its_kinds_timeout() {
    let limits = "timeout = \"300ms\"\nmax_attempts = 2";
    let place = odd("stalls", limits, "perform pg_sleep(60); return null").await;
    let worker = place
        .worker_unready(&[
            ("LONGSHORE__LEDGER__LANES", "1"),
            ("LONGSHORE__LEDGER__STATEMENT_TIMEOUT", "9s"),
        ])
        .await;
    worker.until_ready().await;
    tokio::join!(place.publish("slow", "odd", "slow", json!({})), neighbours(&place, 0..20));
    let first = worker.until_outcome("slow", "retry").await;
    assert_eq!(first["error_code"], "apply_failed");
    assert!(first["error"].as_str().unwrap().contains("SQLSTATE 57014"), "{first}");
    let row = place.until_dead(&worker, "slow", "attempts").await;
    assert_eq!(row.attempt, 2);
    until_done(&place, 0..20).await;
    for n in 0..20 {
        let line = worker.until_outcome(&format!("good-{n}"), "done").await;
        assert!(line["duration_ms"].as_f64().unwrap() < 6_000.0, "held up for long: {line}");
    }
    place.goes_on(worker).await;
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_tried_again_and_done() {
    // The worker's session waits first, and is the one that looks for a deadlock.
    let body = "set local deadlock_timeout = '1500ms';
                perform pg_advisory_xact_lock(1); perform pg_advisory_xact_lock(2); return null";
    let place = odd("deadlock", "", body).await;
    let worker = place.worker().await;
    let (client, connection) = tokio_postgres::connect(&place.database.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let two = "set deadlock_timeout = '1h'; begin; select pg_advisory_xact_lock(2)";
    client.batch_execute(two).await.unwrap();
    place.publish("locked", "odd", "1", json!({})).await;
    until("the function waits for the second lock", async || {
        let waits = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                      where d.datname = current_database() and locktype = 'advisory' and not granted";
        (place.database.number(waits).await == 1).then_some(())
    })
    .await;
    client.batch_execute("select pg_advisory_xact_lock(1); commit").await.unwrap();
    let line = worker.until_outcome("locked", "retry").await;
    assert_eq!(line["error_code"], "apply_failed");
    assert!(line["error"].as_str().unwrap().contains("SQLSTATE 40P01"), "{line}");
    assert_eq!(place.until_state("locked", "done").await.attempt, 2);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_serialization_failure_is_tried_again_until_it_passes() {
    let body = "insert into app.effects values (request ->> 'request_id', 1);
                if nextval('app.tries') < 3 then
                    raise exception 'not now' using errcode = 'serialization_failure';
                end if;
                return '{\"tries\": 3}'";
    let place = odd("serialization", "", body).await;
    let worker = place.worker().await;
    place.publish("third", "odd", "1", json!({})).await;
    let row = place.until_state("third", "done").await;
    assert_eq!((row.attempt, row.result), (3, Some(json!({"tries": 3}))));
    worker.until_outcome("third", "done").await;
    let story: Vec<Value> = worker.story("third");
    let told: Vec<_> = story.iter().map(|line| (&line["outcome"], &line["attempt"])).collect();
    let (retry, done) = (json!("retry"), json!("done"));
    assert_eq!(told, [(&retry, &json!(1)), (&retry, &json!(2)), (&done, &json!(3))]);
    let history = "select count(*) from longshore.attempts
                    where request_id = 'third' and outcome = 'retry' and error_code = 'apply_failed'";
    assert_eq!(place.database.number(history).await, 2);
    assert_eq!(effects(&place).await, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_loses_its_own_connection_to_elsewhere_is_tried_again_and_pauses_nobody() {
    // What postgres_fdw and dblink raise when their far side is away.
    let body = "raise exception 'could not connect to server \"far\"' using errcode = '08001'";
    let place = odd("far_side", "max_attempts = 2", body).await;
    let worker = place.worker().await;
    place.publish("far", "odd", "1", json!({})).await;
    let line = worker.until_outcome("far", "retry").await;
    assert_eq!(line["error_code"], "apply_failed");
    assert_eq!(place.until_dead(&worker, "far", "attempts").await.attempt, 2);
    assert!(!worker.log().iter().any(|line| line["event"] == "ledger.away"));
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_may_return_null() {
    let place = odd("null", "", "return null").await;
    let worker = place.worker().await;
    place.publish("null", "odd", "1", json!({})).await;
    let row = place.until_state("null", "done").await;
    assert_eq!((row.attempt, row.result), (1, None));
    worker.until_outcome("null", "done").await;
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_is_not_there_fails_its_own_kind_and_no_other() {
    let place = odd("missing", "", "return null").await;
    let worker = place.worker().await;
    place.database.execute("drop function app.odd(jsonb)").await;
    for id in ["gone-1", "gone-2"] {
        tokio::join!(place.publish(id, "odd", id, json!({})), neighbours(&place, 0..20));
        let row = place.until_dead(&worker, id, "apply_refused").await;
        assert_eq!(row.attempt, 1);
        assert!(row.error.unwrap().contains("SQLSTATE 42883"));
    }
    until_done(&place, 0..20).await;
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_may_not_be_called_fails_its_own_kind_and_no_other() {
    let place = odd("forbidden", "", "return null").await;
    let role = format!("{}_worker", place.name);
    place
        .database
        .execute(&format!(
            "create role {role} login password 'worker'; \
             grant usage on schema app, longshore to {role}; \
             grant all on all tables in schema app, longshore to {role}; \
             revoke execute on function app.odd(jsonb) from public"
        ))
        .await;
    let mut url = reqwest::Url::parse(&place.database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("worker")).unwrap();
    let worker = place.worker_unready(&[("DATABASE_URL", url.as_str())]).await;
    worker.until_ready().await;
    tokio::join!(place.publish("no", "odd", "no", json!({})), neighbours(&place, 0..20));
    let row = place.until_dead(&worker, "no", "apply_refused").await;
    assert!(row.error.unwrap().contains("SQLSTATE 42501"));
    until_done(&place, 0..20).await;
    place.goes_on(worker).await;
    place.database.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn of_a_function_that_fails_half_way_nothing_is_kept() {
    let body = "insert into app.effects values (request ->> 'request_id', 1);
                insert into app.effects values (request ->> 'request_id', -1);
                return null";
    let place = odd("half_way", "", body).await;
    let worker = place.worker().await;
    tokio::join!(place.publish("half", "odd", "half", json!({})), neighbours(&place, 0..20));
    let row = place.until_dead(&worker, "half", "apply_refused").await;
    assert!(row.error.unwrap().contains("SQLSTATE 23514"));
    assert_eq!(effects(&place).await, 0);
    until_done(&place, 0..20).await;
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_ends_its_connection_once_costs_nobody_an_attempt() {
    let body = "insert into app.effects values (request ->> 'request_id', 1);
                if nextval('app.tries') = 1 then
                    perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(10);
                end if;
                return null";
    let place = odd("hangs_up", "", body).await;
    let worker = place.worker().await;
    tokio::join!(place.publish("cut", "odd", "cut", json!({})), neighbours(&place, 0..20));
    assert_eq!(place.until_state("cut", "done").await.attempt, 1);
    worker.until_event("ledger.away").await;
    worker.until_event("ledger.back").await;
    until_done(&place, 0..20).await;
    assert_eq!(effects(&place).await, 1);
    assert_eq!(place.database.number("select count(*) from longshore.attempts").await, 0);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_function_that_ends_its_connection_every_time_is_dead_in_the_end() {
    let body = "perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(10); return null";
    let place = odd("hangs_up_always", "timeout = \"300ms\"", body).await;
    let worker = place
        .worker_unready(&[
            ("LONGSHORE__LEDGER__LEASE_MARGIN", "300ms"),
            ("LONGSHORE__LEDGER__STATEMENT_TIMEOUT", "300ms"),
        ])
        .await;
    worker.until_ready().await;
    tokio::join!(place.publish("killer", "odd", "killer", json!({})), neighbours(&place, 0..20));
    place.until_dead(&worker, "killer", "crash_loop").await;
    until_done(&place, 0..20).await;
    let away = worker.log().iter().filter(|line| line["event"] == "ledger.away").count();
    assert!(away < 40, "it took the connection from the others {away} times");
    place.goes_on(worker).await;
}

/// A place with the kind `odd`, whose function has this body, a sequence that no rollback turns
/// back, and a table for its effects.
async fn odd(test: &str, settings: &str, body: &str) -> Place {
    let mut place = Place::new(test).await;
    place
        .database
        .execute(&format!(
            "create sequence app.tries;
             create table app.effects (request_id text, amount int check (amount > 0));
             create function app.odd(request jsonb) returns jsonb language plpgsql
             as $$ begin {body}; end $$"
        ))
        .await;
    place.set(&format!("[kinds.odd]\napply = \"app.odd\"\n{settings}"));
    place
}

/// Publishes one good request for each of as many users.
async fn neighbours(place: &Place, range: Range<usize>) {
    join_all(range.map(|n| async move {
        let id = format!("good-{n}");
        place.publish(&id, "user.profile.update", &id, json!({"name": "Ada"})).await;
    }))
    .await;
}

async fn until_done(place: &Place, range: Range<usize>) {
    for n in range {
        let id = format!("good-{n}");
        assert_eq!(place.until_state(&id, "done").await.attempt, 1);
        assert_eq!(place.database.version(&id).await, 1, "{id} was applied once");
    }
}

async fn effects(place: &Place) -> i64 {
    place.database.number("select count(*) from app.effects").await
}
