//! What happens to single sessions at Postgres: ended by an administrator, in a deadlock, behind a
//! lock, without a free connection, cut while they commit.

use std::time::Duration;

use longshore_dev::{proxy::Proxy, stub::Behaviour};
use serde_json::json;

use crate::support::{Load, Place, address, envelope, through, until};

/// Ends sessions of the workers of this place, those that match; how many.
async fn end_sessions(place: &Place, which: &str) -> usize {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and application_name = 'longshore' and {which}"
    );
    place.database.query(&sql, &[]).await.len()
}

#[tokio::test]
async fn sessions_that_are_ended_in_the_middle_of_their_work_change_no_account() {
    let place = Place::new("ended").await;
    let mut worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 4_000, 4).await;
    let (mut ended, mut done) = (0, 50);
    // A moment just after the last may meet none.
    while ended < 10 {
        assert!(done < load.ids.len(), "{ended} sessions were met");
        worker.until_done(done).await;
        ended += end_sessions(&place, "true").await;
        done += 200;
    }
    let away = worker.until_event("ledger.away").await;
    assert!(!away["error"].as_str().unwrap().is_empty(), "{away}");
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn sessions_that_are_ended_idle_in_their_transaction_change_no_account() {
    let mut place = Place::new("idle").await;
    // Less than a statement has: it is set in the transaction, by a statement before the others.
    place.set_value("DEFAULTS__KIND__TIMEOUT", "1900ms");
    let mut worker = place.worker().await;
    let mut load = Load::default();
    let mut ended = 0;
    // Such a moment is short: a statement has ended, and the next has not arrived yet.
    while ended < 10 {
        place.publish_load(&mut load, 500, 4).await;
        while ended < 10 && worker.done() + 50 < load.ids.len() {
            ended += end_sessions(&place, "state = 'idle in transaction'").await;
        }
        assert!(load.ids.len() < 20_000, "{ended} sessions were met between two statements");
    }
    worker.until_event("ledger.away").await;
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_tried_again_and_its_neighbours_are_not_charged() {
    let mut place = Place::new("deadlock").await;
    place.set_value("LEDGER__STATEMENT_TIMEOUT", "10s");
    place.set("[kinds.both]\napply = \"app.both\"");
    // The worker's session is the one that looks for deadlocks, a while after it began to wait.
    let name = &place.name;
    place.database.execute(&format!("alter database {name} set deadlock_timeout = '3s'")).await;
    place
        .database
        .execute(
            "insert into app.users (user_id) values ('a'), ('b');
             create function app.both(request jsonb) returns jsonb language plpgsql as $$
             begin
                 update app.users set version = version + 1 where user_id = 'b';
                 update app.users set version = version + 1 where user_id = 'a';
                 return null;
             end $$",
        )
        .await;
    let mut worker = place.worker().await;
    let other = place.database.session().await;
    other.batch_execute("set deadlock_timeout = '1min'; begin").await.unwrap();
    let take = async |user: &str| {
        let sql = "update app.users set name = 'Ada' where user_id = $1";
        other.execute(sql, &[&user]).await.unwrap()
    };
    take("a").await;
    place.broker.publish(envelope("both", json!({"kind": "both", "user_id": "x"}))).await;
    until("the worker waits for the other", async || {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
                      and datname = current_database() and application_name = 'longshore'";
        (place.database.number(waits).await > 0).then_some(())
    })
    .await;
    // While both wait for each other, more arrives in the same lane.
    let more = async {
        for number in 0..100 {
            place.publish(&format!("n-{number}"), "user.profile.update", "x", json!({})).await;
        }
    };
    tokio::join!(take("b"), more);
    other.batch_execute("commit").await.unwrap();

    let line = worker.until_outcome("both", "retry").await;
    assert_eq!(line["error_code"], "apply_failed", "{line}");
    assert!(line["error"].as_str().unwrap().contains("40P01"), "{line}");
    assert_eq!(place.until_state("both", "done").await.attempt, 2);
    for user in ["a", "b"] {
        assert_eq!(place.database.version(user).await, 1, "{user}");
    }
    for number in 0..100 {
        assert_eq!(place.until_state(&format!("n-{number}"), "done").await.attempt, 1);
    }
    assert_eq!(place.database.version("x").await, 100);
    place.broker.until_empty().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn who_waits_for_a_lock_is_tried_again_and_the_others_pass() {
    let mut place = Place::new("locked").await;
    place.set_value("LEDGER__STATEMENT_TIMEOUT", "300ms");
    place.set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "50");
    let mut worker = place.worker().await;
    let other = place.database.session().await;
    other.batch_execute("begin; lock table app.users in access exclusive mode").await.unwrap();
    let mut load = Load::default();
    for number in 0..4 {
        let (id, user) = (format!("u-{number}"), format!("u-{number}"));
        place.publish(&id, "user.profile.update", &user, json!({})).await;
        load.add(&id, Some(&user));
    }
    for number in 0..20 {
        let id = format!("w-{number}");
        place.publish(&id, "user.welcome.send", &id, json!({})).await;
        load.add(&id, None);
    }
    for number in 0..4 {
        let line = worker.until_outcome(&format!("u-{number}"), "retry").await;
        assert_eq!(line["error_code"], "apply_failed", "{line}");
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("55P03") || error.contains("57014"), "{error}");
    }
    for number in 0..20 {
        let row = place.until_state(&format!("w-{number}"), "done").await;
        assert_eq!(row.attempt, 1, "who does not need the table is not charged");
    }
    let (status, body) = worker.get("/health/ready").await.unwrap();
    assert!(status == 200 && body.contains("\"consuming\""), "{status} {body}");
    other.batch_execute("commit").await.unwrap();
    place.until_accounted(&load).await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_pool_without_a_free_connection_pauses_and_burns_nothing() {
    let mut place = Place::new("pool").await;
    place.set_value("LEDGER__LANES", "1").set_value("LEDGER__POOL__MAX_SIZE", "5");
    place.set_value("LEDGER__POOL__MAX_IDLE", "5").set_value("LEDGER__POOL__WAIT_TIMEOUT", "200ms");
    // Nobody's lock is given up before the pool has been found empty: three lanes hold a connection,
    // and due work, leases, the counts and the pruning want the other two.
    place
        .set_value("LEDGER__STATEMENT_TIMEOUT", "10s")
        .set_value("LEDGER__PRUNE_INTERVAL", "200ms");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "10s");
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 20 });
    let mut worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_000, 2).await;
    worker.until_done(100).await;
    let other = place.database.session().await;
    other
        .batch_execute("begin; lock table longshore.requests in access exclusive mode")
        .await
        .unwrap();
    let away = worker.until_event("ledger.away").await;
    assert_eq!(away["error"], "no connection of the pool became free in time");
    until("the readiness probe names postgres", async || {
        let (status, body) = worker.get("/health/ready").await?;
        (status == 200 && body.contains("postgres")).then_some(())
    })
    .await;
    let missed = worker.metric(r#"longshore_pool_errors_total{stage="wait"}"#).await;
    assert!(missed >= Some(1.0), "{missed:?}");
    other.batch_execute("commit").await.unwrap();
    worker.until_event("ledger.back").await;
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

/// The lock that commits wait for in these tests, so that they can be met on their way.
const GATE: i64 = 4_711;

#[tokio::test]
async fn a_commit_whose_answer_is_lost_counts_once_whether_it_was_made_or_not() {
    let mut place = Place::new("commit").await;
    place.set_value("LEDGER__STATEMENT_TIMEOUT", "8s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "8s");
    place
        .database
        .execute(&format!(
            "create function app.wait_at_commit() returns trigger language plpgsql as $$
             begin perform pg_advisory_xact_lock({GATE}); return null; end $$;
             create constraint trigger waits after insert or update on app.users
             deferrable initially deferred for each row execute function app.wait_at_commit();
             create constraint trigger waits after insert or update on app.addresses
             deferrable initially deferred for each row execute function app.wait_at_commit();"
        ))
        .await;
    let line = Proxy::start(address(&place.database.url)).await.unwrap();
    let far = through(&place.database.url, &line);
    let mut worker = place.worker_with(&[("DATABASE_URL", &far)]).await;
    let gate = place.database.session().await;
    let mut load = Load::default();
    let mut back = 0;
    for made in [true, false] {
        for kind in ["user.profile.update", "user.address.verify"] {
            let id = format!("{kind}-{made}");
            gate.execute("select pg_advisory_lock($1)", &[&GATE]).await.unwrap();
            place.publish(&id, kind, &id, json!({"address": "1 Main Street"})).await;
            load.add(&id, (kind == "user.profile.update").then_some(id.as_str()));
            // The function has run, and so has the statement: only the commit is under way.
            let committing = until("a commit is under way", async || {
                let sql = "select pid from pg_stat_activity where wait_event = 'advisory'
                            and datname = current_database() and query = 'COMMIT'";
                Some(place.database.query(sql, &[]).await.first()?.get::<_, i32>(0))
            })
            .await;
            line.cut();
            if !made {
                let end = "select pg_terminate_backend($1, 10000)";
                assert!(place.database.query(end, &[&committing]).await[0].get::<_, bool>(0));
            }
            back += 1;
            worker
                .until_line("tells that postgres is back", |_| {
                    let log = worker.log();
                    log.iter().filter(|line| line["event"] == "ledger.back").count() >= back
                })
                .await;
            assert_eq!(place.database.count("done").await + 1, load.ids.len() as i64);
            gate.execute("select pg_advisory_unlock($1)", &[&GATE]).await.unwrap();
            assert_eq!(place.until_state(&id, "done").await.attempt, 1, "{id}");
            // Whoever holds a claim knows its own row again; what had no row was given back, and
            // the next delivery finds it done.
            let claimed = kind == "user.address.verify";
            let wanted = if made && !claimed { "duplicate" } else { "done" };
            worker.until_outcome(&id, wanted).await;
            if claimed {
                assert_eq!(place.stub.calls()[&id].calls, 1, "{id} was called again");
            }
        }
    }
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    let stopped = tokio::time::timeout(Duration::from_secs(20), worker.drain()).await.unwrap();
    assert_eq!(stopped.0, Some(0));
}
