//! How fast requests that were parked on a dependency go on: a state machine without clock or I/O.
//!
//! A dependency that has come back gets what was parked a little at a time, and more with each
//! moment that it holds: a rate that begins low and grows by a factor each second, up to a ceiling,
//! so that whoever never needed the dependency does not notice. What came behind the parked ones
//! meanwhile goes on besides, or they would never become fewer. What the dependency takes at once is
//! its limit's matter, and whether it still holds the breaker's.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

/// What has not been let go by then is not made up for: a look that came late is no reason for a crowd.
const BURST: Duration = Duration::from_millis(250);
/// What may go on is let go in handfuls, each of what this time allows: a look for a few costs the
/// ledger about as much as one for many.
const HANDFUL: Duration = Duration::from_millis(100);
/// More a second than any dependency takes.
const FASTEST: f64 = 1_000_000.0;

/// `[dependencies.<name>.release]`: how what was parked goes on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Requests a second, from each worker, at first.
    pub rate: f64,
    /// So many times as fast with each second.
    pub growth: f64,
    /// No more a second than this, from each worker, beside as many as come meanwhile.
    pub most: f64,
}

impl Settings {
    /// Every mistake, as (setting, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if !(0.1..=FASTEST).contains(&self.rate) {
            let wrong = format!("is {}, must be between 0.1 and {FASTEST} a second", self.rate);
            problems.push(("rate".to_owned(), wrong));
        }
        if !(1.0..=100.0).contains(&self.growth) {
            let wrong = format!("is {}, must be between 1 and 100", self.growth);
            problems.push(("growth".to_owned(), wrong));
        }
        if !(0.1..=FASTEST).contains(&self.most) || self.most < self.rate {
            let wrong = format!("is {}, must be between `rate` and {FASTEST} a second", self.most);
            problems.push(("most".to_owned(), wrong));
        }
        problems
    }
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Release {
    settings: Settings,
    /// Whether requests are known to be parked.
    waiting: bool,
    /// A second, now.
    rate: f64,
    /// So many may go on that have not.
    saved: f64,
    /// And so many more, for those that came meanwhile.
    besides: f64,
    at: Instant,
    rests_until: Instant,
}

impl Release {
    /// Whether anything is parked is not known yet. The settings must have no
    /// [`Settings::problems`].
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let rate = settings.rate;
        Self { settings, waiting: false, rate, saved: 1.0, besides: 0.0, at: now, rests_until: now }
    }

    /// Whether requests are known to be parked: then who comes later goes behind.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// A request was parked.
    pub(crate) fn parked(&mut self) {
        self.waiting = true;
        if self.rate >= self.settings.most {
            self.besides += 1.0;
        }
    }

    /// One that was let go was turned away. It would be again at once, and is parked again, so
    /// nothing is let go for this long.
    pub(crate) fn turned_away(&mut self, rest: Duration, now: Instant) {
        self.rests_until = self.rests_until.max(now + rest);
    }

    /// While only probes are let through: whether now is a time for them. What comes afterwards begins
    /// slowly.
    pub(crate) fn probes(&mut self, now: Instant) -> bool {
        self.begin(now);
        now >= self.rests_until
    }

    /// How many may go on now.
    pub(crate) fn allowed(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let faster = (self.rate * self.settings.growth.powf(passed)).min(self.settings.most);
        // Two looks are so near each other that the mean of both rates is as good as the curve.
        self.saved += passed * (self.rate + faster) / 2.0;
        self.saved = self.saved.min(faster * BURST.as_secs_f64() + 1.0);
        (self.rate, self.at) = (faster, now);
        let handful = (faster * HANDFUL.as_secs_f64()).max(1.0);
        let allowed = self.saved + self.besides;
        if now < self.rests_until || allowed < handful { 0 } else { allowed as usize }
    }

    /// It was looked for `asked` of them, and so many were there. The last one ends the story: the
    /// next time is slow again.
    pub(crate) fn found(&mut self, asked: usize, found: usize, now: Instant) {
        self.went(found);
        self.waiting = found >= asked;
        if !self.waiting {
            self.begin(now);
        }
    }

    /// So many went on, whatever was asked.
    pub(crate) fn went(&mut self, count: usize) {
        // More than asked for may have come due by the clock as well.
        let beyond = (count as f64 - self.besides).max(0.0);
        self.besides = (self.besides - count as f64).max(0.0);
        self.saved = (self.saved - beyond).max(0.0);
    }

    fn begin(&mut self, now: Instant) {
        (self.rate, self.saved, self.at) = (self.settings.rate, 1.0, now);
        self.besides = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn release(rate: f64, growth: f64) -> (Release, Instant) {
        let now = Instant::now();
        (Release::new(Settings { rate, growth, most: FASTEST }, now), now)
    }

    /// So many go on in each second of a recovery in which more than enough are parked.
    fn seconds(release: &mut Release, mut now: Instant, count: usize) -> Vec<usize> {
        let mut second = |_| {
            let mut gone = 0;
            for _ in 0..40 {
                now += ms(25);
                let allowed = release.allowed(now);
                release.found(allowed, allowed, now);
                gone += allowed;
            }
            gone
        };
        (0..count).map(&mut second).collect()
    }

    #[test]
    fn a_recovered_dependency_gets_twice_as_many_each_second() {
        let (mut release, now) = release(10.0, 2.0);
        let gone = seconds(&mut release, now, 8);
        // The integral of 10 · 2^t: 14.4 in the first second, and one that was saved before.
        for (second, gone) in gone.iter().enumerate() {
            let wanted = 14.43 * f64::from(1_u32 << second);
            // A handful may still lie there at the end of one, and then go in the next.
            let handful = 2.0 * f64::from(1_u32 << second);
            assert!(
                (*gone as f64 - wanted).abs() < wanted * 0.02 + 2.0 + handful,
                "{second}: {gone}"
            );
        }
    }

    #[test]
    fn without_growth_the_rate_stays() {
        let (mut release, now) = release(40.0, 1.0);
        assert!(seconds(&mut release, now, 5).iter().all(|gone| (39..=41).contains(gone)));
    }

    #[test]
    fn it_grows_to_the_most_and_what_comes_meanwhile_goes_on_besides() {
        let now = Instant::now();
        let mut release = Release::new(Settings { rate: 10.0, growth: 2.0, most: 100.0 }, now);
        let gone = seconds(&mut release, now, 6);
        assert!(gone[2] < 60 && gone[3] > 80, "{gone:?}");
        assert!(gone[4..].iter().all(|gone| (99..=101).contains(gone)), "{gone:?}");
        let mut now = now + ms(6_000);
        let mut gone = 0;
        for _ in 0..40 {
            now += ms(25);
            (0..500).for_each(|_| release.parked());
            let allowed = release.allowed(now);
            release.found(allowed, allowed, now);
            gone += allowed;
        }
        assert!((20_090..=20_110).contains(&gone), "those 20,000, and 100 of the parked: {gone}");
    }

    #[test]
    fn the_next_recovery_begins_slowly_again() {
        let (mut release, mut now) = release(10.0, 2.0);
        seconds(&mut release, now, 8);
        now += ms(8_000);
        assert!(release.probes(now), "the breaker has opened, and its time is over");
        assert!(seconds(&mut release, now, 1)[0] <= 16);
        now += ms(1_000);
        release.found(5, 4, now);
        assert!(!release.is_waiting(), "fewer were there than were looked for");
        assert!(release.allowed(now) <= 1);
    }

    #[test]
    fn a_few_wait_until_they_are_a_handful() {
        let (mut fast, now) = release(100.0, 1.0);
        assert_eq!(fast.allowed(now + ms(80)), 0, "nine");
        assert_eq!(fast.allowed(now + ms(90)), 10);
        // At less than ten a second each goes as soon as it may.
        let (mut slow, now) = release(5.0, 1.0);
        assert_eq!(slow.allowed(now), 1);
    }

    #[test]
    fn a_late_look_makes_no_crowd() {
        let (mut release, now) = release(100.0, 1.0);
        assert_eq!(release.allowed(now + ms(60_000)), 26, "a quarter of a second's worth");
    }

    #[test]
    fn who_is_turned_away_rests() {
        let (mut release, now) = release(100.0, 2.0);
        release.parked();
        release.turned_away(ms(500), now);
        assert_eq!((release.allowed(now + ms(499)), release.probes(now + ms(499))), (0, false));
        assert!(release.probes(now + ms(500)) && release.allowed(now + ms(600)) > 0);
        assert!(release.is_waiting());
    }

    #[test]
    fn settings_that_would_hold_back_for_ever_are_refused() {
        let problems = |rate, growth, most| Settings { rate, growth, most }.problems().len();
        assert_eq!(problems(10.0, 2.0, 10.0), 0);
        assert_eq!(problems(0.0, 0.5, 1.0), 2);
        assert_eq!(problems(f64::NAN, f64::INFINITY, 1.0), 2);
        assert_eq!(problems(10.0, 2.0, 9.0) + problems(10.0, 2.0, f64::NAN), 2);
    }

    proptest! {
        /// However often it is looked, no more go on than the rate has room for, and not much fewer.
        #[test]
        fn what_goes_on_is_what_the_rate_says(
            rate in 1.0..1_000.0_f64, growth in 1.0..4.0_f64,
            looks in prop::collection::vec(1..200_u64, 1..100),
        ) {
            let (mut release, begin) = release(rate, growth);
            let (mut now, mut gone) = (begin, 0);
            for look in looks {
                now += ms(look);
                let allowed = release.allowed(now);
                release.found(allowed, allowed, now);
                gone += allowed;
            }
            let time = (now - begin).as_secs_f64();
            let most = if growth > 1.000_1 {
                rate * (growth.powf(time) - 1.0) / growth.ln()
            } else {
                rate * time * 1.001
            };
            // The trapezoid of a look of 200 ms is a little above the curve.
            prop_assert!(gone as f64 <= most * 1.01 + 1.0, "{gone} of {most}");
            let handful = rate * growth.powf(time) * HANDFUL.as_secs_f64();
            prop_assert!(gone as f64 >= most.min(FASTEST) * 0.9 - handful - 2.0, "{gone} of {most}");
        }
    }
}
