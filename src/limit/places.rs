//! How many calls may be under way at once: places that are given back when dropped, and a number
//! that can be changed while they are taken, by a person or by what calls teach.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::adaptive::{Adaptive, Sample};

/// A limit that can be changed.
#[derive(Debug)]
pub(crate) struct Limit {
    places: Semaphore,
    size: Mutex<Size>,
}

#[derive(Debug)]
struct Size {
    /// The most that is wanted.
    most: usize,
    /// What is wanted now: less than the most where it learns.
    wanted: usize,
    /// Places that exist, free or taken. More than wanted while too many are taken.
    there: usize,
    /// Where it learns, and never below this.
    learning: Option<(Adaptive, usize)>,
}

/// The right to have one call under way.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    limit: &'a Limit,
    permit: Option<SemaphorePermit<'a>>,
    /// How many were taken then, this one included.
    at_once: usize,
}

impl Limit {
    /// So many at once.
    pub(crate) fn fixed(wanted: usize) -> Self {
        let size = Size { most: wanted, wanted, there: wanted, learning: None };
        Self { places: Semaphore::new(wanted), size: Mutex::new(size) }
    }

    /// As many at once as turn out to be good, between these.
    pub(crate) fn learning(fewest: usize, most: usize, now: Instant) -> Self {
        let adaptive = Adaptive::new(fewest, most, now);
        let wanted = adaptive.limit();
        let size = Size { most, wanted, there: wanted, learning: Some((adaptive, fewest)) };
        Self { places: Semaphore::new(wanted), size: Mutex::new(size) }
    }

    /// A place, if one is free.
    pub(crate) fn try_take(&self) -> Option<Place<'_>> {
        Some(self.place(self.places.try_acquire().ok()?))
    }

    /// A place, in the order of asking.
    pub(crate) async fn take(&self) -> Option<Place<'_>> {
        Some(self.place(self.places.acquire().await.ok()?))
    }

    fn place<'a>(&'a self, permit: SemaphorePermit<'a>) -> Place<'a> {
        Place { limit: self, permit: Some(permit), at_once: self.taken() }
    }

    /// From now on so many at once, or at most so many where it learns. Those that are under way go
    /// on; where they are too many, their places vanish as they end.
    pub(crate) fn set(&self, most: usize) {
        let mut size = self.size();
        size.most = most;
        let learnt = size.learning.as_mut().map(|(adaptive, fewest)| {
            adaptive.bound(*fewest, most);
            adaptive.limit()
        });
        self.resize(&mut size, learnt.unwrap_or(most));
    }

    fn resize(&self, size: &mut Size, wanted: usize) {
        size.wanted = wanted;
        if size.there < wanted {
            self.places.add_permits(wanted - size.there);
            size.there = wanted;
        } else {
            size.there -= self.places.forget_permits(size.there - wanted);
        }
    }

    /// The most at once that is wanted.
    pub(crate) fn most(&self) -> usize {
        self.size().most
    }

    /// So many at once now.
    pub(crate) fn wanted(&self) -> usize {
        self.size().wanted
    }

    /// How many are under way.
    pub(crate) fn taken(&self) -> usize {
        let there = self.size().there;
        there.saturating_sub(self.places.available_permits())
    }

    fn size(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// A call that was sent then has succeeded.
    pub(crate) fn succeeded(&self, begun: Instant, now: Instant) {
        let sample = Sample { begun, at_once: self.at_once, took: now - begun };
        self.learn(|adaptive| adaptive.succeeded(sample, now));
    }

    /// The dependency said that it was too much.
    pub(crate) fn throttled(&self) {
        self.learn(Adaptive::throttled);
    }

    fn learn(&self, lesson: impl FnOnce(&mut Adaptive)) {
        let mut size = self.limit.size();
        if let Some((adaptive, _)) = &mut size.learning {
            lesson(adaptive);
            let wanted = adaptive.limit();
            if wanted != size.wanted {
                self.limit.resize(&mut size, wanted);
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut size = self.limit.size();
        if size.there > size.wanted
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
            size.there -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_smaller_limit_holds_as_soon_as_enough_have_ended() {
        let limit = Limit::fixed(3);
        let mut taken: Vec<Place<'_>> = (0..3).map(|_| limit.try_take().unwrap()).collect();
        limit.set(1);
        assert_eq!((limit.taken(), limit.wanted()), (3, 1), "nobody is cut off");
        taken.pop();
        taken.pop();
        assert!(limit.try_take().is_none(), "one is still under way");
        taken.pop();
        assert!(limit.try_take().is_some());
    }

    #[tokio::test]
    async fn a_larger_limit_lets_those_in_who_wait() {
        let limit = Limit::fixed(1);
        let first = limit.try_take().unwrap();
        let mut second = std::pin::pin!(limit.take());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        limit.set(2);
        assert!(second.await.is_some());
        drop(first);
        assert_eq!(limit.taken(), 0);
    }

    #[test]
    fn a_learning_limit_follows_what_calls_teach_within_what_is_wanted() {
        let begin = Instant::now();
        let limit = Limit::learning(1, 64, begin);
        let took = std::time::Duration::from_millis(100);
        let (mut now, mut seen) = (begin, std::collections::BTreeSet::new());
        // Calls that take the same however many they are.
        for _ in 0..200 {
            let places: Vec<Place<'_>> = std::iter::from_fn(|| limit.try_take()).collect();
            now += took;
            places.iter().for_each(|place| place.succeeded(now - took, now));
            seen.insert(limit.wanted());
        }
        assert!(seen.contains(&10) && seen.contains(&64) && seen.contains(&32), "{seen:?}");
        limit.set(20);
        assert!(limit.wanted() <= 20 && limit.most() == 20);
        let first = limit.try_take().unwrap();
        (0..10).for_each(|_| first.throttled());
        drop(first);
        assert_eq!(limit.taken(), 0);
    }

    proptest! {
        #[test]
        fn places_are_neither_lost_nor_made_by_changes(steps in vec((0_u8..3, 1_usize..6), 1..200)) {
            let limit = Limit::fixed(3);
            let mut taken = Vec::new();
            for (step, number) in steps {
                match step {
                    0 => limit.set(number),
                    1 => {
                        let free = taken.len() < limit.wanted();
                        let place = limit.try_take();
                        prop_assert_eq!(place.is_some(), free);
                        taken.extend(place);
                    }
                    _ => drop(taken.pop()),
                }
                prop_assert_eq!(limit.taken(), taken.len());
            }
        }
    }
}
