//! Why nothing is consumed: a set of reasons. Consuming means that the set is empty, and each
//! owner takes back only its own reason, so that a mended database cannot undo a drain.

use std::{
    collections::BTreeSet,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

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
    /// More than `max_parked` requests are parked on this limit.
    Limit(String),
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
            Self::Limit(limit) => write!(f, "limit:{limit}"),
            Self::Drain => f.write_str("drain"),
        }
    }
}

/// The shared set of reasons. Who waits for the same change is woken in the order of waiting.
#[derive(Debug, Clone, Default)]
pub struct Pauses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    set: Mutex<Set>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Set {
    reasons: BTreeSet<Reason>,
    changes: u64,
}

impl Pauses {
    /// Adds a reason; true when it was not there before.
    pub fn add(&self, reason: Reason) -> bool {
        self.change(|reasons| reasons.insert(reason))
    }

    /// Takes a reason back; true when it was there.
    pub fn remove(&self, reason: &Reason) -> bool {
        self.change(|reasons| reasons.remove(reason))
    }

    fn change(&self, act: impl FnOnce(&mut BTreeSet<Reason>) -> bool) -> bool {
        let changed = {
            let mut set = self.set();
            let changed = act(&mut set.reasons);
            set.changes += u64::from(changed);
            changed
        };
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }

    /// Whether anything forbids consuming.
    pub fn is_paused(&self) -> bool {
        !self.set().reasons.is_empty()
    }

    /// Whether this reason is in the set.
    pub fn contains(&self, reason: &Reason) -> bool {
        self.set().reasons.contains(reason)
    }

    /// The reasons, for people.
    pub fn reasons(&self) -> Vec<String> {
        self.set().reasons.iter().map(ToString::to_string).collect()
    }

    /// How often the set has changed so far.
    pub fn changes(&self) -> u64 {
        self.set().changes
    }

    /// Completes when something forbids consuming.
    pub async fn until_paused(&self) {
        self.until(|set| (!set.reasons.is_empty()).then_some(())).await;
    }

    /// Completes when nothing forbids consuming.
    pub async fn until_clear(&self) {
        self.until(|set| set.reasons.is_empty().then_some(())).await;
    }

    /// Completes when the given reason is in the set.
    pub async fn until_with(&self, reason: &Reason) {
        self.until(|set| set.reasons.contains(reason).then_some(())).await;
    }

    /// Completes when the given reason is not in the set.
    pub async fn until_without(&self, reason: &Reason) {
        self.until(|set| (!set.reasons.contains(reason)).then_some(())).await;
    }

    /// Completes when the set has changed more often than that; the reasons, and how often it has.
    pub async fn until_changed(&self, changes: u64) -> (BTreeSet<Reason>, u64) {
        let changed =
            |set: &Set| (set.changes > changes).then(|| (set.reasons.clone(), set.changes));
        self.until(changed).await
    }

    async fn until<T>(&self, met: impl Fn(&Set) -> Option<T>) -> T {
        loop {
            // In line before the look: a change between the two is not missed.
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let met = met(&self.set());
            match met {
                Some(met) => return met,
                None => changed.await,
            }
        }
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.0.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

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

    /// The reasons that a reference model keeps as one flag each.
    fn all() -> [Reason; 4] {
        let breaker = |name: &str| Reason::Breaker(name.to_owned());
        [Reason::Postgres, breaker("bank"), breaker("mailer"), Reason::Drain]
    }

    proptest! {
        #[test]
        fn the_set_is_one_flag_for_each_owner(steps in prop::collection::vec((0..4_usize, any::<bool>()), 0..60)) {
            let (pauses, mut flags, mut changes) = (Pauses::default(), [false; 4], 0);
            for (owner, wanted) in steps {
                let reason = all()[owner].clone();
                let changed = if wanted { pauses.add(reason) } else { pauses.remove(&reason) };
                prop_assert_eq!(changed, flags[owner] != wanted);
                flags[owner] = wanted;
                changes += u64::from(changed);
                let clear = flags == [false; 4];
                prop_assert_eq!(pauses.is_paused(), !clear);
                prop_assert_eq!(pauses.changes(), changes);
                prop_assert_eq!(pauses.until_clear().now_or_never().is_some(), clear);
                prop_assert_eq!(pauses.until_paused().now_or_never().is_some(), !clear);
                for (&flag, reason) in flags.iter().zip(all()) {
                    prop_assert_eq!(pauses.contains(&reason), flag);
                    let without = pauses.until_without(&reason).now_or_never().is_some();
                    prop_assert_eq!(without, !flag);
                    let with = pauses.until_with(&reason).now_or_never().is_some();
                    prop_assert_eq!(with, flag);
                }
            }
        }
    }

    /// A wait that is polled at every place between the changes of others: whenever the last look is
    /// after the last change, it is over exactly if the set is clear then, or was at a look before.
    #[tokio::test]
    async fn no_change_is_missed_wherever_a_waiter_looks() {
        let script = [(0, true), (3, true), (0, false), (3, false), (1, true), (1, false)];
        // Each bit says whether the waiter looks before the change of that number.
        for looks in 0..1_u32 << script.len() {
            let pauses = Pauses::default();
            pauses.add(all()[2].clone());
            let mut wait = Box::pin(pauses.until_clear());
            let mut over = false;
            for (at, (owner, wanted)) in script.iter().enumerate() {
                over |= looks >> at & 1 == 1 && looked(&mut wait, over).await;
                let reason = all()[*owner].clone();
                if *wanted {
                    pauses.add(reason)
                } else {
                    pauses.remove(&reason)
                };
            }
            assert!(!over, "one reason was there all the time");
            assert!(!looked(&mut wait, over).await);
            pauses.remove(&all()[2]);
            assert!(looked(&mut wait, over).await, "looks {looks:b}");
        }
    }

    async fn looked(wait: &mut (impl Future<Output = ()> + Unpin), over: bool) -> bool {
        !over && futures_util::poll!(wait).is_ready()
    }
}
