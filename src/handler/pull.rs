//! Due work: what a limit has room for again, and what has come due.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::Handler;
use crate::{
    downstream::Dependency,
    kind::Kind,
    ledger::{Counts, Due, Keeper, LedgerError, OfUsers},
    limit::{Bounds, PARKED_ON, Parked, USER},
    outcome::Outcome,
    pause::Reason,
    telemetry::metrics,
};

/// Brought up at a time of what is parked on a limit that no setting knows any more.
const STRAYS: usize = 64;

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Looking(Mutex<Looked>);

#[derive(Debug, Default)]
struct Looked {
    /// The last user of whom something was brought up.
    user: String,
    /// Limits on which something is parked, and which no setting knows.
    strays: BTreeSet<String>,
}

impl Looking {
    fn looked(&self) -> MutexGuard<'_, Looked> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Keeper> Handler<K> {
    /// Claims at most so many requests: half of them, if there are as many, are parked on limits that
    /// have room; the others have come due, unless it is only for the `limited`.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; nothing that was claimed is lost, its lease runs out.
    pub(crate) async fn due(
        &self,
        most: usize,
        limited: bool,
        lease: Duration,
    ) -> Result<Vec<Due>, LedgerError> {
        let mut due = self.pull(most.div_ceil(2), lease).await?;
        let left = most.saturating_sub(due.len());
        // A stop may have been asked for meanwhile.
        if left > 0 && !limited && !self.pauses.contains(&Reason::Drain) {
            match self.ledger.due(left, &self.closed_to(), lease).await {
                Ok(more) => due.extend(more),
                Err(error) if due.is_empty() => return Err(error),
                // What was brought up is ours, and is worked.
                Err(_) => {}
            }
        }
        Ok(due)
    }

    async fn pull(&self, most: usize, lease: Duration) -> Result<Vec<Due>, LedgerError> {
        let mut due = self.pull_limited(most, lease).await?;
        if due.len() < most
            && !self.pauses.contains(&Reason::Drain)
            && let Ok(more) = self.pull_shares(most - due.len(), lease).await
        {
            due.extend(more);
        }
        Ok(due)
    }

    async fn pull_limited(&self, most: usize, lease: Duration) -> Result<Vec<Due>, LedgerError> {
        let (mut wanted, mut noted, mut left) = (Vec::new(), Vec::new(), most);
        for (bounds, room) in self.with_room() {
            let (Some(seen), room) = (bounds.parked.any(), room().min(left)) else { continue };
            if room > 0 {
                wanted.push((bounds.on().to_owned(), room));
                noted.push((&bounds.parked, seen));
                left -= room;
            }
        }
        let known = wanted.len();
        let strays = self.gate.looking.looked().strays.clone();
        wanted.extend(strays.into_iter().map(|on| (on, STRAYS.min(left))).filter(|(_, n)| *n > 0));
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let due = self.ledger.limited(&wanted, lease).await?;
        for (number, (on, asked)) in wanted.iter().enumerate() {
            let got = due.iter().filter(|due| due.pulled.as_ref() == Some(on)).count();
            match noted.get(number).filter(|_| got < *asked) {
                Some((parked, seen)) => parked.gone(*seen),
                None if got < *asked && number >= known => {
                    self.gate.looking.looked().strays.remove(on);
                }
                None => {}
            }
        }
        Ok(due)
    }

    async fn pull_shares(&self, most: usize, lease: Duration) -> Result<Vec<Due>, LedgerError> {
        let parked = &self.gate.on_shares;
        let Some(seen) = parked.any() else { return Ok(Vec::new()) };
        let (each, not_of) = match self.gate.shares() {
            Some(shares) => ((shares.most() / 4).max(1), shares.in_line()),
            None => (most, Vec::new()),
        };
        let after = self.gate.looking.looked().user.clone();
        let wanted = OfUsers { after, each, most, not_of };
        let due = self.ledger.of_users(&wanted, lease).await?;
        let users = due.iter().filter_map(|due| due.request.as_ref().ok());
        let last = users.map(|request| request.user_id.clone()).max().unwrap_or_default();
        if due.is_empty() && wanted.after.is_empty() && wanted.not_of.is_empty() {
            parked.gone(seen);
        }
        // Where they were fewer there are no further users, and it begins anew.
        self.gate.looking.looked().user = if due.len() < most { String::new() } else { last };
        Ok(due)
    }

    /// The limits of kinds and dependencies, and how much room they have.
    fn with_room(&self) -> impl Iterator<Item = (&Bounds, Box<dyn Fn() -> usize + Send + '_>)> {
        let kinds = self.kinds.iter().map(|kind| {
            let room = move || if kind.is_paused() { 0 } else { kind.bounds.room() };
            (&*kind.bounds, Box::new(room) as Box<dyn Fn() -> usize + Send>)
        });
        let dependencies = self.downstream.iter().map(|it: &Dependency| {
            (it.bounds(), Box::new(move || it.room()) as Box<dyn Fn() -> usize + Send>)
        });
        kinds.chain(dependencies)
    }

    fn bounds(&self) -> impl Iterator<Item = &Bounds> {
        let kinds = self.kinds.iter().map(|kind: &Kind| &*kind.bounds);
        kinds.chain(self.downstream.iter().map(Dependency::bounds))
    }

    /// Something is parked on this.
    fn note(&self, on: &str) -> Option<&Parked> {
        match on {
            USER => Some(&self.gate.on_shares),
            _ => self.bounds().find(|bounds| bounds.on() == on).map(|bounds| &bounds.parked),
        }
    }

    /// To be told what became of a request.
    pub(crate) fn became(&self, outcome: &Outcome) {
        if let Outcome::Parked { on, .. } = outcome
            && on.starts_with(PARKED_ON)
            && let Some(parked) = self.note(on)
        {
            parked.note();
        }
    }

    /// To be told what is in the ledger: others park as well.
    pub(crate) fn counted(&self, counts: &Counts) {
        for (on, _) in counts.parked.iter().filter(|(on, _)| on.starts_with(PARKED_ON)) {
            match self.note(on) {
                Some(parked) => parked.note(),
                None => {
                    self.gate.looking.looked().strays.insert(on.clone());
                }
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
            let ask = bounds.rate().asked().await;
            let asked = Instant::now();
            match self.ledger.tokens(bounds.bucket(), ask).await {
                Ok(grant) => bounds.rate().granted(ask, grant, asked),
                Err(_) => {
                    // It may not be away: it may refuse, and then it is not asked faster than this.
                    sleep(self.ledger.probe_interval()).await;
                    self.pauses.until_without(&Reason::Postgres).await;
                }
            }
        }
    }
}
