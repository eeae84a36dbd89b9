//! Limits of kinds, dependencies and users: who is over one holds no slot, costs no attempt, and goes on
//! when there is room.

use futures_util::future::join_all;
use longshore_dev::stub::Behaviour;
use serde_json::{Value, json};

use crate::support::{Place, Worker, until};

const KIND: &str = "user.welcome.send";

/// A place where calls take their time and nobody's breaker opens.
async fn place(test: &str, settings: &str) -> Place {
    let mut place = Place::new(test).await;
    place
        .patient_dependencies("9s")
        .set_value("DEFAULTS__KIND__TIMEOUT", "9s")
        .set_value("DEFAULTS__DEPENDENCY__BREAKER__MODE", "observe")
        .set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "50")
        .set(settings);
    place
}

fn limited(settings: &str) -> String {
    format!(
        "[kinds.\"limited\"]\n{settings}\n[kinds.\"limited\".call]\ndependency = \"mailer\"\npath = \"/welcome\""
    )
}

async fn send(place: &Place, kind: &str, user: &str, ids: std::ops::Range<usize>) -> Vec<String> {
    let ids: Vec<String> = ids.map(|n| format!("{kind}-{user}-{n}")).collect();
    join_all(ids.iter().map(|id| place.publish(id, kind, user, json!({})))).await;
    ids
}

async fn until_metric(worker: &Worker, series: &str, value: f64) {
    let what = format!("{series} is {value}");
    until(&what, async || (worker.metric(series).await? == value).then_some(())).await;
}

async fn until_parked(place: &Place, on: &str, rows: i64) {
    let sql = format!(
        "select count(*) from longshore.requests where state = 'parked' and parked_on = '{on}'"
    );
    until(&format!("{rows} are parked on {on}"), async || {
        (place.database.number(&sql).await == rows).then_some(())
    })
    .await;
}

async fn until_all_done(place: &Place, ids: &[String]) {
    for id in ids {
        let row = place.until_state(id, "done").await;
        assert!(row.attempt >= 1, "{id}");
    }
}

#[tokio::test]
async fn who_finds_a_kind_full_waits_in_line_without_a_slot() {
    let place = place("limit_wait", &limited("max_in_flight = 2")).await;
    // Two are called, and the third slot is the only one for all others.
    let few = [("LONGSHORE__WORKER__CONCURRENCY", "3"), ("LONGSHORE__QUEUE__PREFETCH", "40")];
    let worker = place.worker_with(&few).await;
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, "limited", "1", 0..6).await;
    place.stub.until_arrivals("mailer", 2).await;
    until_metric(&worker, r#"longshore_limit_waiting{limit="limit:kind:limited"}"#, 4.0).await;
    assert_eq!(place.stub.arrivals("mailer"), 2);
    assert_eq!(place.database.count("parked").await, 0);
    place.publish("flows", "user.profile.update", "2", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
    let waiting = worker.metric(r#"longshore_limit_waiting{limit="limit:kind:limited"}"#).await;
    assert_eq!((waiting, place.stub.arrivals("mailer")), (Some(4.0), 2), "all the while");
    place.stub.behave("mailer", Behaviour::default());
    until_all_done(&place, &ids).await;
    let waited = worker.log().iter().filter(|line| line["limit_ms"].as_f64() > Some(0.0)).count();
    assert_eq!(waited, 4, "each says how long it waited");
}

#[tokio::test]
async fn who_finds_a_kind_full_is_parked_uncharged_and_done_as_soon_as_there_is_room() {
    let settings = limited("max_in_flight = 1\nwhen_full = \"park\"");
    let place = place("limit_park", &settings).await;
    let worker = place.worker().await;
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, "limited", "1", 0..8).await;
    let parked = worker
        .until_line("parks on the limit", |line| line["parked_on"] == "limit:kind:limited")
        .await;
    assert_eq!(
        (&parked["outcome"], &parked["limited_by"]),
        (&json!("parked"), &json!("limit:kind:limited"))
    );
    place.publish("flows", "user.profile.update", "2", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
    place.stub.behave("mailer", Behaviour::default());
    until_all_done(&place, &ids).await;
    let mut attempts = Vec::new();
    for id in &ids {
        attempts.push(place.database.row(id).await.unwrap().attempt);
    }
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 1, 1, 1, 1, 1, 1, 2], "only the call that hung has cost an attempt");
}

#[tokio::test]
async fn a_line_that_goes_on_fast_takes_whoever_comes() {
    let quick = "[kinds.\"quick\"]\napply = \"app.update_profile\"\nmax_in_flight = 4";
    let place = place("limit_brisk", quick).await;
    let few = [("LONGSHORE__WORKER__CONCURRENCY", "8"), ("LONGSHORE__QUEUE__PREFETCH", "64")];
    let ids: Vec<String> = (0..600).map(|n| format!("q-{n}")).collect();
    let worker = place.worker_with(&few).await;
    for ids in ids.chunks(200) {
        join_all(ids.iter().map(|id| place.publish(id, "quick", id, json!({"name": "Ada"})))).await;
    }
    until_all_done(&place, &ids).await;
    // Fourteen may wait for one limit in a line that goes on slowly; those who come before it is known how
    // fast it goes on are parked.
    let parked = worker
        .metric(r#"longshore_limited_total{limit="limit:kind:quick",how="parked"}"#)
        .await
        .unwrap_or_default();
    assert!(parked < 300.0, "{parked} of 600 were parked");
}

#[tokio::test]
async fn a_rate_is_shared_by_all_workers() {
    for when_full in ["wait", "park"] {
        let mut place = Place::new("limit_rate").await;
        place.set(&format!(
            "[kinds.\"seldom\"]\napply = \"app.update_profile\"\nrate = 5.0\nburst = 1.0\nwhen_full = \"{when_full}\""
        ));
        let workers = [place.worker().await, place.worker().await];
        let ids: Vec<String> = (0..20).map(|n| format!("s-{n}")).collect();
        join_all(ids.iter().map(|id| place.publish(id, "seldom", id, json!({"name": "Ada"}))))
            .await;
        until_all_done(&place, &ids).await;
        // A burst of one, and a token may be spent up to a second after its time.
        let sql = "select (1000 * extract(epoch from max(finished_at) - min(finished_at)))::bigint
                     from longshore.requests";
        let took = place.database.number(sql).await;
        assert!(took >= 2_700, "20 at 5 a second in {took} ms, {when_full}");
        let held = |line: &Value| line["limited_by"] == "limit:kind:seldom";
        assert!(workers.iter().any(|worker| worker.log().iter().any(held)));
    }
}

#[tokio::test]
async fn a_call_keeps_to_the_rate_of_its_dependency() {
    let mut place = place("limit_dependency_rate", "").await;
    place
        .set_value("DEPENDENCIES__MAILER__RATE", "4.0")
        .set_value("DEPENDENCIES__MAILER__BURST", "1.0");
    let _worker = place.worker().await;
    let ids = send(&place, KIND, "1", 0..12).await;
    until_all_done(&place, &ids).await;
    let sql = "select (1000 * extract(epoch from max(finished_at) - min(finished_at)))::bigint
                 from longshore.requests";
    let took = place.database.number(sql).await;
    assert!(took >= 1_600, "12 at 4 a second in {took} ms");
}

#[tokio::test]
async fn one_users_flood_takes_no_more_than_its_share_of_the_slots() {
    let place = place("limit_user", "").await;
    // A tenth of 32.
    let worker = place.worker_with(&[("LONGSHORE__WORKER__USER_SHARE", "0.1")]).await;
    place.stub.behave("mailer", Behaviour::Hang);
    let flood = send(&place, KIND, "flood", 0..60).await;
    until("most of the flood is parked", async || {
        let parked = place
            .database
            .number("select count(*) from longshore.requests where parked_on = 'limit:user'")
            .await;
        (parked > 40).then_some(())
    })
    .await;
    place.stub.until_arrivals("mailer", 3).await;
    assert_eq!(place.stub.arrivals("mailer"), 3);
    let other = send(&place, KIND, "ada", 0..1).await;
    place.stub.behave("mailer", Behaviour::default());
    let story = worker.until_outcome(&other[0], "done").await;
    assert_eq!(story["limited_by"], Value::Null, "nobody else waits");
    until_all_done(&place, &flood).await;
    let twice = "select count(*) from longshore.requests where attempt > 1";
    assert_eq!(place.database.number(twice).await, 3, "those whose call hung, and no other");
}

#[tokio::test]
async fn what_a_worker_has_parked_on_a_limit_is_done_by_another_that_knows_no_such_limit() {
    let settings = limited("max_in_flight = 1\nwhen_full = \"park\"");
    let mut place = place("limit_gone", &settings).await;
    let mut first = place.worker().await;
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, "limited", "1", 0..4).await;
    // It is brought up as far as a line of one behind the call, and there it stays.
    until("one is called, one stands in line, and the others are parked", async || {
        let now = [place.database.count("running").await, place.database.count("parked").await];
        (now == [2, 2]).then_some(())
    })
    .await;
    assert_eq!(first.drain().await.0, Some(0));
    place.stub.behave("mailer", Behaviour::default());
    place.set_value("KINDS__LIMITED__MAX_IN_FLIGHT", "100");
    let _second = place.worker().await;
    until_all_done(&place, &ids).await;
}

#[tokio::test]
async fn limits_of_kinds_and_rates_are_changed_at_run_time() {
    let place = place("limit_steered", &limited("when_full = \"park\"")).await;
    let token = "a-token-is-no-test-of-mine";
    let worker = place.worker_with(&[("LONGSHORE__ADMIN__TOKEN", token)]).await;
    let set = place.cli(&["steer", "limit", "limited", "1", "--kind"]).await;
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    let follows = async |target: &str, now: &str| {
        worker
            .until_line(&format!("tells that {target} is {now}"), |line| {
                line["event"] == "steer.applied" && line["subject"] == target && line["now"] == now
            })
            .await;
    };
    follows("kind-limit:limited", "1").await;
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, "limited", "1", 0..5).await;
    until("some are parked", async || (place.database.count("parked").await > 0).then_some(()))
        .await;
    let (_, text) = worker.get("/api/kinds").await.unwrap();
    let kinds: Value = serde_json::from_str(&text).unwrap();
    let kind =
        kinds["kinds"].as_array().unwrap().iter().find(|it| it["name"] == "limited").unwrap();
    assert_eq!(
        (&kind["max_in_flight"], &kind["steered"]),
        (&json!(1), &json!(["limit"])),
        "{kind}"
    );
    assert!(place.cli(&["steer", "limit", "limited", "auto", "--kind"]).await.status.success());
    follows("kind-limit:limited", "none").await;
    place.stub.behave("mailer", Behaviour::default());
    until_all_done(&place, &ids).await;
    let bearer = format!("Bearer {token}");
    let path = "/api/dependencies/mailer/rate/2.5";
    let (status, said) = worker.post(path, &[("authorization", &bearer)]).await;
    assert_eq!((status, &said["after"]), (200, &json!("2.5")), "{said}");
    follows("rate:mailer", "2.5").await;
    let shown = place.cli(&["steer"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("rate:mailer"), "{shown:?}");
}

#[tokio::test]
async fn too_much_parked_on_a_limit_stops_consuming_until_there_is_less() {
    let settings = limited("max_in_flight = 1\nwhen_full = \"park\"\nmax_parked = 3");
    let place = place("limit_full", &settings).await;
    let worker = place.worker().await;
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, "limited", "1", 0..8).await;
    let paused = worker
        .until_line("pauses for the limit", |line| {
            line["event"] == "worker.paused" && line["reason"] == "limit:kind:limited"
        })
        .await;
    assert_eq!(paused["level"], "INFO");
    place.stub.behave("mailer", Behaviour::default());
    until_all_done(&place, &ids).await;
    until_parked(&place, "limit:kind:limited", 0).await;
}

#[tokio::test]
async fn what_is_parked_on_a_share_is_done_by_a_worker_that_knows_no_shares() {
    let place = place("limit_no_share", "").await;
    let mut first = place.worker_with(&[("LONGSHORE__WORKER__USER_SHARE", "0.1")]).await;
    place.stub.behave("mailer", Behaviour::Hang);
    let flood = send(&place, KIND, "flood", 0..30).await;
    until("some of the flood is parked", async || {
        let parked = "select count(*) from longshore.requests where parked_on = 'limit:user'";
        (place.database.number(parked).await > 10).then_some(())
    })
    .await;
    assert_eq!(first.drain().await.0, Some(0));
    place.stub.behave("mailer", Behaviour::default());
    let _second = place.worker().await;
    until_all_done(&place, &flood).await;
}

#[tokio::test]
async fn what_is_parked_on_the_limit_of_a_dependency_waits_for_its_breaker_and_goes_before_the_others()
 {
    let mut place = place("limit_outage", "").await;
    place
        .set_value("DEPENDENCIES__MAILER__MAX_IN_FLIGHT", "1")
        .set_value("DEPENDENCIES__MAILER__WHEN_FULL", "park")
        .set_value("DEPENDENCIES__MAILER__BREAKER__MODE", "automatic");
    let worker = place.worker_with(&[("LONGSHORE__WORKER__CONCURRENCY", "4")]).await;
    let steer = async |verb: &str, now: &str| {
        assert!(place.cli(&["steer", "breaker", "mailer", verb]).await.status.success());
        worker.until_line(&format!("follows {verb}"), |line| line["now"] == now).await;
    };
    place.stub.behave("mailer", Behaviour::Hang);
    let ids = send(&place, KIND, "1", 0..12).await;
    until_parked(&place, "limit:dependency:mailer", 10).await;
    steer("open", "open").await;
    // Those that were called come again, and are turned away.
    let later = send(&place, KIND, "2", 0..3).await;
    until_parked(&place, "mailer", 5).await;
    until_parked(&place, "limit:dependency:mailer", 10).await;
    place.stub.behave("mailer", Behaviour::default());
    let called = place.stub.arrivals("mailer");
    // Closed at once: probes would be those that are parked on the breaker.
    steer("close", "closed").await;
    until_all_done(&place, &ids).await;
    until_all_done(&place, &later).await;
    assert_eq!(place.stub.arrivals("mailer"), called + 15, "each once, and none in vain");
    let before = "select count(*) from longshore.requests a, longshore.requests b
                   where a.user_id = '1' and a.attempt = 1 and b.user_id = '2'
                     and a.finished_at > b.finished_at";
    assert_eq!(place.database.number(before).await, 0, "what was parked on the limit is older");
    let uncharged = "select count(*) from longshore.requests where attempt = 1";
    assert!(place.database.number(uncharged).await >= 13, "but for those that hung");
}
