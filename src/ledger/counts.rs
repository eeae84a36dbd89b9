//! Counting what is not done, for the operators and for the bounds of what is parked.
//!
//! Many may be parked, and dead ones stay until a person deals with them: to count all at once kept one
//! of two cores busy for 40 ms where 70,000 were parked, and whoever came meanwhile was late by that. So
//! they are counted piece by piece, along an index, with a rest after each.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;

use super::{
    Ledger,
    error::{BatchError, LedgerError, own},
    session,
};

/// How many requests are in each state that is not `done`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Being worked, here or elsewhere.
    pub running: u64,
    /// Waiting for their next attempt.
    pub waiting: u64,
    /// Parked, by what they wait for.
    pub parked: Vec<(String, u64)>,
    /// Given up.
    pub dead: u64,
}

impl Counts {
    fn add(&mut self, part: &Part) {
        match part.state.as_deref() {
            Some("running") => self.running += part.rows,
            Some("waiting") => self.waiting += part.rows,
            Some("dead") => self.dead += part.rows,
            Some(_) => match self.parked.iter_mut().find(|(on, _)| *on == part.on) {
                Some((_, rows)) => *rows += part.rows,
                None => self.parked.push((part.on.clone(), part.rows)),
            },
            None => {}
        }
    }
}

/// How long after a piece the next one is counted.
const REST: Duration = Duration::from_millis(2);

/// Rows of a piece, as in the statements; ties come on top. With more of them Postgres would rather read
/// all, and sort, where the table has not been vacuumed lately.
const PIECE: u64 = 1_000;

/// What a piece has of one state.
struct Part {
    /// Nothing where it is counted by another statement.
    state: Option<String>,
    on: String,
    rows: u64,
    /// Where in the index its last row stands.
    last: OffsetDateTime,
}

impl Ledger {
    /// Counts what is not done. What changes its state meanwhile may be counted twice, or not at all.
    ///
    /// # Errors
    /// [`LedgerError::Away`].
    pub async fn counts(&self) -> Result<Counts, LedgerError> {
        let mut counts = Counts::default();
        for sql in &self.statements.counts {
            let (mut on, mut since) = (String::new(), OffsetDateTime::UNIX_EPOCH);
            loop {
                let piece = self.piece(sql, &on, since).await.map_err(LedgerError::from);
                let piece = self.outage.noticed(piece)?;
                piece.iter().for_each(|part| counts.add(part));
                if piece.iter().map(|part| part.rows).sum::<u64>() < PIECE {
                    break;
                }
                let Some(last) = piece.last() else { break };
                on.clone_from(&last.on);
                let of_it = piece.iter().filter(|part| part.on == on).map(|part| part.last);
                since = of_it.max().unwrap_or(since);
                sleep(REST).await;
            }
        }
        Ok(counts)
    }

    async fn piece(
        &self,
        sql: &str,
        on: &str,
        since: OffsetDateTime,
    ) -> Result<Vec<Part>, BatchError> {
        session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(sql).await.map_err(own)?;
            let rows = client.query(&statement, &[&on, &since]).await.map_err(own)?;
            let part = |row: &tokio_postgres::Row| {
                Ok(Part {
                    state: row.try_get(0)?,
                    on: row.try_get(1)?,
                    rows: u64::try_from(row.try_get::<_, i64>(2)?).unwrap_or_default(),
                    last: row.try_get(3)?,
                })
            };
            rows.iter().map(part).collect()
        })
        .await
    }
}

/// Each reads an index of its own from where the last piece ended: `$1` is what its last row is parked
/// on, and `$2` its time. Most of those who are parked have no time when they are due. A time after the
/// year 9999, a moment after the last deadline that there can be, could not be read.
pub(super) const COUNTS: [&str; 3] = [
    "select 'parked', piece.parked_on, count(*), max(piece.received_at)
       from (select parked_on, received_at from longshore.requests
              where state = 'parked' and (parked_on, received_at) > ($1, $2)
              order by parked_on, received_at
              fetch first 1000 rows with ties) piece
      group by piece.parked_on order by piece.parked_on",
    "select nullif(piece.state, 'parked'), $1::text, count(*), max(piece.due_at)
       from (select state, due_at from longshore.requests
              where state in ('running', 'waiting', 'parked') and due_at > $2 and due_at < '9999-12-31'
              order by due_at
              fetch first 1000 rows with ties) piece
      group by piece.state",
    "select 'dead', $1::text, count(*), max(piece.finished_at)
       from (select finished_at from longshore.requests
              where state = 'dead' and finished_at > $2
              order by finished_at
              fetch first 1000 rows with ties) piece
     having count(*) > 0",
];
