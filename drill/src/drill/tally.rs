//! What the workers tell of themselves, counted from their log lines: a killed worker's metrics
//! are gone with it, its lines are not, but for the last few that it had not written yet.

use serde::{Deserialize, Serialize};

/// Counts over all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Attempts that ended, as far as they were told of.
    pub attempts: u64,
    /// Those that ended as `done`.
    pub done: u64,
    /// Those that ended as `duplicate`.
    pub duplicates: u64,
    /// Those that are tried again.
    pub retries: u64,
    /// Attempts on what the broker had delivered before.
    pub redeliveries: u64,
    /// Attempts on what was taken over from a worker that had died or lost its line.
    pub takeovers: u64,
    /// Finishes that changed nothing, for another worker had taken the request over.
    pub fenced: u64,
    /// Deliveries given back to the queue unworked: in drains, and while Postgres was away.
    pub given_back: u64,
    /// Attempts that a drain cut off.
    pub interrupted: u64,
    /// Times that a worker lost its connection to the broker, and that it lost Postgres.
    pub broker_lost: u64,
    /// See there.
    pub postgres_lost: u64,
    /// Lines that workers dropped instead of waiting for a full pipe.
    pub lines_dropped: u64,
}

/// The fields of a line that are counted; see `docs/logs.md`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    event: String,
    outcome: String,
    redelivered: bool,
    taken_over: bool,
    source: String,
    claim_ms: Option<f64>,
    finish_ms: Option<f64>,
    given_back: u64,
    interrupted: u64,
    lines: u64,
}

/// What a line means for whoever watches the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It consumes.
    Connected,
    /// It has noticed that its connection to the broker is gone.
    Disconnected,
    /// Anything else.
    None,
}

impl Tally {
    /// Counts a line of a worker of which `draining` is known. What is not JSON is nobody's count.
    pub(super) fn read(&mut self, line: &str, draining: &mut bool) -> Sign {
        let Ok(line) = serde_json::from_str::<Line>(line) else { return Sign::None };
        match line.event.as_str() {
            "request.finished" => self.finished(&line, *draining),
            "worker.draining" => *draining = true,
            "queue.connected" => return Sign::Connected,
            "queue.disconnected" => {
                self.broker_lost += 1;
                return Sign::Disconnected;
            }
            "ledger.away" => self.postgres_lost += 1,
            "worker.drained" => {
                self.given_back += line.given_back;
                self.interrupted += line.interrupted;
            }
            "log.lines_dropped" => self.lines_dropped += line.lines,
            _ => {}
        }
        Sign::None
    }

    fn finished(&mut self, line: &Line, draining: bool) {
        self.attempts += 1;
        self.redeliveries += u64::from(line.redelivered);
        self.takeovers += u64::from(line.taken_over);
        match line.outcome.as_str() {
            "done" => self.done += 1,
            "retry" => self.retries += 1,
            // The account of the drain has those of the drain.
            "given_back" => self.given_back += u64::from(!draining),
            "duplicate" => {
                self.duplicates += 1;
                // It held a claim and wrote, and still something else was there: it was fenced off.
                let claimed = line.claim_ms.is_some() || line.source == "due";
                self.fenced += u64::from(claimed && line.finish_ms.is_some());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_as_the_documentation_has_them() {
        let (mut tally, mut draining) = (Tally::default(), false);
        for (line, sign) in [
            (r#"{"event":"queue.connected"}"#, Sign::Connected),
            (
                r#"{"event":"request.finished","outcome":"done","redelivered":true,"taken_over":true,"claim_ms":1.5,"finish_ms":1}"#,
                Sign::None,
            ),
            (
                r#"{"event":"request.finished","outcome":"duplicate","source":"queue","finish_ms":1}"#,
                Sign::None,
            ),
            (
                r#"{"event":"request.finished","outcome":"duplicate","source":"queue","claim_ms":1}"#,
                Sign::None,
            ),
            (
                r#"{"event":"request.finished","outcome":"duplicate","source":"queue","claim_ms":1,"finish_ms":1}"#,
                Sign::None,
            ),
            (
                r#"{"event":"request.finished","outcome":"duplicate","source":"due","finish_ms":1}"#,
                Sign::None,
            ),
            (r#"{"event":"request.finished","outcome":"retry"}"#, Sign::None),
            (r#"{"event":"request.finished","outcome":"given_back"}"#, Sign::None),
            (r#"{"event":"worker.draining"}"#, Sign::None),
            (r#"{"event":"request.finished","outcome":"given_back"}"#, Sign::None),
            (r#"{"event":"worker.drained","given_back":5,"interrupted":2}"#, Sign::None),
            (r#"{"event":"queue.disconnected","error":"reset"}"#, Sign::Disconnected),
            (r#"{"event":"ledger.away"}"#, Sign::None),
            (r#"{"event":"log.lines_dropped","lines":3}"#, Sign::None),
            ("thread 'main' panicked", Sign::None),
        ] {
            assert_eq!(tally.read(line, &mut draining), sign, "{line}");
        }
        let expected = Tally {
            attempts: 8,
            done: 1,
            duplicates: 4,
            retries: 1,
            redeliveries: 1,
            takeovers: 1,
            fenced: 2,
            given_back: 6,
            interrupted: 2,
            broker_lost: 1,
            postgres_lost: 1,
            lines_dropped: 3,
        };
        assert_eq!(tally, expected);
    }
}
