//! What the corridor asks of whoever keeps the ledger: [`Ledger`] in Postgres, and in the simulation
//! a model of it in memory.

use std::time::Duration;

use super::{
    Ask, Claim, Claimed, Counts, Due, Entered, Entry, Fence, Finish, Finished, Lease, Ledger,
    LedgerError, OfUsers, Whose,
};
use crate::{
    limit::{Draw, Grant},
    outcome::Failure,
    request::Message,
};

/// See the methods of [`Ledger`] of the same names.
pub(crate) trait Keeper: Send + Sync + 'static {
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, LedgerError>> + Send;

    fn finish(&self, finish: Finish) -> impl Future<Output = Result<Finished, LedgerError>> + Send;

    fn due(&self, ask: &Ask) -> impl Future<Output = Result<Vec<Due>, LedgerError>> + Send;

    fn of_users(
        &self,
        wanted: &OfUsers,
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Due>, LedgerError>> + Send;

    fn tokens(
        &self,
        bucket: &str,
        draw: Draw,
    ) -> impl Future<Output = Result<Grant, LedgerError>> + Send;

    fn renew(&self, held: &[Lease]) -> impl Future<Output = Result<(), LedgerError>> + Send;

    fn suspect(
        &self,
        id: &str,
        fence: Fence,
    ) -> impl Future<Output = Result<bool, LedgerError>> + Send;

    fn enter(
        &self,
        entries: &[Entry],
    ) -> impl Future<Output = Result<Vec<Entered>, LedgerError>> + Send;

    fn advance(&self, whose: &Whose) -> impl Future<Output = Result<u64, LedgerError>> + Send;

    fn in_line(&self, at_most: u64) -> impl Future<Output = Result<u64, LedgerError>> + Send;

    fn keep_unreadable(
        &self,
        message: &Message,
        id: Option<&str>,
        failure: &Failure,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    fn counts(&self) -> impl Future<Output = Result<Counts, LedgerError>> + Send;

    fn let_go_strays(&self, on: &[&str]) -> impl Future<Output = Result<(), LedgerError>> + Send;

    fn due_poll(&self) -> Duration;

    fn probe_interval(&self) -> Duration;

    fn lease_margin(&self) -> Duration;
}

impl Keeper for Ledger {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.claim(claim).await
    }

    async fn finish(&self, finish: Finish) -> Result<Finished, LedgerError> {
        self.finish(finish).await
    }

    async fn due(&self, ask: &Ask) -> Result<Vec<Due>, LedgerError> {
        self.due(ask).await
    }

    async fn of_users(&self, wanted: &OfUsers, lease: Duration) -> Result<Vec<Due>, LedgerError> {
        self.of_users(wanted, lease).await
    }

    async fn tokens(&self, bucket: &str, draw: Draw) -> Result<Grant, LedgerError> {
        self.tokens(bucket, draw).await
    }

    async fn renew(&self, held: &[Lease]) -> Result<(), LedgerError> {
        self.renew(held).await
    }

    async fn suspect(&self, id: &str, fence: Fence) -> Result<bool, LedgerError> {
        self.suspect(id, fence).await
    }

    async fn enter(&self, entries: &[Entry]) -> Result<Vec<Entered>, LedgerError> {
        self.enter(entries).await
    }

    async fn advance(&self, whose: &Whose) -> Result<u64, LedgerError> {
        self.advance(whose).await
    }

    async fn in_line(&self, at_most: u64) -> Result<u64, LedgerError> {
        self.in_line(at_most).await
    }

    async fn keep_unreadable(
        &self,
        message: &Message,
        id: Option<&str>,
        failure: &Failure,
    ) -> Result<(), LedgerError> {
        self.keep_unreadable(message, id, failure).await
    }

    async fn counts(&self) -> Result<Counts, LedgerError> {
        self.counts().await
    }

    async fn let_go_strays(&self, on: &[&str]) -> Result<(), LedgerError> {
        self.let_go_strays(on).await
    }

    fn due_poll(&self) -> Duration {
        self.due_poll()
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval()
    }

    fn lease_margin(&self) -> Duration {
        self.lease_margin()
    }
}
