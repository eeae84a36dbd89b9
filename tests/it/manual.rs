//! What the documents tell operators to do, done.

use longshore_dev::services::Services;
use serde_json::json;

use crate::support::{
    Place, Publish,
    document::{blocks, document, statement},
    until,
};

#[tokio::test]
async fn the_sql_of_the_operations_page_runs() {
    let place = Place::new("operations").await;
    let _worker = place.worker().await;
    place.publish("o-1", "user.profile.update", "1", json!({})).await;
    place.until_state("o-1", "done").await;
    place.publish("o-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    until("the other body is kept", async || {
        let sql = statement("docs/operations.md", "Messages that could not be read");
        let rows = place.database.query(&sql, &[]).await;
        let body: String = rows.first()?.get("body");
        body.contains("Ada").then_some(())
    })
    .await;
    for comment in
        ["What waits, and on whom", "Who holds up the most in line", "Do not wait any longer"]
    {
        place.database.execute(&statement("docs/operations.md", comment)).await;
    }
}

#[tokio::test]
async fn dead_letters_are_looked_at_replayed_and_forgotten_with_the_sql_of_the_readme() {
    let mut place = Place::new("replay").await;
    place.set("[kinds.\"late\"]\napply = \"app.late\"\nmax_attempts = 2");
    // Both are dead in the end: one is refused, one uses up its attempts.
    let raising = |code: &str| {
        format!(
            "create or replace function app.late(request jsonb) returns jsonb language plpgsql as
             $$ begin raise exception 'not yet' using errcode = '{code}'; end $$"
        )
    };
    place.database.execute(&raising("invalid_parameter_value")).await;
    let worker = place.worker().await;
    place.publish("r-1", "late", "1", json!({})).await;
    place.until_state("r-1", "dead").await;
    place.database.execute(&raising("lock_not_available")).await;
    place.publish("r-2", "late", "1", json!({})).await;
    let dead = place.until_state("r-2", "dead").await;
    assert_eq!((dead.attempt, dead.error_code.as_deref()), (2, Some("attempts")));

    let story = place.database.query(&statement("README.md", "One request"), &[]).await;
    assert_eq!(story[0].get::<_, String>("state"), "dead");
    let by_cause = place.database.query(&statement("README.md", "The dead by cause"), &[]).await;
    assert_eq!(by_cause.len(), 2);
    let history = statement("README.md", "Its failed attempts").replace("r-1", "r-2");
    let codes = place.database.query(&history, &[]).await;
    let codes: Vec<String> = codes.iter().map(|row| row.get("error_code")).collect();
    assert_eq!(codes, ["apply_failed", "attempts"]);

    // Still broken: it has all its attempts again. Then mended: it is done.
    let replay = statement("README.md", "Replay a few").replace("user.address.verify", "late");
    place.database.execute(&replay).await;
    worker
        .until_line("tells the end of the second life", |_| {
            let dead = worker.story("r-2").into_iter().filter(|line| line["outcome"] == "dead");
            dead.count() == 2
        })
        .await;
    place
        .database
        .execute(
            "create or replace function app.late(request jsonb) returns jsonb language sql volatile as
             $$ select '\"at last\"'::jsonb $$",
        )
        .await;
    place.until_state("r-2", "dead").await;
    place.database.execute(&replay).await;
    let done = place.until_state("r-2", "done").await;
    assert_eq!((done.attempt, done.result), (1, Some(json!("at last"))));
    assert_eq!((done.error_code, done.body), (None, None));
    let other = place.database.row("r-1").await.unwrap();
    assert_eq!(other.state, "dead", "only what was asked for is replayed");

    place.database.execute(&statement("README.md", "Forget")).await;
    assert_eq!(place.database.row("r-1").await, None);
    place.publish("r-1", "late", "1", json!({})).await;
    place.until_state("r-1", "done").await;
}

#[tokio::test]
async fn the_rights_of_the_operations_page_are_enough_for_a_worker_and_no_more() {
    let place = Place::new("grants").await;
    let role = format!("{}_worker", place.name);
    let rights = |comment: &str| {
        let text = statement("docs/operations.md", comment).replace("longshore_worker", &role);
        text.replace("database app", &format!("database {}", place.name))
    };
    place.database.execute(&format!("create role {role} login password 'works'")).await;
    place.database.execute(&rights("The worker's rights to the ledger")).await;
    place.database.execute(&rights("The worker's rights to what its functions touch")).await;
    let (_, tail) = place.database.url.split_once('@').unwrap();
    let url = format!("postgresql://{role}:works@{tail}");
    let variables = [("DATABASE_URL", url.as_str())];
    let checked = place.cli_with(&["check"], &variables, "").await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let migrating = place.cli_with(&["migrate"], &variables, "").await;
    assert!(
        !migrating.status.success() || {
            // Nothing is left to migrate, so nothing is refused.
            String::from_utf8_lossy(&migrating.stdout).contains("up to date")
        }
    );

    let steered = place.cli_with(&["steer", "limit", "geocoder", "8"], &variables, "").await;
    assert!(steered.status.success(), "{}", String::from_utf8_lossy(&steered.stderr));

    let worker = place.worker_unready(&variables).await;
    worker.until_ready().await;
    place.publish("w-1", "user.profile.update", "1", json!({"name": "Ada"})).await;
    place.publish("w-2", "user.address.verify", "1", json!({"address": "1 Main"})).await;
    place.publish("w-3", "user.profile.update", "1", json!({"email": "nobody"})).await;
    place.until_state("w-1", "done").await;
    place.until_state("w-2", "done").await;
    place.until_state("w-3", "dead").await;
    let owner = format!(
        "select count(*) from information_schema.role_table_grants
          where grantee = '{role}' and privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER')"
    );
    assert_eq!(place.database.number(&owner).await, 0);
    worker.kill().await;
    place.database.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn the_patterns_of_the_operations_page_are_enough_for_a_worker_at_the_broker() {
    let place = Place::new("patterns").await;
    let services = Services::shared().await.unwrap();
    let text = document("docs/operations.md");
    let lines: Vec<String> = blocks(&text)
        .into_iter()
        .filter(|(info, _)| info == "sh")
        .flat_map(|(_, block)| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.contains("set_permissions"))
        .map(|line| line.replace("longshore_worker", &place.name))
        .collect();
    assert_eq!(lines.len(), 2, "one that declares and one that does not");
    let exchange = &place.broker.exchange;
    services.rabbit.ctl(&["add_user", &place.name, "works"]).await.unwrap();
    let host = place.broker.url.split_once('@').unwrap().1;
    let url = format!("amqp://{}:works@{host}", place.name);
    for (n, (line, declare)) in lines.iter().zip(["true", "false"]).enumerate() {
        // `rabbitmqctl set_permissions -p / USER 'configure' 'write' 'read'`
        let patterns: Vec<String> = line
            .split('\'')
            .skip(1)
            .step_by(2)
            .map(|pattern| pattern.replace("longshore", exchange))
            .collect();
        let [configure, write, read] = patterns.as_slice() else { panic!("{line}") };
        let arguments = ["set_permissions", "-p", "/", &place.name, configure, write, read];
        services.rabbit.ctl(&arguments).await.unwrap();
        let variables = [("AMQP_URL", url.as_str()), ("LONGSHORE__QUEUE__DECLARE", declare)];
        let mut worker = place.worker_unready(&variables).await;
        worker.until_ready().await;
        let (id, answers) = (format!("p-{n}"), format!("{exchange}.answers"));
        place.broker.declare(&answers).await;
        let body = json!({"request_id": id, "kind": "user.profile.get", "user_id": "1"});
        let publish = Publish::json(&body);
        place.broker.publish(publish.with(|p| p.with_reply_to(answers.as_str().into()))).await;
        place.until_state(&id, "done").await;
        place.broker.take(&answers).await;
        assert_eq!(worker.drain().await.0, Some(0));
    }
    services.rabbit.ctl(&["delete_user", &place.name]).await.unwrap();
}
