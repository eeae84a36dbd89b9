//! What is parked on the shares of users, brought up as they have room; and the tokens of shared rates.

use std::time::Duration;

use super::{
    Due, Ledger,
    due::read,
    error::{BatchError, LedgerError, own},
    session,
};
use crate::limit::{Draw, Grant};

/// Users of whom requests are brought up at a time.
const USERS: i64 = 64;

/// What may be brought up of those that are parked on the share of their user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfUsers {
    /// Behind this user, in the order of their names.
    pub after: String,
    /// So many of each.
    pub each: usize,
    /// So many in all.
    pub most: usize,
    /// Of these none.
    pub not_of: Vec<String>,
}

impl Ledger {
    /// Claims requests that are parked on the share of their user: a few of each of several users. Rows
    /// that another worker is claiming are skipped.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; nothing that was claimed is lost, its lease runs out.
    pub async fn of_users(
        &self,
        wanted: &OfUsers,
        lease: Duration,
    ) -> Result<Vec<Due>, LedgerError> {
        let OfUsers { after, each, most, not_of } = wanted;
        let claimed = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.of_users).await.map_err(own)?;
            let (each, most, lease) = (number(*each), number(*most), lease.as_secs_f64());
            let rows = client
                .query(&statement, &[&after, &USERS, &self.worker, &lease, &each, &most, &not_of])
                .await
                .map_err(own)?;
            rows.iter().map(read).collect::<Result<Vec<Due>, BatchError>>()
        })
        .await;
        self.outage.noticed(claimed.map_err(LedgerError::from))
    }

    /// Takes tokens out of a bucket that all workers share.
    ///
    /// # Errors
    /// [`LedgerError::Away`]: some may be taken for nothing.
    pub(crate) async fn tokens(&self, bucket: &str, draw: Draw) -> Result<Grant, LedgerError> {
        let wanted = i32::try_from(draw.tokens).unwrap_or(i32::MAX);
        let granted = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.tokens).await.map_err(own)?;
            let row = client
                .query_one(&statement, &[&bucket, &wanted, &draw.rate, &draw.burst])
                .await
                .map_err(own)?;
            let tokens = u32::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            let next_in = Duration::try_from_secs_f64(row.get(1)).unwrap_or(Duration::MAX);
            Ok(Grant { tokens, next_in })
        })
        .await;
        self.outage.noticed(granted.map_err(LedgerError::from))
    }
}

fn number(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

pub(super) const TOKENS: &str =
    "select granted, next_in from longshore.take_tokens($1, $2, $3, $4)";

/// From user to user by leaps in the index, so that the many rows of one are not read for the few of
/// another.
pub(super) const OF_USERS: &str = "\
with recursive users as (
    (select r.user_id, 1 as number
       from longshore.requests r
      where r.state = 'parked' and r.parked_on = 'limit:user' and r.user_id > $1
      order by r.user_id
      limit 1)
    union all
    select next.user_id, users.number + 1
      from users, lateral (
        select r.user_id
          from longshore.requests r
         where r.state = 'parked' and r.parked_on = 'limit:user' and r.user_id > users.user_id
         order by r.user_id
         limit 1) next
     where users.number < $2::bigint
), due as (
    select r.request_id
      from users, lateral (
        select q.request_id
          from longshore.requests q
         where q.state = 'parked' and q.parked_on = 'limit:user' and q.user_id = users.user_id
         order by q.received_at
         limit $5
           for update skip locked) r
     where users.user_id <> all ($7::text[])
     limit $6
)
update longshore.requests r
   set state = 'running', attempt = r.attempt + 1, crashes = 0, alone = false, from_queue = false,
       worker = $3, fence = (random() * 9007199254740992)::bigint,
       due_at = now() + make_interval(secs => $4), parked_on = null
  from due
 where r.request_id = due.request_id
returning r.request_id, r.kind, r.fence, r.attempt, r.body, r.properties::text, r.crashes,
          r.received_at, r.place is not null, 'limit:user'";
