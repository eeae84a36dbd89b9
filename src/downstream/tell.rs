//! What a breaker did, told to log and metrics.

use super::breaker::{Phase, Transition};
use crate::{steer::Mode, telemetry::metrics};

/// Tells a change of phase; to be called without any lock.
pub(super) fn transition(dependency: &str, transition: Option<Transition>) {
    let Some(Transition { from, to, why, mode, counts, consecutive, open_for }) = transition else {
        return;
    };
    metrics::breaker_transition(dependency, to.name());
    macro_rules! line {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                event = "breaker.transition",
                dependency,
                from = from.name(),
                to = to.name(),
                why = why.name(),
                mode = mode.name(),
                calls = counts.calls,
                failed = counts.failed,
                slow = counts.slow,
                consecutive,
                open_ms = open_for.map(|time| time.as_millis() as u64),
                $text
            )
        };
    }
    match (to, mode) {
        (Phase::Open, Mode::Observe) => {
            line!(warn, "breaker would have opened, but only observes: calls go through");
        }
        (Phase::Open, _) => line!(warn, "breaker opened: calls to this dependency are held back"),
        (Phase::HalfOpen, _) => line!(info, "breaker is half-open: a few calls are let through"),
        (Phase::Closed, _) => {
            line!(info, "breaker closed: calls to this dependency go through again");
        }
    }
}
