//! A limit on calls at once that learns, as a state machine without clock, chance or I/O.
//!
//! It asks one question again and again: how much longer does a call take at this limit than at
//! half of it? Up to half as long again, more at once is more done, and the limit grows, the faster
//! the flatter the answer is; beyond that, calls only wait for each other, and it shrinks. Both
//! latencies are measured within moments of each other, so a dependency that is slower today for
//! everybody is not taken for one that is overloaded, and an optimum that moves is followed.
//!
//! Only successes count, and only those begun while the limit was what held others back: a limit
//! that nobody has reached says nothing about more.

use std::time::Duration;

use tokio::time::Instant;

/// So many times as long as at half the limit may a call take.
const TOLERANCE: f64 = 1.5;
/// Looking again costs calls, so it waits until one takes clearly longer than that.
const SLACK: f64 = 1.15;
/// The limit grows by up to this part at a time, and shrinks by no more than another.
const GROWTH: f64 = 0.25;
const SHRINK: f64 = 0.7;
/// The part of itself that the limit keeps where the dependency says that it is too much (429).
const BACK_OFF: f64 = 0.9;
/// Calls that a latency is the mean of, as many as the limit otherwise.
const FEWEST: usize = 10;
const MOST: usize = 100;
/// After so many looks at the whole limit, half of it is looked at again.
const LOOKS: u32 = 20;
/// A call was held to the limit if so large a part of it was taken when it was begun.
const REACHED: f64 = 0.8;
/// A look at half the limit is given up after so many times what a call takes at the whole limit.
const PATIENCE: u32 = 8;

/// A call that succeeded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it was sent.
    pub(super) begun: Instant,
    /// How many were under way then, it included.
    pub(super) at_once: usize,
    /// How long it took.
    pub(super) took: Duration,
}

/// What is being measured.
#[derive(Debug, Clone, Copy)]
enum Look {
    Whole,
    /// At half the limit; `whole` is what a call takes at all of it, in seconds.
    Half {
        whole: f64,
    },
}

/// The limit.
#[derive(Debug)]
pub(super) struct Adaptive {
    floor: f64,
    ceiling: f64,
    limit: f64,
    look: Look,
    since: Instant,
    calls: usize,
    seconds: f64,
    /// What a call takes at half the limit, in seconds, and how often the whole was looked at since.
    half: Option<f64>,
    looks: u32,
    backed_off: bool,
}

impl Adaptive {
    /// Begins low: a limit that is too low costs less, and shorter, than one that is too high.
    pub(super) fn new(floor: usize, ceiling: usize, now: Instant) -> Self {
        let mut adaptive = Self {
            floor: 1.0,
            ceiling: 1.0,
            limit: FEWEST as f64,
            look: Look::Whole,
            since: now,
            calls: 0,
            seconds: 0.0,
            half: None,
            looks: 0,
            backed_off: false,
        };
        adaptive.bound(floor, ceiling);
        adaptive
    }

    /// Keeps the limit within these from now on.
    pub(super) fn bound(&mut self, floor: usize, ceiling: usize) {
        self.ceiling = ceiling.max(1) as f64;
        self.floor = (floor.max(1) as f64).min(self.ceiling);
        self.set(self.limit);
    }

    /// How many calls may be under way at once now.
    pub(super) fn limit(&self) -> usize {
        match self.look {
            Look::Whole => whole_number(self.limit),
            Look::Half { .. } => whole_number(self.limit / 2.0),
        }
    }

    /// Learns from a call that succeeded.
    pub(super) fn succeeded(&mut self, sample: Sample, now: Instant) {
        if let Look::Half { whole } = self.look
            && now.saturating_duration_since(self.since).as_secs_f64() > whole * f64::from(PATIENCE)
        {
            // Nobody came to be measured: it is held low for nothing.
            self.begin(Look::Whole, now);
        }
        let telling = match self.look {
            Look::Whole => sample.at_once as f64 >= REACHED * self.limit.round(),
            Look::Half { .. } => sample.at_once <= self.limit(),
        };
        if sample.begun < self.since || !telling {
            return;
        }
        self.calls += 1;
        self.seconds += sample.took.as_secs_f64();
        if self.calls < whole_number(self.limit).clamp(FEWEST, MOST) {
            return;
        }
        let mean = self.seconds / self.calls as f64;
        match (self.look, self.half) {
            (Look::Whole, Some(half)) if self.looks < LOOKS && mean <= SLACK * TOLERANCE * half => {
                self.looks += 1;
                // It does not shrink by what may be out of date.
                self.follow((mean / half).min(TOLERANCE));
                self.begin(Look::Whole, now);
            }
            // Before it shrinks, or has grown for long: how long does a call take at half of it now?
            (Look::Whole, _) => self.begin(Look::Half { whole: mean }, now),
            (Look::Half { whole }, _) => {
                self.half = Some(mean);
                self.looks = 0;
                self.follow(whole / mean);
                self.begin(Look::Whole, now);
            }
        }
    }

    /// The dependency said that it was too much.
    pub(super) fn throttled(&mut self) {
        // Once for each look: many calls are told the same.
        if !self.backed_off {
            self.backed_off = true;
            self.set(self.limit * BACK_OFF);
        }
    }

    /// A call takes so many times as long as at half the limit.
    fn follow(&mut self, ratio: f64) {
        if self.backed_off {
            return;
        }
        if ratio > TOLERANCE {
            self.set(self.limit * (TOLERANCE / ratio).max(SHRINK));
        } else {
            let room = ((TOLERANCE - ratio) / (TOLERANCE - 1.0)).min(1.0);
            self.set(self.limit + (GROWTH * self.limit).max(1.0) * room);
        }
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(self.floor, self.ceiling);
    }

    fn begin(&mut self, look: Look, now: Instant) {
        self.look = look;
        self.since = now;
        self.calls = 0;
        self.seconds = 0.0;
        self.backed_off = false;
    }
}

fn whole_number(limit: f64) -> usize {
    (limit.round() as usize).max(1)
}

#[cfg(test)]
mod tests;
