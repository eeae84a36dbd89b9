//! The command line as operators meet it: what `check` finds, and what the exit codes say.

use std::process::Output;

use longshore::telemetry::VERSION;
use serde_json::json;

use crate::support::Place;

fn said(output: &Output) -> String {
    let mut text = String::from_utf8(output.stdout.clone()).unwrap();
    text.push_str(&String::from_utf8(output.stderr.clone()).unwrap());
    text
}

/// Asserts that a check failed, with all of these words in what it said.
#[track_caller]
fn found(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    assert!(said.contains("in the way"), "{said}");
}

#[tokio::test]
async fn a_check_of_a_place_where_all_is_well_says_so() {
    let place = Place::new("check_ok").await;
    let before = place.cli(&["check"]).await;
    assert_eq!(before.status.code(), Some(0), "{}", said(&before));
    assert!(said(&before).contains("is not there yet, the worker creates it"));
    let mut worker = place.worker().await;
    let after = place.cli(&["check"]).await;
    assert_eq!(after.status.code(), Some(0), "{}", said(&after));
    let text = said(&after);
    for word in [
        "settings      ok",
        "postgres      ok",
        "RabbitMQ",
        "dependency    ok: geocoder",
        "can work",
    ] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_check_finds_a_ledger_that_was_not_migrated_and_a_worker_refuses_it() {
    let place = Place::new("check_migrate").await;
    place.database.execute("drop schema longshore cascade").await;
    found(&place.cli(&["check"]).await, &["lacks 8 migration(s); run `longshore migrate`"]);
    let run = place.cli(&["run"]).await;
    assert_eq!(run.status.code(), Some(1));
    let last = said(&run).lines().last().unwrap().to_owned();
    assert!(last.contains("worker.failed") && last.contains("run `longshore migrate`"), "{last}");
    let migrated = place.cli(&["migrate"]).await;
    assert!(said(&migrated).contains("applied 0001 ledger"), "{}", said(&migrated));
    let again = place.cli(&["migrate"]).await;
    assert!(again.status.success() && said(&again).contains("up to date"), "{}", said(&again));
    assert_eq!(place.cli(&["check"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_ledger_lives_in_the_schema_of_the_settings_and_makes_no_other() {
    let mut place = Place::new("check_schema").await;
    place.database.execute("drop schema longshore cascade").await;
    place.set_value("LEDGER__SCHEMA", "inbox");
    let migrated = place.cli(&["migrate"]).await;
    assert!(said(&migrated).contains("schema inbox: applied 0001 ledger"), "{}", said(&migrated));
    // Fails where the first is not there, and where the second is.
    place.database.execute("alter schema inbox rename to longshore").await;
}

#[tokio::test]
async fn a_check_finds_functions_that_are_missing_of_another_shape_or_not_volatile() {
    let place = Place::new("check_functions").await;
    place
        .database
        .execute(
            "drop function app.get_profile(jsonb);
             drop function app.verify_address(jsonb, jsonb);
             create function app.verify_address(request jsonb) returns jsonb language sql volatile as 'select null::jsonb';
             alter function app.update_profile(jsonb) stable",
        )
        .await;
    let words = [
        "kind user.profile.get: there is no function app.get_profile(jsonb)",
        "kind user.address.verify: there is no function app.verify_address(jsonb, jsonb)",
        "kind user.profile.update: the function app.update_profile(jsonb) is declared stable",
        "3 thing(s) in the way",
    ];
    found(&place.cli(&["check"]).await, &words);
    place
        .database
        .execute(
            "alter function app.update_profile(jsonb) volatile;
             create function app.get_profile(request jsonb) returns text language sql volatile as 'select null::text'",
        )
        .await;
    found(&place.cli(&["check"]).await, &["app.get_profile(jsonb) does not return jsonb"]);
}

#[tokio::test]
async fn a_check_finds_a_missing_right_and_names_the_grant() {
    let place = Place::new("check_rights").await;
    let role = format!("{}_reader", place.name);
    place
        .database
        .execute(&format!(
            "create role {role} login password 'reader'; grant usage on schema longshore, app to {role};
             grant select on all tables in schema longshore to {role};
             revoke execute on function longshore.gone(text) from public"
        ))
        .await;
    let (_, tail) = place.database.url.split_once('@').unwrap();
    let url = format!("postgresql://{role}:reader@{tail}");
    let checked = place.cli_with(&["check"], &[("DATABASE_URL", &url)], "").await;
    let grant = format!("grant select, insert, update, delete on longshore.requests to {role}");
    let call = format!("grant execute on function longshore.gone(text) to {role}");
    found(&checked, &[&grant, &call]);
    let drop_role = format!("drop owned by {role}; drop role {role}");
    place.database.execute(&drop_role).await;
}

#[tokio::test]
async fn a_check_finds_a_queue_that_was_declared_otherwise() {
    let place = Place::new("check_topology").await;
    place.broker.declare(&place.broker.queue).await;
    found(
        &place.cli(&["check"]).await,
        &[&place.broker.queue, "exists with another `x-", "let it run empty and delete it"],
    );
}

#[tokio::test]
async fn a_check_tells_all_that_cannot_be_reached_and_shows_no_password() {
    let place = Place::new("check_away").await;
    let (_, tail) = place.database.url.split_once('@').unwrap();
    let database = format!("postgresql://nobody:hunter2@{tail}");
    let variables = [
        ("LONGSHORE__QUEUE__PASSWORD", "hunter2"),
        ("DATABASE_URL", database.as_str()),
        ("LONGSHORE__DEPENDENCIES__MAILER__URL", "http://127.0.0.1:1/"),
    ];
    let checked = place.cli_with(&["check"], &variables, "").await;
    found(&checked, &["postgres ", "nobody", "rabbitmq ", "mailer: ", "3 thing(s) in the way"]);
    assert!(!said(&checked).contains("hunter2"), "{}", said(&checked));
}

#[tokio::test]
async fn wrong_settings_end_with_78_and_wrong_arguments_with_64() {
    let mut place = Place::new("exit_codes").await;
    for arguments in [&[][..], &["dance"], &["run", "--fast"], &["publish", "--user", "42"]] {
        let wrong = place.cli(arguments).await;
        assert_eq!(wrong.status.code(), Some(64), "{arguments:?}: {}", said(&wrong));
        assert!(said(&wrong).contains("Usage: longshore"), "{}", said(&wrong));
    }
    place.set("[kinds.idle]\ntimeout = \"1h\"");
    let variables = [("LONGSHORE__WORKER__GRACE", "soon")];
    for command in ["run", "check", "migrate"] {
        let wrong = place.cli_with(&[command], &variables, "").await;
        assert_eq!(wrong.status.code(), Some(78), "{}", said(&wrong));
        for word in ["worker.grace", "LONGSHORE__WORKER__GRACE", "kinds.idle", "longshore.toml"] {
            assert!(said(&wrong).contains(word), "{word} is not in {}", said(&wrong));
        }
    }
}

#[tokio::test]
async fn help_version_and_defaults_are_told_without_any_server() {
    let binary = |argument: &'static [&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.args(argument).env("AMQP_URL", "nonsense").output().unwrap()
    };
    let version = binary(&["--version"]);
    assert_eq!(said(&version).trim(), format!("longshore {VERSION}"));
    assert!(VERSION.contains(" ("), "it names the commit: {VERSION}");
    let help = binary(&["--help"]);
    assert_eq!((version.status.code(), help.status.code()), (Some(0), Some(0)));
    for word in ["run", "migrate", "check", "publish", "Exit codes", "LONGSHORE__SECTION__KEY"] {
        assert!(said(&help).contains(word), "{word} is not in {}", said(&help));
    }
    let defaults = binary(&["check", "--defaults"]);
    assert_eq!(said(&defaults), longshore::config::DEFAULTS);
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["check", "--defaults"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), said(&ended).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_delivery_is_counted_once() {
    let place = Place::new("counted").await;
    let worker = place.worker().await;
    for id in ["n-1", "n-2", "n-3"] {
        place.publish(id, "user.welcome.send", "1", serde_json::json!({})).await;
        place.until_state(id, "done").await;
    }
    let deliveries = worker.metric("longshore_deliveries_total{redelivered=\"false\"}").await;
    assert_eq!(deliveries, Some(3.0));
}

#[tokio::test]
async fn a_ledger_of_the_version_before_is_migrated_with_what_is_in_it() {
    let place = Place::new("migrate_again").await;
    let worker = place.worker().await;
    place.publish("r-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    worker.until_done(1).await;
    drop(worker);
    let before = "drop function longshore.gone; drop function longshore.try_apply; drop type longshore.tried;
                  alter table longshore.requests drop column crashes, drop column alone;
                  drop table longshore.steering, longshore.audit;
                  drop index longshore.requests_parked, longshore.requests_shares;
                  drop table longshore.buckets; drop function longshore.take_tokens;
                  drop sequence longshore.places; alter table longshore.requests drop column place;
                  delete from longshore.migrations where version > 1";
    place.database.execute(before).await;
    found(&place.cli(&["check"]).await, &["lacks 7 migration(s); run `longshore migrate`"]);
    let migrated = place.cli(&["migrate"]).await;
    assert!(
        said(&migrated).contains(
            "applied 0002 suspects, 0003 try_apply, 0004 steering, 0005 release, 0006 limits, 0007 lines, 0008 gone"
        ),
        "{}",
        said(&migrated)
    );
    let worker = place.worker().await;
    place.publish("r-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    worker.until_outcome("r-1", "duplicate").await;
    place.publish("r-2", "user.profile.update", "1", json!({"name": "Ada"})).await;
    worker.until_outcome("r-2", "done").await;
}
