//! Kinds with `ordered_by`: the requests of a user are applied in the order of their queue.

use std::collections::BTreeMap;

use longshore_dev::stub::Behaviour;
use serde_json::{Value, json};

use crate::support::{Place, until, until_within};

/// A place with three ordered kinds, whose functions note in `app.steps` what was applied, in its
/// order: one that only applies, one that calls before, and one that does what its payload says.
async fn ordered(test: &str) -> Place {
    let mut place = Place::new(test).await;
    place
        .database
        .execute(
            "create table app.steps (
                 nth bigint generated always as identity, user_id text, number bigint, request_id text);
             create table app.open (at timestamptz);
             create function app.step(request jsonb) returns jsonb language plpgsql volatile as $$
             begin
                 if request #>> '{payload,do}' = 'refuse' then raise exception 'no'; end if;
                 if request #>> '{payload,do}' = 'wait' and not exists (select from app.open) then
                     raise exception 'not yet' using errcode = 'lock_not_available';
                 end if;
                 insert into app.steps (user_id, number, request_id)
                 values (request ->> 'user_id', (request #>> '{payload,number}')::bigint,
                         request ->> 'request_id');
                 return null;
             end $$;
             create function app.step(request jsonb, response jsonb) returns jsonb
             language sql volatile as $$ select app.step(request) $$;",
        )
        .await;
    place.set(
        "[kinds.step]\napply = \"app.step\"\nordered_by = \"user_id\"\n\
         [kinds.visit]\napply = \"app.step\"\nordered_by = \"user_id\"\n\
         [kinds.visit.call]\ndependency = \"mailer\"\npath = \"/welcome\"\n",
    );
    place.set_value("LEDGER__LEASE_MARGIN", "1s").set_value("LEDGER__STATEMENT_TIMEOUT", "1s");
    place.set_value("DEFAULTS__KIND__TIMEOUT", "2s");
    place.set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "1000");
    place.set_value("DEFAULTS__KIND__MAX_DELAY", "200ms");
    place
}

fn body(kind: &str, user: &str, number: usize, payload: &Value) -> Vec<u8> {
    let mut payload = payload.clone();
    payload["number"] = json!(number);
    let id = format!("{user}-{number}");
    let body = json!({"request_id": id, "kind": kind, "user_id": user, "payload": payload});
    serde_json::to_vec(&body).unwrap()
}

/// What was applied for each user, in its order.
async fn steps(place: &Place) -> BTreeMap<String, Vec<i64>> {
    let mut steps: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let rows =
        place.database.query("select user_id, number from app.steps order by nth", &[]).await;
    for row in rows {
        steps.entry(row.get(0)).or_default().push(row.get(1));
    }
    steps
}

#[tokio::test]
async fn five_workers_keep_the_order_of_each_user_under_kills_and_stops_and_failing_calls() {
    const USERS: usize = 20;
    const EACH: usize = 40;
    let place = ordered("ordered_kills").await;
    place.stub.behave("mailer", Behaviour::Fail { share: 0.2, seed: 7 });
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(place.worker().await);
    }
    place.broker.until_has_consumer(&place.broker.ordered).await;
    let bodies: Vec<Vec<u8>> = (0..USERS * EACH)
        .map(|n| {
            let kind = if n % 3 == 0 { "visit" } else { "step" };
            body(kind, &format!("u{}", n % USERS), n / USERS, &json!({}))
        })
        .collect();
    let applied = async |share: usize| {
        let wanted = (USERS * EACH * share / 6) as i64;
        until(&format!("{wanted} are applied"), async || {
            let count = place.database.number("select count(*) from app.steps").await;
            (count >= wanted).then_some(())
        })
        .await;
    };
    let (first, rest) = bodies.split_at(bodies.len() / 2);
    place.broker.publish_all_to(&place.broker.ordered, first).await;
    for turn in 1..=4 {
        applied(turn).await;
        // Whoever consumes in order is among those that go, for all go in turn.
        let mut leaving = workers.remove(0);
        if turn % 2 == 0 {
            assert_eq!(leaving.drain().await.0, Some(0));
        } else {
            leaving.kill().await;
        }
        workers.push(place.worker().await);
        if turn == 1 {
            place.broker.publish_all_to(&place.broker.ordered, rest).await;
        }
    }
    let all = "select count(*) from longshore.requests where state = 'done'";
    until_within(4 * crate::support::PATIENCE, "all are done", async || {
        (place.database.number(all).await == (USERS * EACH) as i64).then_some(())
    })
    .await;
    let expected: Vec<i64> = (0..EACH as i64).collect();
    let steps = steps(&place).await;
    assert_eq!(steps.len(), USERS);
    for (user, numbers) in steps {
        assert_eq!(numbers, expected, "of {user}");
    }
    assert_eq!(place.broker.ready(&place.broker.ordered).await, 0);
    for worker in &workers {
        assert_eq!(worker.metric("longshore_order_broken_total").await.unwrap_or_default(), 0.0);
    }
}

#[tokio::test]
async fn a_waiting_request_holds_back_its_own_users_later_ones_and_nobody_else() {
    let place = ordered("ordered_waits").await;
    let worker = place.worker().await;
    let ordered = place.broker.ordered.clone();
    place.broker.until_has_consumer(&ordered).await;
    place
        .broker
        .publish_all_to(
            &ordered,
            &[
                body("step", "ada", 0, &json!({"do": "wait"})),
                body("step", "ada", 1, &json!({})),
                body("visit", "ada", 2, &json!({})),
                body("step", "bob", 0, &json!({})),
                body("visit", "bob", 1, &json!({})),
            ],
        )
        .await;
    place.until_state("bob-1", "done").await;
    let waits = place.until_state("ada-0", "waiting").await;
    assert_eq!(waits.error_code.as_deref(), Some("apply_failed"));
    for later in ["ada-1", "ada-2"] {
        let row = place.database.row(later).await.unwrap();
        assert_eq!((row.state.as_str(), row.attempt), ("parked", 0), "{later}");
    }
    let on = "select count(*) from longshore.requests where parked_on = 'order'";
    assert_eq!(place.database.number(on).await, 2);
    place.database.execute("insert into app.open values (now())").await;
    place.until_state("ada-2", "done").await;
    let steps = steps(&place).await;
    assert_eq!(steps["ada"], [0, 1, 2]);
    assert_eq!(steps["bob"], [0, 1]);
    drop(worker);
}

#[tokio::test]
async fn after_one_that_is_dead_the_later_ones_go_on() {
    let place = ordered("ordered_dead").await;
    let worker = place.worker().await;
    let ordered = place.broker.ordered.clone();
    place.broker.until_has_consumer(&ordered).await;
    let known = body("step", "ada", 2, &json!({}));
    place
        .broker
        .publish_all_to(
            &ordered,
            &[
                body("step", "ada", 0, &json!({"do": "refuse"})),
                b"{ this is no request".to_vec(),
                body("step", "ada", 1, &json!({})),
                // A kind without an order is worked as ever, and the same request again is not.
                body("user.profile.update", "bob", 7, &json!({"name": "Bob"})),
                known.clone(),
                known,
            ],
        )
        .await;
    let row = place.until_state("ada-2", "done").await;
    assert_eq!(row.attempt, 1);
    let dead = place.until_state("ada-0", "dead").await;
    assert_eq!(dead.error_code.as_deref(), Some("apply_refused"));
    assert_eq!(steps(&place).await["ada"], [1, 2]);
    place.until_state("bob-7", "done").await;
    until("the one that is no request is kept", async || {
        (place.database.unreadable().await.len() == 1).then_some(())
    })
    .await;
    worker.until_outcome("ada-2", "duplicate").await;
}

#[tokio::test]
async fn a_request_of_an_ordered_kind_is_done_also_if_it_came_without_an_order() {
    let place = ordered("ordered_elsewhere").await;
    let worker = place.worker().await;
    for number in 0..5 {
        place
            .broker
            .publish(crate::support::Publish::raw(body("step", "ada", number, &json!({}))))
            .await;
    }
    for number in 0..5 {
        place.until_state(&format!("ada-{number}"), "done").await;
    }
    let elsewhere = "longshore_entered_total{kind=\"step\",from=\"elsewhere\"}";
    assert_eq!(worker.metric(elsewhere).await, Some(5.0));
}
