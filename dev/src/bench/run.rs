//! One measurement: a full queue, a worker that is started on it, and what it took.

use std::{fmt, time::Duration};

use anyhow::{bail, ensure};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::{
    field::{Field, Found},
    load::Load,
    part::Part,
    spread::grouped,
    watch::{Watch, now},
    way::Way,
};
use crate::{process::Process, server::Life, worker::Worker};

/// How long a worker may go without finishing anything.
const STUCK: Duration = Duration::from_secs(60);
/// How often it is asked how many it has finished. What it took is taken from the ledger.
const ASK: Duration = Duration::from_millis(100);
/// How often its processor time and memory are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Requests a second, from the first that was done to the last, refused ones included.
    pub(super) rate: f64,
    /// Seconds of processor time for 1,000 requests: of the worker in that span, of the others
    /// from before its start to its end.
    pub(super) cpu: f64,
    pub(super) rabbit: f64,
    pub(super) postgres: f64,
    pub(super) stub: f64,
    /// The worker's resident memory when all was done, in bytes.
    pub(super) resident: f64,
    /// Rows written for a request.
    pub(super) rows: f64,
    /// Bytes of Postgres' log for a request.
    pub(super) wal: f64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, cpu) = (grouped(self.rate, 0), self.cpu);
        let mib = self.resident / f64::from(1 << 20);
        write!(f, "{rate:>7} /s  {cpu:.3} CPU s per 1,000  {mib:.0} MiB")
    }
}

/// Measures one way, from an empty queue and a new database.
pub(super) async fn measure(field: &mut Field, way: Way, requests: usize) -> anyhow::Result<Run> {
    field.clear().await?;
    measure_here(field, way, way.load(), requests).await
}

/// The same in the database as it is.
pub(super) async fn measure_here(
    field: &mut Field,
    way: Way,
    load: Option<Load>,
    requests: usize,
) -> anyhow::Result<Run> {
    let refused = match load {
        Some(load) => field.publisher.publish(load, requests).await?,
        None => 0,
    };
    let log = field.log();
    let mut stub = if way.calls() { Some(stub(field).await?) } else { None };
    let mut settings = field.settings.clone();
    if let Some(stub) = &stub {
        settings.stub_url = format!("http://{}", stub.admin());
    }
    let before = field.found().await?;
    let (wal, rows) = (field.wal().await?, field.rows().await?);
    let (since, begun) = (Since::now(field), now());

    let command = way.command(&settings, requests, false, field.pool)?;
    let mut worker = Worker::spawn(command, &log, Life::Private)?;
    let watch = Watch::over(worker.process(), LOOK);
    worker.until_ready().await?;
    until_done(&[&worker], requests).await?;
    let (rabbit, postgres) = since.passed();
    let wal = field.wal().await? - wal;
    let (first, last) =
        if way.has_ledger() { field.span(begun).await? } else { own_span(&worker).await? };
    let (cpu, resident) = watch.between(first, last)?;
    worker.stop().await?;
    let rows = field.rows().await? - rows;
    check(way, field.found().await?.since(before), requests, refused)?;
    let mut answering = 0.0;
    if let Some(stub) = &mut stub {
        let calls = done(&stub.metrics().await?);
        ensure!(calls == requests as f64, "{calls} calls were made for {requests} requests");
        answering = stub.process().worked().unwrap_or_default().as_secs_f64();
        stub.stop().await?;
    }
    tokio::fs::remove_file(&log).await?;

    let count = requests as f64;
    ensure!(last > first, "all requests were done in one instant, publish more");
    Ok(Run {
        rate: count / (last - first),
        cpu: cpu / count * 1_000.0,
        rabbit: rabbit / count * 1_000.0,
        postgres: postgres / count * 1_000.0,
        stub: answering / count * 1_000.0,
        resident,
        rows: rows / count,
        wal: wal / count,
    })
}

/// A stub of its own for a way that calls, so that none finds one that remembers others' calls.
async fn stub(field: &mut Field) -> anyhow::Result<Worker> {
    let command: Command = Part::Stub.command(0)?;
    let mut stub = Worker::spawn(command, &field.log(), Life::Private)?;
    stub.until_ready().await?;
    Ok(stub)
}

/// What the servers have worked up to an instant.
struct Since(Vec<(Process, f64)>);

impl Since {
    fn now(field: &Field) -> Self {
        let servers = [field.rabbit.pid(), field.postgres.pid()];
        let known = servers.map(|pid| pid.and_then(Process::of)).into_iter().flatten();
        Self(known.map(|server| (server, server.worked_with_family().as_secs_f64())).collect())
    }

    /// What they have worked since, in seconds: RabbitMQ and Postgres.
    fn passed(&self) -> (f64, f64) {
        let mut passed =
            self.0.iter().map(|(server, was)| server.worked_with_family().as_secs_f64() - was);
        (passed.next().unwrap_or_default(), passed.next().unwrap_or_default())
    }
}

/// Waits until these workers together have brought so many requests to their end.
pub(super) async fn until_done(workers: &[&Worker], requests: usize) -> anyhow::Result<()> {
    let mut known = 0.0;
    let mut moved = Instant::now();
    loop {
        let mut ended = 0.0;
        for worker in workers {
            ended += done(&worker.metrics().await?);
        }
        if ended >= requests as f64 {
            return Ok(());
        }
        if ended > known {
            (known, moved) = (ended, Instant::now());
        }
        if moved.elapsed() > STUCK {
            let tails: Vec<String> = workers.iter().map(|worker| worker.tail()).collect();
            bail!("{ended} of {requests} requests are done and it does not go on, {}", tails[0]);
        }
        sleep(ASK).await;
    }
}

/// How many requests have come to their end, as a worker's metrics tell.
pub(super) fn done(metrics: &str) -> f64 {
    sum(metrics, "longshore_requests_total", &["done", "dead"])
}

/// What a part says of itself.
async fn own_span(worker: &Worker) -> anyhow::Result<(f64, f64)> {
    let text = worker.metrics().await?;
    let said = |name| sum(&text, name, &[]);
    Ok((said("bench_first_done_seconds"), said("bench_last_done_seconds")))
}

/// The sum of a metric's series, of those with one of these outcomes where some are named.
fn sum(text: &str, name: &str, outcomes: &[&str]) -> f64 {
    let wanted = |labels: &str| {
        outcomes.is_empty()
            || outcomes.iter().any(|outcome| labels.contains(&format!("outcome=\"{outcome}\"")))
    };
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '))
        .filter(|(labels, _)| (labels.is_empty() || labels.starts_with('{')) && wanted(labels))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// What is fast and wrong is not measured.
fn check(way: Way, found: Found, requests: usize, refused: usize) -> anyhow::Result<()> {
    let requests = i64::try_from(requests)?;
    let dead = i64::try_from(refused)?;
    let done = requests - dead;
    let right = Found {
        done: if way.has_ledger() { done } else { 0 },
        dead: if way.has_ledger() { dead } else { 0 },
        versions: if way.updates() { done } else { 0 },
    };
    ensure!(found == right, "{found:?} was found and {right:?} is right");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE longshore_requests_total counter
longshore_requests_total{kind=\"a\",outcome=\"done\"} 3
longshore_requests_total{kind=\"b\",outcome=\"done\"} 4
longshore_requests_total{kind=\"a\",outcome=\"retry\"} 5
longshore_requests_total_other{kind=\"a\",outcome=\"done\"} 100
bench_first_done_seconds 12.5
";

    #[test]
    fn only_the_outcomes_that_are_asked_for_are_counted() {
        assert_eq!(done(TEXT), 7.0);
        assert_eq!(sum(TEXT, "bench_first_done_seconds", &[]), 12.5);
    }

    #[test]
    fn a_refused_request_that_was_applied_is_found_out() {
        let found = Found { done: 70, dead: 30, versions: 70 };
        assert!(check(Way::Refused30, found, 100, 30).is_ok());
        assert!(check(Way::Refused30, Found { versions: 71, ..found }, 100, 30).is_err());
        assert!(check(Way::Usual, Found { done: 0, dead: 0, versions: 100 }, 100, 0).is_ok());
    }
}
