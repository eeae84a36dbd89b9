//! What the rooms record, each by a verb.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::*;

/// The metrics of one kind that nearly every attempt counts in, looked up once: to find a metric by
/// its name and labels costs more than to count. What is made before the recorder is installed counts
/// nothing, for ever.
#[derive(Clone)]
pub struct Meters {
    done: Counter,
    duration: Histogram,
    age: Histogram,
}

impl Meters {
    /// Of a configured kind.
    pub fn of(kind: &str) -> Self {
        Self {
            done: counter!(REQUESTS, "kind" => kind.to_owned(), "outcome" => "done"),
            duration: histogram!(DURATION, "kind" => kind.to_owned()),
            age: histogram!(AGE, "kind" => kind.to_owned()),
        }
    }

    /// An attempt took this long, and its request is done, this long after it was published.
    pub fn done(&self, took: Duration, age: Duration) {
        self.done.increment(1);
        self.duration.record(took.as_secs_f64());
        self.age.record(age.as_secs_f64());
    }
}

/// An attempt ended otherwise than well.
pub fn request_finished(
    kind: &str,
    outcome: &'static str,
    error_code: Option<&'static str>,
    took: Duration,
) {
    counter!(REQUESTS, "kind" => kind.to_owned(), "outcome" => outcome).increment(1);
    if let Some(code) = error_code {
        counter!(ERRORS, "kind" => kind.to_owned(), "error_code" => code).increment(1);
    }
    histogram!(DURATION, "kind" => kind.to_owned()).record(took.as_secs_f64());
}

/// How many requests are being worked, of how many slots.
pub fn slots(in_use: usize, of: usize) {
    gauge!(IN_FLIGHT).set(in_use as f64);
    gauge!(SLOTS).set(of as f64);
}

/// A request found a limit full: it `waited`, or was `parked`.
pub fn limited(limit: &str, how: &'static str) {
    counter!(LIMITED, "limit" => limit.to_owned(), "how" => how).increment(1);
}

/// How many a limit has let in, and how many wait for it.
pub fn limit(limit: &str, in_flight: usize, waiting: usize) {
    gauge!(LIMIT_IN_FLIGHT, "limit" => limit.to_owned()).set(in_flight as f64);
    gauge!(LIMIT_WAITING, "limit" => limit.to_owned()).set(waiting as f64);
}

/// A request had unknown top-level fields.
pub fn unknown_fields(kind: &str) {
    counter!(UNKNOWN_FIELDS, "kind" => kind.to_owned()).increment(1);
}

/// What became of a reply: `sent`, `unroutable`, `failed`, `dropped`.
pub fn reply(result: &'static str) {
    counter!(REPLIES, "result" => result).increment(1);
}

/// Whether there is a subscription.
pub fn consumer_up(up: bool) {
    gauge!(CONSUMER_UP).set(f64::from(u8::from(up)));
}

/// Deliveries were taken: so many for the first time, so many that the broker had handed out before.
pub fn delivered(first: u64, again: u64) {
    for (redelivered, count) in [("false", first), ("true", again)] {
        if count > 0 {
            counter!(DELIVERIES, "redelivered" => redelivered).increment(count);
        }
    }
}

/// Deliveries were settled (`ack`, `give_back`, `reject`) or could not be (`lost`).
pub fn settled(settlement: &'static str, count: u64) {
    counter!(SETTLEMENTS, "settlement" => settlement).increment(count);
}

/// A broker connection was given up.
pub fn reconnecting(reason: &'static str) {
    counter!(RECONNECTS, "reason" => reason).increment(1);
}

/// Messages ready in a queue.
pub fn queue_depth(queue: &str, ready: u64) {
    gauge!(QUEUE_DEPTH, "queue" => queue.to_owned()).set(ready as f64);
}

/// Whether this reason forbids consuming.
pub fn paused(reason: &str, on: bool) {
    gauge!(PAUSED, "reason" => reason.to_owned()).set(f64::from(u8::from(on)));
}

/// Rows of one state that is not `done`.
pub fn ledger_rows(state: &'static str, rows: u64) {
    gauge!(LEDGER_ROWS, "state" => state).set(rows as f64);
}

/// Requests parked on one dependency.
pub fn parked(on: &str, rows: u64) {
    gauge!(PARKED, "on" => on.to_owned()).set(rows as f64);
}

/// Whether an operator has paused a kind.
pub fn kind_paused(kind: &str, on: bool) {
    gauge!(KIND_PAUSED, "kind" => kind.to_owned()).set(f64::from(u8::from(on)));
}

/// A request was taken over.
pub fn taken_over() {
    counter!(TAKEOVERS).increment(1);
}

/// A request stands in the line of its user.
pub fn entered(kind: &str, from: &'static str) {
    counter!(ENTERED, "kind" => kind.to_owned(), "from" => from).increment(1);
}

/// A request came behind later ones.
pub fn order_broken() {
    counter!(ORDER_BROKEN).increment(1);
}

/// A finish was fenced off.
pub fn fenced() {
    counter!(FENCED).increment(1);
}

/// This many requests shared a transaction of this step (`claim`, `finish`).
pub fn batch(step: &'static str, rows: usize) {
    histogram!(BATCH, "step" => step).record(rows as f64);
}

/// Old rows were deleted.
pub fn pruned(rows: u64) {
    counter!(PRUNED).increment(rows);
}

/// The state of the pool.
pub fn pool(max: usize, open: usize, idle: usize, waiting: usize) {
    for (state, count) in [("max", max), ("open", open), ("idle", idle)] {
        gauge!(POOL_CONNECTIONS, "state" => state).set(count as f64);
    }
    gauge!(POOL_WAITING).set(waiting as f64);
}

/// A connection was had after this long.
pub fn pool_wait(took: Duration) {
    histogram!(POOL_WAIT).record(took.as_secs_f64());
}

/// A connection could not be had.
pub fn pool_error(stage: &'static str) {
    counter!(POOL_ERRORS, "stage" => stage).increment(1);
}

/// A call to a dependency ended: `ok`, `refused`, `transient`, `not_admitted`, `cancelled`.
/// `took` is `None` where nothing was sent.
pub fn call(dependency: &str, result: &'static str, took: Option<Duration>) {
    counter!(CALLS, "dependency" => dependency.to_owned(), "result" => result).increment(1);
    if let Some(took) = took {
        histogram!(CALL_DURATION, "dependency" => dependency.to_owned()).record(took.as_secs_f64());
    }
}

/// So many requests that were parked on a dependency were let go on.
pub fn let_go(dependency: &str, requests: u64) {
    if requests > 0 {
        counter!(LET_GO, "dependency" => dependency.to_owned()).increment(requests);
    }
}

/// The state a breaker is in now.
pub fn breaker_state(dependency: &str, now: &'static str) {
    for state in ["closed", "open", "half_open"] {
        let value = f64::from(u8::from(state == now));
        gauge!(BREAKER_STATE, "dependency" => dependency.to_owned(), "state" => state).set(value);
    }
}

/// Who decides about a breaker now.
pub fn breaker_mode(dependency: &str, now: &'static str) {
    for mode in ["automatic", "open", "closed", "observe"] {
        let value = f64::from(u8::from(mode == now));
        gauge!(BREAKER_MODE, "dependency" => dependency.to_owned(), "mode" => mode).set(value);
    }
}

/// A call went through that an enforced breaker would have refused.
pub fn breaker_unenforced(dependency: &str) {
    counter!(BREAKER_UNENFORCED, "dependency" => dependency.to_owned()).increment(1);
}

/// Calls under way to a dependency, and how many may be.
pub fn calls_in_flight(dependency: &str, now: usize, limit: usize) {
    gauge!(CALLS_IN_FLIGHT, "dependency" => dependency.to_owned()).set(now as f64);
    gauge!(CALLS_LIMIT, "dependency" => dependency.to_owned()).set(limit as f64);
}

/// A breaker changed its state.
pub fn breaker_transition(dependency: &str, to: &'static str) {
    counter!(BREAKER_TRANSITIONS, "dependency" => dependency.to_owned(), "to" => to).increment(1);
    breaker_state(dependency, to);
}

/// Which build this is.
pub fn build_info(version: &'static str, commit: &'static str) {
    gauge!(BUILD_INFO, "version" => version, "commit" => commit).set(1.0);
}

/// Log lines dropped so far.
pub fn log_lines_dropped(total: u64) {
    counter!(LOG_LINES_DROPPED).absolute(total);
}
