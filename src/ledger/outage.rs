//! An outage of Postgres: noticed by whoever meets it first, ended by whoever looks after it.

use std::time::Duration;

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{error::LedgerError, told::Told};
use crate::pause::{Pauses, Reason};

/// Sets the reason [`Reason::Postgres`] in the pauses, and takes it back.
pub(crate) struct Outage {
    pauses: Pauses,
    endpoint: String,
    away: Notify,
    pub(super) told: Told,
}

impl Outage {
    pub(crate) fn new(pauses: Pauses, endpoint: String) -> Self {
        Self { pauses, endpoint, away: Notify::new(), told: Told::default() }
    }

    /// Tells the house when Postgres turns out to be away, and hands the result on.
    pub(crate) fn noticed<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if let Err(LedgerError::Away(error)) = &result
            && self.pauses.add(Reason::Postgres)
        {
            self.told.begin();
            self.told.is_news(error);
            warn!(
                event = "ledger.away",
                error,
                endpoint = self.endpoint,
                "postgres is away, nothing is consumed until it is back"
            );
            self.away.notify_one();
        }
        result
    }

    /// Completes when somebody has noticed an outage.
    pub(crate) async fn noted(&self) {
        self.away.notified().await;
    }

    /// Wakes who waits for an outage, so that it looks around.
    pub(super) fn wake(&self) {
        self.away.notify_one();
    }

    /// Finds out when Postgres is back from an outage that was noted: asks it by `probe` every
    /// `interval`, and gives up when that says so.
    pub(crate) async fn watch<F>(&self, interval: Duration, probe: impl Fn() -> F + Send)
    where
        F: Future<Output = Option<Result<(), LedgerError>>> + Send,
    {
        let since = Instant::now();
        loop {
            // Before the first look as well: what answers a look may still refuse the work, and
            // then away and back would follow each other as fast as they can.
            sleep(interval).await;
            let Some(probed) = probe().await else { return };
            let Err(error) = probed else { break };
            let error = match error {
                LedgerError::Away(error) => error,
                other => other.to_string(),
            };
            if self.told.is_news(&error) {
                warn!(
                    event = "ledger.still_away",
                    error,
                    endpoint = self.endpoint,
                    "postgres is still away, for another reason"
                );
            } else {
                tracing::debug!(event = "ledger.still_away", error, "postgres is still away");
            }
        }
        info!(
            event = "ledger.back",
            away_ms = since.elapsed().as_millis() as u64,
            "postgres is back"
        );
        self.pauses.remove(&Reason::Postgres);
    }
}
