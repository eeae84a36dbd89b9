//! `make storm`: what a dependency in trouble costs those who do not need it, and itself.
//!
//! A broker, a Postgres and a stub of its own for each trouble; requests come in by the clock, most of
//! which need no geocoder. One after the other it is dead, slow, failing, throttling, hanging, flapping, and
//! back with a crowd parked on it. For each of these the ages of the others before and during it are
//! compared, and the account is drawn up of who died, what was charged, in which order the parked
//! went on, and how many calls the geocoder had at once. At the end deadlines are tried.
//!
//! All begin with new servers. A broker that has filled its log, or a checkpoint, would else come in
//! whichever minute it happens to, with the trouble or without.
//!
//! | room | what it knows |
//! |---|---|
//! | `field` | the servers, the workers, the stub |
//! | `load` | what is published, and when |
//! | `trouble` | the ways in which a dependency is in trouble |
//! | `account` | what became of a phase, and whether that is right |
//! | `deadline` | that nothing is started or held when its time is over |

mod account;
mod deadline;
mod field;
mod load;
mod trouble;

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;

pub use self::trouble::Trouble;
use self::{account::Account, field::Field, load::Mix};

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Requests a second, a fifth of which need the geocoder.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Seconds of each trouble.
    #[arg(long, default_value_t = 60)]
    trouble: u64,
    /// Seconds before it, to compare with: no fewer than autovacuum comes in, once a minute.
    #[arg(long, default_value_t = 60)]
    calm: u64,
    /// Seconds in which the crowd is parked, and the others are as before again: parking it gives
    /// autovacuum much to do.
    #[arg(long, default_value_t = 50)]
    gather: u64,
    /// Requests that are parked for the crowd.
    #[arg(long, default_value_t = 50_000)]
    crowd: usize,
    /// Workers.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// By how many percent the others may be later at their 99th percentile.
    #[arg(long, default_value_t = 20.0)]
    later: f64,
    /// Which troubles; all of them without any.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Trouble>,
}

impl Options {
    fn mix(&self, trouble: Trouble) -> Mix {
        let seconds = self.calm + self.gathering(trouble) + self.trouble;
        Mix { rate: f64::from(self.rate), seconds: seconds as f64 }
    }

    /// The time between calm and trouble, in which it is made ready.
    fn gathering(&self, trouble: Trouble) -> u64 {
        if trouble == Trouble::Crowd { self.gather } else { 0 }
    }

    /// How long a phase may take, with the start of its servers and the time in which the last are done.
    fn patience(&self) -> Duration {
        Duration::from_secs(self.calm + self.gather + self.trouble + 1_020)
    }
}

/// Goes through all troubles; true when everything was as it should be.
///
/// # Errors
/// When something cannot be started, or does not come to its end.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let mut right = true;
    for trouble in Trouble::ALL {
        if !options.only.is_empty() && !options.only.contains(&trouble) {
            continue;
        }
        println!("\n{}: {}", trouble.name(), trouble.what(options.crowd));
        let account = timeout(options.patience(), phase(options, trouble));
        let account = account.await.context("it did not come to its end in time")??;
        println!("{account}");
        right &= account.is_right();
    }
    if options.only.is_empty() || options.only.contains(&Trouble::Deadlines) {
        println!("\ndeadlines: calls take 10 s, and requests have 1 s");
        let account = timeout(options.patience(), deadlines(options)).await;
        let account = account.context("it did not come to its end in time")??;
        println!("{account}");
        right &= account.is_right();
    }
    Ok(right)
}

async fn deadlines(options: &Options) -> anyhow::Result<Account> {
    let field = Field::open(options.workers).await?;
    let account = deadline::run(&field).await?;
    field.close().await?;
    Ok(account)
}

async fn phase(options: &Options, trouble: Trouble) -> anyhow::Result<Account> {
    let field = Field::open(options.workers).await?;
    field.behave(&trouble::WELL).await?;
    let mix = options.mix(trouble);
    let publisher = field.publisher().await?;
    let publishing = load::publish(&publisher, mix);
    let troubling = trouble::make(&field, trouble, options);
    let (sent, moments) = tokio::try_join!(publishing, troubling)?;
    field.until_quiet().await?;
    let account = account::draw_up(&field, &sent, moments, options, trouble).await?;
    field.close().await?;
    Ok(account)
}
