//! Producers in other languages: the programs of the README, run as they stand there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::support::{PATIENCE, Place};

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

fn program(name: &str) -> PathBuf {
    Path::new(CHECKOUT).join("tests/clients").join(name)
}

/// Runs a producer twice and expects two requests done, and a third run refused where there is no
/// queue.
async fn works(place: &Place, command: impl Fn() -> Command) {
    let worker = place.worker().await;
    for time in 1..=2 {
        let output = run(command()
            .env("AMQP_URL", &place.broker.url)
            .env("LONGSHORE_EXCHANGE", &place.name))
        .await;
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let row = place.until_state(&id, "done").await;
        assert_eq!(row.result, Some(json!({"version": time})));
        worker.until_outcome(&id, "done").await;
    }
    let email = "select count(*) from app.users where user_id = '42' and email = 'ada@example.com'";
    assert_eq!(place.database.number(email).await, 1);
    // `amq.fanout` is there on every broker, and nothing is bound to it: what is not taken by any
    // queue must not look published.
    let output =
        run(command().env("AMQP_URL", &place.broker.url).env("LONGSHORE_EXCHANGE", "amq.fanout"))
            .await;
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

async fn run(command: &mut Command) -> std::process::Output {
    run_within(PATIENCE, command).await
}

async fn run_within(patience: Duration, command: &mut Command) -> std::process::Output {
    timeout(patience, command.kill_on_drop(true).output())
        .await
        .expect("the producer ends in time")
        .unwrap_or_else(|error| {
            panic!("{command:?}: {error}; `dev/setup.sh clients` installs what it needs")
        })
}

#[tokio::test]
async fn a_python_producer_with_pika_is_understood() {
    let place = Place::new("pika").await;
    let python = Path::new(CHECKOUT).join("target/dev/venv/bin/python");
    works(&place, || {
        let mut command = Command::new(&python);
        command.arg(program("publish.py"));
        command
    })
    .await;
}

#[tokio::test]
async fn a_node_producer_with_amqplib_is_understood() {
    let place = Place::new("amqplib").await;
    works(&place, || {
        let mut command = Command::new("node");
        command
            .arg(program("publish.js"))
            .env("NODE_PATH", Path::new(CHECKOUT).join("target/dev/node/node_modules"));
        command
    })
    .await;
}

#[tokio::test]
async fn a_go_producer_with_amqp091_is_understood() {
    let place = Place::new("amqp091").await;
    let built = Path::new(CHECKOUT).join("target/dev/publish-go");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&built)
        .arg(program("publish.go"))
        // Debian's package of the library, without modules.
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
        .env("GOCACHE", Path::new(CHECKOUT).join("target/dev/go-build"));
    // The first build on a machine compiles Go's own library as well.
    let output = run_within(Duration::from_secs(240), &mut build).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    works(&place, || Command::new(&built)).await;
}
