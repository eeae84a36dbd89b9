//! Which events are logged at all.
//!
//! Three conditions that must all hold: the level of the settings, the ceilings below, and
//! whether uneventful requests are wanted.

use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::EnvFilter;

use super::{RequestLines, line};

/// The most that a crate may say, however high the level is set: beyond it they print what must
/// not be in a log, or drown it.
///
/// The longest matching prefix comes first.
const CEILINGS: &[(&str, LevelFilter)] = &[
    // It prints frames, returned messages with their bodies, and an ERROR for each lost connection,
    // which the queue room tells in words of its own.
    ("lapin", LevelFilter::OFF),
    // It tells of each connection that was lost, which the ledger tells once and in its own words.
    ("deadpool", LevelFilter::OFF),
    // At DEBUG it prints each statement with its parameters: payloads.
    ("tokio_postgres", LevelFilter::INFO),
    // At DEBUG these print addresses and headers.
    ("hyper", LevelFilter::INFO),
    ("hyper_util", LevelFilter::INFO),
    ("h2", LevelFilter::INFO),
    ("reqwest", LevelFilter::INFO),
    ("rustls", LevelFilter::INFO),
];

/// Reads the level of the settings: a level, or a list such as `info,longshore::queue=debug`.
///
/// # Errors
/// The text says what is wrong with it.
pub(super) fn level(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("is empty; say off, error, warn, info, debug or trace".to_owned());
    }
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    // To `EnvFilter` a bare word that is no level is a target, and a misspelt `info` silences all
    // but the target `inof`. A comma within `[span{a,b}]` does not part directives.
    let plain = !text.contains('[');
    if plain
        && let Some(word) = directives.iter().find(|part| !part.contains('=') && !is_level(part))
    {
        return Err(format!(
            "`{word}` is not a level; say off, error, warn, info, debug or trace, or <target>=<level>"
        ));
    }
    // It takes no blanks around the commas either.
    let directives = if plain { directives.join(",") } else { text.to_owned() };
    EnvFilter::builder()
        .parse(directives)
        .map_err(|error| format!("`{text}` cannot be read: {error}"))
}

fn is_level(word: &str) -> bool {
    word.parse::<LevelFilter>().is_ok()
}

/// Whether an event is below the ceiling of its target.
pub(super) fn below_ceiling(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ceiling = CEILINGS.iter().find(|(prefix, _)| {
        target
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || rest.starts_with('.'))
    });
    ceiling.is_none_or(|(_, most)| metadata.level() <= most)
}

/// Whether a request's line is wanted.
pub(super) fn wanted(requests: RequestLines, metadata: &Metadata<'_>) -> bool {
    requests == RequestLines::All || metadata.name() != line::UNEVENTFUL
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::telemetry::{Format, RequestLine, subscriber, testing::Lines};

    fn logged(level_text: &str, requests: RequestLines, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let subscriber =
            subscriber(level(level_text).unwrap(), requests, Format::Text, lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            // Whether a line is wanted is remembered by what prints it, and tests beside this one want none.
            tracing::callsite::rebuild_interest_cache();
            act();
        });
        lines.take().concat()
    }

    #[test]
    fn no_level_makes_a_crate_print_what_must_not_be_in_a_log() {
        let level = "trace,tokio_postgres=trace,tokio_postgres::query=trace,lapin=trace,lapin::returned_messages=trace";
        let logged = logged(level, RequestLines::All, || {
            tracing::debug!(target: "tokio_postgres::query", "leaked parameters");
            tracing::info!(target: "tokio_postgres::connection", "kept notice");
            tracing::warn!(target: "lapin::returned_messages", "leaked body");
            tracing::info!(target: "lapin::channel", "leaked frame");
            tracing::error!(target: "lapin::channel", "leaked channel");
            tracing::warn!(target: "lapinette", "kept warning");
            tracing::debug!(target: "hyper_util::client", "leaked header");
            tracing::trace!(target: "hyperspace", "kept, for it is another crate");
            tracing::debug!(target: "longshore::queue", "kept of ours");
        });
        assert!(!logged.contains("leaked"), "{logged}");
        assert_eq!(logged.matches("kept").count(), 4, "{logged}");
    }

    #[test]
    fn problems_leaves_out_what_went_well_and_nothing_else() {
        for (requests, expected) in [(RequestLines::All, 7), (RequestLines::Problems, 5)] {
            let logged = logged("info", requests, || {
                for outcome in
                    ["done", "duplicate", "retry", "parked", "dead", "given_back", "rejected"]
                {
                    RequestLine { outcome, source: "queue", ..RequestLine::default() }.emit();
                }
            });
            assert_eq!(logged.lines().count(), expected, "{requests:?}: {logged}");
        }
    }

    #[test]
    fn a_misspelt_level_is_a_mistake_and_not_a_target() {
        for good in
            ["info", "WARN", "info,longshore::queue=debug", " warn , longshore=trace", "off"]
        {
            assert!(level(good).is_ok(), "{good}");
        }
        for (bad, names) in
            [("inof", "`inof`"), ("info,debg", "`debg`"), ("", "empty"), ("longshore=loud", "loud")]
        {
            assert!(level(bad).unwrap_err().contains(names), "{bad}");
        }
    }
}
