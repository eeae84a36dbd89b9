//! Orders, as people give them.

use super::{MOST_IN_FLIGHT, Mode, Target, Wish};

/// A wish for a target, or that the one that stands be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What is steered.
    pub target: Target,
    /// What is wished; `None` takes the wish back.
    pub wish: Option<Wish>,
}

impl Order {
    /// `open`, `close`, `observe` or `auto` for the breaker of a dependency.
    ///
    /// # Errors
    /// What would be right.
    pub fn breaker(dependency: &str, verb: &str) -> Result<Self, String> {
        let mode = match verb {
            "open" => Some(Mode::Open),
            "close" => Some(Mode::Closed),
            "observe" => Some(Mode::Observe),
            "auto" => None,
            _ => return Err(format!("`{verb}` is none of open, close, observe, auto")),
        };
        let target = Target::Breaker(dependency.to_owned());
        Ok(Self { target, wish: mode.map(Wish::Mode) })
    }

    /// A number, or `auto`, for the limit of a dependency.
    ///
    /// # Errors
    /// What would be right.
    pub fn limit(dependency: &str, text: &str) -> Result<Self, String> {
        Ok(Self { target: Target::Limit(dependency.to_owned()), wish: limit(text)? })
    }

    /// The same for how many requests of a kind may be worked at once.
    ///
    /// # Errors
    /// What would be right.
    pub fn kind_limit(kind: &str, text: &str) -> Result<Self, String> {
        Ok(Self { target: Target::KindLimit(kind.to_owned()), wish: limit(text)? })
    }

    /// So many a second, or `auto`, for the rate of a dependency.
    ///
    /// # Errors
    /// What would be right.
    pub fn rate(dependency: &str, text: &str) -> Result<Self, String> {
        Ok(Self { target: Target::Rate(dependency.to_owned()), wish: rate(text)? })
    }

    /// The same for the rate of a kind.
    ///
    /// # Errors
    /// What would be right.
    pub fn kind_rate(kind: &str, text: &str) -> Result<Self, String> {
        Ok(Self { target: Target::KindRate(kind.to_owned()), wish: rate(text)? })
    }

    /// Nothing more is begun: of this kind, or at all.
    pub fn pause(kind: Option<&str>) -> Self {
        Self { wish: Some(Wish::Paused), ..Self::resume(kind) }
    }

    /// Work goes on: of this kind, or what a pause of everything held up.
    pub fn resume(kind: Option<&str>) -> Self {
        let target = kind.map_or(Target::Work, |kind| Target::Kind(kind.to_owned()));
        Self { target, wish: None }
    }

    /// What it is called in the audit.
    pub fn action(&self) -> &'static str {
        match (&self.target, self.wish) {
            (_, Some(Wish::Mode(Mode::Open))) => "open",
            (_, Some(Wish::Mode(Mode::Closed))) => "close",
            (_, Some(Wish::Mode(Mode::Observe))) => "observe",
            (_, Some(Wish::Mode(Mode::Automatic))) => "automatic",
            (_, Some(Wish::Limit(_))) => "limit",
            (_, Some(Wish::Rate(_))) => "rate",
            (_, Some(Wish::Paused)) => "pause",
            (Target::Work | Target::Kind(_), None) => "resume",
            (_, None) => "auto",
        }
    }
}

fn limit(text: &str) -> Result<Option<Wish>, String> {
    match text {
        "auto" => Ok(None),
        number => match number.parse() {
            Ok(limit) if (1..=MOST_IN_FLIGHT).contains(&limit) => Ok(Some(Wish::Limit(limit))),
            _ => Err(format!("`{text}` is neither a number from 1 to {MOST_IN_FLIGHT} nor auto")),
        },
    }
}

fn rate(text: &str) -> Result<Option<Wish>, String> {
    match text {
        "auto" => Ok(None),
        number => match number.parse() {
            Ok(rate) => Ok(Some(Wish::Rate(rate))),
            Err(()) => Err(format!(
                "`{text}` is neither so many a second, from 0.001 to 1000000, nor auto"
            )),
        },
    }
}
