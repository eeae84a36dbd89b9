#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::Value;

use super::*;
use crate::telemetry::testing::lines;

#[derive(Debug, thiserror::Error)]
#[error("cannot connect")]
struct Outer(#[source] std::io::Error);

fn only(lines: &[String]) -> &str {
    assert_eq!(lines.len(), 1, "{lines:?}");
    &lines[0]
}

#[test]
fn an_event_is_one_flat_object() {
    let lines = lines(Format::Json, || {
        let refused = Outer(std::io::Error::other("refused"));
        let error: &(dyn StdError + 'static) = &refused;
        tracing::warn!(
            target: "longshore::queue",
            event = "queue.lost", attempt = 3_u32, wait_s = 0.25, up = false, error, nothing = None::<u64>, id = ?"x",
            "the connection {} was lost", 7
        );
    });
    let object: Value = serde_json::from_str(only(&lines)).unwrap();
    let expected = serde_json::json!({
        "timestamp": object["timestamp"], "level": "WARN", "target": "longshore::queue",
        "message": "the connection 7 was lost", "event": "queue.lost", "attempt": 3, "wait_s": 0.25,
        "up": false, "error": "cannot connect: refused", "id": "\"x\"",
    });
    assert_eq!(object, expected);
    assert!(lines[0].starts_with("{\"timestamp\":\"20"), "{}", lines[0]);
}

#[test]
fn a_field_with_the_name_of_a_fixed_key_does_not_repeat_the_key() {
    let lines = lines(Format::Json, || {
        tracing::info!(level = 9_u64, target = "mars", timestamp = "never", "here");
    });
    let line = only(&lines);
    for key in ["level", "target", "timestamp", "message"] {
        assert_eq!(line.matches(&format!("\"{key}\":")).count(), 1, "{line}");
    }
    let object: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&object["field_level"], &object["field_target"]),
        (&Value::from(9), &Value::from("mars"))
    );
}

#[test]
fn text_of_others_cannot_begin_a_line_of_its_own_in_either_format() {
    let hostile =
        "x\n2026-01-01T00:00:00.000000Z ERROR longshore: all is lost\u{1b}[2J\r\u{2028}\u{9b}";
    for format in [Format::Json, Format::Text] {
        let lines =
            lines(format, || tracing::info!(user_id = hostile, debug = ?hostile, "from {hostile}"));
        let line = only(&lines);
        let safe = |c: char| !c.is_control() && c != '\u{2028}';
        assert!(line.strip_suffix('\n').unwrap().chars().all(safe), "{line:?}");
    }
}

#[test]
fn text_for_a_terminal_quotes_what_would_run_together() {
    let lines = lines(Format::Text, || {
        tracing::info!(target: "t", bare = "x.y", spaced = "a b", sign = "a=b", empty = "", n = 1_u64, "say \"so\"");
    });
    let line = only(&lines);
    let (_, rest) = line.split_at("2026-11-22T12:00:00.000000Z".len());
    assert_eq!(rest, "  INFO t: say \"so\" bare=x.y spaced=\"a b\" sign=\"a=b\" empty=\"\" n=1\n");
}

#[test]
fn numbers_that_json_has_no_word_for_become_text() {
    let lines = lines(Format::Json, || {
        tracing::info!(rate = f64::NAN, most = f64::INFINITY, huge = 1e300, "odd");
    });
    let object: Value = serde_json::from_str(only(&lines)).unwrap();
    assert_eq!((&object["rate"], &object["most"]), (&Value::from("NaN"), &Value::from("inf")));
    assert_eq!(object["huge"], Value::from(1e300));
}

#[test]
fn a_timestamp_has_one_width() {
    let mut out = String::new();
    timestamp(
        &mut out,
        OffsetDateTime::from_unix_timestamp_nanos(1_767_225_600_000_042_999).unwrap(),
    );
    assert_eq!(out, "2026-01-01T00:00:00.000042Z");
}
