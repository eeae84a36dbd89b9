//! Suspects: requests over which workers have vanished more than once.

use super::{
    Fence, Ledger,
    error::{LedgerError, own},
    session,
};

impl Ledger {
    /// Notes that a claimed request runs as the only suspect of this worker from now on: should the
    /// worker vanish, this attempt is charged. False when the claim is no longer ours.
    ///
    /// # Errors
    /// [`LedgerError::Away`]: whether it is noted is unknown; it can be asked again.
    pub async fn suspect(&self, id: &str, fence: Fence) -> Result<bool, LedgerError> {
        let noted = session::with(&self.pool, self.patience(), async |client| {
            let statement = client.prepare_cached(&self.statements.suspect).await.map_err(own)?;
            Ok(client.execute(&statement, &[&id, &fence.0]).await.map_err(own)? > 0)
        })
        .await;
        self.outage.noticed(noted.map_err(LedgerError::from))
    }
}

pub(super) const SUSPECT: &str = "\
update longshore.requests set alone = true
 where request_id = $1 and fence = $2 and state = 'running'";
