//! `longshore publish`: what the contract asks of a producer.

use std::process::Output;

use serde_json::json;

use crate::support::Place;

const UPDATE: &str = "user.profile.update";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_single_request_is_published_and_worked() {
    let place = Place::new("publish_one").await;
    let _worker = place.worker().await;
    let payload = r#"{"name":"Ada"}"#;
    let published = place
        .cli(&["publish", "--kind", UPDATE, "--user", "42", "--payload", payload, "--id", "s-1"])
        .await;
    assert_eq!(published.status.code(), Some(0), "{}", stderr(&published));
    assert_eq!(stdout(&published), "s-1\n");
    assert!(stderr(&published).contains("1 published and confirmed, 0 not"));
    place.until_state("s-1", "done").await;

    let unnamed = place.cli(&["publish", "--kind", UPDATE, "--user", "42"]).await;
    let id = stdout(&unnamed).trim().to_owned();
    assert_eq!(id.len(), 36, "an id of its own: {id}");
    place.until_state(&id, "done").await;
    assert_eq!(place.database.version("42").await, 2);
}

#[tokio::test]
async fn what_is_published_is_persistent_and_carries_the_properties_of_the_contract() {
    let place = Place::new("publish_properties").await;
    // The queue stays, and nobody takes from it.
    place.worker().await.drain().await;
    let published = place
        .cli(&["publish", "--kind", UPDATE, "--user", "7", "--id", "p-1", "--reply-to", "answers"])
        .await;
    assert!(published.status.success(), "{}", stderr(&published));
    let message = place.broker.take(&place.broker.queue).await;
    let properties = &message.properties;
    let text = |text: &Option<lapin::types::ShortString>| {
        text.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default()
    };
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(text(properties.message_id()), "p-1");
    assert_eq!(text(properties.kind()), UPDATE);
    assert_eq!(text(properties.reply_to()), "answers");
    assert_eq!(text(properties.content_type()), "application/json");
    assert!(properties.timestamp().is_some());
    let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    let wanted = json!({"request_id": "p-1", "kind": UPDATE, "user_id": "7", "payload": {}});
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn lines_from_a_file_and_from_standard_input_are_published() {
    let place = Place::new("publish_many").await;
    let _worker = place.worker().await;
    let line = |id: &str| {
        json!({"request_id": id, "kind": UPDATE, "user_id": "9", "payload": {}}).to_string()
    };
    let lines: String = (1..=200).map(|n| line(&format!("f-{n}")) + "\n").collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("requests.ndjson");
    std::fs::write(&path, &lines).unwrap();
    let from_file = place.cli(&["publish", path.to_str().unwrap()]).await;
    assert_eq!(from_file.status.code(), Some(0), "{}", stderr(&from_file));
    assert_eq!(stdout(&from_file).lines().count(), 200);
    // The last line has no line end, and lines may be empty.
    let input = format!("{}\r\n\n{}", line("i-1"), line("i-2"));
    let from_stdin = place.cli_with(&["publish", "-"], &[], &input).await;
    assert_eq!(stdout(&from_stdin), "i-1\ni-2\n");
    for id in ["f-1", "f-200", "i-1", "i-2"] {
        place.until_state(id, "done").await;
    }
    let missing = place.cli(&["publish", "/nowhere/requests.ndjson"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/nowhere/requests.ndjson cannot be read"));
}

#[tokio::test]
async fn what_the_worker_would_refuse_is_refused_here_with_its_line() {
    let place = Place::new("publish_refused").await;
    let _worker = place.worker().await;
    let request = |id: &str, kind: &str, more: &str| {
        format!(r#"{{"request_id":"{id}","kind":"{kind}","user_id":"1"{more}}}"#)
    };
    let input = [
        request("ok-1", UPDATE, ""),
        String::new(),
        "{\"request_id\":".to_owned(),
        request("bad id", UPDATE, ""),
        request("x-5", "user.nothing", ""),
        request("x-6", UPDATE, r#","deadline":"2020-01-01T00:00:00Z""#),
        request("x-7", UPDATE, &format!(r#","payload":"{}""#, "x".repeat(5_000))),
        request("x-8", UPDATE, &format!(r#","payload":"{}""#, "x".repeat(920))),
        "[]".to_owned(),
        request("ok-10", UPDATE, ""),
    ]
    .join("\n");
    let limit = [("LONGSHORE__WORKER__MAX_MESSAGE_BYTES", "1000")];
    let exactly = request("x-8", UPDATE, &format!(r#","payload":"{}""#, "x".repeat(920))).len();
    assert!(exactly <= 1_000, "{exactly}");
    let published = place.cli_with(&["publish", "-"], &limit, &input).await;
    assert_eq!(published.status.code(), Some(1));
    assert_eq!(stdout(&published), "ok-1\nx-8\nok-10\n");
    let told = stderr(&published);
    for words in [
        "line 3: refused: malformed_json",
        "line 4: refused: invalid_envelope: request_id has the character ' '",
        "line 5: refused: unknown_kind: no kind `user.nothing`",
        "line 6: refused: deadline",
        "line 7: refused: more than 1000 bytes",
        "line 9: refused: invalid_envelope",
        "3 published and confirmed, 6 not",
    ] {
        assert!(told.contains(words), "`{words}` is not in:\n{told}");
    }
    let single = place.cli(&["publish", "--kind", UPDATE, "--user", "1", "--payload", "{"]).await;
    assert_eq!(single.status.code(), Some(1));
    assert!(stderr(&single).contains("--payload is not JSON"), "{}", stderr(&single));
    let any = ["publish", "--any-kind", "--kind", "user.nothing", "--user", "1", "--id", "any-1"];
    assert_eq!(place.cli(&any).await.status.code(), Some(0));
    let dead = place.until_state("any-1", "dead").await;
    assert_eq!(dead.error_code.as_deref(), Some("unknown_kind"));
}

#[tokio::test]
async fn what_no_queue_takes_is_not_called_published() {
    let place = Place::new("publish_unroutable").await;
    let arguments = ["publish", "--kind", UPDATE, "--user", "1", "--id", "u-1"];
    let no_exchange = place.cli(&arguments).await;
    assert_eq!(no_exchange.status.code(), Some(1), "{}", stdout(&no_exchange));
    // The exchange stays, and nothing is bound to it any more.
    place.worker().await.drain().await;
    place.broker.delete_queue().await;
    let unroutable = place.cli(&arguments).await;
    assert_eq!(unroutable.status.code(), Some(1));
    assert_eq!(stdout(&unroutable), "");
    let told = stderr(&unroutable);
    assert!(
        told.contains("line 1: ") && told.contains("0 published and confirmed, 1 not"),
        "{told}"
    );
    assert!(told.contains("queue"), "it says that no queue took it: {told}");
}
