//! Lines: requests of ordered kinds, each behind the earlier ones of its user.
//!
//! Who enters is put down with a place, parked on `order` until infinity, so that nothing brings it
//! up. The first of a line is brought up by [`Ledger::advance`]. That is a statement of its own after
//! the commit that made it first, of an entry or of an end: whichever of two such commits comes later
//! sees the other. Where a worker dies between, the sweep over all lines finds it.

use std::{collections::HashMap, sync::Arc};

use deadpool_postgres::Object;
use time::OffsetDateTime;

use super::{
    Fence, Ledger,
    error::{BatchError, LedgerError, own},
    session,
};
use crate::request::Request;

/// What a request is parked on while another of its user is before it.
pub const ORDER: &str = "order";

/// A request that is to stand in the line of its user.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The request.
    pub request: Arc<Request>,
    /// A number of its own, by which an entry is recognised whose answer was lost.
    pub fence: Fence,
    /// When it was received.
    pub received_at: OffsetDateTime,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It stands in the line.
    Stands,
    /// The ledger knows it already; nothing was changed.
    Duplicate,
    /// The ledger knows another request under this id; nothing was changed.
    Reused,
}

/// Whose lines are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Those of these users.
    Theirs(Vec<String>),
    /// All.
    Everybodys,
}

impl Ledger {
    /// Puts requests down at the end of the lines of their users, in this order: all of them or
    /// none. An id may be among them more than once.
    ///
    /// # Errors
    /// [`LedgerError::Away`]: whether they were put down is unknown; it can be asked again.
    /// [`LedgerError::Step`]: nothing was written, as something may pass, or a row is refused.
    pub async fn enter(&self, entries: &[Entry]) -> Result<Vec<Entered>, LedgerError> {
        let entered = session::with(&self.pool, self.patience(), async |client| {
            self.put_down(client, entries).await
        })
        .await;
        self.outage.noticed(entered.map_err(LedgerError::from))
    }

    async fn put_down(
        &self,
        client: &mut Object,
        entries: &[Entry],
    ) -> Result<Vec<Entered>, BatchError> {
        let requests = || entries.iter().map(|entry| &*entry.request);
        let ids: Vec<&str> = requests().map(|r| r.id.as_str()).collect();
        let kinds: Vec<&str> = requests().map(|r| r.kind.as_str()).collect();
        let users: Vec<&str> = requests().map(|r| r.user_id.as_str()).collect();
        let fences: Vec<i64> = entries.iter().map(|entry| entry.fence.0).collect();
        let digests: Vec<Vec<u8>> = requests().map(|r| r.message.digest().to_vec()).collect();
        let bodies: Vec<&[u8]> = requests().map(|r| &*r.message.body).collect();
        let properties: Vec<String> =
            requests().map(|r| session::json(&r.message.properties)).collect();
        let deadlines: Vec<Option<OffsetDateTime>> = requests().map(|r| r.deadline).collect();
        let published: Vec<Option<OffsetDateTime>> =
            requests().map(Request::published_at).collect();
        let received: Vec<OffsetDateTime> = entries.iter().map(|entry| entry.received_at).collect();
        let enter = client.prepare_cached(&self.statements.enter).await.map_err(own)?;
        let inserted = client
            .execute(
                &enter,
                &[
                    &ids,
                    &kinds,
                    &users,
                    &fences,
                    &digests,
                    &bodies,
                    &properties,
                    &deadlines,
                    &published,
                    &received,
                ],
            )
            .await
            .map_err(own)?;
        if inserted == entries.len() as u64 {
            return Ok(vec![Entered::Stands; entries.len()]);
        }
        let look = client.prepare_cached(&self.statements.entered).await.map_err(own)?;
        let rows = client.query(&look, &[&ids]).await.map_err(own)?;
        let known: HashMap<&str, (i64, &[u8])> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        let told = entries.iter().zip(&digests).map(|(entry, digest)| {
            Some(match known.get(entry.request.id.as_str())? {
                (fence, _) if *fence == entry.fence.0 => Entered::Stands,
                (_, known) if known == digest => Entered::Duplicate,
                _ => Entered::Reused,
            })
        });
        // A row that was pruned between the two statements: the next try inserts it.
        told.collect::<Option<_>>().ok_or(BatchError::Raced)
    }

    /// Brings up who is first in a line and not brought up yet; how many that were.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; it can be asked again.
    pub async fn advance(&self, whose: &Whose) -> Result<u64, LedgerError> {
        let advanced = session::with(&self.pool, self.patience(), async |client| {
            let [theirs, everybodys] = &self.statements.advance;
            match whose {
                Whose::Theirs(users) => {
                    let advance = client.prepare_cached(theirs).await.map_err(own)?;
                    client.execute(&advance, &[users]).await.map_err(own)
                }
                Whose::Everybodys => {
                    let advance = client.prepare_cached(everybodys).await.map_err(own)?;
                    client.execute(&advance, &[]).await.map_err(own)
                }
            }
        })
        .await;
        self.outage.noticed(advanced.map_err(LedgerError::from))
    }

    /// How many requests stand in lines and have not ended, counted up to `at_most`.
    ///
    /// # Errors
    /// [`LedgerError::Away`].
    pub async fn in_line(&self, at_most: u64) -> Result<u64, LedgerError> {
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let counted = session::with(&self.pool, self.patience(), async |client| {
            let count = client.prepare_cached(&self.statements.in_line).await.map_err(own)?;
            let row = client.query_one(&count, &[&at_most]).await.map_err(own)?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
        })
        .await;
        self.outage.noticed(counted.map_err(LedgerError::from))
    }
}

/// Places are drawn after the sort, row by row as they are inserted (`nextval` is volatile): of two
/// workers that enter the same requests, none gives a later one a place before an earlier one.
pub(super) const ENTER: &str = "\
insert into longshore.requests
    (request_id, kind, user_id, state, attempt, fence, from_queue, due_at, parked_on, place,
     digest, body, properties, deadline, published_at, received_at)
select i.id, i.kind, i.user_id, 'parked', 0, i.fence, false, 'infinity', 'order',
       nextval('longshore.places'),
       i.digest, i.body, i.properties::json, i.deadline, i.published_at, i.received_at
  from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bytea[], $6::bytea[], $7::text[],
              $8::timestamptz[], $9::timestamptz[], $10::timestamptz[]) with ordinality
       as i(id, kind, user_id, fence, digest, body, properties, deadline, published_at,
            received_at, ord)
 order by i.ord
    on conflict (request_id) do nothing";

pub(super) const ENTERED: &str =
    "select request_id, fence, digest from longshore.requests where request_id = any($1)";

/// Of the lines of some users, and of all. Who is first and parked on something else (a dependency, a
/// limit) is let go by that. A row that somebody has locked is being brought up by him.
pub(super) const ADVANCE: [&str; 2] = [
    "\
with first as (
    select r.request_id
      from unnest($1::text[]) as u(user_id)
      cross join lateral (
          select request_id from longshore.requests q
           where q.user_id = u.user_id and q.place is not null
             and q.state in ('running', 'waiting', 'parked')
           order by q.place limit 1) as head
      join longshore.requests r on r.request_id = head.request_id
     where r.state = 'parked' and r.parked_on = 'order' and r.due_at = 'infinity'
       for update of r skip locked
)
update longshore.requests r set due_at = now() from first where r.request_id = first.request_id",
    "\
with first as (
    select r.request_id
      from longshore.requests r
     where r.state = 'parked' and r.parked_on = 'order' and r.due_at = 'infinity'
       and not exists (select from longshore.requests q
                        where q.user_id = r.user_id and q.place < r.place and q.place is not null
                          and q.state in ('running', 'waiting', 'parked'))
       for update of r skip locked
)
update longshore.requests r set due_at = now() from first where r.request_id = first.request_id",
];

pub(super) const IN_LINE: &str = "\
select count(*) from (select from longshore.requests
                       where place is not null and state in ('running', 'waiting', 'parked')
                       limit $1) as open";
