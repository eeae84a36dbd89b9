//! The limits of one kind or one dependency.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Limit, PARKED_ON, Parked, PerSecond, Place, Rate, WhenFull,
    pace::{LATELY, Pace},
};

/// As good as none.
const UNBOUNDED: usize = 1 << 30;
/// Of those that are parked, so many at most stand in line at a time, so that a place that becomes
/// free is taken at once and by the oldest.
const LONGEST_LINE: usize = 64;
/// All but one of so many are nearly all.
const NEARLY: usize = 10;
/// Brought up at a time where there is no limit any more.
const NO_LIMIT: usize = 256;

/// How much at once, and how often.
#[derive(Debug)]
pub(crate) struct Bounds {
    on: String,
    when_full: WhenFull,
    places: Limit,
    rate: Rate,
    /// Whether anything is limited: all that a request without a limit pays for.
    active: AtomicBool,
    pub(crate) parked: Parked,
    waiting: AtomicUsize,
    /// Who got in lately, and who wanted to.
    pace: Mutex<Pace>,
    wanted: Mutex<Pace>,
    /// Those in line that were parked.
    pulled: AtomicUsize,
    configured: (Option<usize>, Option<PerSecond>),
}

/// How it stands, for people.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Standing {
    pub(crate) in_flight: usize,
    pub(crate) most: Option<usize>,
    pub(crate) per: Option<PerSecond>,
    pub(crate) waiting: usize,
}

/// Somebody in line, for as long as it lives.
#[derive(Debug)]
pub(crate) struct InLine<'a>(&'a Bounds, bool);

impl Bounds {
    /// Of `kind:<kind>` or `dependency:<name>`.
    pub(crate) fn new(
        of: &str,
        most: Option<usize>,
        per: Option<PerSecond>,
        when_full: WhenFull,
    ) -> Self {
        Self {
            on: format!("{PARKED_ON}{of}"),
            when_full,
            places: Limit::fixed(most.unwrap_or(UNBOUNDED)),
            rate: Rate::new(per),
            active: AtomicBool::new(most.is_some() || per.is_some()),
            parked: Parked::default(),
            waiting: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new(Instant::now())),
            wanted: Mutex::new(Pace::new(Instant::now())),
            pulled: AtomicUsize::new(0),
            configured: (most, per),
        }
    }

    /// What is parked on it is parked on this.
    pub(crate) fn on(&self) -> &str {
        &self.on
    }

    /// The name of its bucket in the ledger.
    pub(crate) fn bucket(&self) -> &str {
        self.on.strip_prefix(PARKED_ON).unwrap_or(&self.on)
    }

    pub(crate) fn when_full(&self) -> WhenFull {
        self.when_full
    }

    /// Whether anything is limited.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    pub(crate) fn rate(&self) -> &Rate {
        &self.rate
    }

    /// So many at once, and so often, from now on; `None` is what the settings say. Says what was
    /// changed: the number, the rate.
    pub(crate) fn steer(&self, most: Option<usize>, rate: Option<f64>) -> (bool, bool) {
        let (most_set, per_set) = self.configured;
        let per = match (rate, per_set) {
            // A burst is what comes in a second unless the settings know better.
            (Some(rate), None) => PerSecond::of(Some(rate), None),
            (Some(rate), Some(set)) => PerSecond::of(Some(rate), Some(set.burst)),
            (None, set) => set,
        };
        let changed = (self.set_most(most.or(most_set)), self.rate.set(per));
        self.active.store(self.most().is_some() || per.is_some(), Relaxed);
        changed
    }

    /// So many at once from now on; true when that changed anything.
    pub(crate) fn set_most(&self, most: Option<usize>) -> bool {
        let changed = self.most() != most;
        if changed {
            self.places.set(most.unwrap_or(UNBOUNDED));
        }
        changed
    }

    /// How many at once, where that is limited.
    pub(crate) fn most(&self) -> Option<usize> {
        Some(self.places.most()).filter(|most| *most < UNBOUNDED)
    }

    /// A place, and a token where there is a rate. Who is not `patient` gets none where it would have
    /// to wait for others.
    pub(crate) async fn enter(&self, patient: bool) -> Option<Place<'_>> {
        let place = match patient {
            true => self.places.take().await?,
            false => self.places.try_take()?,
        };
        let paid = self.rate.per().is_none() || self.rate.take(patient).await;
        if paid && self.is_active() {
            count(&self.pace, patient);
        }
        paid.then_some(place)
    }

    /// A request that nobody has begun comes to it.
    pub(crate) fn comes(&self) {
        count(&self.wanted, false);
    }

    /// Whether the line for it is so short, or goes on so fast, that who joins it now gets in within
    /// [`LATELY`], or nobody knows yet; and whether, of all requests that came lately, nearly all came to
    /// it, so that the line holds up next to nobody else.
    pub(crate) fn is_brisk(&self, all: usize) -> bool {
        self.waiting() < self.within(LATELY) && all - all / NEARLY <= lately(&self.wanted)
    }

    /// How many get in within so long if it goes on as of late; any number while nobody knows yet.
    pub(crate) fn within(&self, time: Duration) -> usize {
        let (mut pace, now) =
            (self.pace.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        match pace.is_new(now) {
            true => usize::MAX,
            false => (pace.lately(now) as f64 * time.div_duration_f64(LATELY)) as usize,
        }
    }

    /// How many got in within [`LATELY`].
    pub(crate) fn lately(&self) -> usize {
        lately(&self.pace)
    }

    /// Somebody waits in line for it, who was parked or not.
    pub(crate) fn in_line(&self, pulled: bool) -> InLine<'_> {
        self.waiting.fetch_add(1, Relaxed);
        self.pulled.fetch_add(usize::from(pulled), Relaxed);
        InLine(self, pulled)
    }

    /// How many wait in line for it.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// How many of those that are parked are to be brought up now: as many as have room, and a short
    /// line behind them.
    pub(crate) fn room(&self) -> usize {
        let (most, pulled) = self.line();
        most.saturating_sub(pulled)
    }

    /// Whether to look for them is worth a visit to the ledger. A line is left alone while it is more than
    /// half as long as it may be: it goes on without more, and one or two cost as much as a dozen.
    pub(crate) fn is_worth_a_look(&self) -> bool {
        let (most, pulled) = self.line();
        pulled <= most / 2
    }

    /// How long the line of those that were brought up may be, and how long it is.
    fn line(&self) -> (usize, usize) {
        let quarter = |of: f64| ((of / 4.0) as usize).clamp(1, LONGEST_LINE);
        let places =
            self.most().map(|most| most.saturating_sub(self.places.taken()) + quarter(most as f64));
        let tokens = self.rate.per().map(|per| quarter(per.rate));
        let room = match (places, tokens) {
            (Some(places), Some(tokens)) => places.min(tokens),
            (Some(room), None) | (None, Some(room)) => room,
            (None, None) => NO_LIMIT,
        };
        // In a long line of those who have just come, the parked ones would be few.
        let pulled = self.pulled.load(Relaxed);
        let beside = self.waiting().saturating_sub(pulled).min(NO_LIMIT) / 2;
        (room.max(beside), pulled)
    }

    pub(crate) fn standing(&self) -> Standing {
        Standing {
            in_flight: self.places.taken(),
            most: self.most(),
            per: self.rate.per(),
            waiting: self.waiting(),
        }
    }
}

fn count(pace: &Mutex<Pace>, waited: bool) {
    pace.lock().unwrap_or_else(PoisonError::into_inner).count(1, waited, Instant::now());
}

fn lately(pace: &Mutex<Pace>) -> usize {
    pace.lock().unwrap_or_else(PoisonError::into_inner).lately(Instant::now())
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.pulled.fetch_sub(usize::from(self.1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use futures_util::FutureExt as _;

    use super::*;

    fn bounds(most: Option<usize>) -> Bounds {
        Bounds::new("kind:k", most, None, WhenFull::Park)
    }

    #[test]
    fn what_is_not_limited_lets_everybody_in_and_can_be_limited_at_run_time() {
        let bounds = bounds(None);
        assert!(!bounds.is_active());
        assert_eq!(bounds.steer(Some(1), None), (true, false));
        assert!(bounds.is_active());
        let first = bounds.enter(false).now_or_never().flatten().unwrap();
        assert!(bounds.enter(false).now_or_never().flatten().is_none());
        assert_eq!(bounds.steer(None, None), (true, false));
        assert!(!bounds.is_active() && bounds.most().is_none());
        assert!(bounds.enter(false).now_or_never().flatten().is_some());
        drop(first);
        assert_eq!(bounds.standing().in_flight, 0);
    }

    #[test]
    fn a_rate_set_at_run_time_keeps_the_burst_of_the_settings() {
        let per = PerSecond { rate: 10.0, burst: 3.0 };
        let bounds = Bounds::new("kind:k", None, Some(per), WhenFull::Wait);
        assert_eq!(bounds.steer(None, Some(20.0)), (false, true));
        assert_eq!(bounds.standing().per, Some(PerSecond { rate: 20.0, burst: 3.0 }));
        assert_eq!(bounds.steer(None, None), (false, true));
        assert_eq!(bounds.standing().per, Some(per));
        assert_eq!((bounds.on(), bounds.bucket()), ("limit:kind:k", "kind:k"));
    }

    #[test]
    fn as_many_are_brought_up_as_have_room_and_a_short_line() {
        let bounds = bounds(Some(8));
        assert_eq!(bounds.room(), 10);
        let held: Vec<_> =
            (0..8).map(|_| bounds.enter(false).now_or_never().flatten().unwrap()).collect();
        assert_eq!(bounds.room(), 2);
        let line = [bounds.in_line(true), bounds.in_line(true)];
        assert_eq!((bounds.room(), bounds.waiting()), (0, 2));
        drop((held, line));
        assert_eq!((bounds.room(), bounds.waiting()), (10, 0));
    }

    #[test]
    fn a_line_is_worth_a_look_once_half_of_it_is_gone() {
        let bounds = bounds(Some(64));
        let enter = || bounds.enter(false).now_or_never().flatten().unwrap();
        let _held: Vec<_> = (0..64).map(|_| enter()).collect();
        let mut line: Vec<_> = (0..16).map(|_| bounds.in_line(true)).collect();
        for gone in 1..=16 {
            line.pop();
            assert_eq!((bounds.room(), bounds.is_worth_a_look()), (gone, gone >= 8));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_brisk_while_it_is_shorter_than_what_it_let_in_lately() {
        let bounds = bounds(Some(1));
        assert!(!bounds.is_brisk(0), "nobody got in yet");
        let enter =
            || (0..3).for_each(|_| drop(bounds.enter(false).now_or_never().flatten().unwrap()));
        enter();
        assert_eq!(bounds.within(LATELY), usize::MAX);
        tokio::time::advance(LATELY).await;
        enter();
        assert_eq!((bounds.within(LATELY), bounds.within(LATELY * 5 / 2)), (3, 7));
        (0..38).for_each(|_| bounds.comes());
        let mut line: Vec<_> = (0..2).map(|_| bounds.in_line(false)).collect();
        assert!(bounds.is_brisk(42) && !bounds.is_brisk(43), "of 43 five are others");
        line.push(bounds.in_line(false));
        assert!(!bounds.is_brisk(38), "three are in line, and three got in");
        line.clear();
        tokio::time::advance(2 * LATELY).await;
        assert!(!bounds.is_brisk(0), "it has come to a halt");
    }
}
