//! Finishing: the apply step and the ledger's row, committed together.

mod columns;
mod job;
mod statements;
mod wary;

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    time::Duration,
};

use deadpool_postgres::{Object, Pool, Transaction};
use futures_util::FutureExt as _;

pub use self::job::{Finish, Finished, Hold, Verdict};
use self::{
    columns::Columns,
    statements::{Applying, Statements},
    wary::{Wary, Written},
};
use super::{
    error::{BatchError, own},
    lanes::Batch,
    session,
    sql::Function,
};
use crate::{
    fail,
    outcome::{ErrorCode, Failure, StepError},
    telemetry,
};

/// Writes finishes, many in one transaction.
pub(super) struct FinishBatch {
    pool: Pool,
    worker: String,
    statement_timeout: Duration,
    statements: Statements,
    wary: Wary,
}

/// How much longer than its statements a visit may take before the connection is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

impl FinishBatch {
    pub(super) fn new(
        pool: Pool,
        schema: &str,
        worker: String,
        statement_timeout: Duration,
        functions: &BTreeMap<String, Function>,
    ) -> Self {
        let statements = Statements::new(schema, functions);
        Self { pool, worker, statement_timeout, statements, wary: Wary::default() }
    }

    async fn transact(
        &self,
        client: &mut Object,
        jobs: &[Finish],
        limit: Duration,
        wary: bool,
    ) -> Result<Vec<Written>, BatchError> {
        let transaction = client.transaction().await?;
        if limit < self.statement_timeout {
            let set = format!("set local statement_timeout = {}", limit.as_millis().max(1));
            transaction.batch_execute(&set).await?;
        }
        let finished = match jobs {
            [job] if job.steps.is_some() && job.verdict == Verdict::Done => {
                self.apply_in_rust(&transaction, job, limit).await
            }
            _ => self.write(&transaction, jobs, wary).await,
        };
        // Told apart by hand: a transaction that is dropped rolls back behind our back, and the
        // next user of the connection would wait for it.
        match finished {
            Ok(finished) => {
                let ids = || jobs.iter().map(|job| job.request.id.as_str());
                fail::at("before_commit", ids());
                fail::answer("commit_sent", ids(), transaction.commit()).await?;
                fail::at("after_commit", ids());
                Ok(finished)
            }
            // A step in Rust may have left a statement under way, and a rollback would wait for it:
            // the connection is closed instead, by whoever lent it.
            Err(error @ BatchError::TimedOut(_)) if jobs.iter().any(|job| job.steps.is_some()) => {
                Err(error)
            }
            Err(error) => {
                transaction.rollback().await?;
                Err(error)
            }
        }
    }

    /// One transaction. Where it is `wary`, what a function refuses is told and fails nobody else.
    async fn visit(&self, jobs: &[Finish], wary: bool) -> Result<Vec<Written>, BatchError> {
        let limit =
            jobs.iter().map(|job| job.budget).min().unwrap_or_default().min(self.statement_timeout);
        session::with(&self.pool, limit + PATIENCE, async |client| {
            self.transact(client, jobs, limit, wary).await
        })
        .await
    }

    /// What became of each. The few that only a transaction of their own can tell of get one.
    async fn answers(
        &self,
        jobs: &[Finish],
        written: Vec<Written>,
    ) -> Result<Vec<Result<Finished, StepError>>, BatchError> {
        let mut answers = Vec::with_capacity(written.len());
        for (index, written) in written.into_iter().enumerate() {
            answers.push(match written {
                Written::Known(finished) => Ok(finished),
                Written::Refused(error) => Err(error),
                Written::Unsaid => match self.visit(&jobs[index..=index], false).await {
                    Ok(mut alone) => match alone.pop() {
                        Some(Written::Known(finished)) => Ok(finished),
                        Some(Written::Refused(error)) => Err(error),
                        Some(Written::Unsaid) | None => return Err(BatchError::Raced),
                    },
                    Err(BatchError::Failed(error) | BatchError::TimedOut(error)) => Err(error),
                    // The others are committed; asked again they are found so.
                    Err(error) => return Err(error),
                },
            });
        }
        Ok(answers)
    }

    fn applying(&self, jobs: &[&Finish], wary: bool) -> &Applying {
        if wary { &self.statements.wary } else { self.statements.applying(jobs) }
    }

    async fn write(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[Finish],
        wary: bool,
    ) -> Result<Vec<Written>, BatchError> {
        let (fresh, claimed): (Vec<&Finish>, Vec<&Finish>) =
            jobs.iter().partition(|job| matches!(job.hold, Hold::Fresh(_)));
        let mut finished = HashMap::with_capacity(jobs.len());
        if !fresh.is_empty() {
            self.insert(transaction, &fresh, wary, &mut finished).await?;
        }
        if !claimed.is_empty() {
            self.update(transaction, &claimed, wary, &mut finished).await?;
        }
        if finished.len() < jobs.len() {
            self.look(transaction, jobs, &mut finished).await?;
        }
        jobs.iter().map(|job| finished.remove(&job.request.id).ok_or(BatchError::Raced)).collect()
    }

    async fn insert(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[&Finish],
        wary: bool,
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let failed = failing(jobs);
        let insert = &self.applying(jobs, wary).insert;
        let insert = transaction.prepare_cached(insert).await.map_err(failed)?;
        let columns = Columns::of(jobs);
        let rows =
            transaction.query(&insert, &columns.parameters(&self.worker)).await.map_err(failed)?;
        let (mut inserted, mut applied) = (0, 0);
        for row in &rows {
            let count: Option<i64> = row.get(0);
            applied = count.unwrap_or(applied);
            if let Some((id, written)) = wary::read(row) {
                inserted += i64::from(count.is_some());
                finished.insert(id, written);
            }
        }
        // Somebody inserted one of these ids between our look and our insert: its function has run
        // here and must not count, so all of it is undone.
        if inserted == applied { Ok(()) } else { Err(BatchError::Raced) }
    }

    async fn update(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[&Finish],
        wary: bool,
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let ids: Vec<&str> = jobs.iter().map(|job| job.request.id.as_str()).collect();
        // Locked by a statement of its own: the next one then sees these rows as they stay, and
        // applies no function for a row that turns out to be somebody else's.
        let lock = transaction.prepare_cached(&self.statements.lock).await.map_err(own)?;
        transaction.execute(&lock, &[&ids]).await.map_err(own)?;
        let failed = failing(jobs);
        let update = &self.applying(jobs, wary).update;
        let update = transaction.prepare_cached(update).await.map_err(failed)?;
        let columns = Columns::of(jobs);
        for row in
            transaction.query(&update, &columns.parameters(&self.worker)).await.map_err(failed)?
        {
            finished.extend(wary::read(&row));
        }
        Ok(())
    }

    /// Tells what the ledger knows of those that were neither inserted nor updated.
    async fn look(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[Finish],
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let missing: Vec<&Finish> =
            jobs.iter().filter(|job| !finished.contains_key(&job.request.id)).collect();
        let ids: Vec<&str> = missing.iter().map(|job| job.request.id.as_str()).collect();
        let look = transaction.prepare_cached(&self.statements.look).await.map_err(own)?;
        let rows = transaction.query(&look, &[&ids]).await.map_err(own)?;
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

    /// The apply step of a library user, in the same transaction as the row. Like a function in SQL
    /// it is cut off at `limit`, and like one it cannot end the lane: a panic is a failure.
    async fn apply_in_rust(
        &self,
        transaction: &Transaction<'_>,
        job: &Finish,
        limit: Duration,
    ) -> Result<Vec<Written>, BatchError> {
        let Some(steps) = &job.steps else {
            return self.write(transaction, std::slice::from_ref(job), false).await;
        };
        // The row first: when it is not ours to finish, the step must not run at all.
        let finished = self.write(transaction, std::slice::from_ref(job), false).await?;
        if !matches!(finished.as_slice(), [Written::Known(Finished::Committed { .. })]) {
            return Ok(finished);
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

/// Whose fault an error of these jobs' statement is: with a function in it, theirs.
fn failing(jobs: &[&Finish]) -> fn(tokio_postgres::Error) -> BatchError {
    if jobs.iter().any(|job| job.verdict == Verdict::Done) { BatchError::from } else { own }
}

impl Batch for FinishBatch {
    type Job = Finish;
    /// An apply step may be refused without failing its batch.
    type Answer = Result<Finished, StepError>;
    const NAME: &'static str = "finish";

    fn id(job: &Finish) -> &str {
        &job.request.id
    }

    fn weight(job: &Finish) -> usize {
        job.request.message.body.len() + job.response.as_ref().map_or(0, String::len)
    }

    fn alone(job: &Finish) -> bool {
        job.steps.is_some()
    }

    async fn run(&self, jobs: &[Finish]) -> Result<Vec<Self::Answer>, BatchError> {
        let in_company = jobs.len() > 1;
        if !(in_company && self.wary.is_on()) {
            match self.visit(jobs, false).await {
                Err(BatchError::Failed(StepError::Refused(_))) if in_company => {}
                written => return self.answers(jobs, written?).await,
            }
        }
        let written = self.visit(jobs, true).await?;
        let met = written.iter().any(|one| !matches!(one, Written::Known(_)));
        self.wary.ran(met);
        self.answers(jobs, written).await
    }
}
