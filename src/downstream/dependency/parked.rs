//! What is parked on a dependency, or on its limits: who goes behind it, and how many may be let go.
//!
//! It is parked on its limits while calls flow and too many come; on the dependency itself once one was
//! not let through, and from then on whoever finds no place. So what is parked on the limits came first,
//! and goes first, at the pace that holds for both.

use std::sync::{MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::Dependency;
use crate::{
    downstream::{release::Release, turn::Coming},
    telemetry::metrics,
};

impl Dependency {
    /// Whether the place just taken is one of the first half of all, or all that are let go still have
    /// to come.
    pub(super) fn is_spare(&self) -> bool {
        let taken = self.limit.taken();
        2 * taken <= self.limit.wanted() || taken == 1 && self.coming.load(Relaxed) > 0
    }

    /// A request was not let through and is parked.
    pub(crate) fn parked(&self) {
        self.release().parked();
    }

    /// The same where it was not even tried ([`Dependency::turns_away`]).
    pub(crate) fn turned_away(&self) {
        metrics::call(&self.name, "not_admitted", None);
        self.parked();
    }

    /// Whether who comes now is parked without a try: nothing is let through, or what is let through
    /// are probes and those who are parked come first.
    pub(crate) fn turns_away(&self) -> bool {
        let room = self.breaker().room(Instant::now());
        room.is_some_and(|room| room == 0 || self.release().is_waiting())
    }

    /// Whether requests are known to be parked on it, so that who comes now goes behind.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.release().is_waiting()
    }

    /// How many of the requests that are parked on it may be let go now, and whether they are probes.
    pub(crate) fn may_let_go(&self) -> (usize, bool) {
        let now = Instant::now();
        let room = self.breaker().room(now);
        // Those who are on their way will take theirs.
        let coming = self.coming.load(Relaxed);
        let of_limits = self.of_limits();
        let mut release = self.release();
        match room {
            Some(room) if release.probes(now) => (room.saturating_sub(coming), true),
            Some(_) => (0, true),
            None => {
                let free = self.free(coming).min(self.bounds.room());
                let first = if release.is_waiting() { of_limits } else { 0 };
                (release.allowed(now).min(free).saturating_sub(first), false)
            }
        }
    }

    /// How many of those that are parked on its limits are to be brought up now. While others are
    /// parked on the dependency itself they are no probes, and share its pace.
    pub(crate) fn of_limits(&self) -> usize {
        if !self.bounds.parked.any() {
            return 0;
        }
        let now = Instant::now();
        let room = self.breaker().room(now);
        let coming = self.coming.load(Relaxed);
        let mut release = self.release();
        let most = match (room, release.is_waiting()) {
            (Some(_), true) => 0,
            (Some(probes), false) => probes.saturating_sub(coming),
            (None, true) => release.allowed(now).min(self.free(coming)),
            (None, false) if self.free(0) > 0 => usize::MAX,
            (None, false) => 0,
        };
        most.min(self.bounds.room())
    }

    fn free(&self, coming: usize) -> usize {
        self.limit.wanted().saturating_sub(self.limit.taken() + coming)
    }

    /// So many of its requests were asked for, and so many were found and are let go.
    pub(crate) fn let_go(&self, asked: usize, found: usize) -> impl Iterator<Item = Coming> {
        if asked > 0 {
            self.release().found(asked, found, Instant::now());
            metrics::let_go(&self.name, found as u64);
        }
        self.come(found)
    }

    /// So many that were parked on its limits are let go.
    pub(crate) fn let_go_of_limits(&self, found: usize) -> impl Iterator<Item = Coming> {
        self.release().went(found);
        self.come(found)
    }

    fn come(&self, count: usize) -> impl Iterator<Item = Coming> {
        (0..count).map(|_| Coming::new(&self.name, &self.coming))
    }

    /// Whether parked requests go on as fast as they may.
    pub(crate) fn is_letting_go(&self) -> bool {
        let waiting = self.release().is_waiting();
        waiting && self.breaker().room(Instant::now()).is_none()
    }

    pub(super) fn release(&self) -> MutexGuard<'_, Release> {
        // As with the breaker.
        self.release.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
