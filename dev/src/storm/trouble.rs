//! The ways in which a dependency is in trouble.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep_until};

use super::{
    Options,
    field::Field,
    load::{NEEDS, now},
};
use crate::stub::Behaviour;

/// How long a well geocoder takes to answer.
pub(super) const WELL: Behaviour = Behaviour::Ok { latency_ms: 20 };
/// Slow, and yet below its timeout of 2 s: nothing fails.
const SLOW: Behaviour = Behaviour::Ok { latency_ms: 1_500 };
const FLAP: Duration = Duration::from_secs(5);
/// How much of the time in which a crowd is parked is for the others, to be as before.
const SETTLE: Duration = Duration::from_secs(10);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Trouble {
    /// It resets every connection.
    Dead,
    /// It takes 1.5 s to answer.
    Slow,
    /// 30 % of the calls fail.
    Errors,
    /// It answers 429 and asks for two seconds.
    Throttles,
    /// It never answers.
    Hangs,
    /// It is dead for five seconds and well for five.
    Flaps,
    /// A crowd is parked on it, and let go.
    Crowd,
    /// Requests whose time is over.
    Deadlines,
}

impl Trouble {
    /// Those that come in phases of calm and trouble.
    pub(super) const ALL: [Self; 7] = [
        Self::Dead,
        Self::Slow,
        Self::Errors,
        Self::Throttles,
        Self::Hangs,
        Self::Flaps,
        Self::Crowd,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Slow => "slow",
            Self::Errors => "errors",
            Self::Throttles => "throttles",
            Self::Hangs => "hangs",
            Self::Flaps => "flaps",
            Self::Crowd => "crowd",
            Self::Deadlines => "deadlines",
        }
    }

    pub(super) fn what(self, crowd: usize) -> String {
        match self {
            Self::Dead => "the geocoder resets every connection".to_owned(),
            Self::Slow => "it answers after 1.5 s, and nothing fails".to_owned(),
            Self::Errors => "30 % of its calls fail".to_owned(),
            Self::Throttles => "it answers 429 with Retry-After: 2".to_owned(),
            Self::Hangs => "it takes calls and never answers".to_owned(),
            Self::Flaps => "it is dead for 5 s and well for 5 s".to_owned(),
            Self::Crowd => format!("{crowd} requests are parked on it, and are let go"),
            Self::Deadlines => "requests have no time".to_owned(),
        }
    }

    /// Whether calls fail only because a dependency is tried that takes none.
    pub(super) fn trips(self) -> bool {
        matches!(self, Self::Dead | Self::Throttles | Self::Hangs | Self::Crowd)
    }
}

/// When the calm ended, and when the trouble began and ended, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    pub(super) calm_over: f64,
    pub(super) begun: f64,
    pub(super) over: f64,
}

/// Parks a crowd, by a person who holds the breaker open.
async fn gather(field: &Field, crowd: usize) -> anyhow::Result<()> {
    field.stage.steer(&["breaker", "geocoder", "open"]).await?;
    field.until_steered("breaker:geocoder").await?;
    let ids = (0..crowd).map(|number| format!("crowd-{number:08}"));
    field.publisher().await?.burst(ids, NEEDS, None).await?;
    field.until_parked(crowd).await
}

/// Lets the calm pass, makes the trouble, and ends it.
pub(super) async fn make(
    field: &Field,
    trouble: Trouble,
    options: &Options,
) -> anyhow::Result<Moments> {
    let since = Instant::now();
    let calm = since + Duration::from_secs(options.calm);
    let begins = calm + Duration::from_secs(options.gathering(trouble));
    let ends = begins + Duration::from_secs(options.trouble);
    sleep_until(calm).await;
    let calm_over = now();
    if trouble == Trouble::Crowd {
        gather(field, options.crowd).await?;
        ensure!(
            Instant::now() + SETTLE <= begins,
            "{} requests were not parked in time, lower --crowd or raise --gather",
            options.crowd
        );
    }
    sleep_until(begins).await;
    let begun = now();
    match trouble {
        Trouble::Dead => field.behave(&Behaviour::Reset).await?,
        Trouble::Slow => field.behave(&SLOW).await?,
        Trouble::Errors => field.behave(&Behaviour::Fail { share: 0.3, seed: 1 }).await?,
        Trouble::Throttles => {
            field.behave(&Behaviour::Status { code: 429, retry_after_secs: Some(2) }).await?;
        }
        Trouble::Hangs => field.behave(&Behaviour::Hang).await?,
        Trouble::Flaps => {
            let mut next = begins;
            while next < ends {
                field.behave(&Behaviour::Reset).await?;
                sleep_until((next + FLAP).min(ends)).await;
                field.behave(&WELL).await?;
                next += 2 * FLAP;
                sleep_until(next.min(ends)).await;
            }
        }
        Trouble::Crowd => field.stage.steer(&["breaker", "geocoder", "auto"]).await?,
        Trouble::Deadlines => {}
    }
    sleep_until(ends).await;
    field.behave(&WELL).await?;
    Ok(Moments { calm_over, begun, over: now() })
}
