//! The hand-over between the subscription and the corridor: a few deliveries, never more, and
//! whatever lies in it can be taken back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::delivery::Delivery;
use crate::stop::Stop;

/// How many deliveries may lie in the hatch: enough that the two sides need not take turns, few
/// beside any prefetch.
pub(super) const ROOM: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Hatch {
    shelf: Mutex<Shelf>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Shelf {
    deliveries: VecDeque<Delivery>,
    closed: bool,
    /// What lay in it when it was closed, and what came later.
    turned_away: u64,
    hungry: bool,
}

impl Hatch {
    /// Completes when at least one more delivery fits.
    pub(super) async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.has_room() {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.lock().deliveries.len() < ROOM
    }

    /// Puts a delivery in. In a closed hatch it is dropped, which gives it back.
    pub(super) fn put(&self, delivery: Delivery) {
        let mut shelf = self.lock();
        if shelf.closed {
            shelf.turned_away += 1;
            drop(shelf);
            // Outside the lock: it rings at its desk.
            drop(delivery);
            return;
        }
        let was_empty = shelf.deliveries.is_empty();
        shelf.deliveries.push_back(delivery);
        drop(shelf);
        // Whoever waits does so only while it is empty.
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// A delivery that lies ready.
    fn ready(&self) -> Option<Delivery> {
        let mut shelf = self.lock();
        let was_full = shelf.deliveries.len() >= ROOM;
        let delivery = shelf.deliveries.pop_front();
        drop(shelf);
        // Whoever waits does so only while it is full.
        if was_full {
            self.emptied.notify_one();
        }
        delivery
    }

    /// Takes everything back out.
    pub(super) fn clear(&self) -> usize {
        // Dropped outside the lock: each one rings at its desk.
        let taken = std::mem::take(&mut self.lock().deliveries);
        self.emptied.notify_one();
        taken.len()
    }

    /// Takes everything back out, and nothing comes any more.
    pub(super) fn close(&self) -> usize {
        let taken = {
            let mut shelf = self.lock();
            shelf.closed = true;
            shelf.turned_away += shelf.deliveries.len() as u64;
            std::mem::take(&mut shelf.deliveries)
        };
        self.filled.notify_one();
        self.emptied.notify_one();
        // Dropped outside the lock: each one rings at its desk.
        taken.len()
    }

    /// How many deliveries went back because it was closed, whoever closed it.
    pub(super) fn turned_away(&self) -> u64 {
        self.lock().turned_away
    }

    /// Whether somebody waits in vain just now.
    pub(super) fn is_hungry(&self) -> bool {
        self.lock().hungry
    }

    async fn take(&self) -> Option<Delivery> {
        let _hungry = Hungry(self);
        loop {
            let filled = self.filled.notified();
            if let Some(delivery) = self.ready() {
                return Some(delivery);
            }
            {
                let mut shelf = self.lock();
                if !shelf.deliveries.is_empty() {
                    continue;
                }
                if shelf.closed {
                    return None;
                }
                shelf.hungry = true;
            }
            filled.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the mark of hunger back, also from a wait that is given up.
struct Hungry<'a>(&'a Hatch);

impl Drop for Hungry<'_> {
    fn drop(&mut self) {
        self.0.lock().hungry = false;
    }
}

/// Where the corridor takes its deliveries. Dropping it ends the intake.
#[derive(Debug)]
pub struct Inbox {
    pub(super) hatch: Arc<Hatch>,
    pub(super) stop: Stop,
    pub(super) closing: CancellationToken,
}

impl Inbox {
    /// A delivery that is there already. After a stop there is none.
    pub fn ready(&mut self) -> Option<Delivery> {
        if self.stop.is_asked() {
            return None;
        }
        self.hatch.ready()
    }

    /// The next delivery; `None` once a stop was asked for or the queue was closed, for good.
    /// Cancel-safe: a wait that is given up has taken nothing. Whoever cannot start a request
    /// should not call it.
    pub async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            biased;
            // Without waiting for the supervisor to notice: nothing is begun after a stop.
            () = self.stop.asked() => {
                self.hatch.close();
                None
            }
            taken = self.hatch.take() => taken,
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Nobody takes anything any more; a subscription would only move messages to and fro.
        self.closing.cancel();
        self.hatch.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use futures_util::FutureExt;

    use super::*;
    use crate::queue::settler::Desk;

    fn delivery(tag: u64, desk: &Arc<Desk>) -> Delivery {
        let mock = lapin::message::Delivery::mock(tag, "".into(), "".into(), false, Vec::new());
        Delivery::new(mock, desk)
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_takes_nothing() {
        let (hatch, desk) = (Arc::new(Hatch::default()), Desk::new(1, Arc::default()));
        let mut inbox =
            Inbox { hatch: hatch.clone(), stop: Stop::new(), closing: CancellationToken::new() };
        {
            let mut next = Box::pin(inbox.next());
            assert!(next.as_mut().now_or_never().is_none());
            assert!(hatch.is_hungry());
            hatch.put(delivery(1, &desk));
        }
        assert!(!hatch.is_hungry());
        assert!(inbox.next().now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn what_nobody_took_is_given_back_when_the_hatch_closes() {
        let (hatch, desk) = (Arc::new(Hatch::default()), Desk::new(1, Arc::default()));
        let mut inbox =
            Inbox { hatch: hatch.clone(), stop: Stop::new(), closing: CancellationToken::new() };
        (1..=ROOM as u64).for_each(|tag| hatch.put(delivery(tag, &desk)));
        assert!(hatch.room().now_or_never().is_none(), "it is full");
        let held = inbox.next().await.unwrap();
        assert!(hatch.room().now_or_never().is_some());
        assert_eq!(hatch.close(), ROOM - 1);
        assert_eq!(desk.working(), 1, "only the one that was taken is still out");
        assert!(inbox.next().await.is_none());
        drop(held);
        hatch.put(delivery(99, &desk));
        assert_eq!(desk.working(), 0);
        assert_eq!(hatch.turned_away(), ROOM as u64);
    }
}
