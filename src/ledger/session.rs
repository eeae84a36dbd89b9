//! One visit to Postgres: a connection, a deadline, and what happens to the connection afterwards.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use serde::Serialize;

use super::{error::BatchError, pool};
use crate::outcome::{ErrorCode, Failure, StepError};

/// Lends a connection to `work` for at most `within`. A connection whose statement may still be
/// running, or whose server is going away, is closed and not given to the next one.
pub(super) async fn with<T>(
    pool: &Pool,
    within: Duration,
    work: impl AsyncFnOnce(&mut Object) -> Result<T, BatchError>,
) -> Result<T, BatchError> {
    lend(pool::get(pool, within).await?, within, work).await
}

/// The same for work that has only so much time, the wait for a connection included, and `patience`
/// more to hear of it. That no connection becomes free so soon is no sign that Postgres is away.
pub(super) async fn hurried<T>(
    pool: &Pool,
    time: Duration,
    patience: Duration,
    work: impl AsyncFnOnce(&mut Object) -> Result<T, BatchError>,
) -> Result<T, BatchError> {
    match tokio::time::timeout(time, pool::get(pool, time + patience)).await {
        Ok(client) => lend(client?, time + patience, work).await,
        Err(_elapsed) => {
            let error = format!("no connection to postgres became free within {time:?}");
            let failure = Failure::new(ErrorCode::Timeout, error);
            Err(BatchError::TimedOut(StepError::Transient { failure, retry_in: None }))
        }
    }
}

async fn lend<T>(
    mut client: Object,
    within: Duration,
    work: impl AsyncFnOnce(&mut Object) -> Result<T, BatchError>,
) -> Result<T, BatchError> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use deadpool_postgres::Manager;
    use longshore_dev::services::Services;
    use tokio::time::Instant;
    use tokio_postgres::NoTls;

    use super::*;

    #[tokio::test]
    async fn a_wait_for_a_connection_ends_with_the_budget_and_is_no_outage() {
        let services = Services::shared().await.unwrap();
        let config = services.postgres.admin_url().parse().unwrap();
        let pool = Pool::builder(Manager::new(config, NoTls)).max_size(1).build().unwrap();
        let taken = pool.get().await.unwrap();
        let (since, budget) = (Instant::now(), Duration::from_millis(300));
        let asked = hurried(&pool, budget, Duration::from_secs(60), async |_| Ok(())).await;
        let Err(BatchError::TimedOut(StepError::Transient { failure, .. })) = asked else {
            panic!("{asked:?}")
        };
        assert!(failure.code == ErrorCode::Timeout && since.elapsed() >= budget, "{failure}");
        drop(taken);
        assert!(hurried(&pool, 100 * budget, budget, async |_| Ok(())).await.is_ok());
    }
}
