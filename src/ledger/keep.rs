//! Keeping the ledger: unreadable messages, pruning, and finding out when Postgres is back.

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use super::{
    Ledger,
    error::{BatchError, LedgerError, own},
    pool, session,
};
use crate::{outcome::Failure, pause::Reason, request::Message, telemetry::metrics};

/// How long a prepared statement, and with it its plan, is kept at first, and at most: a plan made for
/// a table that was empty reads all of it when it no longer is, and it may fill within seconds.
const REPLAN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

impl Ledger {
    /// Keeps a message that cannot be filed under an id of its own, whole. The same message
    /// delivered again is counted, not stored again.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; the message is not kept then.
    pub async fn keep_unreadable(
        &self,
        message: &Message,
        id: Option<&str>,
        failure: &Failure,
    ) -> Result<(), LedgerError> {
        let properties = session::json(&message.properties);
        let digest =
            Sha256::new().chain_update(&message.body).chain_update(&properties).finalize().to_vec();
        let error = failure.error.replace('\0', "");
        let kept = session::with(&self.pool, self.patience(), async |client| {
            let statement =
                client.prepare_cached(&self.statements.unreadable).await.map_err(own)?;
            let row: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&digest, &id, &failure.code.name(), &error, &&*message.body, &properties];
            client.execute(&statement, &row).await.map_err(own)?;
            Ok(())
        })
        .await;
        self.outage.noticed(kept.map_err(LedgerError::from))
    }

    /// Lets go what is parked on what is no gate here any more: a dependency or a kind that was taken
    /// out of the settings.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; they stay parked then.
    pub async fn let_go_strays(&self, on: &[&str]) -> Result<(), LedgerError> {
        let let_go = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.strays).await.map_err(own)?;
            client.execute(&statement, &[&on]).await.map_err(own)?;
            Ok(())
        })
        .await;
        self.outage.noticed(let_go.map_err(LedgerError::from))
    }

    /// Deletes one batch of old rows by one of the statements; returns how many.
    async fn prune(&self, sql: &str) -> Result<u64, LedgerError> {
        let keep = self.settings.keep_done.as_secs_f64();
        let limit = i64::from(self.settings.prune_rows);
        let pruned = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(sql).await.map_err(own)?;
            client.execute(&statement, &[&keep, &limit]).await.map_err(own)
        })
        .await;
        self.outage.noticed(pruned.map_err(LedgerError::from))
    }

    /// Runs until the ledger is closed: finds out when Postgres is back.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            self.outage.noted().await;
            let probe = || async {
                match self.pool.is_closed() {
                    true => None,
                    false => Some(self.probe().await),
                }
            };
            self.outage.watch(self.settings.probe_interval, probe).await;
            if self.pool.is_closed() {
                return;
            }
        }
    }

    /// Whether the ledger can be written.
    async fn probe(&self) -> Result<(), LedgerError> {
        self.reach().await?;
        let table = format!("{}.requests", self.settings.schema);
        let probed = session::with(&self.pool, self.patience(), async |client| {
            let may =
                "select has_table_privilege($1, 'insert') and has_table_privilege($1, 'update')";
            if client.query_one(may, &[&table]).await.map_err(own)?.get(0) {
                Ok(())
            } else {
                Err(BatchError::Away(format!("{table} may not be written")))
            }
        })
        .await;
        probed.map_err(LedgerError::from)
    }

    /// Whether Postgres is there and takes writes.
    pub(super) async fn reach(&self) -> Result<(), LedgerError> {
        let reached = session::with(&self.pool, self.patience(), async |client| {
            let row = client
                .query_one(
                    "select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on'",
                    &[],
                )
                .await
                .map_err(own)?;
            if row.get(0) { Err(BatchError::Away("it is read-only".to_owned())) } else { Ok(()) }
        })
        .await;
        reached.map_err(LedgerError::from)
    }

    /// Runs until the ledger is closed: closes idle connections and exports the pool.
    pub(super) async fn tidy(self: Arc<Self>) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut planned, [mut keep, longest]) = (Instant::now(), REPLAN);
        while !self.pool.is_closed() {
            ticks.tick().await;
            pool::tidy(&self.pool, self.settings.pool.max_idle);
            if planned.elapsed() >= keep {
                self.pool.manager().statement_caches.clear();
                planned = Instant::now();
                keep = (keep * 2).min(longest);
            }
        }
    }

    /// Runs until the ledger is closed: deletes old rows, batch by batch.
    pub(super) async fn prune_for_ever(self: Arc<Self>) {
        let mut ticks = interval(self.settings.prune_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.pool.is_closed() {
            ticks.tick().await;
            if self.pauses.contains(&Reason::Postgres) {
                continue;
            }
            let mut all = 0;
            for sql in &self.statements.prune {
                // A full batch means that there is more; a short one that there is not. What fails
                // with one table is no reason not to go on with the other.
                while let Ok(pruned) = self.prune(sql).await {
                    all += pruned;
                    if pruned < u64::from(self.settings.prune_rows) {
                        break;
                    }
                }
            }
            if all > 0 {
                metrics::pruned(all);
                info!(event = "ledger.pruned", rows = all, "old rows were deleted");
            }
        }
    }
}

pub(super) const UNREADABLE: &str = "\
insert into longshore.unreadable as u (digest, request_id, error_code, error, body, properties)
values ($1, $2, $3, $4, $5, $6::text::json)
on conflict (digest) do update set seen = u.seen + 1, last_seen_at = now()";

/// Who is parked until he is let go has no time, or one after his deadline.
pub(super) const STRAYS: &str = "\
update longshore.requests set due_at = now()
 where request_id in (
         select request_id from longshore.requests
          where state = 'parked' and parked_on = any ($1)
            and (due_at = 'infinity' or due_at > deadline)
          order by received_at limit 1000 for update skip locked)";

/// Done requests, and the history of what is gone. Dead ones stay until a person deals with them.
pub(super) const PRUNE: [&str; 2] = [
    "delete from longshore.requests where request_id in (
         select request_id from longshore.requests
          where state = 'done' and finished_at < now() - make_interval(secs => $1)
          order by finished_at limit $2 for update skip locked)",
    "delete from longshore.attempts where ctid = any (array(
         select a.ctid from longshore.attempts a
          where a.ended_at < now() - make_interval(secs => $1)
            and not exists (select from longshore.requests r where r.request_id = a.request_id)
          limit $2))",
];
