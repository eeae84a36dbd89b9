//! What the ledger knows of requests that a statement did not write.

use std::collections::HashMap;

use deadpool_postgres::GenericClient;

use super::{Finish, FinishBatch, Finished, Hold, Written};
use crate::ledger::error::{BatchError, own};

impl FinishBatch {
    /// What the ledger knows of these requests, whoever wrote it.
    pub(super) async fn known(
        &self,
        client: &impl GenericClient,
        jobs: &[Finish],
    ) -> Result<Vec<Written>, BatchError> {
        let mut known = HashMap::with_capacity(jobs.len());
        self.look(client, jobs, &mut known).await?;
        jobs.iter().map(|job| known.remove(&job.request.id).ok_or(BatchError::Raced)).collect()
    }

    /// Tells what the ledger knows of those that were neither inserted nor updated.
    pub(super) async fn look(
        &self,
        client: &impl GenericClient,
        jobs: &[Finish],
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let missing: Vec<&Finish> =
            jobs.iter().filter(|job| !finished.contains_key(&job.request.id)).collect();
        let ids: Vec<&str> = missing.iter().map(|job| job.request.id.as_str()).collect();
        let look = client.prepare_cached(&self.statements.look).await.map_err(own)?;
        let rows = client.query(&look, &[&ids]).await.map_err(own)?;
        let rows: HashMap<&str, _> = rows.iter().map(|row| (row.get(0), row)).collect();
        for job in missing {
            let Some(row) = rows.get(job.request.id.as_str()) else {
                if let Hold::Claimed(_) = job.hold {
                    finished.insert(job.request.id.clone(), Written::Known(Finished::Gone));
                }
                continue;
            };
            let (fence, digest): (i64, Vec<u8>) = (row.get(1), row.get(2));
            let known = if fence == job.hold.fence() && row.get::<_, bool>(4) {
                // Our own commit, whose answer was lost.
                Finished::Committed { result: row.get(3) }
            } else if let Hold::Claimed(_) = job.hold {
                Finished::Fenced
            } else if digest == job.request.message.digest() {
                Finished::Duplicate
            } else {
                Finished::Reused
            };
            finished.insert(job.request.id.clone(), Written::Known(known));
        }
        Ok(())
    }
}
