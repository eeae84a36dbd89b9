//! Which claimed requests are worked here now, so that their leases can be renewed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::ledger::Fence;

/// The claims that are held by attempts under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holding(Arc<Mutex<HashMap<i64, String>>>);

impl Holding {
    /// Notes a claim for as long as the guard lives.
    pub(super) fn hold(&self, id: &str, fence: Fence) -> Held {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(fence.0, id.to_owned());
        Held { holding: self.clone(), fence }
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(String, Fence)> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(fence, id)| (id.clone(), Fence(*fence))).collect()
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
        let held = holding.hold("r-1", Fence(7));
        assert_eq!(holding.all(), [("r-1".to_owned(), Fence(7))]);
        drop(held);
        assert_eq!(holding.all(), []);
    }
}
