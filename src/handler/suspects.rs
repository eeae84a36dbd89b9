//! Requests over which workers have vanished: watched one at a time until the culprit is found.
//!
//! When a process dies, all that it worked looks the same to the next one. So nobody is charged for
//! it at first; but who has seen two workers vanish runs with no other that came back beside it, and
//! is charged if its worker vanishes too. A request that brings its worker down is found out alone,
//! and its neighbours are done.

use std::sync::Arc;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Attempt, Handler};
use crate::{
    ledger::{Keeper, LedgerError},
    outcome::{GiveBack, Outcome},
    pause::Reason,
    request::Request,
};

/// So many workers may vanish over a request before it is a suspect: a deployment that ends one
/// hard is no reason to slow down what it worked.
const INNOCENT: u32 = 2;

/// Who runs beside whom. What comes for the first time has no part in it.
#[derive(Debug, Default)]
pub(crate) struct Suspects(RwLock<()>);

/// Kept while a request runs.
pub(super) enum Place<'a> {
    /// It has never met a vanishing worker, as far as is known.
    Anywhere,
    /// It came back, and runs beside others that did.
    Beside(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>),
    /// It is a suspect.
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>),
}

impl<K: Keeper> Handler<K> {
    /// The place of a claimed request. The wait for it ends with the attempts that are before it,
    /// and its lease is renewed meanwhile.
    ///
    /// # Errors
    /// The outcome, where it can no longer run: its claim is gone.
    pub(super) async fn place(
        &self,
        request: &Arc<Request>,
        attempt: &Attempt,
    ) -> Result<Place<'_>, Outcome> {
        if attempt.crashes < INNOCENT {
            return Ok(match attempt.redelivered || attempt.crashes > 0 {
                true => Place::Beside(self.suspects.0.read().await),
                false => Place::Anywhere,
            });
        }
        let place = self.suspects.0.write().await;
        loop {
            match self.ledger.suspect(&request.id, attempt.fence).await {
                Ok(true) => return Ok(Place::Alone(place)),
                Err(LedgerError::Away(_)) => self.pauses.until_without(&Reason::Postgres).await,
                // What has become of it, the next delivery or the lease will tell.
                Ok(false) | Err(_) => {
                    return Err(Outcome::GivenBack { why: GiveBack::Postgres });
                }
            }
        }
    }
}
