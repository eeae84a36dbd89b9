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
    /// Whether it stands in the line of its user, so that others wait for its end.
    pub in_line: bool,
    /// When it was first received.
    pub received_at: OffsetDateTime,
    /// What it was parked on, where it was.
    pub parked_on: Option<String>,
}

/// What is to be brought up, at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// Requests in all. What is left of them by the gates is for what goes on by the clock.
    pub limit: usize,
    /// What may be let go of that is parked, the oldest first, whatever its `due_at`.
    pub gates: Vec<Gate>,
    /// How long nobody else may take them.
    pub lease: Duration,
}

/// What may be let go that is parked on one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The dependency, a paused kind (`kind:…`), or a limit (`limit:…`).
    pub on: String,
    /// So many.
    pub most: usize,
    /// They are to be probes: of the oldest, those that have used up the fewest attempts, for a probe
    /// may cost one.
    pub probes: bool,
}

/// Of so many of the oldest, probes are chosen.
pub(super) const PROBES_OF: usize = 1_000;

impl Ledger {
    /// Claims what is let go, the oldest first, and what is due, longest due first. Rows that another
    /// worker is claiming are skipped.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; nothing that was claimed is lost, its lease runs out.
    pub async fn due(&self, ask: &Ask) -> Result<Vec<Due>, LedgerError> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let gates = || ask.gates.iter();
        let names: Vec<&str> = gates().map(|gate| gate.on.as_str()).collect();
        let most: Vec<i64> = gates().map(|gate| number(gate.most)).collect();
        let oldest: Vec<i64> = gates()
            .map(|gate| number(if gate.probes { gate.most.max(PROBES_OF) } else { gate.most }))
            .collect();
        let (limit, lease) = (number(ask.limit), ask.lease.as_secs_f64());
        let claimed = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.due).await.map_err(own)?;
            let rows = client
                .query(&statement, &[&limit, &names, &most, &oldest, &self.worker, &lease])
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
        (attempt, crashes, in_line): (i32, i32, bool),
        received_at: OffsetDateTime,
        parked_on: Option<String>,
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
            in_line,
            received_at,
            parked_on,
        }
    }
}

pub(super) fn read(row: &tokio_postgres::Row) -> Result<Due, BatchError> {
    let properties: Option<String> = row.try_get(5)?;
    let properties: Properties =
        properties.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let message = Message { body: Bytes::from(row.try_get::<_, Vec<u8>>(4)?), properties };
    Ok(Due::revive(
        (row.try_get(0).ok(), row.try_get(1).ok()),
        message,
        Fence(row.try_get(2)?),
        (row.try_get(3)?, row.try_get(6)?, row.try_get(8)?),
        row.try_get(7)?,
        row.try_get(9)?,
    ))
}

/// A due row that was running had its lease expire: its worker vanished, and the attempt is charged
/// only if it ran as a suspect. The fence is random, as those of the workers.
///
/// A row that is let go may have come due as well: it is taken once.
pub(super) const DUE: &str = "\
with released as materialized (
    select chosen.*
      from unnest($2::text[], $3::bigint[], $4::bigint[]) as gate(name, most, oldest)
     cross join lateral (
           select oldest.request_id, oldest.parked_on
             from (select r.request_id, r.parked_on, r.attempt, r.received_at
                     from longshore.requests r
                    where r.state = 'parked' and r.parked_on = gate.name
                    order by r.received_at
                    limit gate.oldest
                      for update skip locked) oldest
            order by case when gate.oldest > gate.most then oldest.attempt end, oldest.received_at
            limit gate.most) chosen
), due as (
    select request_id, parked_on
      from longshore.requests
     where state in ('running', 'waiting', 'parked') and due_at <= now()
       and request_id not in (select request_id from released)
     order by due_at
     limit greatest($1 - (select count(*) from released), 0)
       for update skip locked
), taken as (
    select * from released union all select * from due
)
update longshore.requests r
   set state = 'running', attempt = r.attempt + (r.state <> 'running' or r.alone)::int,
       crashes = case when r.state = 'running' then r.crashes + 1 else 0 end, alone = false,
       from_queue = false, worker = $5,
       fence = (random() * 9007199254740992)::bigint,
       due_at = now() + make_interval(secs => $6), parked_on = null
  from taken
 where r.request_id = taken.request_id
returning r.request_id, r.kind, r.fence, r.attempt, r.body, r.properties::text,
          r.crashes, r.received_at, r.place is not null, taken.parked_on";

/// Who is locked is being finished, or taken over. It is left out, for to wait for it with others locked
/// could be a deadlock; should its finish fail, the next round renews it.
pub(super) const RENEW: &str = "\
with ours as materialized (
    select r.request_id, held.time
      from unnest($1::text[], $2::bigint[], $3::float8[]) as held(id, fence, time)
      join longshore.requests r
        on r.request_id = held.id and r.fence = held.fence and r.state = 'running'
       for update of r skip locked
)
update longshore.requests r
   set due_at = now() + make_interval(secs => ours.time)
  from ours
 where r.request_id = ours.request_id";
