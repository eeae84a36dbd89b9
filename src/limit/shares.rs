//! So many at once for each user: nobody's flood takes all there is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The shares of all users. It knows those only who have something under way or in line.
#[derive(Debug)]
pub(crate) struct Shares {
    most: usize,
    users: Mutex<HashMap<Arc<str>, User>>,
}

#[derive(Debug)]
struct User {
    places: Arc<Semaphore>,
    /// Who holds a place or waits for one.
    there: usize,
}

/// The right to have one request of a user under way, or a place in the line for it.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    shares: &'a Shares,
    user: Arc<str>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Shares {
    /// So many at once for each.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, users: Mutex::default() }
    }

    /// How many at once each user may have.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// A share, if the user has one left.
    pub(crate) fn try_take(&self, user: &str) -> Option<Share<'_>> {
        let (mut share, places) = self.enter(user);
        share.permit = Some(places.try_acquire_owned().ok()?);
        Some(share)
    }

    /// A share, in the order of asking.
    pub(crate) async fn take(&self, user: &str) -> Option<Share<'_>> {
        let (mut share, places) = self.enter(user);
        share.permit = Some(places.acquire_owned().await.ok()?);
        Some(share)
    }

    /// How many requests of a user wait for a share.
    pub(crate) fn line(&self, user: &str) -> usize {
        self.users().get(user).map_or(0, |user| user.there.saturating_sub(self.most))
    }

    /// Users who have more in hand, or in line, than they may have at once.
    pub(crate) fn in_line(&self) -> Vec<String> {
        let users = self.users();
        let crowded = users.iter().filter(|(_, user)| user.there > self.most);
        crowded.map(|(name, _)| name.to_string()).collect()
    }

    fn enter(&self, user: &str) -> (Share<'_>, Arc<Semaphore>) {
        let mut users = self.users();
        let name =
            users.get_key_value(user).map_or_else(|| Arc::from(user), |(it, _)| Arc::clone(it));
        let entry = users
            .entry(Arc::clone(&name))
            .or_insert_with(|| User { places: Arc::new(Semaphore::new(self.most)), there: 0 });
        entry.there += 1;
        (Share { shares: self, user: name, permit: None }, Arc::clone(&entry.places))
    }

    fn users(&self) -> MutexGuard<'_, HashMap<Arc<str>, User>> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut users = self.shares.users();
        if let Some(user) = users.get_mut(&*self.user) {
            user.there -= 1;
            if user.there == 0 {
                users.remove(&*self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use std::pin::pin;

    use futures_util::poll;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[tokio::test]
    async fn a_user_waits_for_a_share_of_their_own_only() {
        let shares = Shares::new(2);
        let held = [shares.try_take("ada").unwrap(), shares.try_take("ada").unwrap()];
        assert!(shares.try_take("ada").is_none());
        assert!(shares.try_take("grace").is_some());
        let mut waits = pin!(shares.take("ada"));
        assert!(poll!(waits.as_mut()).is_pending());
        assert_eq!(shares.in_line(), ["ada"]);
        drop(held);
        assert!(waits.await.is_some());
        assert!(shares.users().is_empty(), "who has nothing is forgotten");
    }

    proptest! {
        #[test]
        fn nobody_ever_has_more_than_their_share(steps in vec((0_usize..3, any::<bool>()), 0..100)) {
            let (shares, mut held) = (Shares::new(3), [const { Vec::new() }; 3]);
            for (user, takes) in steps {
                if takes {
                    let share = shares.try_take(["a", "b", "c"][user]);
                    prop_assert_eq!(share.is_some(), held[user].len() < 3);
                    held[user].extend(share);
                } else {
                    held[user].pop();
                }
                let known = held.iter().filter(|it| !it.is_empty()).count();
                prop_assert_eq!(shares.users().len(), known);
            }
        }
    }
}
