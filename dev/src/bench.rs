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
//! | `run`, `watch` | one measurement: speed, processor time, memory, rows, log |
//! | `tune` | what suits the usual worker on this machine |
//! | `ages` | how long requests wait, by how much there is to do |
//! | `fleet`, `ledgers` | how speed goes with the number of processes, and of rows |
//! | `part` | the ways that are not Longshore, as processes of their own, and what is called |
//! | [`day`] | `make bench-day`: ten million requests in one go |
//! | `machine`, `page`, `results`, `asked`, `table`, `plot` | where it was measured, and how it is told |

mod ages;
mod asked;
pub mod day;
mod field;
mod fleet;
mod ledgers;
mod load;
mod machine;
mod page;
pub mod part;
mod plot;
mod results;
mod run;
pub(crate) mod spread;
mod table;
mod tune;
mod watch;
mod way;

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;

pub use self::way::Way;
use self::{ages::Ages, field::Field, ledgers::Filled, machine::Machine, run::Run};
use crate::place;

/// What is measured, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often each is measured [default: 5].
    #[arg(long)]
    rounds: Option<usize>,
    /// How many requests each measurement works off; fast ways take two to six times as many
    /// [default: 60000].
    #[arg(long)]
    requests: Option<usize>,
    /// A look, not a measurement: 1 round of 5000 requests and small ledgers, and no page is written.
    #[arg(long)]
    quick: bool,
    /// Only these parts, separated by commas; no page is written.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Chapter>,
    /// Only these ways, separated by commas; no page is written.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WAY")]
    ways: Vec<Way>,
    /// How many rows the ledgers have on which it is measured how speed depends on that, separated
    /// by commas [default: 0,1000000,20000000; about 0.4 GB on disk for each million].
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    ledgers: Option<Vec<usize>>,
    /// Where the page is written, with its plots in a folder beside it [default: docs/benchmarks.md].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Chapter {
    /// How fast each way works off a full queue, and what it takes.
    Speed,
    /// How long requests wait at 10 %, 50 % and 90 % of what a way can do.
    Ages,
    /// How speed grows with 1 to 8 worker processes.
    Processes,
    /// How speed depends on the rows that the ledger has.
    Ledgers,
}

/// The numbers of one invocation.
#[derive(Debug, Clone)]
struct Size {
    rounds: usize,
    requests: usize,
    /// How long requests come in for each measurement of ages, in seconds.
    trickle_secs: usize,
    ledgers: Vec<usize>,
}

impl Options {
    fn size(&self) -> Size {
        let (rounds, requests, trickle_secs, ledgers) = if self.quick {
            (1, 5_000, 2, vec![0, 100_000])
        } else {
            (5, 60_000, 5, vec![0, 1_000_000, 20_000_000])
        };
        Size {
            rounds: self.rounds.unwrap_or(rounds).max(1),
            requests: self.requests.unwrap_or(requests).max(100),
            trickle_secs,
            ledgers: self.ledgers.clone().unwrap_or(ledgers),
        }
    }

    fn ways(&self, field: &Field) -> Vec<Way> {
        let asked = |way: &Way| self.ways.is_empty() || self.ways.contains(way);
        let known = |way: &Way| *way != Way::UpdateBatch || field.knows_batches;
        Way::ALL.into_iter().filter(|way| asked(way) && known(way)).collect()
    }

    fn has(&self, chapter: Chapter) -> bool {
        self.only.is_empty() || self.only.contains(&chapter)
    }

    /// A page is written by default only when everything was measured in earnest.
    fn page(&self) -> Option<PathBuf> {
        let usual = || place::checkout().join("docs/benchmarks.md");
        let whole = !self.quick && self.only.is_empty() && self.ways.is_empty();
        self.out.clone().or_else(|| whole.then(usual))
    }
}

/// All that was measured; for each round one number.
#[derive(Debug)]
struct Measured {
    machine: Machine,
    command: String,
    minutes: f64,
    size: Size,
    /// How fast the usual worker was with so many connections, and how many it has since.
    tuned: Vec<(usize, f64)>,
    pool: usize,
    runs: Vec<(Way, Vec<Run>)>,
    capacities: Vec<(Way, Vec<f64>)>,
    ages: Vec<(Way, Vec<Ages>)>,
    processes: Vec<(usize, Vec<f64>)>,
    ledgers: Vec<(usize, Vec<Run>)>,
    filled: Vec<Filled>,
}

/// Adds a number to those of its kind.
fn add<K: PartialEq, T>(all: &mut Vec<(K, Vec<T>)>, kind: K, number: T) {
    match all.iter_mut().find(|(known, _)| *known == kind) {
        Some((_, numbers)) => numbers.push(number),
        None => all.push((kind, vec![number])),
    }
}

/// Measures, prints tables, and writes the page.
///
/// # Errors
/// When something cannot be started, does not come to its end, or did not do what it was to do: a
/// way that loses requests is not measured.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    println!("starting a RabbitMQ and a Postgres of their own …");
    let mut field = Field::open().await?;
    let machine = Machine::look(&field).await?;
    println!("{machine}");
    let ways = options.ways(&field);
    let mut measured = Measured {
        machine,
        command: command("bench"),
        minutes: 0.0,
        size: options.size(),
        tuned: Vec::new(),
        pool: field.pool,
        runs: Vec::new(),
        capacities: Vec::new(),
        ages: Vec::new(),
        processes: Vec::new(),
        ledgers: Vec::new(),
        filled: Vec::new(),
    };
    let needs_usual = options.has(Chapter::Speed) || options.has(Chapter::Ages);
    if needs_usual && ways.contains(&Way::Usual) {
        measured.tuned = tune::usual(&mut field, measured.size.requests.div_ceil(4)).await?;
        measured.pool = field.pool;
    }
    for round in 1..=measured.size.rounds {
        if options.has(Chapter::Speed) {
            measured.speed(&mut field, &ways, round).await?;
        }
        if options.has(Chapter::Processes) {
            measured.fleet(&mut field, round).await?;
        }
        if options.has(Chapter::Ages) {
            measured.waiting(&mut field, &ways, round).await?;
        }
    }
    if options.has(Chapter::Ledgers) {
        measured.ledgers(&mut field).await?;
    }
    measured.machine = measured.machine.again();
    measured.minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!("\n{}", results::tables(&measured));
    if let Some(path) = options.page() {
        page::write(&measured, &path).await?;
        println!("written to {}", path.display());
    }
    Ok(())
}

/// How it was called.
fn command(target: &str) -> String {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    if arguments.is_empty() {
        return format!("make {target}");
    }
    format!("make {target} ARGS=\"{}\"", arguments.join(" "))
}

impl Measured {
    async fn speed(&mut self, field: &mut Field, ways: &[Way], round: usize) -> anyhow::Result<()> {
        for way in ways {
            let requests = self.size.requests * way.weight();
            let run = Box::pin(run::measure(field, *way, requests)).await;
            let run = run.with_context(|| format!("round {round}, {}", way.name()))?;
            println!("round {round} of {}  {:<13} {run}", self.size.rounds, way.name());
            add(&mut self.runs, *way, run);
        }
        Ok(())
    }

    async fn waiting(
        &mut self,
        field: &mut Field,
        ways: &[Way],
        round: usize,
    ) -> anyhow::Result<()> {
        let (rounds, seconds) = (self.size.rounds, self.size.trickle_secs);
        for way in ways.iter().copied().filter(|way| way.tells_ages()) {
            let told = || format!("round {round}, ages, {}", way.name());
            let capacity =
                Box::pin(ages::capacity(field, way, seconds)).await.with_context(told)?;
            add(&mut self.capacities, way, capacity);
            for share in ages::SHARES {
                let measured = Box::pin(ages::measure(field, way, capacity, share, seconds)).await;
                let measured = measured.with_context(told)?;
                println!("round {round} of {rounds}  {:<13} {measured}", way.name());
                add(&mut self.ages, way, measured);
            }
        }
        Ok(())
    }

    async fn fleet(&mut self, field: &mut Field, round: usize) -> anyhow::Result<()> {
        for processes in fleet::PROCESSES {
            let rate = Box::pin(fleet::measure(field, processes, self.size.requests * 3)).await;
            let rate = rate.with_context(|| format!("round {round}, {processes} processes"))?;
            let shown = spread::grouped(rate, 0);
            println!(
                "round {round} of {}  {processes} processes   {shown:>7} /s",
                self.size.rounds
            );
            add(&mut self.processes, processes, rate);
        }
        Ok(())
    }

    async fn ledgers(&mut self, field: &mut Field) -> anyhow::Result<()> {
        let (sizes, rounds) = (self.size.ledgers.clone(), self.size.rounds);
        for round in 1..=rounds {
            for rows in &sizes {
                let measured = ledgers::measure(field, *rows, self.size.requests, round);
                let measured = Box::pin(measured).await;
                let (run, filled) =
                    measured.with_context(|| format!("round {round}, {rows} rows"))?;
                self.filled.extend(filled);
                let shown = spread::grouped(*rows as f64, 0);
                println!("round {round} of {rounds}  {shown:>10} rows {run}");
                add(&mut self.ledgers, *rows, run);
            }
        }
        for rows in sizes.into_iter().filter(|rows| *rows > 0) {
            ledgers::drop(field, rows).await?;
        }
        Ok(())
    }
}
