//! The usual batch: all of it done, and nobody waits for what the functions return.
//!
//! Then most columns say the same for every row, and the ledger need only tell how many rows it
//! wrote. One statement does it, which is a transaction by itself.

use std::collections::BTreeMap;

use deadpool_postgres::Object;
use time::OffsetDateTime;
use tokio_postgres::{error::SqlState, types::ToSql};

use super::{Finish, FinishBatch, Hold, Verdict, failing, seen::Seen, wary::Written};
use crate::{
    fail,
    ledger::{
        Finished,
        error::{BatchError, own},
        sql::{self, Function},
    },
    request::Request,
};

/// Its statements, for one set of functions.
pub(super) struct Lean {
    /// For requests that have no row yet, as nearly all have none: who has one fails all of them.
    insert: String,
    /// The same, leaving out who has one.
    look_and_insert: String,
    /// For claimed ones: whose row is not there fails all of them.
    update: String,
    /// Whether there is a function in them.
    applies: bool,
    /// Whether it is one function for all requests at once.
    pub(super) is_set_wise: bool,
}

/// What a lean batch consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Requests that have no row yet.
    Fresh,
    /// Requests with a running row of ours.
    Claimed,
}

/// Whether these jobs are such a batch.
pub(super) fn shape(jobs: &[Finish]) -> Option<Shape> {
    let lean = |job: &Finish| {
        job.verdict == Verdict::Done && job.charged && job.steps.is_none() && !job.wants_result
    };
    if !jobs.iter().all(lean) {
        return None;
    }
    let fresh = |job: &Finish| matches!(job.hold, Hold::Fresh(_));
    if !jobs.iter().any(fresh) {
        Some(Shape::Claimed)
    } else if jobs.iter().all(|job| fresh(job) && job.response.is_none()) {
        Some(Shape::Fresh)
    } else {
        None
    }
}

impl Lean {
    pub(super) fn new(schema: &str, functions: &BTreeMap<String, Function>) -> Self {
        // Only where there is a single kind: rows of several would have to be told apart first.
        let batch = match functions.values().collect::<Vec<_>>().as_slice() {
            [function] => function.batch.as_deref(),
            _ => None,
        };
        let text = |text: &str, [kind, seen, response]: [&str; 3]| {
            let apply = sql::applying(functions, kind, seen, response);
            let text = sql::in_schema(&text.replace("{input}", INPUT), schema);
            text.replace("{apply}", &apply).replace("{apply_batch}", batch.unwrap_or_default())
        };
        let applies = !functions.is_empty();
        let (insert, look_and_insert) = match batch {
            Some(_) => (INSERT_BATCH.to_owned(), LOOK_AND_INSERT_BATCH.replace("{new}", NEW)),
            None => (INSERT.replace("{new}", "true"), INSERT.replace("{new}", NEW)),
        };
        Self {
            insert: text(&insert, FRESH),
            look_and_insert: text(&look_and_insert, FRESH),
            update: text(UPDATE, CLAIMED),
            applies,
            is_set_wise: batch.is_some(),
        }
    }

    /// What the functions get. Nothing where there is none: nobody parses what nobody applies.
    fn seen<'a>(&self, requests: impl Iterator<Item = &'a Request>) -> Vec<Seen> {
        if self.applies { requests.map(Seen::of).collect() } else { Vec::new() }
    }
}

impl FinishBatch {
    /// Writes a lean batch. Nothing of it is kept unless all of it is.
    pub(super) async fn write_lean(
        &self,
        client: &mut Object,
        jobs: &[Finish],
        shape: Shape,
    ) -> Result<Vec<Written>, BatchError> {
        let sorted = super::by_user(jobs);
        let ids = || jobs.iter().map(|job| job.request.id.as_str());
        let written = match shape {
            Shape::Fresh => self.insert_kinds(client, &sorted).await?,
            Shape::Claimed => self.update_lean(client, &sorted).await?,
        };
        fail::at("after_commit", ids());
        if written == jobs.len() as u64 {
            let committed = || Written::Known(Finished::Committed { result: None });
            return Ok(jobs.iter().map(|_| committed()).collect());
        }
        // Some were known before, or are somebody else's: which, the rows themselves tell.
        self.known(client, jobs).await
    }

    /// A set-wise function wants its own kind only. Where there is none among the kinds, all of them
    /// share one statement.
    async fn insert_kinds(&self, client: &Object, jobs: &[&Finish]) -> Result<u64, BatchError> {
        let ids = || jobs.iter().map(|job| job.request.id.as_str());
        let kinds = self.statements.apart(jobs);
        let [(lean, jobs)] = kinds.as_slice() else {
            client.batch_execute("BEGIN").await?;
            let mut inserted = 0;
            for (lean, jobs) in &kinds {
                match self.insert_lean(client, lean, jobs).await {
                    Ok(rows) => inserted += rows,
                    Err(error) => {
                        client.batch_execute("ROLLBACK").await?;
                        return Err(error);
                    }
                }
            }
            fail::at("before_commit", ids());
            fail::answer("commit_sent", ids(), client.batch_execute("COMMIT")).await?;
            return Ok(inserted);
        };
        fail::at("before_commit", ids());
        fail::answer("commit_sent", ids(), self.insert_lean(client, lean, jobs)).await
    }

    async fn insert_lean(
        &self,
        client: &Object,
        lean: &Lean,
        jobs: &[&Finish],
    ) -> Result<u64, BatchError> {
        let failed = failing(jobs);
        // Who stands alone is told what its function says of it, so it must not be known before.
        let looks = jobs.len() == 1 || self.looking.is_on();
        let insert = if looks { &lean.look_and_insert } else { &lean.insert };
        let insert = client.prepare_cached(insert).await.map_err(failed)?;
        let requests = || jobs.iter().map(|job| &*job.request);
        let ids: Vec<&str> = requests().map(|request| request.id.as_str()).collect();
        let kinds: Vec<&str> = requests().map(|request| request.kind.as_str()).collect();
        let users: Vec<&str> = requests().map(|request| request.user_id.as_str()).collect();
        let seen = lean.seen(requests());
        let fences: Vec<i64> = jobs.iter().map(|job| job.hold.fence()).collect();
        let digests: Vec<[u8; 32]> = requests().map(|request| request.message.digest()).collect();
        let digests: Vec<&[u8]> = digests.iter().map(<[u8; 32]>::as_slice).collect();
        let deadlines: Vec<Option<OffsetDateTime>> =
            requests().map(|request| request.deadline).collect();
        let published: Vec<Option<OffsetDateTime>> =
            requests().map(Request::published_at).collect();
        let received: Vec<OffsetDateTime> = jobs.iter().map(|job| job.received_at).collect();
        let parameters: [&(dyn ToSql + Sync); 10] = [
            &self.worker,
            &ids,
            &kinds,
            &users,
            &seen,
            &fences,
            &digests,
            &deadlines,
            &published,
            &received,
        ];
        match client.execute(&insert, &parameters).await {
            Ok(inserted) => {
                if looks {
                    self.looking.ran(inserted < jobs.len() as u64);
                }
                Ok(inserted)
            }
            // One of these ids has a row. Nothing is kept, and the next try looks first.
            Err(error) if self.is_known(&error) => {
                self.looking.ran(true);
                Err(BatchError::Raced)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// What may be the ledger's own error is not told: the batch comes again, by the usual statements.
    async fn update_lean(&self, client: &Object, jobs: &[&Finish]) -> Result<u64, BatchError> {
        let lean = &self.statements.applying(jobs).lean;
        let failed = |error: tokio_postgres::Error| match is_doubtful(&error) {
            true => {
                self.doubting.ran(true);
                BatchError::Raced
            }
            false if lean.applies => error.into(),
            false => own(error),
        };
        let ids: Vec<&str> = jobs.iter().map(|job| job.request.id.as_str()).collect();
        let update = client.prepare_cached(&lean.update).await.map_err(failed)?;
        let fences: Vec<i64> = jobs.iter().map(|job| job.hold.fence()).collect();
        let kinds: Vec<&str> = jobs.iter().map(|job| job.request.kind.as_str()).collect();
        let seen = lean.seen(jobs.iter().map(|job| &*job.request));
        // Nor is a response sent to nobody.
        let heard = if lean.applies { jobs } else { &[] };
        let responses: Vec<Option<&str>> =
            heard.iter().map(|job| job.response.as_deref()).collect();
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&self.worker, &ids, &fences, &kinds, &seen, &responses];
        fail::at("before_commit", ids.iter().copied());
        let updated = client.execute(&update, &parameters);
        fail::answer("commit_sent", ids.iter().copied(), updated).await.map_err(failed)
    }

    /// Whether it is the ledger's own key that a row met.
    fn is_known(&self, error: &tokio_postgres::Error) -> bool {
        error.as_db_error().is_some_and(|error| {
            *error.code() == SqlState::UNIQUE_VIOLATION
                && error.constraint() == Some("requests_pkey")
                && error.schema() == Some(&self.schema)
        })
    }
}

/// Whether an error may be the ledger's and not that of a function: a row is gone (`LS001`, see the
/// migration), a right or a table is missing, the server is in trouble. The usual statements lock the
/// rows first, and so tell one from the other.
fn is_doubtful(error: &tokio_postgres::Error) -> bool {
    let class = error.code().and_then(|state| state.code().get(..2));
    matches!(class, Some("LS" | "42" | "58" | "XX"))
}

/// The rows behind the parameters, `$1` being the worker. In a list of columns the arrays are taken
/// apart side by side; in `from` each would first be put into a store of its own.
const INPUT: &str = "\
(select generate_subscripts($2::text[], 1) as ord, unnest($2::text[]) as id,
        unnest($3::text[]) as kind, unnest($4::text[]) as user_id, unnest($5::jsonb[]) as seen,
        unnest($6::bigint[]) as fence, unnest($7::bytea[]) as digest,
        unnest($8::timestamptz[]) as deadline, unnest($9::timestamptz[]) as published_at,
        unnest($10::timestamptz[]) as received_at) as i";

/// Whether a row is not there yet. Written so that Postgres looks each up in the index: a plan made
/// while the ledger is small would join, and read all of it when it no longer is.
const NEW: &str =
    "coalesce((select false from longshore.requests r where r.request_id = i.id), true)";

/// Inserts the rows and applies their functions, in the order of the rows: the functions are
/// volatile, so Postgres evaluates them after the sort.
const INSERT: &str = "\
insert into longshore.requests
    (request_id, kind, user_id, state, attempt, fence, from_queue, worker, result, digest, deadline,
     published_at, received_at, finished_at)
select i.id, i.kind, i.user_id, 'done', 1, i.fence, true, $1, {apply}, i.digest, i.deadline,
       i.published_at, i.received_at, clock_timestamp()
  from {input}
 where {new}
 order by i.ord";

/// The same with one function for all of them. An array of another length says nothing about anybody.
const INSERT_BATCH: &str = "\
with applied as materialized (select {apply_batch}($5::jsonb[]) as results)
insert into longshore.requests
    (request_id, kind, user_id, state, attempt, fence, from_queue, worker, result, digest, deadline,
     published_at, received_at, finished_at)
select i.id, i.kind, i.user_id, 'done', 1, i.fence, true, $1,
       case when cardinality(a.results) = cardinality($2) then a.results[i.ord] end,
       i.digest, i.deadline, i.published_at, i.received_at, clock_timestamp()
  from applied a cross join {input}";

/// The same for those that are not there yet.
const LOOK_AND_INSERT_BATCH: &str = "\
with todo as materialized (
    select i.*, (row_number() over (order by i.ord))::int as nth
      from {input}
     where {new}
), applied as materialized (
    select {apply_batch}(array_agg(t.seen order by t.nth)) as results, count(*) as requests
      from todo t having count(*) > 0
)
insert into longshore.requests
    (request_id, kind, user_id, state, attempt, fence, from_queue, worker, result, digest, deadline,
     published_at, received_at, finished_at)
select t.id, t.kind, t.user_id, 'done', 1, t.fence, true, $1,
       case when cardinality(a.results) = a.requests then a.results[t.nth] end,
       t.digest, t.deadline, t.published_at, t.received_at, clock_timestamp()
  from applied a cross join todo t
 order by t.nth";

/// Where the functions of those find what they are called with. No call has been made for them.
const FRESH: [&str; 3] = ["i.kind", "i.seen", "null::jsonb"];

/// The same in [`UPDATE`].
const CLAIMED: [&str; 3] = ["excluded.kind", "excluded.result", "excluded.error::jsonb"];

/// Finishes claimed rows that still carry our fence. Each row is locked before it is looked at, and its
/// function called after that and once, in the order of the rows: none is applied for a row that turns
/// out to be somebody else's. An `update` would call it for the row as it was before the lock, so it
/// would need a statement before it that locks; and a join, to be planned for each batch, for what is
/// planned while the ledger is small reads all of it when it no longer is.
///
/// All rows are there. What would be inserted only carries what the functions see, and its lack of a
/// worker tells it apart.
const UPDATE: &str = "\
insert into longshore.requests as r
    (request_id, kind, user_id, state, attempt, fence, from_queue, result, error, digest, received_at,
     finished_at)
select i.id, i.kind, '', 'done', 1, i.fence, true, i.seen, i.response, '', now(), now()
  from unnest($2::text[], $3::bigint[], $4::text[], $5::jsonb[], $6::text[]) with ordinality
       as i(id, fence, kind, seen, response, ord)
 order by i.ord
    on conflict (request_id) do update
   set state = 'done', worker = $1, due_at = null, parked_on = null, crashes = 0, alone = false,
       error_code = null, error = null, result = {apply}, body = null, properties = null,
       finished_at = clock_timestamp()
 where r.fence = excluded.fence and r.state = 'running'
returning case when r.worker is null then longshore.gone(r.request_id) end";
