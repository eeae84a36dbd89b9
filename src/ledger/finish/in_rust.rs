//! The apply step of a library user, in one transaction with its row.

use std::{panic::AssertUnwindSafe, time::Duration};

use deadpool_postgres::{Object, Transaction};
use futures_util::FutureExt as _;

use super::{Finish, FinishBatch, Finished, Written};
use crate::{
    fail,
    ledger::error::BatchError,
    outcome::{ErrorCode, Failure, StepError},
    steps::Steps,
    telemetry,
};

impl FinishBatch {
    pub(super) async fn transact_in_rust(
        &self,
        client: &mut Object,
        job: &Finish,
        steps: &dyn Steps,
        limit: Duration,
    ) -> Result<Vec<Written>, BatchError> {
        let transaction = client.transaction().await?;
        if limit < self.statement_timeout {
            let set = format!("set local statement_timeout = {}", limit.as_millis().max(1));
            transaction.batch_execute(&set).await?;
        }
        // Told apart by hand: a transaction that is dropped rolls back behind our back, and the
        // next user of the connection would wait for it.
        match self.apply_in_rust(&transaction, job, steps, limit).await {
            Ok(written) => {
                let id = [job.request.id.as_str()];
                fail::at("before_commit", id);
                fail::answer("commit_sent", id, transaction.commit()).await?;
                fail::at("after_commit", id);
                Ok(written)
            }
            // The step may have left a statement under way, and a rollback would wait for it: the
            // connection is closed instead, by whoever lent it.
            Err(error @ BatchError::TimedOut(_)) => Err(error),
            Err(error) => {
                transaction.rollback().await?;
                Err(error)
            }
        }
    }

    /// Like a function in SQL it is cut off at `limit`, and like one it cannot end the lane: a panic
    /// is a failure.
    async fn apply_in_rust(
        &self,
        transaction: &Transaction<'_>,
        job: &Finish,
        steps: &dyn Steps,
        limit: Duration,
    ) -> Result<Vec<Written>, BatchError> {
        // The row first: when it is not ours to finish, the step must not run at all.
        let written = self.write(transaction, std::slice::from_ref(job), false).await?;
        if !matches!(written.as_slice(), [Written::Known(Finished::Committed { .. })]) {
            return Ok(written);
        }
        let transient = |code, error| {
            let failure = Failure::new(code, error);
            StepError::Transient { failure, retry_in: None }
        };
        let applied = AssertUnwindSafe(async {
            steps.apply(&job.request, job.response.as_deref(), transaction).await
        });
        let result = match tokio::time::timeout(limit, applied.catch_unwind()).await {
            Ok(Ok(result)) => result.map_err(BatchError::Failed)?,
            Ok(Err(panic)) => {
                let text = telemetry::panic_text(&*panic);
                return Err(BatchError::Failed(transient(ErrorCode::Panic, text)));
            }
            Err(_) => {
                let text = format!("apply took longer than {limit:?}");
                return Err(BatchError::TimedOut(transient(ErrorCode::Timeout, text)));
            }
        };
        if let Some(result) = &result {
            transaction.execute(&self.statements.result, &[&job.request.id, result]).await?;
        }
        Ok(vec![Written::Known(Finished::Committed { result })])
    }
}
