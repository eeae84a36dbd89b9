//! Limits: how much at once (`Limit`), how often (`Rate`), and how much of it for one user
//! (`Shares`). Whoever finds one full waits in line for it or is told so; what becomes of a request
//! then is for others to say.
//!
//! ```text
//! places    so many at once, by a number that can be changed or learns (adaptive)
//! bucket    what a worker holds of a rate that all workers share; a machine without clock or I/O
//! rate      the line of those who wait for a token, and whoever fetches tokens for them
//! shares    so many at once for each user
//! pace      how many came lately; a machine without clock or I/O
//! parked    whether any are parked on it, as far as a worker knows
//! bounds    all of that for one kind or one dependency
//! ```

mod adaptive;
mod bounds;
mod bucket;
mod pace;
mod parked;
mod places;
mod rate;
mod shares;

use serde::Deserialize;

pub(crate) use self::{
    bounds::{Bounds, Standing},
    bucket::{Draw, Grant},
    pace::{Crowd, LATELY},
    parked::Parked,
    places::{Limit, Place},
    rate::Rate,
    shares::{Share, Shares},
};

/// What begins with this is parked on a limit.
pub(crate) const PARKED_ON: &str = "limit:";

/// What is parked on the share of its user.
pub(crate) const USER: &str = "limit:user";

/// What becomes of a request that finds a limit full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// It waits in line, without a slot, for as long as its kind's timeout; then, or where too many
    /// wait already for a line that goes on slowly, it is parked.
    Wait,
    /// It is parked at once.
    Park,
}

/// So many a second, and so many at once after a quiet time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PerSecond {
    pub(crate) rate: f64,
    pub(crate) burst: f64,
}

impl PerSecond {
    /// As the settings have it: a burst is what comes in a second unless it is set.
    pub(crate) fn of(rate: Option<f64>, burst: Option<f64>) -> Option<Self> {
        rate.map(|rate| Self { rate, burst: burst.unwrap_or(rate).max(1.0) })
    }
}

/// What is wrong with a rate in the settings: the key, and what would be right.
pub(crate) fn problems(rate: Option<f64>, burst: Option<f64>) -> Vec<(&'static str, &'static str)> {
    let mut problems = Vec::new();
    if rate.is_some_and(|rate| !(SLOWEST..=FASTEST).contains(&rate)) {
        problems.push(("rate", "must be between 0.001 and 1000000 a second"));
    }
    if burst.is_some_and(|burst| !(1.0..=FASTEST).contains(&burst)) {
        problems.push(("burst", "must be between 1 and 1000000"));
    }
    if burst.is_some() && rate.is_none() {
        problems.push(("burst", "needs `rate` beside it"));
    }
    problems
}

const SLOWEST: f64 = 0.001;
const FASTEST: f64 = 1_000_000.0;
