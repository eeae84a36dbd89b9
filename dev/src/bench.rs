//! `make bench`: how fast the worker is, beside what it could be and what is usual.
//!
//! One run on servers of its own measures several ways of working off a queue, in turn and again
//! and again, so that whatever else the machine does meets all of them alike. What counts are the
//! ratios within one run; a number alone says more about the machine than about the program.
//!
//! | room | what it knows |
//! |---|---|
//! | `way` | what is measured, and how each is started |
//! | `field` | the servers, and how a round finds them |
//! | `load` | what is published |
//! | `run` | one measurement: speed, processor time, memory, rows, log |
//! | `ages` | how long requests wait when there is little to do |
//! | `part` | the ways that are not Longshore, as processes of their own |
//! | `machine`, `page` | where it was measured, and how it is told |

mod ages;
mod field;
mod load;
mod machine;
mod page;
pub mod part;
mod run;
pub(crate) mod spread;
mod way;

use std::path::PathBuf;

use anyhow::Context as _;

pub use self::way::Way;
use self::{ages::Ages, field::Field, machine::Machine, run::Run};
use crate::place;

/// What is measured, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often each way is measured [default: 5].
    #[arg(long)]
    rounds: Option<usize>,
    /// How many requests each measurement works off [default: 50000].
    #[arg(long)]
    requests: Option<usize>,
    /// A look, not a measurement: 1 round of 5000 requests, and no page is written.
    #[arg(long)]
    quick: bool,
    /// Only these ways, separated by commas; no page is written.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Way>,
    /// Where the page is written [default: docs/benchmarks.md].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The numbers of one invocation.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    requests: usize,
    /// How long requests trickle in for the measurement of ages.
    trickle_secs: usize,
}

impl Options {
    fn size(&self) -> Size {
        let (rounds, requests, trickle_secs) =
            if self.quick { (1, 5_000, 2) } else { (5, 50_000, 5) };
        Size {
            rounds: self.rounds.unwrap_or(rounds).max(1),
            requests: self.requests.unwrap_or(requests).max(100),
            trickle_secs,
        }
    }

    fn ways(&self) -> Vec<Way> {
        let asked = |way: &Way| self.only.is_empty() || self.only.contains(way);
        Way::ALL.into_iter().filter(asked).collect()
    }

    /// A page is written by default only when everything was measured in earnest.
    fn page(&self) -> Option<PathBuf> {
        let usual = || place::checkout().join("docs/benchmarks.md");
        let whole = !self.quick && self.only.is_empty();
        self.out.clone().or_else(|| whole.then(usual))
    }
}

/// All that was measured.
#[derive(Debug)]
struct Measured {
    machine: Machine,
    size: Size,
    /// Of each way, one run for each round.
    runs: Vec<(Way, Vec<Run>)>,
    /// The share of its speed at which ages were measured, and what they were, for each round.
    ages: Vec<(Way, Vec<Ages>)>,
}

/// The share of a way's speed at which requests come in for the measurement of ages.
const TRICKLE: f64 = 0.1;

/// Measures, prints a table, and writes the page.
///
/// # Errors
/// When something cannot be started, does not come to its end, or did not do what it was to do: a
/// way that loses requests is not measured.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let (size, ways) = (options.size(), options.ways());
    println!("starting a RabbitMQ and a Postgres of their own …");
    let mut field = Field::open().await?;
    let machine = Machine::look(&field).await?;
    println!("{machine}");

    let mut runs: Vec<(Way, Vec<Run>)> = ways.iter().map(|way| (*way, Vec::new())).collect();
    for round in 1..=size.rounds {
        for (way, runs) in &mut runs {
            let run = Box::pin(run::measure(&mut field, *way, size.requests)).await;
            let run = run.with_context(|| format!("round {round}, {}", way.name()))?;
            println!("round {round} of {}  {:<13} {run}", size.rounds, way.name());
            runs.push(run);
        }
    }

    let mut ages: Vec<(Way, Vec<Ages>)> = Vec::new();
    for _ in 0..size.rounds {
        for (way, runs) in runs.iter().filter(|(way, _)| way.tells_ages()) {
            let rate = spread::of(runs.iter().map(|run| run.rate)).median * TRICKLE;
            let measured = Box::pin(ages::measure(&mut field, *way, rate, size.trickle_secs)).await;
            let measured = measured.with_context(|| format!("ages, {}", way.name()))?;
            println!("ages            {:<13} {measured}", way.name());
            match ages.iter_mut().find(|(known, _)| known == way) {
                Some((_, all)) => all.push(measured),
                None => ages.push((*way, vec![measured])),
            }
        }
    }

    let measured = Measured { machine: machine.again(), size, runs, ages };
    println!("\n{}", page::tables(&measured));
    if let Some(path) = options.page() {
        tokio::fs::write(&path, page::page(&measured))
            .await
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}
