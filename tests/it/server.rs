//! A Postgres that is there and does not do its work: read-only, without room for sessions, with
//! another password, with a full disk. Each test has a server of its own, for it does this to all.

#![expect(clippy::print_stdout, reason = "what cannot be tested is said")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use longshore_dev::{place::Private, postgres::Postgres, services::Services, stub::Behaviour};
use serde_json::Value;

use crate::support::{Load, Place, Worker, until};

/// A server of the test's own, and a place on it.
async fn on_a_server(test: &str) -> (Place, Postgres, Private) {
    let dir = Private::new(test).unwrap();
    let postgres = Postgres::start(dir.path().join("server")).await.unwrap();
    let rabbit = Services::shared().await.unwrap().rabbit;
    let place = Place::on(test, &rabbit.url(), &postgres.admin_url()).await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    (place, postgres, dir)
}

/// Waits until the worker pauses and says so; the line of its log that says why.
async fn until_away(worker: &Worker) -> Value {
    let away = worker.until_event("ledger.away").await;
    until_paused(worker).await;
    away
}

async fn until_paused(worker: &Worker) {
    until("the readiness probe names postgres", async || {
        let (status, body) = worker.get("/health/ready").await?;
        (status == 200 && body.contains("\"paused\"") && body.contains("postgres")).then_some(())
    })
    .await;
}

/// Waits until the log tells of this reason, the first one or a later one of the outage.
async fn until_told(worker: &Worker, reason: &str) {
    worker
        .until_line(&format!("tells of {reason}"), |line| {
            let error = line["error"].as_str().unwrap_or_default();
            let told = line["event"] == "ledger.away" || line["event"] == "ledger.still_away";
            told && error.contains(reason)
        })
        .await;
}

/// More is published while nothing can be done: it stays in the queue.
async fn nothing_is_done_meanwhile(place: &Place, worker: &Worker, load: &mut Load) {
    place.publish_load(load, 100, 2).await;
    let ready = async || place.broker.ready(&place.broker.queue).await;
    let before = until("what was published is in the queue", async || {
        Some(ready().await).filter(|ready| *ready >= 100)
    })
    .await;
    let done = worker.done();
    place.publish_load(load, 100, 2).await;
    until("what was published is in the queue, too", async || {
        (ready().await >= before + 100).then_some(())
    })
    .await;
    assert_eq!(worker.done(), done, "nothing is done without a ledger");
}

/// All of it is done once, no attempt was burnt and no call made again, and the worker stops in
/// order.
async fn nothing_was_harmed(place: &Place, load: &Load, mut worker: Worker) {
    worker.until_event("ledger.back").await;
    place.until_accounted(load).await;
    place.assert_no_attempt_was_burnt().await;
    for id in &load.calls {
        assert_eq!(place.stub.calls()[id].calls, 1, "{id} was called again");
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

/// Ends all sessions of the workers.
const END_SESSIONS: &str =
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'longshore'";

#[tokio::test]
async fn a_server_that_becomes_read_only_is_waited_for() {
    let (place, _postgres, _dir) = on_a_server("read_only").await;
    let worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_500, 2).await;
    worker.until_done(200).await;
    // Sessions stay and every write of theirs fails, as after a switch-over behind one address.
    place.database.execute("alter system set default_transaction_read_only = on").await;
    place.database.execute("select pg_reload_conf()").await;
    let away = until_away(&worker).await;
    assert!(away["error"].as_str().unwrap().contains("SQLSTATE 25006"), "{away}");
    // New ones find it read-only as well.
    place.database.execute(END_SESSIONS).await;
    until_told(&worker, "it is read-only").await;
    nothing_is_done_meanwhile(&place, &worker, &mut load).await;
    place.database.execute("alter system reset default_transaction_read_only").await;
    place.database.execute("select pg_reload_conf()").await;
    nothing_was_harmed(&place, &load, worker).await;
}

/// A user for the worker, beside the server's own, and where it logs in.
async fn user(place: &Place, postgres: &Postgres) -> String {
    place
        .database
        .execute(
            "create role hand login password 'old';
             grant usage on schema longshore, app to hand;
             grant all on all tables in schema longshore, app to hand;
             grant all on all sequences in schema longshore to hand",
        )
        .await;
    format!("postgres://hand:old@{}/{}", postgres.address(), place.name)
}

#[tokio::test]
async fn a_password_that_is_changed_under_the_worker_is_told_and_waited_for() {
    let (place, postgres, _dir) = on_a_server("password").await;
    let url = user(&place, &postgres).await;
    let worker = place.worker_with(&[("DATABASE_URL", &url)]).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_500, 2).await;
    worker.until_done(200).await;
    // Who is in stays in; so the sessions end with it, as they do by and by.
    place.database.execute("alter role hand password 'new'").await;
    place.database.execute(END_SESSIONS).await;
    until_away(&worker).await;
    until_told(&worker, "SQLSTATE 28P01").await;
    // One that was let in before, and was no session yet.
    place.database.execute(END_SESSIONS).await;
    until_paused(&worker).await;
    nothing_is_done_meanwhile(&place, &worker, &mut load).await;
    let log = worker.log();
    assert!(!log.iter().any(|line| line.to_string().contains("hand:old")), "no password is told");
    place.database.execute("alter role hand password 'old'").await;
    nothing_was_harmed(&place, &load, worker).await;
}

#[tokio::test]
async fn a_worker_that_starts_without_a_ledger_tells_each_reason_and_begins_when_there_is_none() {
    let (mut place, mut postgres, _dir) = on_a_server("start").await;
    let url = user(&place, &postgres).await.replace(":old@", ":new@");
    postgres.stop().await.unwrap();
    let worker = place.worker_unready(&[("DATABASE_URL", &url)]).await;
    let until_away_for = async |reason: &str| {
        worker
            .until_line(&format!("tells of {reason}"), |line| {
                let error = line["error"].as_str().unwrap_or_default();
                line["event"] == "ledger.away" && error.contains(reason)
            })
            .await
    };
    until_away_for("Connection refused").await;
    postgres.start_again().await.unwrap();
    until_away_for("SQLSTATE 28P01").await;
    place.database.reconnect().await;
    place.database.execute("alter role hand password 'new'").await;
    worker.until_ready().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 20, 2).await;
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
}

#[tokio::test]
async fn a_server_that_takes_no_more_sessions_is_waited_for() {
    let (place, postgres, _dir) = on_a_server("sessions").await;
    let url = user(&place, &postgres).await;
    let worker = place.worker_with(&[("DATABASE_URL", &url)]).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_500, 2).await;
    worker.until_done(200).await;
    place.database.execute("alter role hand connection limit 0").await;
    place.database.execute(END_SESSIONS).await;
    until_away(&worker).await;
    until_told(&worker, "SQLSTATE 53300").await;
    // See above.
    place.database.execute(END_SESSIONS).await;
    until_paused(&worker).await;
    nothing_is_done_meanwhile(&place, &worker, &mut load).await;
    place.database.execute("alter role hand connection limit -1").await;
    nothing_was_harmed(&place, &load, worker).await;
}

/// A disk of a few megabytes, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// Nothing where this process may not mount.
    fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(at)
            .output()
            .unwrap();
        mounted.status.success().then(|| Self(at.to_owned()))
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let zeros = vec![0; 1 << 20];
        let mut ballast = std::fs::File::create(self.0.join("ballast")).unwrap();
        while std::io::Write::write_all(&mut ballast, &zeros).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server may still have its files open.
        let _unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_for_the_servers_log_is_waited_for() {
    let dir = Private::new("disk").unwrap();
    let mut postgres = Postgres::start(dir.path().join("server")).await.unwrap();
    let wal = postgres.data().with_file_name("wal");
    let Some(disk) = Disk::mount(&wal, 64) else {
        println!("a full disk was not tested: this user may not mount one");
        return;
    };
    let rabbit = Services::shared().await.unwrap().rabbit;
    let mut place = Place::on("disk", &rabbit.url(), &postgres.admin_url()).await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 50 });
    for setting in ["min_wal_size = '32MB'", "max_wal_size = '32MB'"] {
        place.database.execute(&format!("alter system set {setting}")).await;
    }
    postgres.stop().await.unwrap();
    let moved = "chown --reference=\"$1\" \"$2\" && chmod 700 \"$2\" && cp -a \"$1/.\" \"$2\" \
                 && rm -r \"$1\" && ln -s \"$2\" \"$1\"";
    let moved = Command::new("sh")
        .args(["-ec", moved, "move"])
        .args([postgres.data().join("pg_wal"), wal])
        .status();
    assert!(moved.unwrap().success());
    postgres.start_again().await.unwrap();
    place.database.reconnect().await;

    let worker = place.worker().await;
    let mut load = Load::default();
    place.publish_load(&mut load, 1_500, 2).await;
    worker.until_done(200).await;
    disk.fill();
    // A segment is 16 MB: the next ones are asked for at once instead of after that much work.
    let hand = place.database.session().await;
    until("the server has run out of room", async || {
        hand.simple_query("select pg_switch_wal()").await.is_err().then_some(())
    })
    .await;
    until_away(&worker).await;
    let said = std::fs::read_to_string(postgres.log()).unwrap();
    assert!(said.contains("PANIC") && said.contains("No space left on device"), "{said}");
    nothing_is_done_meanwhile(&place, &worker, &mut load).await;
    disk.free();
    // It has given up by itself, or is about to: an operator would start it as well.
    postgres.start_again().await.unwrap();
    place.database.reconnect().await;
    nothing_was_harmed(&place, &load, worker).await;
    // Before its disk goes.
    postgres.stop().await.unwrap();
}
