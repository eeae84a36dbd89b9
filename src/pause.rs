//! Why nothing is consumed: a set of reasons. Consuming means that the set is empty, and each
//! owner takes back only its own reason, so that a mended database cannot undo a drain.

use std::{collections::BTreeSet, fmt, sync::Arc};

use tokio::sync::watch;

/// A reason not to consume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A person said so.
    Operator,
    /// The ledger cannot be reached.
    Postgres,
    /// More than `max_parked` requests wait for this dependency.
    Breaker(String),
    /// More than `max_parked` requests of this kind, which a person has paused, are parked.
    Kind(String),
    /// The worker is stopping.
    Drain,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Postgres => f.write_str("postgres"),
            Self::Breaker(dependency) => write!(f, "breaker:{dependency}"),
            Self::Kind(kind) => write!(f, "kind:{kind}"),
            Self::Drain => f.write_str("drain"),
        }
    }
}

/// The shared set of reasons.
#[derive(Debug, Clone)]
pub struct Pauses(Arc<watch::Sender<BTreeSet<Reason>>>);

impl Default for Pauses {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeSet::new())))
    }
}

impl Pauses {
    /// Adds a reason; true when it was not there before.
    pub fn add(&self, reason: Reason) -> bool {
        let mut added = false;
        self.0.send_if_modified(|set| {
            added = set.insert(reason);
            added
        });
        added
    }

    /// Takes a reason back; true when it was there.
    pub fn remove(&self, reason: &Reason) -> bool {
        let mut removed = false;
        self.0.send_if_modified(|set| {
            removed = set.remove(reason);
            removed
        });
        removed
    }

    /// Whether anything forbids consuming.
    pub fn is_paused(&self) -> bool {
        !self.0.borrow().is_empty()
    }

    /// Whether this reason is in the set.
    pub fn contains(&self, reason: &Reason) -> bool {
        self.0.borrow().contains(reason)
    }

    /// The reasons, for people.
    pub fn reasons(&self) -> Vec<String> {
        self.0.borrow().iter().map(ToString::to_string).collect()
    }

    /// Follows the set: `wait_for(BTreeSet::is_empty)` is "until consuming is allowed".
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<Reason>> {
        self.0.subscribe()
    }

    /// Completes when nothing forbids consuming.
    pub async fn until_clear(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _cleared = self.subscribe().wait_for(BTreeSet::is_empty).await.is_ok();
    }

    /// Completes when the given reason is not in the set.
    pub async fn until_without(&self, reason: &Reason) {
        let _cleared = self.subscribe().wait_for(|set| !set.contains(reason)).await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_takes_back_only_its_own_reason() {
        let pauses = Pauses::default();
        assert!(pauses.add(Reason::Drain) && pauses.add(Reason::Postgres));
        assert!(!pauses.add(Reason::Postgres), "a reason is in the set once");
        assert!(pauses.remove(&Reason::Postgres));
        assert!(pauses.is_paused(), "the drain still holds");
        assert_eq!(pauses.reasons(), ["drain"]);
        assert!(!pauses.remove(&Reason::Breaker("mailer".into())));
    }
}
