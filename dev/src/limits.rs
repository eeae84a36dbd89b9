//! `make limits`: what limits and shares promise, measured on servers of its own.
//!
//! | room | what it knows |
//! |---|---|
//! | `learning` | a limit that learns, beside all fixed ones, at a service that hinders itself |
//! | `fairness` | a user who floods, and how long the others wait |
//! | `place` | the servers, the stub, the worker |
//! | `load` | what is published, and when |

mod fairness;
mod learning;
mod load;
mod place;

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;

/// How long all of it may take.
const ALL: Duration = Duration::from_secs(15 * 60);

/// Which of the two, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only one of them; both without it.
    #[arg(long)]
    only: Option<Show>,
    /// How long each fixed limit, and each load, is measured, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Show {
    /// A limit that learns.
    Learning,
    /// A user who floods.
    Fairness,
}

/// Measures, and prints an account; true when everything is as it was promised.
///
/// # Errors
/// When something cannot be started, or does not go on.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let measured = async {
        let seconds = Duration::from_secs(options.seconds);
        let mut passed = true;
        if options.only != Some(Show::Fairness) {
            passed &= learning::run(seconds).await?;
        }
        if options.only != Some(Show::Learning) {
            passed &= fairness::run(seconds).await?;
        }
        Ok(passed)
    };
    timeout(ALL, measured)
        .await
        .with_context(|| format!("the measurement was not over within {ALL:?}"))?
}

/// Prints one line of the account.
fn verdict(passed: bool, what: &str) -> bool {
    println!("{}  {what}", if passed { "PASS" } else { "FAIL" });
    passed
}
