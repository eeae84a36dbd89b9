//! The page and its plots.

use std::path::Path;

use anyhow::Context as _;

use super::{
    Measured, ages, field, fleet, load,
    plot::{self, Lines, Series},
    results,
    spread::{self, Spread, grouped},
    way::{LATENCY_MS, Way},
};

/// Writes the page, and its plots into the folder of its name.
pub(super) async fn write(measured: &Measured, path: &Path) -> anyhow::Result<()> {
    let folder = path.with_extension("");
    for (name, svg) in plots(measured) {
        write_file(&folder.join(name), &svg).await?;
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    write_file(path, &page(measured, &name)).await
}

/// Writes a file, into a folder that is made where it is not there.
pub(super) async fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    tokio::fs::write(path, text).await.with_context(|| format!("cannot write {}", path.display()))
}

const SPEED: &str = "throughput.svg";
const AGES: &str = "ages.svg";
const PROCESSES: &str = "processes.svg";
const LEDGERS: &str = "ledgers.svg";

fn plots(measured: &Measured) -> Vec<(&'static str, String)> {
    let speeds: Vec<(String, Spread)> = measured
        .runs
        .iter()
        .filter_map(|(way, _)| {
            Some((way.name().to_owned(), measured.spread(*way, |run| run.rate)?))
        })
        .collect();
    let ledgers: Vec<(String, Spread)> = measured
        .ledgers
        .iter()
        .map(|(rows, runs)| {
            let rows = grouped(*rows as f64, 0) + " rows";
            (rows, spread::of(runs.iter().map(|run| run.rate)))
        })
        .collect();
    let mut plots = Vec::new();
    if !speeds.is_empty() {
        plots.push((SPEED, plot::bars("Requests a second, by way", 0, &speeds)));
    }
    if !measured.ages.is_empty() {
        plots.push((AGES, waiting(measured)));
    }
    if !measured.processes.is_empty() {
        plots.push((PROCESSES, processes(measured)));
    }
    if !ledgers.is_empty() {
        let title = "Requests a second of `update`, by rows in the ledger";
        plots.push((LEDGERS, plot::bars(title, 0, &ledgers)));
    }
    plots
}

fn waiting(measured: &Measured) -> String {
    let line = |way: Way, name: &str, of: fn(&ages::Ages) -> f64| Series {
        name: format!("{}, {name}", way.name()),
        points: ages::SHARES
            .iter()
            .filter_map(|share| Some((share * 100.0, measured.ages(way, *share, of)?)))
            .collect(),
    };
    let ways = measured.ages.iter().map(|(way, _)| *way);
    Lines {
        title: "From publishing to the commit, by load",
        across: "load, % of what the way can do",
        up: "milliseconds",
        marks: ages::SHARES.iter().map(|it| (it * 100.0, format!("{:.0}", it * 100.0))).collect(),
        series: ways
            .flat_map(|way| {
                [line(way, "median", |ages| ages.p50), line(way, "p99", |ages| ages.p99)]
            })
            .collect(),
        tenfold: true,
    }
    .draw()
}

fn processes(measured: &Measured) -> String {
    let point = |(processes, rates): &(usize, Vec<f64>)| {
        (*processes as f64, spread::of(rates.iter().copied()))
    };
    let usual = measured.spread(Way::Usual, |run| run.rate).map(|usual| Series {
        name: "usual, one process".to_owned(),
        points: [1, fleet::PROCESSES.into_iter().max().unwrap_or(1)]
            .map(|at| (at as f64, usual))
            .to_vec(),
    });
    let update = Series {
        name: "update".to_owned(),
        points: measured.processes.iter().map(point).collect(),
    };
    Lines {
        title: "Requests a second, by worker processes on the same two servers",
        across: "worker processes",
        up: "requests/s",
        marks: fleet::PROCESSES.iter().map(|it| (*it as f64, it.to_string())).collect(),
        series: std::iter::once(update).chain(usual).collect(),
        tenfold: false,
    }
    .draw()
}

/// The whole page.
fn page(measured: &Measured, folder: &str) -> String {
    let facts: String =
        measured.machine.facts().iter().map(|(name, fact)| format!("- {name}: {fact}\n")).collect();
    let ways: String = measured
        .runs
        .iter()
        .map(|(way, _)| format!("- `{}`: {}\n", way.name(), way.does()))
        .collect();
    let tried: Vec<String> = measured
        .tuned
        .iter()
        .map(|(pool, rate)| format!("{pool}: {}/s", grouped(*rate, 0)))
        .collect();
    let size = &measured.size;
    format!(
        "\
# Benchmarks

Written by `make bench`. The numbers are those of one run on one machine with the broker, the
database and the load on its cores as well; only what is compared within the run says something
about another machine. Ten million requests in one go: [benchmarks-day.md](benchmarks-day.md).

{facts}
Command: `{command}`, {minutes:.0} minutes without the build. `ARGS=--quick` is for a look,
`ARGS=\"--only PART,…\"` for some parts, `ARGS=--help` for the rest.

## What is asked

Medians of {rounds} rounds, and in brackets the least and the most; ratios are taken round by round.

{verdicts}
## Throughput

{speeds}
![Requests a second, by way]({folder}/{SPEED})

{ratios}
{costs}
## Ages

{waiting}
![From publishing to the commit, by load]({folder}/{AGES})

## More processes

{processes}
![Requests a second, by worker processes]({folder}/{PROCESSES})

## Larger ledgers

{ledgers}
![Requests a second, by rows in the ledger]({folder}/{LEDGERS})

## What is measured

{ways}
**Throughput.** Each round measures all of them in turn, each from an empty queue and a new database:
{requests} persistent requests ({most} for {fast}) of {body} bytes about {users} users are published
to the quorum queue and confirmed, and a new process is started on them. (`client` has no queue and
makes as many calls.) The clock runs from the first request that is done to the last, so a start does
not count. After each run the ledger is checked: a run in which a request was lost, applied twice or
called for twice is an error, not a number.

**Costs.** The worker's processor time is that of its process in the same span, memory its resident
set at the end. RabbitMQ's and Postgres' are those of all their processes from the worker's start to
its last request; the stub's is that of its whole life. Rows are those inserted, updated and deleted,
with those that were undone; WAL bytes are what Postgres wrote to its log, checkpoints included.

**The usual worker** has the pool that serves it best here, of those tried before the first round
({tried}): {pool} connections. **The stub** is one thread that answers `POST` after {latency} ms and
remembers nothing; its processor time is taken from the same cores in `client` and `call`.

**Ages** are from just before a request is handed to the client library for publishing to the line
that a worker writes once Postgres has answered its commit (both clocks are this machine's, in
microseconds): broker, line, batch, function and fsync are in it. Requests come in by the clock for
{seconds} s after a second that does not count, at shares of what the way can do while as many are
published and each writes its line: {capacities}.

**Processes** are workers of default settings that are started together on {many} requests; the clock
runs from when the last of them is ready, and what was done before does not count.

**Ledgers** are filled with done requests of one to three days ago, vacuumed, and then worked on in
turn. Ids are scattered here, so that each request finds another page of the index; elsewhere they
come in order, as ids do that begin with the time.

**Postgres** has these settings for all ways alike: {postgres}. fsync, `synchronous_commit` and
`full_page_writes` are on.
",
        command = measured.command,
        minutes = measured.minutes,
        rounds = size.rounds,
        verdicts = results::verdicts(measured),
        speeds = results::speeds(measured),
        ratios = results::ratios(measured),
        costs = results::costs(measured),
        waiting = results::waiting(measured),
        processes = results::processes(measured),
        ledgers = results::ledgers(measured),
        requests = grouped(size.requests as f64, 0),
        most = grouped(size.requests as f64 * 3.0, 0),
        fast = fast(measured),
        many = grouped(size.requests as f64 * 3.0, 0),
        body = load::BODY,
        users = grouped(f64::from(load::USERS), 0),
        tried = tried.join(", "),
        pool = measured.pool,
        latency = LATENCY_MS,
        seconds = size.trickle_secs,
        capacities = capacities(measured),
        postgres = field::POSTGRES.map(|set| format!("`{set}`")).join(", "),
    )
}

/// The ways that get more requests.
fn fast(measured: &Measured) -> String {
    let heavy = measured.runs.iter().filter(|(way, _)| way.weight() > 1);
    heavy.map(|(way, _)| format!("`{}`", way.name())).collect::<Vec<_>>().join(" and ")
}

fn capacities(measured: &Measured) -> String {
    let told = measured.capacities.iter().map(|(way, rates)| {
        format!("`{}` {} requests/s", way.name(), spread::of(rates.iter().copied()).show(0))
    });
    told.collect::<Vec<_>>().join(", ")
}
