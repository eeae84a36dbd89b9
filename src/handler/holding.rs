//! Which claimed requests are worked here now, so that their leases can be renewed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::ledger::{Fence, Lease};

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
    pub(crate) fn all(&self) -> Vec<Lease> {
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
