//! The line of those who wait for a token, and whoever fetches tokens for them.

use std::{
    pin::pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    PerSecond,
    bucket::{Draw, Grant, Next, Taken, Tokens},
};

/// How often, where that is limited. All workers share it through the ledger.
#[derive(Debug)]
pub(crate) struct Rate {
    tokens: Mutex<Option<Tokens>>,
    /// Who waits, in the order of coming; only the first looks for a token.
    line: tokio::sync::Mutex<()>,
    waiting: AtomicU32,
    /// Somebody found no token.
    wanted: Notify,
    /// The bucket has answered, or the rate was changed.
    answered: Notify,
}

impl Rate {
    pub(crate) fn new(per: Option<PerSecond>) -> Self {
        Self {
            tokens: Mutex::new(per.map(|per| Tokens::new(per, Instant::now()))),
            line: tokio::sync::Mutex::default(),
            waiting: AtomicU32::new(0),
            wanted: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// What comes a second, where that is limited.
    pub(crate) fn per(&self) -> Option<PerSecond> {
        self.tokens().as_ref().map(Tokens::per)
    }

    /// Another rate, or none, from now on; true when that changed anything.
    pub(crate) fn set(&self, per: Option<PerSecond>) -> bool {
        {
            let mut tokens = self.tokens();
            if tokens.as_ref().map(Tokens::per) == per {
                return false;
            }
            match (&mut *tokens, per) {
                (Some(tokens), Some(per)) => tokens.set(per),
                (tokens, per) => *tokens = per.map(|per| Tokens::new(per, Instant::now())),
            }
        }
        self.answered.notify_waiters();
        self.wanted.notify_one();
        true
    }

    /// A token, in the order of asking. Who is not `patient` gets none once it is known that the
    /// bucket is empty, which takes one visit to the ledger at most.
    pub(crate) async fn take(&self, patient: bool) -> bool {
        if !patient && self.tokens().as_ref().is_some_and(|it| it.is_dry(Instant::now())) {
            return false;
        }
        let _waiting = Waiting::new(&self.waiting);
        let _first = self.line.lock().await;
        loop {
            // In line before the look: an answer between the two is not missed.
            let mut answered = pin!(self.answered.notified());
            answered.as_mut().enable();
            let taken = self.tokens().as_mut().map_or(Taken::Token, |it| it.take(Instant::now()));
            match taken {
                Taken::Token => return true,
                Taken::Dry if !patient => return false,
                Taken::Dry | Taken::Unknown => self.wanted.notify_one(),
            }
            answered.await;
        }
    }

    /// Completes when the bucket is to be asked: for what.
    pub(crate) async fn asked(&self) -> Draw {
        loop {
            let next = match &mut *self.tokens() {
                Some(tokens) => tokens.next(self.waiting.load(Relaxed), Instant::now()),
                None => Next::Rest,
            };
            match next {
                Next::Now(draw) => return draw,
                Next::At(then) => tokio::select! {
                    () = sleep_until(then) => {}
                    () = self.wanted.notified() => {}
                },
                Next::Rest => self.wanted.notified().await,
            }
        }
    }

    /// The bucket has answered to what was asked at that time.
    pub(crate) fn granted(&self, draw: Draw, grant: Grant, asked: Instant) {
        if let Some(tokens) = &mut *self.tokens() {
            tokens.granted(draw, grant, asked, Instant::now());
        }
        self.answered.notify_waiters();
    }

    fn tokens(&self) -> MutexGuard<'_, Option<Tokens>> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts somebody who waits for as long as it lives.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt as _, poll};

    use super::*;

    const NEXT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_waits_gets_a_token_in_the_order_of_coming() {
        let rate = Rate::new(Some(PerSecond { rate: 100.0, burst: 10.0 }));
        let (mut first, mut second) = (pin!(rate.take(true)), pin!(rate.take(true)));
        assert!(poll!(first.as_mut()).is_pending() && poll!(second.as_mut()).is_pending());
        let now = Instant::now();
        let draw = rate.asked().await;
        assert_eq!(draw.tokens, 2, "as many as wait");
        rate.granted(draw, Grant { tokens: 1, next_in: NEXT }, now);
        assert!(poll!(second.as_mut()).is_pending(), "the first one is asked first");
        assert!(poll!(first.as_mut()).is_ready());
        assert!(poll!(second.as_mut()).is_pending());
        let again = rate.asked().await;
        rate.granted(again, Grant { tokens: 1, next_in: NEXT }, Instant::now());
        assert!(second.await);
    }

    #[tokio::test]
    async fn the_impatient_go_when_the_bucket_is_empty_and_not_before() {
        let rate = Rate::new(Some(PerSecond { rate: 100.0, burst: 10.0 }));
        let mut impatient = pin!(rate.take(false));
        assert!(poll!(impatient.as_mut()).is_pending(), "nobody knows yet");
        let draw = rate.asked().await;
        rate.granted(draw, Grant { tokens: 0, next_in: NEXT }, Instant::now());
        assert!(!impatient.await);
        assert_eq!(rate.take(false).now_or_never(), Some(false));
    }

    #[tokio::test]
    async fn a_rate_that_is_taken_away_lets_everybody_go() {
        let rate = Rate::new(Some(PerSecond { rate: 0.1, burst: 1.0 }));
        let mut waits = pin!(rate.take(true));
        assert!(poll!(waits.as_mut()).is_pending());
        assert!(rate.set(None) && !rate.set(None));
        assert!(waits.await);
        assert_eq!(rate.take(false).now_or_never(), Some(true));
    }
}
