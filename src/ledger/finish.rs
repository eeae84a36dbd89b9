//! Finishing: the apply step and the ledger's row, committed together.

mod columns;

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use deadpool_postgres::{Object, Pool, Transaction};
use futures_util::FutureExt as _;
use time::OffsetDateTime;

use self::columns::Columns;
use super::{Fence, error::BatchError, lanes::Batch, session, sql};
use crate::{
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    steps::Steps,
    telemetry,
};

/// What the ledger is to write about a request.
#[derive(Clone)]
pub struct Finish {
    /// The request.
    pub request: Arc<Request>,
    /// Whether it has a row already.
    pub hold: Hold,
    /// What its row shall say.
    pub verdict: Verdict,
    /// Whether the attempt counts.
    pub charged: bool,
    /// What the call answered, as JSON text: the second argument of the apply step.
    pub response: Option<String>,
    /// The apply step, where it is written in Rust.
    pub steps: Option<Arc<dyn Steps>>,
    /// The longest the apply step may take.
    pub budget: Duration,
    /// When it was received.
    pub received_at: OffsetDateTime,
}

/// How a request stands in the ledger while it is worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It has no row yet.
    Fresh(Fence),
    /// It has a running row under this fence.
    Claimed(Fence),
}

impl Hold {
    fn fence(self) -> i64 {
        match self {
            Self::Fresh(fence) | Self::Claimed(fence) => fence.0,
        }
    }
}

/// What a row shall say.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Apply it, and it is done.
    Done,
    /// It failed and goes on later.
    Waiting {
        /// What failed.
        failure: Failure,
        /// How long until it goes on.
        due_in: Duration,
    },
    /// It waits for something, uncharged.
    Parked {
        /// What it waits for.
        on: String,
        /// How long until it is looked at again.
        due_in: Duration,
    },
    /// It is given up.
    Dead {
        /// Why.
        failure: Failure,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It is committed, with the apply step's value as JSON text.
    Committed {
        /// The value, if there is one.
        result: Option<String>,
    },
    /// The ledger knew it already; nothing was changed.
    Duplicate,
    /// The ledger knows another request under this id; nothing was changed.
    Reused,
    /// Another worker has taken it over; nothing was changed.
    Fenced,
}

pub(super) struct FinishBatch {
    pool: Pool,
    worker: String,
    statement_timeout: Duration,
    /// With the functions of all kinds, for batches of several.
    all: Texts,
    /// With the function of one kind: Postgres refuses a statement for any function in it that is
    /// not there or not to be called, and that must not be the fault of other kinds.
    only: BTreeMap<String, Texts>,
    /// Without functions, for what is not applied.
    none: Texts,
    lock: String,
    look: String,
    result: String,
}

/// The statements that apply functions.
struct Texts {
    insert: String,
    update: String,
}

/// How much longer than its statements a visit may take before the connection is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

impl FinishBatch {
    pub(super) fn new(
        pool: Pool,
        schema: &str,
        worker: String,
        statement_timeout: Duration,
        functions: &BTreeMap<String, sql::Function>,
    ) -> Self {
        let statement = |text: &str| sql::in_schema(text, schema);
        let texts = |functions: &BTreeMap<String, sql::Function>| {
            let apply = sql::apply_expression(functions);
            let text = |text: &str| {
                statement(&text.replace("{apply}", &apply).replace("{input}", columns::INPUT))
            };
            Texts { insert: text(INSERT), update: text(UPDATE) }
        };
        let only = functions.iter().map(|(kind, function)| {
            (kind.clone(), texts(&BTreeMap::from([(kind.clone(), function.clone())])))
        });
        Self {
            pool,
            worker,
            statement_timeout,
            all: texts(functions),
            only: only.collect(),
            none: texts(&BTreeMap::new()),
            lock: statement(LOCK),
            look: statement(LOOK),
            result: statement(RESULT),
        }
    }

    /// The statements with the functions that these jobs apply and, where they can be had so, with
    /// no others. What fails in company is split, and so meets its own alone in the end.
    fn texts(&self, jobs: &[&Finish]) -> &Texts {
        let mut kinds =
            jobs.iter().filter(|job| job.verdict == Verdict::Done).map(|job| &job.request.kind);
        match kinds.next() {
            None => &self.none,
            Some(first) if kinds.all(|kind| kind == first) => {
                self.only.get(first).unwrap_or(&self.none)
            }
            Some(_) => &self.all,
        }
    }

    async fn transact(
        &self,
        client: &mut Object,
        jobs: &[Finish],
        limit: Duration,
    ) -> Result<Vec<Finished>, BatchError> {
        let transaction = client.transaction().await?;
        if limit < self.statement_timeout {
            let set = format!("set local statement_timeout = {}", limit.as_millis().max(1));
            transaction.batch_execute(&set).await?;
        }
        let finished = match jobs {
            [job] if job.steps.is_some() && job.verdict == Verdict::Done => {
                self.apply_in_rust(&transaction, job, limit).await
            }
            _ => self.write(&transaction, jobs).await,
        };
        // Told apart by hand: a transaction that is dropped rolls back behind our back, and the
        // next user of the connection would wait for it.
        match finished {
            Ok(finished) => {
                transaction.commit().await?;
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

    async fn write(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[Finish],
    ) -> Result<Vec<Finished>, BatchError> {
        let (fresh, claimed): (Vec<&Finish>, Vec<&Finish>) =
            jobs.iter().partition(|job| matches!(job.hold, Hold::Fresh(_)));
        let mut finished = HashMap::with_capacity(jobs.len());
        if !fresh.is_empty() {
            self.insert(transaction, &fresh, &mut finished).await?;
        }
        if !claimed.is_empty() {
            self.update(transaction, &claimed, &mut finished).await?;
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
        finished: &mut HashMap<String, Finished>,
    ) -> Result<(), BatchError> {
        let insert = transaction.prepare_cached(&self.texts(jobs).insert).await?;
        let rows = transaction.query(&insert, &Columns::of(jobs).parameters(&self.worker)).await?;
        let mut inserted = 0;
        for row in &rows {
            if let Some(id) = row.get::<_, Option<String>>(1) {
                inserted += 1;
                finished.insert(id, Finished::Committed { result: row.get(2) });
            }
        }
        let applied: i64 = rows.first().map_or(0, |row| row.get(0));
        // Somebody inserted one of these ids between our look and our insert: its function has run
        // here and must not count, so all of it is undone.
        if inserted == applied { Ok(()) } else { Err(BatchError::Raced) }
    }

    async fn update(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[&Finish],
        finished: &mut HashMap<String, Finished>,
    ) -> Result<(), BatchError> {
        let ids: Vec<&str> = jobs.iter().map(|job| job.request.id.as_str()).collect();
        // Locked by a statement of its own: the next one then sees these rows as they stay, and
        // applies no function for a row that turns out to be somebody else's.
        let lock = transaction.prepare_cached(&self.lock).await?;
        transaction.execute(&lock, &[&ids]).await?;
        let update = transaction.prepare_cached(&self.texts(jobs).update).await?;
        for row in transaction.query(&update, &Columns::of(jobs).parameters(&self.worker)).await? {
            finished.insert(row.get(0), Finished::Committed { result: row.get(1) });
        }
        Ok(())
    }

    /// Tells what the ledger knows of those that were neither inserted nor updated.
    async fn look(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[Finish],
        finished: &mut HashMap<String, Finished>,
    ) -> Result<(), BatchError> {
        let missing: Vec<&Finish> =
            jobs.iter().filter(|job| !finished.contains_key(&job.request.id)).collect();
        let ids: Vec<&str> = missing.iter().map(|job| job.request.id.as_str()).collect();
        let look = transaction.prepare_cached(&self.look).await?;
        let rows = transaction.query(&look, &[&ids]).await?;
        let rows: HashMap<&str, _> = rows.iter().map(|row| (row.get(0), row)).collect();
        for job in missing {
            let Some(row) = rows.get(job.request.id.as_str()) else {
                // Its row is gone. A claimed one can only have been taken over, done and pruned.
                if let Hold::Claimed(_) = job.hold {
                    finished.insert(job.request.id.clone(), Finished::Fenced);
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
            finished.insert(job.request.id.clone(), known);
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
    ) -> Result<Vec<Finished>, BatchError> {
        let Some(steps) = &job.steps else {
            return self.write(transaction, std::slice::from_ref(job)).await;
        };
        // The row first: when it is not ours to finish, the step must not run at all.
        let finished = self.write(transaction, std::slice::from_ref(job)).await?;
        if !matches!(finished.as_slice(), [Finished::Committed { .. }]) {
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
            transaction.execute(&self.result, &[&job.request.id, result]).await?;
        }
        Ok(vec![Finished::Committed { result }])
    }
}

impl Batch for FinishBatch {
    type Job = Finish;
    type Answer = Finished;
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

    async fn run(&self, jobs: &[Finish]) -> Result<Vec<Finished>, BatchError> {
        let limit =
            jobs.iter().map(|job| job.budget).min().unwrap_or_default().min(self.statement_timeout);
        session::with(&self.pool, limit + PATIENCE, async |client| {
            self.transact(client, jobs, limit).await
        })
        .await
    }
}

/// Inserts the rows that are not there yet and applies their functions, in the order of users and
/// arrival: batches of other workers lock the rows of users in the same order, and the requests of
/// one user are applied as they came. The functions are volatile, so Postgres evaluates them after
/// the sort.
const INSERT: &str = "\
with input as (select * from {input}),
todo as materialized (
    select i.*, case when i.state = 'done' then {apply} end as result
      from input i
     where not exists (select from longshore.requests r where r.request_id = i.id)
     order by i.user_id, i.ord
), inserted as (
    insert into longshore.requests
        (request_id, kind, user_id, state, attempt, fence, from_queue, worker, due_at, parked_on,
         error_code, error, result, digest, body, properties, deadline, published_at, received_at,
         finished_at)
    select id, kind, user_id, state, charged, fence, true, $1, now() + make_interval(secs => due_in),
           parked_on, error_code, error, result, digest, body, properties::json, deadline,
           published_at, received_at, case when state in ('done', 'dead') then clock_timestamp() end
      from todo
     order by ord
        on conflict (request_id) do nothing
    returning request_id, result
), history as (
    insert into longshore.attempts (request_id, attempt, worker, outcome, error_code, error)
    select id, charged, $1, outcome, error_code, error from todo where outcome is not null
)
select todo.count, inserted.request_id, inserted.result::text
  from (select count(*) from todo) todo left join inserted on true";

const LOCK: &str = "\
select 1 from longshore.requests where request_id = any($1) order by request_id for update";

/// Finishes claimed rows that still carry our fence. See `update` for why they are locked already.
const UPDATE: &str = "\
with input as (select * from {input}),
applied as materialized (
    select i.*, r.attempt - 1 + i.charged as attempt, case when i.state = 'done' then {apply} end as result
      from input i
      join longshore.requests r on r.request_id = i.id and r.fence = i.fence and r.state = 'running'
     order by i.user_id, i.ord
), history as (
    insert into longshore.attempts (request_id, attempt, worker, outcome, error_code, error)
    select id, attempt, $1, outcome, error_code, error from applied where outcome is not null
)
update longshore.requests r
   set state = a.state, attempt = a.attempt, worker = $1,
       due_at = now() + make_interval(secs => a.due_in), parked_on = a.parked_on,
       error_code = a.error_code, error = a.error, result = a.result,
       body = case when a.state <> 'done' then r.body end,
       properties = case when a.state <> 'done' then r.properties end,
       finished_at = case when a.state in ('done', 'dead') then clock_timestamp() end
  from applied a
 where r.request_id = a.id
returning r.request_id, r.result::text";

const LOOK: &str = "\
select request_id, fence, digest, result::text, state <> 'running'
  from longshore.requests where request_id = any($1)";

const RESULT: &str = "update longshore.requests set result = $2::text::jsonb where request_id = $1";
