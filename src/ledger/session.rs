//! One visit to Postgres: a connection, a deadline, and what happens to the connection afterwards.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use serde::Serialize;

use super::{error::BatchError, pool};

/// Lends a connection to `work` for at most `within`. A connection whose statement may still be
/// running, or whose server is going away, is closed and not given to the next one.
pub(super) async fn with<T>(
    pool: &Pool,
    within: Duration,
    work: impl AsyncFnOnce(&mut Object) -> Result<T, BatchError>,
) -> Result<T, BatchError> {
    let mut client = pool::get(pool, within).await?;
    let done = tokio::time::timeout(within, work(&mut client)).await;
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            if matches!(error, BatchError::Away(_) | BatchError::TimedOut(_)) {
                drop(Object::take(client));
            }
            Err(error)
        }
        Err(_) => {
            // The server's own statement_timeout is shorter: this is a server that does not answer.
            // Closing the socket is all that can be done without waiting for it.
            drop(Object::take(client));
            Err(BatchError::Away(format!("no answer within {within:?}")))
        }
    }
}

/// JSON text for a `json` column.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}
