//! What a database error means: try again, give up, or Postgres is away.

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::{Severity, SqlState};

use crate::{
    outcome::{ErrorCode, Failure, StepError},
    telemetry::metrics,
};

/// Why the ledger could not do what was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LedgerError {
    /// Postgres cannot be reached, is starting, stopping or read-only, or the pool is exhausted:
    /// it is nobody's fault and nothing is known to have happened.
    #[error("postgres is away: {0}")]
    Away(String),
    /// The apply step of this one request failed.
    #[error("{0:?}")]
    Step(StepError),
}

/// How a statement failed, seen from the batch it was in.
#[derive(Debug)]
pub(crate) enum BatchError {
    /// See [`LedgerError::Away`].
    Away(String),
    /// Another transaction inserted one of the same ids meanwhile: the batch did nothing.
    Raced,
    /// It ran out of time.
    TimedOut(StepError),
    /// It failed.
    Failed(StepError),
}

impl From<tokio_postgres::Error> for BatchError {
    fn from(error: tokio_postgres::Error) -> Self {
        if is_away(&error) {
            return Self::Away(describe(&error));
        }
        let timed_out = error.code() == Some(&SqlState::QUERY_CANCELED);
        let step = step_error(&error);
        if timed_out { Self::TimedOut(step) } else { Self::Failed(step) }
    }
}

/// An error of a statement of ours that applies nothing. Where it is neither a value (22, 23, 54)
/// nor a lock or a timeout (40, 55, 57), it is the ledger that cannot be worked with: its table is
/// gone, a right was taken away, a disk fails. That would meet every request alike and is none's
/// fault.
pub(super) fn own(error: tokio_postgres::Error) -> BatchError {
    let class = error.code().and_then(|state| state.code().get(..2).map(str::to_owned));
    match class.as_deref() {
        None | Some("22" | "23" | "40" | "54" | "55" | "57") => error.into(),
        Some(_) => BatchError::Away(describe(&error)),
    }
}

impl From<PoolError> for BatchError {
    fn from(error: PoolError) -> Self {
        Self::Away(describe_pool(&error))
    }
}

impl From<BatchError> for LedgerError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Away(text) => Self::Away(text),
            BatchError::Raced => Self::Away("lost the same race too often".to_owned()),
            BatchError::TimedOut(step) | BatchError::Failed(step) => Self::Step(step),
        }
    }
}

/// What a database error in an apply step means for the request, by SQLSTATE class:
/// 08, 40, 53, 57, 58 and 55P03 may pass, everything else would fail the same way again.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
pub fn step_error(error: &tokio_postgres::Error) -> StepError {
    let Some(state) = error.code() else {
        // Not an answer of the server: the line, or a value that has no form in SQL.
        let failure = Failure::new(ErrorCode::ApplyFailed, describe(error));
        return StepError::Transient { failure, retry_in: None };
    };
    let transient = matches!(state.code().get(..2), Some("08" | "40" | "53" | "57" | "58"))
        || *state == SqlState::LOCK_NOT_AVAILABLE;
    if transient {
        StepError::Transient {
            failure: Failure::new(ErrorCode::ApplyFailed, describe(error)),
            retry_in: None,
        }
    } else {
        StepError::Refused(Failure::new(ErrorCode::ApplyRefused, describe(error)))
    }
}

/// Whether the error says that this Postgres cannot be worked with now, whoever asks. A function
/// may raise any code of its own, e.g. 08001 for a far side that is away: that concerns its request.
/// When the server ends a session, or lets nobody in, it says FATAL.
pub(super) fn is_away(error: &tokio_postgres::Error) -> bool {
    if error.is_closed() {
        return true;
    }
    match error.as_db_error() {
        None => std::error::Error::source(error)
            .is_some_and(<dyn std::error::Error>::is::<std::io::Error>),
        Some(db) => {
            matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
                || [SqlState::DISK_FULL, SqlState::READ_ONLY_SQL_TRANSACTION].contains(db.code())
        }
    }
}

/// Where in Postgres' source a PL/pgSQL `raise` comes from; the error report names it.
const RAISE: &str = "exec_stmt_raise";

/// The server's words without the values: DETAIL may quote a row, and rows hold users' data.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    let text = match error.as_db_error() {
        // What a function raises is its author's choice of words. What Postgres says of a value that
        // does not fit quotes the value.
        Some(db) if db.code().code().starts_with("22") && db.routine() != Some(RAISE) => {
            format!("a value does not fit (SQLSTATE {})", db.code().code())
        }
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    };
    storable(&text)
}

/// What a function refused where it was called so that its error is told as a row, or `None` where
/// the words may quote a value and only the error itself says whether they do.
pub(super) fn refusal(state: &str, message: &str, raised: bool) -> Option<StepError> {
    // The code that functions raise themselves for what they do not take.
    let own_words = raised && state == SqlState::INVALID_PARAMETER_VALUE.code();
    if state.starts_with("22") && !own_words {
        return None;
    }
    let error = storable(&format!("{message} (SQLSTATE {state})"));
    Some(StepError::Refused(Failure::new(ErrorCode::ApplyRefused, error)))
}

/// A bounded text without NUL.
fn storable(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(500).collect()
}

/// Counts and describes why no connection could be had.
pub(super) fn describe_pool(error: &PoolError) -> String {
    let (stage, text) = match error {
        PoolError::Timeout(TimeoutType::Wait) => {
            ("wait", "no connection of the pool became free in time".to_owned())
        }
        PoolError::Timeout(TimeoutType::Create) => {
            ("create", "connecting took too long".to_owned())
        }
        PoolError::Timeout(TimeoutType::Recycle) => {
            ("recycle", "a used connection did not answer in time".to_owned())
        }
        PoolError::Backend(error) => ("backend", describe(error)),
        other => ("backend", other.to_string()),
    };
    metrics::pool_error(stage);
    text
}
