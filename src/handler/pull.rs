//! What is parked on limits and shares: knowing of it, taking it up user after user, and the tokens of
//! rates.

use std::{sync::PoisonError, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Handler, Started};
use crate::{
    downstream::Dependency,
    kind::Kind,
    ledger::{Counts, Keeper, LedgerError, OfUsers},
    limit::{Bounds, PARKED_ON, Parked, USER},
    outcome::Outcome,
    pause::Reason,
    telemetry::metrics,
};

impl<K: Keeper> Handler<K> {
    /// Claims at most so many of those that are parked on the shares of their users: a few of each.
    pub(super) async fn of_shares(
        &self,
        most: usize,
        lease: Duration,
    ) -> Result<Vec<Started>, LedgerError> {
        let parked = &self.lobby.on_shares;
        let Some(shares) = self.lobby.shares().filter(|_| most > 0 && parked.any()) else {
            return Ok(Vec::new());
        };
        let last_user = || self.lobby.last_user.lock().unwrap_or_else(PoisonError::into_inner);
        parked.look();
        let after = last_user().clone();
        let wanted =
            OfUsers { after, each: (shares.most() / 4).max(1), most, not_of: shares.in_line() };
        let due = self.ledger.of_users(&wanted, lease).await?;
        let users = due.iter().filter_map(|due| due.request.as_ref().ok());
        let last = users.map(|request| request.user_id.clone()).max().unwrap_or_default();
        if due.is_empty() && wanted.after.is_empty() && wanted.not_of.is_empty() {
            parked.gone();
        }
        // Where they were fewer there are no further users, and it begins anew.
        *last_user() = if due.len() < most { String::new() } else { last };
        let start = |due| Started::Due { due, coming: None, has_room: true };
        Ok(due.into_iter().map(start).collect())
    }

    /// The limits of kinds and dependencies.
    pub(super) fn bounds(&self) -> impl Iterator<Item = &Bounds> {
        let kinds = self.kinds.iter().map(|kind: &Kind| &*kind.bounds);
        kinds.chain(self.downstream.iter().map(Dependency::bounds))
    }

    /// What is known of those that are parked on this limit, or on shares.
    pub(super) fn parked(&self, on: &str) -> Option<&Parked> {
        match on {
            USER => self.lobby.shares().map(|_| &self.lobby.on_shares),
            _ if !on.starts_with(PARKED_ON) => None,
            _ => self.bounds().find(|bounds| bounds.on() == on).map(|bounds| &bounds.parked),
        }
    }

    /// To be told what became of a request.
    pub(crate) fn became(&self, outcome: &Outcome) {
        if let Outcome::Parked { on, .. } = outcome
            && let Some(parked) = self.parked(on)
        {
            parked.note();
        }
    }

    /// To be told what is in the ledger: others park as well.
    pub(crate) fn counted(&self, counts: &Counts) {
        for (on, _) in &counts.parked {
            if let Some(parked) = self.parked(on) {
                parked.note();
            }
        }
        for bounds in self.bounds().filter(|bounds| bounds.is_active()) {
            metrics::limit(bounds.on(), bounds.standing().in_flight, bounds.waiting());
        }
    }

    /// Fetches tokens for whoever waits for one. Never completes.
    pub(crate) async fn fetch_tokens(&self) {
        futures_util::future::join_all(self.bounds().map(|bounds| self.fetch(bounds))).await;
    }

    async fn fetch(&self, bounds: &Bounds) {
        loop {
            let draw = bounds.rate().asked().await;
            let asked = Instant::now();
            match self.ledger.tokens(bounds.bucket(), draw).await {
                Ok(grant) => bounds.rate().granted(draw, grant, asked),
                Err(_) => {
                    // It may not be away: it may refuse, and then it is not asked faster than this.
                    sleep(self.ledger.probe_interval()).await;
                    self.pauses.until_without(&Reason::Postgres).await;
                }
            }
        }
    }
}
