//! `longshore drill` as operators run it: it passes, it finds what is broken on purpose, it refuses
//! what is not its own, and it leaves nothing behind.

use std::{process::Stdio, time::Duration};

use longshore_dev::process::Process;
use longshore_drill::broker;
use serde_json::Value;
use tokio::{process::Child, time::timeout};

use crate::support::{Place, document::document, until, until_within};

/// How long a drill of some thousand requests may take on a busy machine.
const DRILL: Duration = Duration::from_secs(180);

struct Drill {
    child: Child,
}

impl Drill {
    fn start(place: &Place, arguments: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
        command
            .arg("--config")
            .arg(place.settings_file())
            .arg("drill")
            .args(arguments)
            .envs(place.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self { child: command.spawn().unwrap() }
    }

    async fn end(self) -> (Option<i32>, String) {
        let output = timeout(DRILL, self.child.wait_with_output()).await.unwrap().unwrap();
        let mut said = String::from_utf8(output.stdout).unwrap();
        said.push_str(&String::from_utf8(output.stderr).unwrap());
        (output.status.code(), said)
    }
}

/// The drill's name, which is what it says first.
fn name_in(said: &str) -> String {
    said.split(':').next().unwrap().to_owned()
}

/// Schemas of drills in this place's database.
async fn schemas(place: &Place) -> Vec<String> {
    place
        .database
        .texts("select nspname::text from pg_namespace where nspname like 'longshore_drill_%'")
        .await
}

async fn nothing_is_left(place: &Place, name: &str) {
    assert_eq!(schemas(place).await, Vec::<String>::new());
    for queue in ["requests", "dead", "replies"] {
        let queue = format!("{name}.{queue}");
        assert!(!broker::has_queue(&place.broker.url, &queue).await.unwrap(), "{queue} is left");
    }
}

#[tokio::test]
async fn a_small_drill_passes_with_every_fault_and_leaves_nothing_behind() {
    let place = Place::new("drill").await;
    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().to_str().unwrap();
    let drill = Drill::start(
        &place,
        &["--requests", "2000", "--kills", "4", "--cuts", "3", "--seed", "1", "--json", path],
    );
    let (code, said) = drill.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("PASSED: nothing lost, nothing done twice, nothing left over"), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(report["passed"], true, "{report:#}");
    assert_eq!(report["requests_confirmed"], 2_000);
    let count = |field: &str| report["faults"][field].as_u64().unwrap();
    assert_eq!((count("sigkill"), count("sigterm"), count("sigterm_clean")), (2, 1, 1), "{said}");
    assert_eq!((count("sigstop"), count("sigstop_disconnected")), (1, 1), "{said}");
    let cuts = (count("cuts_broker"), count("cuts_postgres"), count("cuts_producer"));
    assert_eq!(cuts, (1, 1, 1), "{said}");
    assert!(report["told"]["redeliveries"].as_u64().unwrap() > 0, "{said}");
    let findings = report["account"]["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 12, "{said}");
    let document = document("docs/drill.md");
    for finding in findings {
        let row = format!("\n| {} |", finding["rule"].as_str().unwrap());
        assert!(document.contains(&row), "docs/drill.md lacks the rule{row}");
        // A rule that was checked on nothing has shown nothing.
        assert!(finding["checked"].as_u64().unwrap() > 0, "{finding}");
    }
    assert_eq!(place.database.count("done").await, 0, "the ledger of the place is not the drill's");
    nothing_is_left(&place, &name_in(&said)).await;
}

#[tokio::test]
async fn two_workers_and_five_on_one_queue_are_killed_in_turn_and_lose_nothing() {
    let place = Place::new("drill_fleet").await;
    for workers in ["2", "5"] {
        let json = tempfile::NamedTempFile::new().unwrap();
        let path = json.path().to_str().unwrap();
        let of = ["--requests", "2000", "--kills", "5", "--cuts", "0", "--workers", workers];
        let drill = Drill::start(&place, &[&of[..], &["--seed", "2", "--json", path]].concat());
        let (code, said) = drill.end().await;
        assert_eq!(code, Some(0), "{workers} workers: {said}");
        let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(
            (&report["passed"], &report["requests_confirmed"]),
            (&true.into(), &2_000.into())
        );
        let count = |field: &str| report["faults"][field].as_u64().unwrap();
        assert_eq!((count("sigkill"), count("sigterm"), count("sigstop")), (2, 2, 1), "{said}");
        nothing_is_left(&place, &name_in(&said)).await;
    }
}

#[tokio::test]
async fn a_drill_finds_what_is_lost_and_what_is_done_twice_and_tells_its_story() {
    let place = Place::new("drill_broken").await;
    // At a rate, so that there is time to break something.
    let drill = Drill::start(
        &place,
        &["--requests", "1500", "--kills", "0", "--cuts", "0", "--rate", "300", "--keep"],
    );
    let schema = until("the drill has made its tables", async || {
        let schema = schemas(&place).await.pop()?;
        let effects = format!("select to_regclass('{schema}.effects')::text");
        place.database.texts(&effects).await.pop()?;
        Some(schema)
    })
    .await;
    place
        .database
        .execute(
            &"create function SCRATCH.twice() returns trigger language plpgsql as $$ begin
                  if pg_trigger_depth() = 1 and new.request_id like 'drill-%9' then
                      insert into SCRATCH.effects (request_id) values (new.request_id);
                  end if;
                  return null;
              end $$;
              create trigger twice after insert on SCRATCH.effects for each row execute function SCRATCH.twice();
              create function SCRATCH.lose() returns trigger language plpgsql as $$ begin
                  delete from SCRATCH.requests where request_id = new.request_id;
                  return null;
              end $$;
              create trigger lose after insert or update on SCRATCH.requests for each row
                  when (new.state = 'done' and new.request_id like 'drill-%08')
                  execute function SCRATCH.lose();"
                .replace("SCRATCH", &schema),
        )
        .await;
    let (code, said) = drill.end().await;
    assert_eq!(code, Some(1), "{said}");
    let name = name_in(&said);
    let broken = |rule: &str| {
        let line = said.lines().find(|line| line.starts_with(rule)).unwrap();
        assert!(line.contains("FAIL"), "{said}");
    };
    broken("every confirmed request is found");
    broken("an effect happens once at most");
    broken("what is done has its effect, and nothing else has one");
    // What was lost and published twice has two effects as well, and no row.
    let twice = |line: &&str| line.contains("9\": ") && line.matches("s effect").count() == 2;
    let story = said.lines().find(twice).unwrap();
    for part in ["9\": +0.000s", "published as \"drill.", "confirmed", "row: done at attempt "] {
        assert!(story.contains(part), "{part} is not in {story}");
    }

    // Kept, and removed when asked for.
    assert_eq!(schemas(&place).await, [schema]);
    let again = place.cli(&["drill", "--remove", &name]).await;
    assert!(again.status.success(), "{again:?}");
    nothing_is_left(&place, &name).await;
}

#[tokio::test]
async fn a_drill_that_is_stopped_removes_what_it_made_and_ends_its_workers() {
    let place = Place::new("drill_stop").await;
    let drill = Drill::start(&place, &["--requests", "100000", "--rate", "200"]);
    until_within(DRILL, "a worker of the drill has done something", async || {
        let schema = schemas(&place).await.pop()?;
        let sql = format!("select to_regclass('{schema}.effects')::text");
        place.database.texts(&sql).await.pop()?;
        let effects = format!("select request_id from {schema}.effects limit 1");
        place.database.texts(&effects).await.pop()
    })
    .await;
    let process = Process::of(drill.child.id().unwrap()).unwrap();
    let workers = process.descendants();
    assert!(workers.len() >= 3, "{workers:?}");
    let pid = process.pid.to_string();
    let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(sent.success());
    let (code, said) = drill.end().await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("stopped before its end"), "{said}");
    nothing_is_left(&place, &name_in(&said)).await;
    until("its workers are gone", async || (!workers.iter().any(Process::is_alive)).then_some(()))
        .await;
}

#[tokio::test]
async fn a_drill_touches_nothing_that_it_was_not_told_to() {
    let place = Place::new("drill_refused").await;
    // An address that leads nowhere by definition: nobody must even try to reach it.
    let elsewhere = "amqp://user:secret@192.0.2.1/%2f";
    let tls = "postgres://u:secret@127.0.0.1/d?sslmode=require";
    for (arguments, variable, code, words) in [
        (&["drill"][..], ("AMQP_URL", elsewhere), 64, "--yes"),
        (
            &["drill"],
            ("DATABASE_URL", "postgres://u:secret@192.0.2.1/d"),
            64,
            "not on this machine",
        ),
        (&["drill", "--remove", "longshore-drill-00000000"], ("AMQP_URL", elsewhere), 64, "--yes"),
        (&["drill"], ("AMQP_URL", "amqps://u:secret@127.0.0.1"), 78, "TLS"),
        (&["drill"], ("DATABASE_URL", tls), 78, "TLS"),
        (&["drill", "--requests", "0"], ("TZ", "UTC"), 64, "--requests"),
        (&["drill", "--for", "soon"], ("TZ", "UTC"), 64, "--for"),
        (&["drill", "--remove", "longshore"], ("TZ", "UTC"), 64, "is not a drill's name"),
        (&["drill"], ("AMQP_URL", "amqp://guest:guest@127.0.0.1:1"), 1, "RabbitMQ"),
    ] {
        // Nobody sits at this standard input, whatever it says.
        let output = place.cli_with(arguments, &[variable], "yes\n").await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {variable:?}: {said}");
        assert!(said.contains(words) && !said.contains("secret"), "{words}: {said}");
    }
    assert_eq!(schemas(&place).await, Vec::<String>::new());
}
