//! Work that the ledger brings up itself: retries, parked requests, expired leases.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use time::OffsetDateTime;

use super::{
    Fence, Ledger,
    error::{BatchError, LedgerError, own},
    session,
};
use crate::request::{self, Malformed, Message, Properties, Request};

/// A request whose time has come, claimed for us.
#[derive(Debug)]
pub struct Due {
    /// The request, as the contract reads it today; refused if it no longer meets it.
    pub request: Result<Arc<Request>, Box<(Malformed, Message)>>,
    /// The fence of the claim.
    pub fence: Fence,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many workers have vanished over it since an attempt last came to its end.
    pub crashes: u32,
    /// When it was first received.
    pub received_at: OffsetDateTime,
    /// The limit that it was parked on, where it was brought up because that had room.
    pub pulled: Option<String>,
}

impl Ledger {
    /// Claims at most `limit` due requests, longest due first, leaving those that wait for a
    /// dependency in `closed_to`. Rows that another worker is claiming are skipped.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; nothing that was claimed is lost, its lease runs out.
    pub async fn due(
        &self,
        limit: usize,
        closed_to: &[String],
        lease: Duration,
    ) -> Result<Vec<Due>, LedgerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let claimed = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.due).await.map_err(own)?;
            let rows = client
                .query(&statement, &[&limit, &closed_to, &self.worker, &lease.as_secs_f64()])
                .await
                .map_err(own)?;
            rows.iter().map(read).collect::<Result<Vec<Due>, BatchError>>()
        })
        .await;
        self.outage.noticed(claimed.map_err(LedgerError::from))
    }
}

/// A claim that is to be left alone for some time more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The request.
    pub id: String,
    /// The fence of the claim.
    pub fence: Fence,
    /// For how long, from now.
    pub time: Duration,
}

impl Ledger {
    /// Extends the leases of what is still worked here: a finish that waits behind a slow function
    /// is no sign of a dead worker.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; the leases then run on.
    pub async fn renew(&self, held: &[Lease]) -> Result<(), LedgerError> {
        let ids: Vec<&str> = held.iter().map(|lease| lease.id.as_str()).collect();
        let fences: Vec<i64> = held.iter().map(|lease| lease.fence.0).collect();
        let times: Vec<f64> = held.iter().map(|lease| lease.time.as_secs_f64()).collect();
        let renewed = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.renew).await.map_err(own)?;
            client.execute(&statement, &[&ids, &fences, &times]).await.map_err(own)?;
            Ok(())
        })
        .await;
        self.outage.noticed(renewed.map_err(LedgerError::from))
    }
}

impl Due {
    /// What a row says, as the contract reads it today. It had an identity when it was filed, and it
    /// keeps that: id and kind.
    pub(super) fn revive(
        identity: (Option<String>, Option<String>),
        message: Message,
        fence: Fence,
        attempt: i32,
        crashes: i32,
        received_at: OffsetDateTime,
    ) -> Self {
        let request = request::decode_or_return(message).map(Arc::new).map_err(|mut refused| {
            (refused.0.id, refused.0.kind) = identity;
            refused
        });
        Self {
            request,
            fence,
            attempt: u32::try_from(attempt).unwrap_or_default(),
            crashes: u32::try_from(crashes).unwrap_or_default(),
            received_at,
            pulled: None,
        }
    }
}

pub(super) fn read(row: &tokio_postgres::Row) -> Result<Due, BatchError> {
    let properties: Option<String> = row.try_get(5)?;
    let properties: Properties =
        properties.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let message = Message { body: Bytes::from(row.try_get::<_, Vec<u8>>(4)?), properties };
    let due = Due::revive(
        (row.try_get(0).ok(), row.try_get(1).ok()),
        message,
        Fence(row.try_get(2)?),
        row.try_get(3)?,
        row.try_get(6)?,
        row.try_get(7)?,
    );
    // Only what was parked on a limit says so.
    let pulled = if row.len() > 8 { row.try_get(8)? } else { None };
    Ok(Due { pulled, ..due })
}

/// A due row that was running had its lease expire: its worker vanished, and the attempt is charged
/// only if it ran as a suspect. The fence is random, as those of the workers.
pub(super) const DUE: &str = "\
with due as (
    select request_id
      from longshore.requests
     where state in ('running', 'waiting', 'parked') and due_at <= now()
       and (parked_on is null or parked_on <> all ($2::text[]))
     order by due_at
     limit $1
       for update skip locked
)
update longshore.requests r
   set state = 'running', attempt = r.attempt + (r.state <> 'running' or r.alone)::int,
       crashes = case when r.state = 'running' then r.crashes + 1 else 0 end, alone = false,
       from_queue = false, worker = $3,
       fence = (random() * 9007199254740992)::bigint,
       due_at = now() + make_interval(secs => $4), parked_on = null
  from due
 where r.request_id = due.request_id
returning r.request_id, r.kind, r.fence, r.attempt, r.body, r.properties::text,
          r.crashes, r.received_at";

pub(super) const RENEW: &str = "\
update longshore.requests r
   set due_at = now() + make_interval(secs => held.time)
  from unnest($1::text[], $2::bigint[], $3::float8[]) as held(id, fence, time)
 where r.request_id = held.id and r.fence = held.fence and r.state = 'running'";
