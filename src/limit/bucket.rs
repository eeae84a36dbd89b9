//! What one worker holds of a token bucket that all workers share, as a state machine without clock,
//! chance or I/O.
//!
//! The bucket itself is a row of the ledger. A worker fetches a few tokens at a time: as many as wait
//! for one, and as many as it spent a moment ago, but never more than a tenth of a second's worth, so
//! that none hoards what others need. A token that was not spent soon is dropped: spent later it could
//! come on top of a full burst.

use std::time::Duration;

use tokio::time::Instant;

use super::PerSecond;

/// How long a token is good. What a worker calls in any time is at most the rate times that time and
/// this long, and the burst.
pub(crate) const GOOD: Duration = Duration::from_secs(1);
/// By what was spent within so long it is guessed how many more are wanted.
const WINDOW: Duration = Duration::from_millis(100);
/// However long the next token takes, the bucket is asked again after this: its rate may have been
/// changed.
const LONGEST: Duration = Duration::from_secs(1);

/// What to draw the bucket for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Draw {
    /// So many tokens, or fewer.
    pub(crate) tokens: u32,
    /// So many come a second.
    pub(crate) rate: f64,
    /// So many gather at most.
    pub(crate) burst: f64,
}

/// What the bucket gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grant {
    /// So many tokens.
    pub(crate) tokens: u32,
    /// How long until there is another one.
    pub(crate) next_in: Duration,
}

/// What the worker's side says to somebody who wants a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Here it is.
    Token,
    /// There is none, here or in the bucket.
    Dry,
    /// There is none here, and nobody knows of the bucket.
    Unknown,
}

/// When to draw the bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Next {
    /// Now, for so much.
    Now(Draw),
    /// Not before.
    At(Instant),
    /// When somebody wants a token.
    Rest,
}

/// The worker's side.
#[derive(Debug)]
pub(crate) struct Tokens {
    per: PerSecond,
    held: u32,
    good_until: Instant,
    /// The window under way began then; what was spent in it, and in the one before.
    since: Instant,
    spent: u32,
    before: u32,
    dry_until: Option<Instant>,
}

impl Tokens {
    pub(crate) fn new(per: PerSecond, now: Instant) -> Self {
        Self { per, held: 0, good_until: now, since: now, spent: 0, before: 0, dry_until: None }
    }

    /// What comes a second.
    pub(crate) fn per(&self) -> PerSecond {
        self.per
    }

    /// Another rate from now on. What is held was granted by the old one.
    pub(crate) fn set(&mut self, per: PerSecond) {
        self.per = per;
        self.held = 0;
        self.dry_until = None;
    }

    /// Whether the bucket said that it is empty, and still is.
    pub(crate) fn is_dry(&self, now: Instant) -> bool {
        let none = self.held == 0 || now >= self.good_until;
        none && self.dry_until.is_some_and(|until| now < until)
    }

    /// Takes a token.
    pub(crate) fn take(&mut self, now: Instant) -> Taken {
        if self.held > 0 && now < self.good_until {
            self.held -= 1;
            self.roll(now);
            self.spent = self.spent.saturating_add(1);
            return Taken::Token;
        }
        self.held = 0;
        if self.is_dry(now) { Taken::Dry } else { Taken::Unknown }
    }

    /// When to draw the bucket while so many wait for a token.
    pub(crate) fn next(&mut self, waiting: u32, now: Instant) -> Next {
        if waiting == 0 || self.held > 0 && now < self.good_until {
            return Next::Rest;
        }
        if let Some(until) = self.dry_until.filter(|until| now < *until) {
            return Next::At(until);
        }
        self.roll(now);
        let share = (self.per.rate / 10.0).ceil().max(1.0) as u32;
        let wanted = waiting.saturating_add(self.before.max(self.spent));
        let tokens = wanted.min(share);
        Next::Now(Draw { tokens, rate: self.per.rate, burst: self.per.burst })
    }

    /// The bucket has answered to this question, which was asked at that time.
    pub(crate) fn granted(&mut self, draw: Draw, grant: Grant, asked: Instant, now: Instant) {
        if (draw.rate, draw.burst) != (self.per.rate, self.per.burst) {
            return;
        }
        self.held = grant.tokens;
        // Counted from before the bucket gave them.
        self.good_until = asked + GOOD;
        let dry = grant.tokens < draw.tokens;
        self.dry_until = dry.then(|| now + grant.next_in.min(LONGEST));
    }

    fn roll(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = if passed < 2 * WINDOW { self.spent } else { 0 };
            self.spent = 0;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What `take_tokens` in the ledger does, in seconds since the beginning.
    struct Bucket {
        given_until: f64,
    }

    impl Bucket {
        fn take(&mut self, draw: Draw, now: f64) -> Grant {
            let since = self.given_until.max(now - draw.burst / draw.rate);
            let there = ((now - since) * draw.rate + 1e-6).floor().max(0.0);
            let tokens = there.min(f64::from(draw.tokens));
            self.given_until = since + tokens / draw.rate;
            let next = (self.given_until + 1.0 / draw.rate - now).max(0.0);
            Grant { tokens: tokens as u32, next_in: Duration::from_secs_f64(next) }
        }
    }

    fn per(rate: f64, burst: f64) -> PerSecond {
        PerSecond { rate, burst }
    }

    #[test]
    fn a_dry_bucket_is_not_asked_before_it_has_another_token() {
        let begin = Instant::now();
        let mut tokens = Tokens::new(per(10.0, 1.0), begin);
        assert_eq!(tokens.take(begin), Taken::Unknown);
        assert_eq!(tokens.next(0, begin), Next::Rest, "nobody waits");
        let Next::Now(draw) = tokens.next(3, begin) else { panic!("it is asked at once") };
        assert_eq!(draw.tokens, 1, "not more than a tenth of a second's worth");
        let next_in = Duration::from_millis(100);
        tokens.granted(draw, Grant { tokens: 0, next_in }, begin, begin);
        assert_eq!(tokens.take(begin), Taken::Dry);
        assert_eq!(tokens.next(3, begin), Next::At(begin + next_in));
        let later = begin + next_in;
        assert!(matches!(tokens.next(3, later), Next::Now(_)));
        tokens.granted(draw, Grant { tokens: 1, next_in }, later, later);
        assert_eq!((tokens.take(later), tokens.take(later)), (Taken::Token, Taken::Unknown));
    }

    #[test]
    fn what_was_granted_by_another_rate_does_not_count() {
        let now = Instant::now();
        let mut tokens = Tokens::new(per(10.0, 1.0), now);
        let Next::Now(draw) = tokens.next(1, now) else { panic!("it is asked at once") };
        tokens.set(per(1.0, 1.0));
        tokens.granted(draw, Grant { tokens: 1, next_in: Duration::ZERO }, now, now);
        assert_eq!(tokens.take(now), Taken::Unknown);
    }

    #[test]
    fn a_token_that_is_not_spent_soon_is_dropped() {
        let now = Instant::now();
        let mut tokens = Tokens::new(per(100.0, 10.0), now);
        let Next::Now(draw) = tokens.next(1, now) else { panic!("it is asked at once") };
        tokens.granted(draw, Grant { tokens: 5, next_in: Duration::ZERO }, now, now);
        assert_eq!(tokens.take(now + GOOD / 2), Taken::Token);
        assert_eq!(tokens.take(now + GOOD), Taken::Unknown);
    }

    proptest! {
        /// Several workers, each with calls that wait, and answers that take their time: in no time at
        /// all are more calls let through than the rate, the burst and the life of a token allow.
        #[test]
        fn all_workers_together_keep_the_rate(
            rate in 0.5_f64..500.0, burst in 1.0_f64..50.0,
            delays in vec(0_u64..30, 60..200), workers in 1_usize..4,
        ) {
            let taken = simulate(rate, burst, &delays, workers);
            for (first, from) in taken.iter().enumerate() {
                let until = taken.last().unwrap();
                let most = burst + rate * (until - from + GOOD.as_secs_f64()) + 1.0;
                let came = taken.len() - first;
                prop_assert!(came as f64 <= most, "{came} from {from}");
            }
        }
    }

    #[test]
    fn while_calls_wait_the_rate_is_used_up() {
        for (rate, workers) in [(2.0, 1), (20.0, 3), (200.0, 2)] {
            let delays = vec![2; 5_000];
            let taken = simulate(rate, rate / 10.0 + 1.0, &delays, workers).len() as f64;
            let seconds = 2.0 * 5_000.0 / 1_000.0;
            assert!(taken >= 0.9 * rate * seconds, "{taken} in {seconds} s at {rate}");
        }
    }

    /// Workers in turn, for each of whom something always waits; when each call was let through.
    fn simulate(rate: f64, burst: f64, delays: &[u64], workers: usize) -> Vec<f64> {
        let begin = Instant::now();
        let mut bucket = Bucket { given_until: -burst / rate };
        let mut all: Vec<_> = (0..workers).map(|_| Tokens::new(per(rate, burst), begin)).collect();
        let (mut at, mut taken) = (0.0_f64, Vec::new());
        for (step, delay) in delays.iter().enumerate() {
            let tokens = &mut all[step % workers];
            let now = begin + Duration::from_secs_f64(at);
            while tokens.take(now) == Taken::Token {
                taken.push(at);
            }
            let next = tokens.next(50, now);
            if let Next::Now(draw) = next {
                let grant = bucket.take(draw, at);
                let later = begin + Duration::from_secs_f64(at + *delay as f64 / 2_000.0);
                tokens.granted(draw, grant, now, later);
            }
            at += *delay as f64 / 1_000.0;
        }
        taken
    }
}
