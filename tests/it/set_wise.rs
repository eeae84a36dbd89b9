//! Functions that apply many requests at once (`apply_batch`).

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::Place;

/// A place with the kind `many`, whose functions count in `app.effects` how often, and how, each
/// request was applied. Both refuse what has `"bad"` in it.
async fn many(test: &str, results: &str) -> Place {
    let mut place = Place::new(test).await;
    place
        .database
        .execute(&format!(
            "create table app.effects (request_id text, how text);
             create function app.one(request jsonb) returns jsonb language plpgsql volatile as $$
             begin
                 if request -> 'payload' ? 'bad' then raise exception 'bad'; end if;
                 insert into app.effects values (request ->> 'request_id', 'one');
                 return '\"one\"';
             end $$;
             create function app.many(requests jsonb[]) returns jsonb[] language plpgsql volatile as $$
             begin
                 if exists (select from unnest(requests) r where r -> 'payload' ? 'bad') then
                     raise exception 'one of them is bad';
                 end if;
                 insert into app.effects
                 select r ->> 'request_id', 'many' from unnest(requests) as r;
                 return {results};
             end $$;"
        ))
        .await;
    place.set("[kinds.many]\napply = \"app.one\"\napply_batch = \"app.many\"\n");
    declare(&place).await;
    place
}

/// Has a worker make the queue, and go: a backlog makes full batches. It drains, for what the broker
/// hands to a worker that was killed comes back, and is applied one by one.
async fn declare(place: &Place) {
    assert_eq!(place.worker().await.drain().await.0, Some(0));
}

async fn publish(place: &Place, kind: &str, numbers: std::ops::Range<u32>, payload: Value) {
    join_all(numbers.map(|n| {
        let (id, user, payload) = (format!("{kind}-{n}"), (n % 7).to_string(), payload.clone());
        async move { place.publish(&id, kind, &user, payload).await }
    }))
    .await;
}

/// How each request was applied.
async fn effects(place: &Place) -> BTreeMap<String, Vec<String>> {
    let mut effects: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in place.database.query("select request_id, how from app.effects", &[]).await {
        effects.entry(row.get(0)).or_default().push(row.get(1));
    }
    effects
}

const ITSELF: &str = "array(select r -> 'request_id' from unnest(requests) r)";

#[tokio::test]
async fn many_requests_are_applied_by_one_call_and_each_gets_its_own_result() {
    let place = many("set_wise", ITSELF).await;
    publish(&place, "many", 0..300, json!({})).await;
    // The same again is a duplicate, and another kind shares the lane.
    publish(&place, "many", 0..50, json!({})).await;
    publish(&place, "user.profile.update", 0..50, json!({"name": "Ada"})).await;
    publish(&place, "user.profile.get", 0..50, json!({})).await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    for n in 0..300 {
        let id = format!("many-{n}");
        assert_eq!(place.until_state(&id, "done").await.result, Some(json!(id)));
    }
    for n in 0..50 {
        let row = place.until_state(&format!("user.profile.update-{n}"), "done").await;
        assert!(row.result.unwrap()["version"].is_number());
        place.until_state(&format!("user.profile.get-{n}"), "done").await;
    }
    place.broker.until_consumed().await;
    let effects = effects(&place).await;
    assert_eq!(effects.len(), 300);
    assert!(effects.values().all(|how| how == &["many"]), "{effects:?}");
    let batches = worker.metric(r#"longshore_ledger_batch_rows_count{step="finish"}"#).await;
    assert!(batches.unwrap() < 60.0, "450 writes took {batches:?} transactions");
    place.goes_on(worker).await;
}

#[tokio::test]
async fn who_is_refused_among_many_is_refused_alone() {
    let place = many("set_wise_bad", ITSELF).await;
    publish(&place, "many", 0..40, json!({})).await;
    publish(&place, "many", 40..43, json!({"bad": true})).await;
    publish(&place, "many", 43..100, json!({})).await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    for n in (0..40).chain(43..100) {
        assert_eq!(place.until_state(&format!("many-{n}"), "done").await.attempt, 1);
    }
    for n in 40..43 {
        let row = place.until_dead(&worker, &format!("many-{n}"), "apply_refused").await;
        assert!(row.error.unwrap().contains("bad"));
    }
    let effects = effects(&place).await;
    assert_eq!(effects.len(), 97);
    assert!(effects.values().all(|how| how.len() == 1), "{effects:?}");
    place.goes_on(worker).await;
}

#[tokio::test]
async fn results_of_another_number_are_nobodys() {
    let place = many("set_wise_short", "array['\"astray\"'::jsonb]").await;
    publish(&place, "many", 0..20, json!({})).await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    let mut astray = 0;
    for n in 0..20 {
        let row = place.until_state(&format!("many-{n}"), "done").await;
        astray += usize::from(row.result.is_some());
    }
    // Who was applied alone was told its own.
    assert!(astray < 20, "some were applied together");
    assert_eq!(effects(&place).await.len(), 20);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn the_examples_set_wise_function_does_what_its_single_one_does() {
    let place = many("set_wise_example", "null").await;
    let requests = json!([
        {"user_id": "1", "payload": {"email": "a@example.com", "name": "A"}},
        {"user_id": "1", "payload": {"name": "B"}},
        {"user_id": "2", "payload": {"locale": "en"}},
        {"user_id": "1", "payload": {"locale": "de", "email": null}},
    ]);
    let users = "select string_agg(concat_ws('|', user_id, email, name, locale, version), ',' order by user_id) from app.users";
    let mut seen = Vec::new();
    for apply in [
        "select app.update_profile(r) from jsonb_array_elements($1::text::jsonb) r",
        "select app.update_profiles(array(select r from jsonb_array_elements($1::text::jsonb) r))",
    ] {
        place.database.execute("truncate app.users").await;
        place.database.query(apply, &[&requests.to_string()]).await;
        seen.push(place.database.texts(users).await);
    }
    assert_eq!(seen[0], ["1|a@example.com|B|de|3,2|en|1"]);
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn kinds_without_one_share_their_statement() {
    let place = Place::new("kinds_in_one_batch").await;
    declare(&place).await;
    for kind in ["user.profile.update", "user.profile.get"] {
        publish(&place, kind, 0..100, json!({"name": "Ada"})).await;
    }
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__LANES", "1")]).await;
    worker.until_ready().await;
    for n in 0..100 {
        place.until_state(&format!("user.profile.update-{n}"), "done").await;
        let row = place.until_state(&format!("user.profile.get-{n}"), "done").await;
        assert!(row.result.is_some());
    }
    let batches = worker.metric(r#"longshore_ledger_batch_rows_count{step="finish"}"#).await;
    assert!(batches.unwrap() < 60.0, "200 writes took {batches:?} transactions");
    place.goes_on(worker).await;
}
