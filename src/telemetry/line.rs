//! The line of a request: one for each finished attempt, with its whole story. Its fields are an
//! API, described in `docs/logs.md`.

use tracing::Level;

/// The name under which the uneventful lines can be switched off; see
/// [`RequestLines`](super::RequestLines).
pub(super) const UNEVENTFUL: &str = "request.finished.uneventful";

/// What the text of a producer may take, in characters.
const MAX_PRODUCER_TEXT: usize = 512;

/// Everything that is said about one finished attempt. What is `None` is left out of the line.
///
/// Times are in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestLine<'a> {
    /// The identity, unless the message was unreadable.
    pub request_id: Option<&'a str>,
    /// Whom it concerns.
    pub user_id: Option<&'a str>,
    /// The job type.
    pub kind: Option<&'a str>,
    /// The name of the outcome; it decides the level.
    pub outcome: &'a str,
    /// Which attempt this was, from 1, where one was begun.
    pub attempt: Option<u32>,
    /// How many there may be.
    pub max_attempts: Option<u32>,
    /// From the closed list.
    pub error_code: Option<&'a str>,
    /// What happened, in words: no payload, no secret.
    pub error: Option<&'a str>,
    /// The trace that the producer began.
    pub trace_id: Option<&'a str>,
    /// Who published it.
    pub app_id: Option<&'a str>,
    /// Whether the broker says that it delivered it before.
    pub redelivered: bool,
    /// Whether it was taken over from a worker that had died or lost its line; left out where not.
    pub taken_over: Option<bool>,
    /// Where it came from: `queue`, or `due` from the ledger.
    pub source: &'a str,
    /// From the producer's publishing to now.
    pub age_ms: Option<u64>,
    /// From taking the request to naming its outcome.
    pub duration_ms: f64,
    /// The limit that it found full.
    pub limited_by: Option<&'a str>,
    /// The part spent waiting for that, without a slot.
    pub limit_ms: Option<f64>,
    /// The part spent claiming it in the ledger.
    pub claim_ms: Option<f64>,
    /// The part spent in the call to the dependency.
    pub call_ms: Option<f64>,
    /// The part spent applying it and writing the ledger, waiting for the lane included.
    pub finish_ms: Option<f64>,
    /// How long until it is tried again.
    pub due_in_ms: Option<u64>,
    /// What it waits for, where it is parked.
    pub parked_on: Option<&'a str>,
}

// A macro, because an event's level and name are fixed where it is written.
macro_rules! event {
    ($line:expr, $level:expr, $name:expr) => {
        tracing::event!(
            name: $name,
            target: "longshore::request",
            $level,
            event = "request.finished",
            request_id = $line.request_id.map(cap),
            user_id = $line.user_id.map(cap),
            kind = $line.kind.map(cap),
            outcome = $line.outcome,
            attempt = $line.attempt,
            max_attempts = $line.max_attempts,
            error_code = $line.error_code,
            error = $line.error.map(cap),
            trace_id = $line.trace_id.map(cap),
            app_id = $line.app_id.map(cap),
            redelivered = $line.redelivered,
            taken_over = $line.taken_over,
            source = $line.source,
            age_ms = $line.age_ms,
            duration_ms = micros($line.duration_ms),
            limited_by = $line.limited_by.map(cap),
            limit_ms = $line.limit_ms.map(micros),
            claim_ms = $line.claim_ms.map(micros),
            call_ms = $line.call_ms.map(micros),
            finish_ms = $line.finish_ms.map(micros),
            due_in_ms = $line.due_in_ms,
            parked_on = $line.parked_on.map(cap),
            "request {}", $line.outcome
        )
    };
}

impl RequestLine<'_> {
    /// Logs the line: at `INFO` what went as it should (`done`, `duplicate`) or costs nothing
    /// (`parked`, `given_back`), at `WARN` what will be tried again, at `ERROR` what was given up.
    pub fn emit(&self) {
        match self.outcome {
            "done" | "duplicate" => event!(self, Level::INFO, UNEVENTFUL),
            "retry" => event!(self, Level::WARN, "request.finished.retry"),
            "dead" | "rejected" => event!(self, Level::ERROR, "request.finished.failed"),
            _ => event!(self, Level::INFO, "request.finished.put_off"),
        }
    }
}

/// The first [`MAX_PRODUCER_TEXT`] characters.
fn cap(text: &str) -> &str {
    if text.len() <= MAX_PRODUCER_TEXT {
        return text;
    }
    text.char_indices().nth(MAX_PRODUCER_TEXT).map_or(text, |(end, _)| &text[..end])
}

/// Milliseconds to the microsecond: what lies below is noise, and long to read.
fn micros(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use serde_json::{Value, json};

    use super::*;
    use crate::telemetry::{Format, testing::lines};

    fn full() -> RequestLine<'static> {
        RequestLine {
            request_id: Some("r-1"),
            user_id: Some("42"),
            kind: Some("user.profile.update"),
            outcome: "retry",
            attempt: Some(2),
            max_attempts: Some(5),
            error_code: Some("call_failed"),
            error: Some("geocoder: status 503"),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
            app_id: Some("web"),
            redelivered: true,
            taken_over: Some(true),
            source: "queue",
            age_ms: Some(1200),
            duration_ms: 12.345_678,
            limited_by: Some("limit:kind:user.profile.update"),
            limit_ms: Some(0.5),
            claim_ms: Some(1.0),
            call_ms: Some(10.0),
            finish_ms: Some(1.25),
            due_in_ms: Some(2000),
            parked_on: Some("geocoder"),
        }
    }

    fn object(line: &RequestLine<'_>) -> Value {
        let lines = lines(Format::Json, || line.emit());
        serde_json::from_str(&lines[0]).unwrap()
    }

    #[test]
    fn a_line_tells_the_whole_story_once() {
        let lines = lines(Format::Json, || full().emit());
        let object: Value = serde_json::from_str(&lines[0]).unwrap();
        let expected = json!({
            "timestamp": object["timestamp"], "level": "WARN", "target": "longshore::request",
            "message": "request retry", "event": "request.finished", "request_id": "r-1", "user_id": "42",
            "kind": "user.profile.update", "outcome": "retry", "attempt": 2, "max_attempts": 5,
            "error_code": "call_failed", "error": "geocoder: status 503",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "app_id": "web", "redelivered": true, "taken_over": true,
            "source": "queue", "age_ms": 1200, "duration_ms": 12.346,
            "limited_by": "limit:kind:user.profile.update", "limit_ms": 0.5, "claim_ms": 1.0, "call_ms": 10.0,
            "finish_ms": 1.25, "due_in_ms": 2000, "parked_on": "geocoder",
        });
        assert_eq!(object, expected);
        for key in expected.as_object().unwrap().keys() {
            assert_eq!(lines[0].matches(&format!("\"{key}\":")).count(), 1, "{key}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let object =
            object(&RequestLine { outcome: "done", source: "queue", ..RequestLine::default() });
        let keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "duration_ms",
            "event",
            "level",
            "message",
            "outcome",
            "redelivered",
            "source",
            "target",
            "timestamp",
        ];
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
    }

    #[test]
    fn the_outcome_decides_the_level() {
        for (outcome, level) in [
            ("done", "INFO"),
            ("duplicate", "INFO"),
            ("parked", "INFO"),
            ("given_back", "INFO"),
            ("retry", "WARN"),
            ("dead", "ERROR"),
            ("rejected", "ERROR"),
        ] {
            assert_eq!(object(&RequestLine { outcome, ..full() })["level"], level, "{outcome}");
        }
    }

    #[test]
    fn long_text_of_a_producer_is_cut() {
        let long = "ü".repeat(MAX_PRODUCER_TEXT + 1);
        let object = object(&RequestLine { error: Some(&long), kind: Some(&long), ..full() });
        for key in ["error", "kind"] {
            assert_eq!(object[key].as_str().unwrap().chars().count(), MAX_PRODUCER_TEXT, "{key}");
        }
    }

    #[test]
    fn every_field_is_in_the_documentation() {
        let docs = include_str!("../../docs/logs.md");
        for key in object(&full()).as_object().unwrap().keys() {
            assert!(
                docs.contains(&format!("\n| `{key}` |")),
                "docs/logs.md lacks the field `{key}`"
            );
        }
    }
}
