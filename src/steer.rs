//! What an operator may wish without a restart: words, and how they are written in the ledger.
//!
//! A wish stands in the ledger until it is taken back, so that it reaches every worker and outlives
//! each; [`Wishes`] are all that stand. Without one, what the settings say holds.

mod order;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::order::Order;

/// More calls at once than this to one dependency are a mistake.
pub const MOST_IN_FLIGHT: usize = 100_000;

/// Who decides whether a breaker lets calls through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Its own rules.
    Automatic,
    /// A person: nothing is let through.
    Open,
    /// A person: everything is let through. It goes on counting.
    Closed,
    /// Nobody: everything is let through, and it tells what it would have done.
    Observe,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Automatic, Self::Open, Self::Closed, Self::Observe];

    /// The name in settings, in the ledger, in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Observe => "observe",
        }
    }
}

/// How often: so many thousandths a second, from one to a thousand millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// So many a second.
    pub fn per_second(self) -> f64 {
        self.0 as f64 / 1_000.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.per_second().fmt(f)
    }
}

impl FromStr for Rate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let rate: f64 = text.parse().map_err(|_| ())?;
        let thousandths = (rate * 1_000.0).round();
        (1.0..=1e9).contains(&thousandths).then_some(Self(thousandths as u64)).ok_or(())
    }
}

/// What is steered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The breaker of this dependency.
    Breaker(String),
    /// How many calls of one worker may be under way at once to this dependency.
    Limit(String),
    /// How many calls all workers together may begin a second to this dependency.
    Rate(String),
    /// How many requests of this kind one worker may work at once.
    KindLimit(String),
    /// How many requests of this kind all workers together may begin a second.
    KindRate(String),
    /// All work.
    Work,
    /// The requests of this kind.
    Kind(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Breaker(dependency) => write!(f, "breaker:{dependency}"),
            Self::Limit(dependency) => write!(f, "limit:{dependency}"),
            Self::Rate(dependency) => write!(f, "rate:{dependency}"),
            Self::KindLimit(kind) => write!(f, "kind-limit:{kind}"),
            Self::KindRate(kind) => write!(f, "kind-rate:{kind}"),
            Self::Work => f.write_str("work"),
            Self::Kind(kind) => write!(f, "kind:{kind}"),
        }
    }
}

impl FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("breaker", name)) => Ok(Self::Breaker(name.to_owned())),
            Some(("limit", name)) => Ok(Self::Limit(name.to_owned())),
            Some(("rate", name)) => Ok(Self::Rate(name.to_owned())),
            Some(("kind-limit", name)) => Ok(Self::KindLimit(name.to_owned())),
            Some(("kind-rate", name)) => Ok(Self::KindRate(name.to_owned())),
            Some(("kind", name)) => Ok(Self::Kind(name.to_owned())),
            None if text == "work" => Ok(Self::Work),
            Some(_) | None => Err(()),
        }
    }
}

/// What is wished of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Of a breaker.
    Mode(Mode),
    /// Of a limit: so many at once.
    Limit(usize),
    /// Of a rate.
    Rate(Rate),
    /// Of all work, or of a kind.
    Paused,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => f.write_str(mode.name()),
            Self::Limit(limit) => limit.fmt(f),
            Self::Rate(rate) => rate.fmt(f),
            Self::Paused => f.write_str("paused"),
        }
    }
}

/// All wishes that stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes(BTreeMap<Target, Wish>);

impl Wishes {
    /// Reads the rows of the ledger: targets and wishes. What this version does not know is left
    /// out: a newer one may have written it.
    pub fn read(rows: impl IntoIterator<Item = (String, String)>) -> Self {
        let read = |(target, wish): (String, String)| {
            let target: Target = target.parse().ok()?;
            let wish = match &target {
                Target::Breaker(_) => {
                    Mode::ALL.into_iter().find(|mode| mode.name() == wish).map(Wish::Mode)
                }
                Target::Rate(_) | Target::KindRate(_) => wish.parse().ok().map(Wish::Rate),
                Target::Limit(_) | Target::KindLimit(_) => wish
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MOST_IN_FLIGHT).contains(limit))
                    .map(Wish::Limit),
                Target::Work | Target::Kind(_) => (wish == "paused").then_some(Wish::Paused),
            };
            Some((target, wish?))
        };
        Self(rows.into_iter().filter_map(read).collect())
    }

    /// The mode wished for the breaker of a dependency.
    pub fn mode(&self, dependency: &str) -> Option<Mode> {
        match self.0.get(&Target::Breaker(dependency.to_owned())) {
            Some(Wish::Mode(mode)) => Some(*mode),
            _ => None,
        }
    }

    /// The limit wished for a dependency.
    pub fn limit(&self, dependency: &str) -> Option<usize> {
        self.number(&Target::Limit(dependency.to_owned()))
    }

    /// The limit wished for a kind.
    pub fn kind_limit(&self, kind: &str) -> Option<usize> {
        self.number(&Target::KindLimit(kind.to_owned()))
    }

    /// The rate wished for a dependency, a second.
    pub fn rate(&self, dependency: &str) -> Option<f64> {
        self.per_second(&Target::Rate(dependency.to_owned()))
    }

    /// The rate wished for a kind, a second.
    pub fn kind_rate(&self, kind: &str) -> Option<f64> {
        self.per_second(&Target::KindRate(kind.to_owned()))
    }

    fn number(&self, target: &Target) -> Option<usize> {
        match self.0.get(target) {
            Some(Wish::Limit(limit)) => Some(*limit),
            _ => None,
        }
    }

    fn per_second(&self, target: &Target) -> Option<f64> {
        match self.0.get(target) {
            Some(Wish::Rate(rate)) => Some(rate.per_second()),
            _ => None,
        }
    }

    /// Whether all work is to rest.
    pub fn pauses_work(&self) -> bool {
        self.0.contains_key(&Target::Work)
    }

    /// Whether a kind is to rest.
    pub fn pauses_kind(&self, kind: &str) -> bool {
        self.0.contains_key(&Target::Kind(kind.to_owned()))
    }

    /// Every wish.
    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Wish)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    #[test]
    fn an_order_is_read_back_from_the_ledger_as_it_was_given() {
        let orders = [
            Order::breaker("geo:coder", "open").unwrap(),
            Order::breaker("mailer", "close").unwrap(),
            Order::breaker("maps", "observe").unwrap(),
            Order::limit("mailer", "7").unwrap(),
            Order::rate("maps", "0.5").unwrap(),
            Order::kind_limit("user.profile.get", "9").unwrap(),
            Order::kind_rate("user.profile.get", "250").unwrap(),
            Order::pause(None),
            Order::pause(Some("user.welcome.send")),
        ];
        let rows = orders.iter().map(|order| {
            let wish = order.wish.unwrap();
            (order.target.to_string(), wish.to_string())
        });
        let wishes = Wishes::read(rows);
        let read: Vec<Order> = wishes
            .iter()
            .map(|(target, wish)| Order { target: target.clone(), wish: Some(*wish) })
            .collect();
        assert_eq!(read.len(), orders.len());
        assert!(orders.iter().all(|order| read.contains(order)), "{read:?}");
        assert_eq!(wishes.mode("geo:coder"), Some(Mode::Open));
        assert_eq!((wishes.mode("mailer"), wishes.limit("mailer")), (Some(Mode::Closed), Some(7)));
        assert_eq!((wishes.rate("maps"), wishes.rate("mailer")), (Some(0.5), None));
        let kind = "user.profile.get";
        assert_eq!((wishes.kind_limit(kind), wishes.kind_rate(kind)), (Some(9), Some(250.0)));
        assert!(wishes.pauses_work() && wishes.pauses_kind("user.welcome.send"));
        assert!(!wishes.pauses_kind("user.profile.get") && wishes.limit("maps").is_none());
    }

    #[test]
    fn what_takes_a_wish_back_has_none_of_its_own() {
        for order in [
            Order::breaker("mailer", "auto").unwrap(),
            Order::limit("mailer", "auto").unwrap(),
            Order::rate("mailer", "auto").unwrap(),
            Order::kind_limit("k", "auto").unwrap(),
            Order::kind_rate("k", "auto").unwrap(),
            Order::resume(None),
            Order::resume(Some("k")),
        ] {
            assert_eq!(order.wish, None);
            assert!(["auto", "resume"].contains(&order.action()));
        }
    }

    #[test]
    fn nonsense_is_refused_and_what_a_newer_version_wrote_is_left_alone() {
        assert!(Order::breaker("mailer", "ajar").is_err());
        for limit in ["0", "-1", "100001", "many", ""] {
            assert!(Order::limit("mailer", limit).is_err(), "{limit}");
            assert!(Order::kind_limit("k", limit).is_err(), "{limit}");
        }
        for rate in ["0", "-1", "0.0001", "1e7", "NaN", "inf", "often", ""] {
            assert!(Order::rate("mailer", rate).is_err(), "{rate}");
            assert!(Order::kind_rate("k", rate).is_err(), "{rate}");
        }
        let rows = [
            ("breaker:mailer", "ajar"),
            ("limit:mailer", "0"),
            ("work", "slow"),
            ("rate:mailer", "never"),
            ("share:mailer", "5"),
            ("?", "paused"),
        ];
        let rows = rows.map(|(target, wish)| (target.to_owned(), wish.to_owned()));
        assert_eq!(Wishes::read(rows), Wishes::default());
    }
}
