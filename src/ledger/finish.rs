//! Finishing: the apply step and the ledger's row, committed together.

mod columns;
mod in_rust;
mod job;
mod lean;
mod look;
mod seen;
mod sorts;
mod statements;
mod wary;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use deadpool_postgres::{GenericClient, Object, Pool};
use tokio::time::Instant;

pub use self::job::{Finish, Finished, Hold, Verdict};
pub(crate) use self::sorts::Finishes;
use self::{
    columns::Columns,
    lean::Shape,
    statements::{Applying, Statements},
    wary::{Caution, Written},
};
use super::{
    error::{BatchError, describe, own},
    lanes::Batch,
    session,
    sql::Function,
};
use crate::{fail, outcome::StepError};

/// Writes finishes, many in one transaction.
pub(super) struct FinishBatch {
    pool: Pool,
    worker: String,
    schema: String,
    statement_timeout: Duration,
    statements: Statements,
    /// Whether a function may refuse.
    wary: Caution,
    /// Whether what comes from the queue may have a row.
    looking: Caution,
    /// Whether what was claimed may have none, or the ledger cannot be worked with.
    doubting: Caution,
}

/// How much longer than its statements a visit may take before the connection is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The least time that an apply step is given, however little its call or its neighbours have left:
/// what a call has already answered deserves a try.
const LEAST_TO_APPLY: Duration = Duration::from_millis(250);

impl FinishBatch {
    pub(super) fn new(
        pool: Pool,
        schema: &str,
        worker: String,
        statement_timeout: Duration,
        functions: &BTreeMap<String, Function>,
    ) -> Self {
        let statements = Statements::new(schema, functions);
        Self {
            pool,
            worker,
            schema: schema.to_owned(),
            statement_timeout,
            statements,
            wary: Caution::default(),
            looking: Caution::default(),
            doubting: Caution::default(),
        }
    }

    /// BEGIN travels together with what follows it: a batch waits for two answers, not three.
    async fn transact(
        &self,
        client: &mut Object,
        jobs: &[Finish],
        limit: Duration,
        wary: bool,
    ) -> Result<Vec<Written>, BatchError> {
        if let [job] = jobs
            && let (Some(steps), Verdict::Done) = (&job.steps, &job.verdict)
        {
            return self.transact_in_rust(client, job, &**steps, limit).await;
        }
        // A shorter limit would have to be set in a transaction.
        if let Some(shape) = lean::shape(jobs)
            && !wary
            && limit == self.statement_timeout
            && !(shape == Shape::Claimed && self.doubting.is_on())
        {
            return self.write_lean(client, jobs, shape).await;
        }
        let begin = self.begin(limit);
        let (begun, written) =
            tokio::join!(client.batch_execute(&begin), self.write(&*client, jobs, wary));
        // Whether the rest found itself in a transaction is unknown then: the connection is closed.
        begun.map_err(|error| BatchError::Away(describe(&error)))?;
        match written {
            Ok(written) => {
                let ids = || jobs.iter().map(|job| job.request.id.as_str());
                fail::at("before_commit", ids());
                fail::answer("commit_sent", ids(), client.batch_execute("COMMIT")).await?;
                fail::at("after_commit", ids());
                self.doubting.ran(false);
                Ok(written)
            }
            Err(error) => {
                client.batch_execute("ROLLBACK").await?;
                Err(error)
            }
        }
    }

    fn begin(&self, limit: Duration) -> String {
        match limit < self.statement_timeout {
            true => {
                let millis = limit.as_millis().max(1);
                format!("BEGIN; set local statement_timeout = {millis}")
            }
            false => "BEGIN".to_owned(),
        }
    }

    /// One transaction. Where it is `wary`, what a function refuses is told and fails nobody else.
    async fn visit(&self, jobs: &[Finish], wary: bool) -> Result<Vec<Written>, BatchError> {
        let ends = jobs.iter().filter_map(|job| job.ends).min();
        let left = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        match left
            .map(|left| left.max(LEAST_TO_APPLY))
            .filter(|left| *left < self.statement_timeout)
        {
            Some(limit) => {
                let work =
                    async |client: &mut Object| self.transact(client, jobs, limit, wary).await;
                session::hurried(&self.pool, limit, PATIENCE, work).await
            }
            None => {
                let limit = self.statement_timeout;
                let work =
                    async |client: &mut Object| self.transact(client, jobs, limit, wary).await;
                session::with(&self.pool, limit + PATIENCE, work).await
            }
        }
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
        client: &impl GenericClient,
        jobs: &[Finish],
        wary: bool,
    ) -> Result<Vec<Written>, BatchError> {
        let (fresh, claimed): (Vec<&Finish>, Vec<&Finish>) =
            by_user(jobs).into_iter().partition(|job| matches!(job.hold, Hold::Fresh(_)));
        let mut finished = HashMap::with_capacity(jobs.len());
        if !fresh.is_empty() {
            self.insert(client, &fresh, wary, &mut finished).await?;
        }
        if !claimed.is_empty() {
            self.update(client, &claimed, wary, &mut finished).await?;
        }
        if finished.len() < jobs.len() {
            self.look(client, jobs, &mut finished).await?;
        }
        jobs.iter().map(|job| finished.remove(&job.request.id).ok_or(BatchError::Raced)).collect()
    }

    async fn insert(
        &self,
        client: &impl GenericClient,
        jobs: &[&Finish],
        wary: bool,
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let failed = failing(jobs);
        let insert = &self.applying(jobs, wary).insert;
        let insert = client.prepare_cached(insert).await.map_err(failed)?;
        let columns = Columns::of(jobs);
        let rows =
            client.query(&insert, &columns.parameters(&self.worker)).await.map_err(failed)?;
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
        client: &impl GenericClient,
        jobs: &[&Finish],
        wary: bool,
        finished: &mut HashMap<String, Written>,
    ) -> Result<(), BatchError> {
        let ids: Vec<&str> = jobs.iter().map(|job| job.request.id.as_str()).collect();
        // Locked by a statement of its own: the next one then sees these rows as they stay, and
        // applies no function for a row that turns out to be somebody else's.
        let lock = client.prepare_cached(&self.statements.lock).await.map_err(own)?;
        client.execute(&lock, &[&ids]).await.map_err(own)?;
        let failed = failing(jobs);
        let update = &self.applying(jobs, wary).update;
        let update = client.prepare_cached(update).await.map_err(failed)?;
        let columns = Columns::of(jobs);
        for row in client.query(&update, &columns.parameters(&self.worker)).await.map_err(failed)? {
            finished.extend(wary::read(&row));
        }
        Ok(())
    }
}

/// The jobs in the order in which they are applied: by user, and those of one user as they came.
/// Batches of other workers lock the rows of users in the same order.
fn by_user(jobs: &[Finish]) -> Vec<&Finish> {
    let mut jobs: Vec<&Finish> = jobs.iter().collect();
    jobs.sort_by(|one, other| one.request.user_id.cmp(&other.request.user_id));
    jobs
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
