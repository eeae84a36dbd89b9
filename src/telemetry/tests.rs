#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::Read,
    process::{Command, Stdio},
};

use serde_json::Value;
use tracing::info;

use super::*;

/// Names the part that this test program plays when it was started by one of its own tests: a
/// subscriber is for a whole process, so each of these needs a process.
const PART: &str = "LONGSHORE_TEST_TELEMETRY";

fn child(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "telemetry::tests::a_process_with_a_log", "--nocapture"])
        .env(PART, part)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn settings() -> Settings {
    Settings { level: "info".to_owned(), format: Format::Json, requests: RequestLines::All }
}

/// Not a test of its own: the other side of the tests below.
#[test]
fn a_process_with_a_log() {
    let Ok(part) = std::env::var(PART) else { return };
    let level =
        if part == "bridge" { "trace,tokio_postgres=trace".to_owned() } else { settings().level };
    let telemetry = start(&Settings { level, ..settings() }).unwrap();
    match part.as_str() {
        "plain" => {
            info!(event = "test.first", "first");
            tracing::debug!("not at this level");
            assert_eq!(
                tracing::level_filters::LevelFilter::current(),
                tracing::level_filters::LevelFilter::INFO
            );
            let again = start(&settings()).unwrap_err();
            info!(
                event = "test.refused",
                error = &again as &(dyn std::error::Error + 'static),
                "last"
            );
        }
        "stuck" => {
            for line in 0..200_000 {
                info!(line, "{}", "x".repeat(100));
            }
            assert!(telemetry.dropped_lines() > 0, "somebody reads this");
            assert_eq!(telemetry.dropped_lines(), stdout::lost_lines());
        }
        "bridge" => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(talk_to_a_scripted_postgres());
        }
        other => panic!("unknown part {other}"),
    }
    drop(telemetry);
    // The test runner's own last words would wait for the stuck pipe.
    std::process::exit(7);
}

/// `tokio_postgres` speaks through the `log` crate: a notice at INFO, statements at DEBUG.
async fn talk_to_a_scripted_postgres() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, mut far) = tokio::io::duplex(4096);
    let postgres = async {
        let mut bytes = [0; 4096];
        assert!(far.read(&mut bytes).await.unwrap() > 0, "a startup message");
        // AuthenticationOk, ReadyForQuery, NoticeResponse, in the words of
        // https://www.postgresql.org/docs/current/protocol-message-formats.html
        let notice = b"SNOTICE\0C00000\0Mhello from postgres\0\0";
        let mut answer = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05IN".to_vec();
        answer.extend_from_slice(&(notice.len() as u32 + 4).to_be_bytes());
        answer.extend_from_slice(notice);
        far.write_all(&answer).await.unwrap();
        assert!(far.read(&mut bytes).await.unwrap() > 0, "a query");
        // CommandComplete, ReadyForQuery
        far.write_all(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I").await.unwrap();
    };
    let ask = async {
        let (client, connection) = tokio_postgres::Config::new()
            .user("u")
            .connect_raw(near, tokio_postgres::NoTls)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute("select 'a secret'").await.unwrap();
        drop(client);
        let _ended = connection.await.unwrap().is_ok();
    };
    tokio::join!(postgres, ask);
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_comes_through_the_log_crate_keeps_its_target_and_its_ceiling() {
    let output = child("bridge").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let notice =
        json_lines(&text).into_iter().find(|line| line["message"] == "NOTICE: hello from postgres");
    let notice = notice.unwrap_or_else(|| panic!("no notice in {text}"));
    let expected = serde_json::json!({
        "timestamp": notice["timestamp"], "level": "INFO", "target": "tokio_postgres::connection",
        "message": "NOTICE: hello from postgres",
    });
    assert_eq!(notice, expected);
    assert!(!text.contains("a secret"), "{text}");
}

#[test]
fn a_log_is_one_object_a_line_whole_at_the_end_and_started_once() {
    let output = child("plain").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["first", "last"]);
    assert!(lines[1]["error"].as_str().unwrap().contains("has a subscriber"), "{text}");
}

#[test]
fn a_stuck_pipe_costs_lines_and_stops_nobody() {
    let mut child = child("stuck").spawn().unwrap();
    // Its stdout is open and not read until it has ended.
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(status.code(), Some(7), "{stderr}");
}

#[test]
fn settings_are_read_and_their_mistakes_named() {
    let read = |text: &str| serde_json::from_str::<Settings>(text);
    let good = read(r#"{"level": "info", "format": "text", "requests": "problems"}"#).unwrap();
    assert_eq!(
        (good.format, good.requests, good.problems()),
        (Format::Text, RequestLines::Problems, vec![])
    );
    assert!(
        read(r#"{"level": "info", "format": "text", "requests": "all", "colour": true}"#).is_err()
    );
    let problems = Settings { level: "inof".to_owned(), ..settings() }.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].0 == "level" && problems[0].1.starts_with("`inof`"), "{problems:?}");
}

/// Event names in the sources of this crate.
fn event_names() -> Vec<(String, String)> {
    fn walk(folder: &std::path::Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("tests.rs")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                for rest in product.split("event = \"").skip(1) {
                    let name = rest.split('"').next().unwrap_or_default();
                    found.push((path.display().to_string(), name.to_owned()));
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    found
}

#[test]
fn every_event_is_in_the_documentation() {
    let docs = include_str!("../../docs/logs.md");
    let lacking: Vec<_> = event_names()
        .into_iter()
        .filter(|(_, name)| !docs.contains(&format!("\n| `{name}` |")))
        .collect();
    assert!(lacking.is_empty(), "docs/logs.md lacks a row for {lacking:#?}");
}
