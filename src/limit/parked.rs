//! What a worker knows of those that are parked on a limit: whether there may be any.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whether any are parked, as far as this worker knows.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    noted: AtomicU64,
    looked: AtomicU64,
    gone: AtomicU64,
}

impl Parked {
    /// Some are.
    pub(crate) fn note(&self) {
        self.noted.fetch_add(1, Relaxed);
    }

    /// Whether there may be any.
    pub(crate) fn any(&self) -> bool {
        self.noted.load(Relaxed) != self.gone.load(Relaxed)
    }

    /// Somebody looks for them now.
    pub(crate) fn look(&self) {
        self.looked.store(self.noted.load(Relaxed), Relaxed);
    }

    /// Whoever looked last has found fewer than were looked for: none are left, but for those that were
    /// noted since.
    pub(crate) fn gone(&self) {
        self.gone.store(self.looked.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_parked_while_somebody_looks_is_not_forgotten() {
        let parked = Parked::default();
        assert!(!parked.any());
        parked.note();
        parked.look();
        parked.note();
        parked.gone();
        assert!(parked.any());
        parked.look();
        parked.gone();
        assert!(!parked.any());
    }
}
