//! What settings must be, alone and beside one another.

use std::time::Duration;

use super::Config;
use crate::ledger::ORDER;

/// RabbitMQ's default `consumer_timeout`: a delivery that is not settled by then closes the channel.
/// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Every fault: the key, and what is wrong with its remedy.
pub(super) fn problems(config: &Config, in_rust: &[&str]) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut section = |name: &str, found: Vec<(String, String)>| {
        problems.extend(found.into_iter().map(|(key, text)| (format!("{name}.{key}"), text)));
    };
    section("worker", config.worker.problems());
    section("queue", config.queue.problems());
    section("ledger", config.ledger.problems());
    section("admin", config.admin.problems());
    section("log", config.log.problems());
    section("defaults.kind", config.default_kind.problems());
    for (name, dependency) in &config.dependencies {
        section(&format!("dependencies.{name}"), dependency.problems());
    }
    for (name, kind) in &config.kinds {
        section(&format!("kinds.{name}"), kind.problems());
    }
    between(config, in_rust, &mut |key, text| problems.push((key.to_owned(), text)));
    problems
}

/// Settings that are fine alone and contradict each other.
fn between(config: &Config, in_rust: &[&str], say: &mut impl FnMut(&str, String)) {
    let Config { worker, queue, ledger, .. } = config;
    let prefetch = usize::from(queue.prefetch());
    if prefetch < worker.concurrency {
        say(
            "queue.prefetch",
            format!(
                "{prefetch} is less than worker.concurrency = {}, so that slots would stay empty; raise it or lower the concurrency",
                worker.concurrency
            ),
        );
    }
    let longest = config.kinds.values().map(|kind| kind.timeout).max().unwrap_or_default();
    let rounds =
        u32::try_from(prefetch.div_ceil(worker.concurrency.max(1)) + 1).unwrap_or(u32::MAX);
    if longest.saturating_mul(rounds) > CONSUMER_TIMEOUT {
        say(
            "queue.prefetch",
            format!(
                "with {prefetch} prefetched, {} worked at once and a timeout of {longest:?}, a message may wait past RabbitMQ's consumer_timeout of 30 minutes; lower it or the kind's timeout",
                worker.concurrency
            ),
        );
    }
    if queue.operation_timeout > worker.grace {
        say(
            "queue.operation_timeout",
            format!(
                "is longer than worker.grace = {:?}, so that a stop could not end in time",
                worker.grace
            ),
        );
    }
    if ledger.statement_timeout > worker.grace {
        say(
            "ledger.statement_timeout",
            format!(
                "is longer than worker.grace = {:?}, so that a stop could cut commits off",
                worker.grace
            ),
        );
    }
    if ledger.lease_margin < ledger.statement_timeout {
        say(
            "ledger.lease_margin",
            format!(
                "is shorter than ledger.statement_timeout = {:?}, so that others could take over what is only being written; raise it",
                ledger.statement_timeout
            ),
        );
    }
    if config.dependencies.contains_key(ORDER) {
        say(
            &format!("dependencies.{ORDER}"),
            "is what requests are parked on that wait for an earlier one; use another name"
                .to_owned(),
        );
    }
    for (name, kind) in &config.kinds {
        if kind.timeout > worker.grace {
            say(
                &format!("kinds.{name}.timeout"),
                format!(
                    "{:?} is longer than worker.grace = {:?}, so that a stop would cut it off; lower it or raise the grace",
                    kind.timeout, worker.grace
                ),
            );
        }
        match (in_rust.contains(&name.as_str()), kind.does_nothing()) {
            (false, true) => say(
                &format!("kinds.{name}"),
                "does nothing; give it `apply`, a [call], or both".to_owned(),
            ),
            (true, false) => say(
                &format!("kinds.{name}"),
                "is written in Rust by this program; leave `apply` and [call] out".to_owned(),
            ),
            (true, true) | (false, false) => {}
        }
        if let Some(call) = &kind.call {
            match config.dependencies.get(&call.dependency) {
                None => say(
                    &format!("kinds.{name}.call.dependency"),
                    format!(
                        "there is no [dependencies.{}]; known are: {}",
                        call.dependency,
                        names(config)
                    ),
                ),
                Some(dependency) if dependency.timeout > kind.timeout => say(
                    &format!("kinds.{name}.timeout"),
                    format!(
                        "{:?} is shorter than dependencies.{}.timeout = {:?}; lower that or raise this",
                        kind.timeout, call.dependency, dependency.timeout
                    ),
                ),
                Some(_) => {}
            }
        }
    }
    if worker.max_message_bytes > ledger.batch_bytes {
        say(
            "ledger.batch_bytes",
            format!("is less than worker.max_message_bytes = {}", worker.max_message_bytes),
        );
    }
}

fn names(config: &Config) -> String {
    let names: Vec<&str> = config.dependencies.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
