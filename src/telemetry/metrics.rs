//! Every metric that Longshore exports: name, meaning, unit and labels on one page.
//!
//! The names are an API; `docs/metrics.md` is checked against this file. Labels come from closed
//! sets or from the configuration, never from a message. Rooms record what happens by calling the
//! verbs (`metrics/verbs.rs`); nothing else in the house names a metric.

#![expect(clippy::disallowed_macros, reason = "this is the page of verbs that the others call")]

mod verbs;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub use self::verbs::*;

/// Upper bounds of the duration and age histograms, in seconds. The age of a request that waited
/// out an outage is hours, hence the long tail.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0, 3600.0,
];

/// Upper bounds of the histograms that count rows.
pub const ROWS_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// The metrics about the process, as the crate `metrics-process` records them on Linux.
/// <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>
pub const PROCESS: &[Described] = &[
    process(
        "process_cpu_seconds_total",
        "counter",
        "Processor time spent by the process, in whole seconds",
    ),
    process("process_open_fds", "gauge", "Open file descriptors"),
    process("process_max_fds", "gauge", "File descriptors that may be open"),
    process("process_virtual_memory_bytes", "gauge", "Size of the address space"),
    process("process_virtual_memory_max_bytes", "gauge", "How large the address space may grow"),
    process("process_resident_memory_bytes", "gauge", "Memory in use"),
    process("process_start_time_seconds", "gauge", "When the process started, in Unix time"),
    process("process_threads", "gauge", "Threads of the operating system"),
];

const fn process(name: &'static str, kind: &'static str, help: &'static str) -> Described {
    Described { name, kind, labels: &[], help }
}

macro_rules! names {
    ($($kind:ident $name:ident = $text:literal, $unit:ident, [$($label:literal),*], $help:literal;)+) => {
        $(const $name: &str = $text;)+

        /// One exported metric, for the documentation and its test.
        #[derive(Debug, Clone, Copy)]
        pub struct Described {
            /// The exported name.
            pub name: &'static str,
            /// `counter`, `gauge` or `histogram`.
            pub kind: &'static str,
            /// Its labels.
            pub labels: &'static [&'static str],
            /// What it tells.
            pub help: &'static str,
        }

        /// All metrics, in the order of the documentation.
        pub const ALL: &[Described] = &[
            $(Described { name: $text, kind: stringify!($kind), labels: &[$($label),*], help: $help },)+
        ];

        /// Gives each metric its help and unit. To be called once the recorder is installed:
        /// before that, descriptions go nowhere.
        pub fn describe() {
            $(names!(@describe $kind $name, Unit::$unit, $help);)+
        }
    };
    (@describe counter $name:ident, $unit:expr, $help:literal) => { describe_counter!($name, $unit, $help) };
    (@describe gauge $name:ident, $unit:expr, $help:literal) => { describe_gauge!($name, $unit, $help) };
    (@describe histogram $name:ident, $unit:expr, $help:literal) => { describe_histogram!($name, $unit, $help) };
}

names! {
    // The way of a request
    counter REQUESTS = "longshore_requests_total", Count, ["kind", "outcome"],
        "Attempts that ended, by kind and outcome";
    counter ERRORS = "longshore_errors_total", Count, ["kind", "error_code"],
        "Attempts that ended with an error, by kind and code";
    histogram DURATION = "longshore_request_duration_seconds", Seconds, ["kind"],
        "From taking a request to naming its outcome";
    histogram AGE = "longshore_request_age_seconds", Seconds, ["kind"],
        "From the producer's publishing (or our receiving, where it says nothing) to done";
    gauge IN_FLIGHT = "longshore_in_flight", Count, [],
        "Requests being worked now";
    gauge SLOTS = "longshore_slots", Count, [],
        "Requests that may be worked at once";
    counter UNKNOWN_FIELDS = "longshore_unknown_fields_total", Count, ["kind"],
        "Requests with top-level fields that the contract does not know";
    counter REPLIES = "longshore_replies_total", Count, ["result"],
        "Answers to reply_to: sent, unroutable, failed, dropped";
    counter LIMITED = "longshore_limited_total", Count, ["limit", "how"],
        "Requests that found a limit full, and waited for it or were parked on it";
    gauge LIMIT_IN_FLIGHT = "longshore_limit_in_flight", Count, ["limit"],
        "Requests that a limited kind or dependency has let in";
    gauge LIMIT_WAITING = "longshore_limit_waiting", Count, ["limit"],
        "Requests that wait for a limit, without a slot";
    // The queue
    gauge CONSUMER_UP = "longshore_consumer_up", Count, [],
        "1 while subscribed to the queue";
    counter DELIVERIES = "longshore_deliveries_total", Count, ["redelivered"],
        "Deliveries taken from the broker";
    counter SETTLEMENTS = "longshore_settlements_total", Count, ["settlement"],
        "Deliveries settled: ack, give_back, reject; lost means that the connection was gone and the broker delivers it again";
    counter RECONNECTS = "longshore_reconnects_total", Count, ["reason"],
        "Broker connections that were given up, by reason";
    gauge QUEUE_DEPTH = "longshore_queue_depth", Count, ["queue"],
        "Messages ready in the queue, from a passive declare";
    gauge PAUSED = "longshore_paused", Count, ["reason"],
        "1 for each reason that forbids consuming now";
    // The ledger
    gauge LEDGER_ROWS = "longshore_ledger_requests", Count, ["state"],
        "Requests in the ledger that are not done: running, waiting, parked, dead";
    gauge KIND_PAUSED = "longshore_kind_paused", Count, ["kind"],
        "1 while an operator has paused the kind: its requests are parked";
    gauge PARKED = "longshore_parked", Count, ["on"],
        "Requests parked, by what they wait for";
    counter TAKEOVERS = "longshore_takeovers_total", Count, [],
        "Requests taken over from a worker that had died or lost its connection";
    counter ENTERED = "longshore_entered_total", Count, ["kind", "from"],
        "Requests of ordered kinds put down in the line of their user: in_order, or elsewhere, which has no order";
    counter ORDER_BROKEN = "longshore_order_broken_total", Count, [],
        "Requests that the broker delivered again after later ones, and that stand behind them: alert on any";
    counter FENCED = "longshore_fenced_total", Count, [],
        "Finishes that changed nothing, for another worker had taken the request over";
    histogram BATCH = "longshore_ledger_batch_rows", Count, ["step"],
        "Requests that shared one transaction";
    counter PRUNED = "longshore_pruned_total", Count, [],
        "Old done rows that were deleted";
    gauge POOL_CONNECTIONS = "longshore_pool_connections", Count, ["state"],
        "Postgres connections: max, open, idle";
    gauge POOL_WAITING = "longshore_pool_waiting", Count, [],
        "Callers waiting for a Postgres connection";
    histogram POOL_WAIT = "longshore_pool_wait_seconds", Seconds, [],
        "Time to get a Postgres connection";
    counter POOL_ERRORS = "longshore_pool_errors_total", Count, ["stage"],
        "Connections that could not be had, by stage: wait, create, recycle, backend";
    // Downstream
    histogram CALL_DURATION = "longshore_call_duration_seconds", Seconds, ["dependency"],
        "Calls to a dependency, from admission to the last byte";
    counter CALLS = "longshore_calls_total", Count, ["dependency", "result"],
        "Calls to a dependency: ok, refused, transient, not_admitted, cancelled";
    counter LET_GO = "longshore_let_go_total", Count, ["dependency"],
        "Parked requests that were let go on: probes, and what follows when the dependency has recovered";
    gauge CALLS_IN_FLIGHT = "longshore_calls_in_flight", Count, ["dependency"],
        "Calls under way to a dependency";
    gauge CALLS_LIMIT = "longshore_calls_limit", Count, ["dependency"],
        "Calls that may be under way at once to a dependency";
    gauge BREAKER_STATE = "longshore_breaker_state", Count, ["dependency", "state"],
        "1 for the state the breaker is in (while it observes: would be in): closed, open, half_open; 0 for the others";
    gauge BREAKER_MODE = "longshore_breaker_mode", Count, ["dependency", "mode"],
        "1 for who decides about the breaker: automatic, open, closed, observe; 0 for the others";
    counter BREAKER_UNENFORCED = "longshore_breaker_unenforced_total", Count, ["dependency"],
        "Calls let through only because the breaker does no more than observe";
    counter BREAKER_TRANSITIONS = "longshore_breaker_transitions_total", Count, ["dependency", "to"],
        "Changes of a breaker's state";
    // The process
    gauge BUILD_INFO = "longshore_build_info", Count, ["version", "commit"],
        "1, with the version as labels";
    counter LOG_LINES_DROPPED = "longshore_log_lines_dropped_total", Count, [],
        "Log lines dropped because stdout was too slow or failed";
}
