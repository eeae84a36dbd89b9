//! Which claimed requests are worked here now, so that their leases can be renewed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::Handler;
use crate::{
    ledger::{Fence, Keeper, Lease},
    pause::Reason,
};

/// The claims that are held by attempts under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holding(Arc<Mutex<HashMap<i64, Lease>>>);

impl Holding {
    /// Notes a claim for as long as the guard lives.
    pub(super) fn hold(&self, id: &str, fence: Fence, time: Duration) -> Held {
        let lease = Lease { id: id.to_owned(), fence, time };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(fence.0, lease);
        Held { holding: self.clone(), fence }
    }

    /// All of them.
    fn all(&self) -> Vec<Lease> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// A claim that is held.
#[derive(Debug)]
pub(super) struct Held {
    holding: Holding,
    fence: Fence,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holding.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.fence.0);
    }
}

impl<K: Keeper> Handler<K> {
    /// Renews the leases of what is worked here, so that only the work of the dead is taken over.
    /// Never completes.
    pub(crate) async fn renew_leases(&self) {
        let mut ticks = interval(self.ledger.lease_margin() / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.pauses.until_without(&Reason::Postgres).await;
            let held = self.holding.all();
            if !held.is_empty()
                && let Err(error) = self.ledger.renew(&held).await
            {
                tracing::debug!(event = "ledger.renew_failed", %error, "leases were not renewed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_held_as_long_as_its_attempt() {
        let holding = Holding::default();
        let time = Duration::from_secs(9);
        let held = holding.hold("r-1", Fence(7), time);
        assert_eq!(holding.all(), [Lease { id: "r-1".to_owned(), fence: Fence(7), time }]);
        drop(held);
        assert_eq!(holding.all(), []);
    }
}
