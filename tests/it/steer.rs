//! Operators steer: breakers, limits and pauses, over HTTP and from the command line.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use longshore_dev::stub::Behaviour;
use serde_json::{Value, json};

use crate::support::{Place, Worker, until};

const TOKEN: &str = "a token is no test of mine";

/// Starts a worker whose admin server takes orders.
async fn worker(place: &Place) -> Worker {
    place.worker_with(&[("LONGSHORE__ADMIN__TOKEN", &TOKEN.replace(' ', "-"))]).await
}

async fn post(worker: &Worker, path: &str) -> (u16, Value) {
    let token = TOKEN.replace(' ', "-");
    worker.post(path, &[("authorization", &format!("Bearer {token}")), ("x-actor", "ada")]).await
}

/// Waits until a worker does what was wished.
async fn follows(worker: &Worker, target: &str, now: &str) {
    worker
        .until_line(&format!("tells that {target} is {now}"), |line| {
            line["event"] == "steer.applied" && line["subject"] == target && line["now"] == now
        })
        .await;
}

async fn verify(place: &Place, ids: std::ops::Range<usize>) -> Vec<String> {
    let ids: Vec<String> = ids.map(|n| format!("v-{n}")).collect();
    join_all(
        ids.iter().map(|id| {
            place.publish(id, "user.address.verify", id, json!({"address": "Main Street"}))
        }),
    )
    .await;
    ids
}

#[tokio::test]
async fn a_breaker_forced_open_parks_on_every_worker_until_it_is_let_go() {
    let place = Place::new("forced").await;
    let first = worker(&place).await;
    let second = worker(&place).await;
    let (status, answer) = post(&first, "/api/dependencies/geocoder/breaker/open").await;
    let expected =
        json!({"target": "breaker:geocoder", "before": null, "after": "open", "who": "admin:ada"});
    assert_eq!((status, answer), (200, expected));
    follows(&first, "breaker:geocoder", "open").await;
    follows(&second, "breaker:geocoder", "open").await;
    let ids = verify(&place, 0..20).await;
    for id in &ids {
        let row = place.until_state(id, "parked").await;
        assert_eq!((row.attempt, row.parked_on.as_deref()), (0, Some("geocoder")));
    }
    place.publish("flows", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
    assert_eq!(place.stub.arrivals("geocoder"), 0, "nobody was called");
    let third = worker(&place).await;
    let standing = until("it is told what is parked", async || {
        let (_, text) = third.get("/api/dependencies").await?;
        let all: Value = serde_json::from_str(&text).ok()?;
        let of_geocoder =
            all["dependencies"].as_array()?.iter().find(|it| it["name"] == "geocoder")?.clone();
        (of_geocoder["parked"] == 20).then_some(of_geocoder)
    })
    .await;
    assert_eq!((&standing["mode"], &standing["state"]), (&json!("open"), &json!("open")));
    assert_eq!(standing["steered"], json!(["breaker"]), "a wish outlives the worker it came by");
    let mode = r#"longshore_breaker_mode{dependency="geocoder",mode="open"}"#;
    assert_eq!(third.metric(mode).await, Some(1.0));

    assert_eq!(post(&second, "/api/dependencies/geocoder/breaker/auto").await.0, 200);
    for id in &ids {
        assert_eq!(place.until_state(id, "done").await.attempt, 1);
    }
    let audit = place
        .database
        .texts("select who || ' ' || action || ' ' || target || ' ' || coalesce(before, '-') || ' ' || coalesce(after, '-') from longshore.audit order by id")
        .await;
    assert_eq!(
        audit,
        ["admin:ada open breaker:geocoder - open", "admin:ada auto breaker:geocoder open -"]
    );
}

#[tokio::test]
async fn an_observed_breaker_tells_what_it_would_have_done_and_holds_nobody_up() {
    let mut place = Place::new("observed").await;
    place.set_value("DEFAULTS__DEPENDENCY__BREAKER__MODE", "observe");
    place.set(
        "[kinds.patient]\napply = \"app.verify_address\"\nmax_attempts = 50\n\
         [kinds.patient.call]\ndependency = \"geocoder\"\npath = \"/verify\"",
    );
    let worker = worker(&place).await;
    place.stub.behave("geocoder", Behaviour::Status { code: 503, retry_after_secs: None });
    let ids: Vec<String> = (0..10).map(|n| format!("o-{n}")).collect();
    for id in &ids {
        place.publish(id, "patient", id, json!({"address": "Main Street"})).await;
    }
    let opened = worker
        .until_line("tells that it would have opened", |line| {
            line["event"] == "breaker.transition" && line["to"] == "open"
        })
        .await;
    assert_eq!(opened["mode"], "observe");
    until("calls went through that would have been refused", async || {
        let series = r#"longshore_breaker_unenforced_total{dependency="geocoder"}"#;
        (worker.metric(series).await? >= 1.0).then_some(())
    })
    .await;
    place.stub.behave("geocoder", Behaviour::default());
    for id in &ids {
        place.until_state(id, "done").await;
        assert!(worker.story(id).iter().all(|line| line["outcome"] != "parked"), "{id}");
    }
}

#[tokio::test]
async fn a_paused_kind_is_parked_uncharged_while_others_flow_and_goes_on_in_order() {
    let place = Place::new("paused_kind").await;
    let worker = worker(&place).await;
    assert_eq!(post(&worker, "/api/kinds/user.profile.update/pause").await.0, 200);
    follows(&worker, "kind:user.profile.update", "paused").await;
    for n in 0..10 {
        let name = json!({"name": format!("Ada {n}")});
        place.publish(&format!("p-{n}"), "user.profile.update", "1", name).await;
        let row = place.until_state(&format!("p-{n}"), "parked").await;
        let on = row.parked_on.as_deref();
        assert_eq!((row.attempt, on), (0, Some("kind:user.profile.update")));
    }
    place.publish("flows", "user.address.verify", "2", json!({"address": "Elm"})).await;
    place.until_state("flows", "done").await;
    until("it is told what is parked", async || {
        let (_, text) = worker.get("/api/kinds").await?;
        let kinds: Value = serde_json::from_str(&text).ok()?;
        let paused = kinds["kinds"].as_array()?.iter().find(|it| it["paused"] == true)?.clone();
        (paused["name"] == "user.profile.update" && paused["parked"] == 10).then_some(())
    })
    .await;
    let series = r#"longshore_kind_paused{kind="user.profile.update"}"#;
    assert_eq!(worker.metric(series).await, Some(1.0));
    assert_eq!(post(&worker, "/api/kinds/user.profile.update/resume").await.0, 200);
    for n in 0..10 {
        assert_eq!(place.until_state(&format!("p-{n}"), "done").await.attempt, 1);
    }
    assert_eq!(place.database.version("1").await, 10);
}

#[tokio::test]
async fn too_much_parked_for_a_paused_kind_stops_consuming_until_it_goes_on() {
    let mut place = Place::new("paused_full").await;
    place.set_value("DEFAULTS__KIND__MAX_PARKED", "5");
    let worker = worker(&place).await;
    assert_eq!(post(&worker, "/api/kinds/user.profile.update/pause").await.0, 200);
    follows(&worker, "kind:user.profile.update", "paused").await;
    for n in 0..5 {
        place.publish(&format!("p-{n}"), "user.profile.update", "1", json!({"name": "Ada"})).await;
    }
    let full = worker.until_event("worker.parked_full").await;
    assert_eq!(full["on"], "kind:user.profile.update");
    let paused = worker.until_event("worker.paused").await;
    assert_eq!(paused["reason"], "kind:user.profile.update");
    place.publish("later", "user.profile.update", "1", json!({"name": "Ada"})).await;
    assert_eq!(post(&worker, "/api/kinds/user.profile.update/resume").await.0, 200);
    for id in ["p-0", "p-4", "later"] {
        place.until_state(id, "done").await;
    }
}

#[tokio::test]
async fn a_pause_of_everything_holds_on_all_workers_over_a_restart_and_ends_by_the_command_line() {
    let place = Place::new("paused_all").await;
    let mut first = worker(&place).await;
    let paused = place.cli(&["steer", "pause", "--actor", "grace"]).await;
    let said = String::from_utf8_lossy(&paused.stdout).into_owned();
    assert!(
        paused.status.success() && said.contains("work: as the settings say -> paused"),
        "{said}"
    );
    let paused = first.until_event("worker.paused").await;
    assert_eq!(paused["reason"], "operator");
    place.publish("held", "user.profile.update", "1", json!({"name": "Ada"})).await;
    assert_eq!(first.drain().await.0, Some(0));
    let second = place.worker_unready(&[]).await;
    until("the next worker knows, and is ready all the same", async || {
        let (status, text) = second.get("/health/ready").await?;
        (status == 200 && text.contains("operator")).then_some(())
    })
    .await;
    let address =
        second.until_event("admin.listening").await["address"].as_str().unwrap().to_owned();
    let shown = place.cli(&["steer", "show", "--worker", &address]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("paused: operator") && shown.contains("geocoder"), "{shown}");
    assert!(place.database.row("held").await.is_none(), "nothing is begun");
    assert!(place.cli(&["steer", "resume"]).await.status.success());
    place.until_state("held", "done").await;
    let audit =
        place.database.texts("select who || ' ' || action from longshore.audit order by id");
    assert_eq!(audit.await, ["cli:grace pause", "cli resume"]);
}

#[tokio::test]
async fn due_work_rests_as_well_while_everything_is_paused() {
    let mut place = Place::new("paused_due").await;
    place.set_value("DEFAULTS__KIND__MAX_ATTEMPTS", "50");
    let worker = worker(&place).await;
    place.stub.behave("geocoder", Behaviour::Status { code: 503, retry_after_secs: None });
    verify(&place, 0..1).await;
    worker.until_outcome("v-0", "retry").await;
    assert_eq!(post(&worker, "/api/pause").await.0, 200);
    worker.until_event("worker.paused").await;
    // What was claimed before the pause comes to its end.
    until("nothing is worked", async || (place.database.count("running").await == 0).then_some(()))
        .await;
    place.stub.behave("geocoder", Behaviour::default());
    place
        .database
        .execute("update longshore.requests set due_at = now() - interval '1 minute'")
        .await;
    let arrivals = place.stub.arrivals("geocoder");
    place.publish("held", "user.profile.update", "1", json!({"name": "Ada"})).await;
    // Due work is looked for many times while a process starts, asks and ends.
    assert!(place.cli(&["steer", "show"]).await.status.success());
    assert_eq!(place.stub.arrivals("geocoder"), arrivals);
    assert!(place.database.row("held").await.is_none());
    assert_eq!(post(&worker, "/api/resume").await.0, 200);
    place.until_state("v-0", "done").await;
    place.until_state("held", "done").await;
}

#[tokio::test]
async fn a_limit_is_changed_at_run_time() {
    let mut place = Place::new("limited").await;
    place.patient_dependencies("9s").set_value("DEFAULTS__KIND__TIMEOUT", "9s");
    let worker = worker(&place).await;
    let set = place.cli(&["steer", "limit", "geocoder", "1"]).await;
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    follows(&worker, "limit:geocoder", "1").await;
    place.stub.behave("geocoder", Behaviour::Hang);
    verify(&place, 0..8).await;
    until("all but one were parked, or wait", async || {
        let log = worker.log();
        let parked: BTreeSet<&str> = log
            .iter()
            .filter(|line| line["parked_on"] == "limit:dependency:geocoder")
            .filter_map(|line| line["request_id"].as_str())
            .collect();
        let waiting = r#"longshore_limit_waiting{limit="limit:dependency:geocoder"}"#;
        let waiting = worker.metric(waiting).await?;
        (parked.len() as f64 + waiting >= 6.0).then_some(())
    })
    .await;
    assert_eq!(place.stub.arrivals("geocoder"), 1);
    let limit = r#"longshore_calls_limit{dependency="geocoder"}"#;
    until("the limit is exported", async || (worker.metric(limit).await? == 1.0).then_some(()))
        .await;
    assert!(place.cli(&["steer", "limit", "geocoder", "auto"]).await.status.success());
    follows(&worker, "limit:geocoder", "64").await;
}

#[tokio::test]
async fn nothing_is_changed_without_a_token_a_name_that_exists_or_the_audit() {
    let place = Place::new("refused_steer").await;
    let untold = place.worker().await;
    let (status, said) = untold.post("/api/pause", &[("authorization", "Bearer x")]).await;
    assert_eq!(status, 403);
    assert!(said["error"].as_str().unwrap().contains("admin.token"), "{said}");
    let worker = worker(&place).await;
    assert_eq!(worker.post("/api/pause", &[]).await.0, 401);
    worker.until_event("admin.refused").await;
    let (status, said) = post(&worker, "/api/dependencies/nobody/breaker/open").await;
    assert_eq!(status, 404);
    assert!(said["error"].as_str().unwrap().contains("there are geocoder, mailer"), "{said}");
    assert_eq!(post(&worker, "/api/kinds/nobody/pause").await.0, 404);
    let wrong = place.cli(&["steer", "pause", "nobody"]).await;
    assert_eq!(wrong.status.code(), Some(64));
    place
        .database
        .execute(
            "alter table longshore.audit add constraint full_up check (who = 'nobody') not valid",
        )
        .await;
    let (status, said) = post(&worker, "/api/pause").await;
    assert_eq!(status, 500);
    assert!(said["error"].as_str().unwrap().contains("nothing was changed"), "{said}");
    assert_eq!(place.cli(&["steer", "pause"]).await.status.code(), Some(1));
    assert_eq!(place.database.number("select count(*) from longshore.steering").await, 0);
    place.publish("flows", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
}

#[tokio::test]
async fn a_worker_that_cannot_read_what_is_wished_says_so_once_and_works_on() {
    let place = Place::new("unreadable_steer").await;
    let worker = worker(&place).await;
    place.database.execute("alter table longshore.steering rename column wish to wished").await;
    let told = worker.until_event("steer.unreadable").await;
    assert_eq!(told["level"], "ERROR");
    place.publish("flows", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.until_state("flows", "done").await;
    place.database.execute("alter table longshore.steering rename column wished to wish").await;
    assert!(place.cli(&["steer", "breaker", "mailer", "close"]).await.status.success());
    follows(&worker, "breaker:mailer", "closed").await;
    let told = worker.log().iter().filter(|line| line["event"] == "steer.unreadable").count();
    assert_eq!(told, 1);
    assert!(worker.log().iter().all(|line| line["event"] != "ledger.away"));
}

#[tokio::test]
async fn a_limit_that_learns_begins_low_moves_by_itself_and_stays_below_what_is_wished() {
    let mut place = Place::new("learns").await;
    place.set_value("DEFAULTS__DEPENDENCY__ADAPTIVE", "true");
    let worker = worker(&place).await;
    let limit = r#"longshore_calls_limit{dependency="geocoder"}"#;
    until("it begins low", async || (worker.metric(limit).await? == 10.0).then_some(())).await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 20 });
    for id in verify(&place, 0..300).await {
        place.until_state(&id, "done").await;
    }
    until("it has moved", async || (worker.metric(limit).await? != 10.0).then_some(())).await;
    assert_eq!(post(&worker, "/api/dependencies/geocoder/limit/3").await.0, 200);
    follows(&worker, "limit:geocoder", "3").await;
    until("it keeps to it", async || (worker.metric(limit).await? <= 3.0).then_some(())).await;
}
