//! Claiming: a row `running` with the body, the worker and a fence, before anything is called.

use std::{collections::HashMap, sync::Arc, time::Duration};

use deadpool_postgres::{Object, Pool};
use time::OffsetDateTime;

use super::{
    Fence,
    error::{BatchError, own},
    lanes::Batch,
    session, sql,
};
use crate::request::Request;

/// A request that wants to run.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The request.
    pub request: Arc<Request>,
    /// A number of its own for this claim, so that it can be recognised when its answer was lost.
    pub fence: Fence,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// How long nobody else may take it.
    pub lease: Duration,
    /// When it was received.
    pub received_at: OffsetDateTime,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// It is ours to run.
    Run {
        /// Which attempt this is, from 1.
        attempt: u32,
        /// How many workers have vanished over it since an attempt last came to its end.
        crashes: u32,
    },
    /// The ledger knows it already, and somebody else has it or it is settled.
    Duplicate,
    /// The ledger knows another request under this id.
    Reused,
}

pub(super) struct ClaimBatch {
    pub(super) pool: Pool,
    pub(super) worker: String,
    pub(super) within: Duration,
    claim: String,
    look: String,
}

impl ClaimBatch {
    pub(super) fn new(pool: Pool, schema: &str, worker: String, within: Duration) -> Self {
        Self {
            pool,
            worker,
            within,
            claim: sql::in_schema(CLAIM, schema),
            look: sql::in_schema(LOOK, schema),
        }
    }

    async fn claim(&self, client: &mut Object, jobs: &[Claim]) -> Result<Vec<Claimed>, BatchError> {
        let requests = || jobs.iter().map(|job| &*job.request);
        let ids: Vec<&str> = requests().map(|r| r.id.as_str()).collect();
        let kinds: Vec<&str> = requests().map(|r| r.kind.as_str()).collect();
        let users: Vec<&str> = requests().map(|r| r.user_id.as_str()).collect();
        let fences: Vec<i64> = jobs.iter().map(|job| job.fence.0).collect();
        let redelivered: Vec<&str> =
            jobs.iter().filter(|job| job.redelivered).map(|job| job.request.id.as_str()).collect();
        let leases: Vec<f64> = jobs.iter().map(|job| job.lease.as_secs_f64()).collect();
        let digests: Vec<Vec<u8>> = requests().map(|r| r.message.digest().to_vec()).collect();
        let bodies: Vec<&[u8]> = requests().map(|r| &*r.message.body).collect();
        let properties: Vec<String> =
            requests().map(|r| session::json(&r.message.properties)).collect();
        let deadlines: Vec<Option<OffsetDateTime>> = requests().map(|r| r.deadline).collect();
        let published: Vec<Option<OffsetDateTime>> =
            requests().map(Request::published_at).collect();
        let received: Vec<OffsetDateTime> = jobs.iter().map(|job| job.received_at).collect();

        let claim = client.prepare_cached(&self.claim).await.map_err(own)?;
        let rows = client
            .query(
                &claim,
                &[
                    &ids,
                    &kinds,
                    &users,
                    &fences,
                    &leases,
                    &digests,
                    &bodies,
                    &properties,
                    &deadlines,
                    &published,
                    &received,
                    &self.worker,
                    &redelivered,
                ],
            )
            .await
            .map_err(own)?;
        let mut claimed: HashMap<String, Claimed> = rows
            .iter()
            .map(|row| {
                let attempt = u32::try_from(row.get::<_, i32>(1)).unwrap_or_default();
                let crashes = u32::try_from(row.get::<_, i32>(2)).unwrap_or_default();
                (row.get(0), Claimed::Run { attempt, crashes })
            })
            .collect();
        if claimed.len() < jobs.len() {
            let missing: Vec<&str> =
                ids.iter().copied().filter(|id| !claimed.contains_key(*id)).collect();
            let look = client.prepare_cached(&self.look).await.map_err(own)?;
            for row in client.query(&look, &[&missing]).await.map_err(own)? {
                let (id, digest): (String, Vec<u8>) = (row.get(0), row.get(1));
                let ours = ids.iter().position(|ours| *ours == id).map(|index| &digests[index]);
                let known =
                    if ours == Some(&digest) { Claimed::Duplicate } else { Claimed::Reused };
                claimed.insert(id, known);
            }
        }
        // A row that was pruned between the two statements: the next try inserts it.
        ids.iter().map(|id| claimed.get(*id).copied().ok_or(BatchError::Raced)).collect()
    }
}

impl Batch for ClaimBatch {
    type Job = Claim;
    type Answer = Claimed;
    const NAME: &'static str = "claim";

    fn id(job: &Claim) -> &str {
        &job.request.id
    }

    fn weight(job: &Claim) -> usize {
        job.request.message.body.len()
    }

    fn alone(_: &Claim) -> bool {
        false
    }

    async fn run(&self, jobs: &[Claim]) -> Result<Vec<Claimed>, BatchError> {
        session::with(&self.pool, self.within, async |client| self.claim(client, jobs).await).await
    }
}

/// Inserts a running row, or takes over one that lost its worker: only a redelivery may, and only
/// from an attempt that held a delivery. The same fence is the same claim, asked again because its
/// answer was lost. An attempt whose worker vanished is charged only if it ran as a suspect.
///
/// Ordered by id, so that two workers that claim the same ids wait for each other in one direction.
const CLAIM: &str = "\
insert into longshore.requests as r
    (request_id, kind, user_id, state, attempt, fence, from_queue, worker, due_at,
     digest, body, properties, deadline, published_at, received_at)
select i.id, i.kind, i.user_id, 'running', 1, i.fence, true, $12,
       now() + make_interval(secs => i.lease),
       i.digest, i.body, i.properties::json, i.deadline, i.published_at, i.received_at
  from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::float8[], $6::bytea[],
              $7::bytea[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[])
       as i(id, kind, user_id, fence, lease, digest, body, properties, deadline,
            published_at, received_at)
 order by i.id
    on conflict (request_id) do update
   set attempt = r.attempt + (r.alone and r.fence <> excluded.fence)::int,
       crashes = r.crashes + (r.fence <> excluded.fence)::int,
       alone = r.alone and r.fence = excluded.fence,
       fence = excluded.fence, worker = excluded.worker, due_at = excluded.due_at
 where r.digest = excluded.digest and r.state = 'running'
   and (r.fence = excluded.fence or (r.from_queue and r.worker is distinct from excluded.worker
                                     and excluded.request_id = any($13::text[])))
returning r.request_id, r.attempt, r.crashes";

const LOOK: &str = "select request_id, digest from longshore.requests where request_id = any($1)";
