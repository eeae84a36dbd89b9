//! `make bench-day`: ten million requests drained in one go, and the account of them.
//!
//! The queue is filled up to a bound before the worker starts, and what is left is published while
//! it works, so that the bound is not passed: a quorum queue keeps something of each message in
//! memory, and writes all of that down again and again.

mod account;
mod page;
mod samples;

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{task::JoinSet, time::sleep};

use self::samples::{Sample, Samples};
use super::{
    field::Field,
    load::{Load, Publisher, Sending},
    machine::Machine,
    run::done,
    spread::grouped,
    way::Way,
};
use crate::{place, process::Process, server::Life, worker::Worker};

/// How many, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many requests.
    #[arg(long, default_value_t = DAY)]
    requests: usize,
    /// How many wait in the queue at most.
    #[arg(long, default_value_t = 1_000_000)]
    ahead: usize,
    /// How many connections publish.
    #[arg(long, default_value = "2")]
    publishers: NonZeroUsize,
    /// With the set-wise function, where the program knows it.
    #[arg(long)]
    batch: bool,
    /// Where the page is written, with its plots in a folder beside it [default:
    /// docs/benchmarks-day.md, for ten million requests or more].
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    /// How many wait at most; room for what each publisher sends at once there must be.
    fn bound(&self) -> usize {
        self.ahead.max(2 * TOGETHER * self.publishers.get())
    }
}

const DAY: usize = 10_000_000;
/// How many users they are about.
const USERS: u32 = 100_000;
/// The size of a body, in bytes.
const BODY: usize = 160;
/// How many are published before one looks again whether there is room.
const TOGETHER: usize = 500;
/// How often the worker is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How soon a publisher without room looks again.
const ROOM: Duration = Duration::from_millis(5);
/// How often it is said how far it is.
const TELL: Duration = Duration::from_secs(15);
/// How long the worker may go without finishing anything.
const STUCK: Duration = Duration::from_secs(120);

/// How far it is.
#[derive(Debug, Default)]
struct Progress {
    published: AtomicUsize,
    done: AtomicUsize,
}

/// What was seen.
#[derive(Debug)]
struct Day {
    options: Options,
    way: Way,
    machine: Machine,
    command: String,
    /// How long it took to fill the queue before the worker was started, in seconds.
    filling: f64,
    /// Seconds after the worker's start at which the last request was published, and done.
    published: f64,
    drained: f64,
    samples: Samples,
    account: account::Account,
}

/// Publishes, drains, counts, and writes the page.
///
/// # Errors
/// When something cannot be started or gets stuck, or when the account does not add up.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    println!("starting a RabbitMQ and a Postgres of their own …");
    let mut field = Field::open().await?;
    let machine = Machine::look(&field).await?;
    println!("{machine}");
    field.clear().await?;
    let way = if options.batch && field.knows_batches { Way::UpdateBatch } else { Way::Update };
    let load = way.load().context("nothing to publish")?;
    let load = Load { users: USERS, body: BODY, ..load };

    let begun = Instant::now();
    let progress = Arc::new(Progress::default());
    let mut publishing = publish(&field, load, options, &progress);
    let bound = options.bound().min(options.requests);
    while progress.published.load(Relaxed) + TOGETHER * options.publishers.get() < bound {
        if let Some(ended) = publishing.try_join_next() {
            ended??;
        }
        sleep(LOOK).await;
    }
    let filling = begun.elapsed().as_secs_f64();
    println!("{} requests are in the queue after {filling:.0} s", grouped(bound as f64, 0));

    let log = field.log();
    let command = way.command(&field.settings, options.requests, false, field.pool)?;
    let started = Instant::now();
    let mut worker = Worker::spawn(command, &log, Life::Private)?;
    worker.until_ready().await?;
    let mut published = None;
    let mut samples = Samples::default();
    let mut told = Instant::now();
    let mut moved = Instant::now();
    let rabbit = field.rabbit.pid().and_then(Process::of);
    loop {
        while let Some(ended) = publishing.try_join_next() {
            ended??;
        }
        if publishing.is_empty() && published.is_none() {
            published = Some(started.elapsed().as_secs_f64());
        }
        let ended = done(&worker.metrics().await?) as usize;
        let sample = Sample {
            at: started.elapsed().as_secs_f64(),
            done: ended,
            resident: worker.process().resident().unwrap_or_default(),
            rabbit: rabbit.and_then(|rabbit| rabbit.resident()).unwrap_or_default(),
        };
        samples.push(sample);
        if ended > progress.done.swap(ended, Relaxed) {
            moved = Instant::now();
        }
        if ended >= options.requests && publishing.is_empty() {
            break;
        }
        if moved.elapsed() > STUCK {
            bail!("{ended} requests are done and it does not go on, {}", worker.tail());
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            println!("{}", samples.progress(progress.published.load(Relaxed)));
        }
        sleep(LOOK).await;
    }
    let drained = samples.last().at;
    worker.stop().await?;
    println!("counting …");
    let account = account::take(&field).await?;
    let day = Day {
        options: options.clone(),
        way,
        machine: machine.again(),
        command: super::command("bench-day"),
        filling,
        published: published.unwrap_or_default(),
        drained,
        samples,
        account,
    };
    println!("\n{}", page::tables(&day));
    let usual = || place::checkout().join("docs/benchmarks-day.md");
    let out = options.out.clone().or_else(|| (options.requests >= DAY).then(usual));
    if let Some(path) = out {
        page::write(&day, &path).await?;
        println!("written to {}", path.display());
    }
    day.account.check(options.requests)
}

/// Publishes over several connections, each its part of the requests, as long as there is room.
fn publish(
    field: &Field,
    load: Load,
    options: &Options,
    progress: &Arc<Progress>,
) -> JoinSet<anyhow::Result<()>> {
    let mut publishing = JoinSet::new();
    let (requests, publishers, bound) =
        (options.requests, options.publishers.get(), options.bound());
    for part in 0..publishers {
        let (first, end) = (requests * part / publishers, requests * (part + 1) / publishers);
        let (url, progress) = (field.settings.amqp_url.clone(), Arc::clone(progress));
        publishing.spawn(async move {
            let publisher = Publisher::connect(&url).await?;
            let mut sending = Sending::new(&publisher, load, first);
            let mut next = first;
            while next < end {
                let waiting =
                    progress.published.load(Relaxed).saturating_sub(progress.done.load(Relaxed));
                if waiting + TOGETHER > bound {
                    sleep(ROOM).await;
                    continue;
                }
                let count = TOGETHER.min(end - next);
                sending.publish(count).await?;
                progress.published.fetch_add(count, Relaxed);
                next += count;
            }
            sending.confirmed().await
        });
    }
    publishing
}
