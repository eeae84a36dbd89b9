//! One measurement: a full queue, a worker that is started on it, and what it took.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    field::{Field, Found},
    spread::grouped,
    way::{LATENCY_MS, Way},
};
use crate::{
    process::Process,
    server::Life,
    stub::Behaviour,
    worker::{Settings, Worker},
};

/// How long a worker may go without finishing anything.
const STUCK: Duration = Duration::from_secs(60);
/// How often it is asked how many it has finished. What it took is taken from the ledger.
const ASK: Duration = Duration::from_millis(100);
/// How often its processor time and memory are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a stub may take to end.
const STUB_STOP: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Requests a second, from the first that was done to the last, refused ones included.
    pub(super) rate: f64,
    /// Seconds of processor time that the worker took for 1,000 requests.
    pub(super) cpu: f64,
    /// Its resident memory when all was done, in bytes.
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

/// Measures one way.
pub(super) async fn measure(field: &mut Field, way: Way, requests: usize) -> anyhow::Result<Run> {
    field.clear().await?;
    let refused = field.publisher.publish(way, requests, None).await?;
    let log = field.log();
    let (stub, settings) = with_stub(way, &field.settings, &log).await?;
    let (wal, rows) = (field.wal().await?, field.rows().await?);

    let mut worker = Worker::spawn(way.command(&settings, requests, false)?, &log, Life::Private)?;
    let watch = Watch::over(worker.process());
    worker.until_ready().await?;
    until_done(&worker, requests).await?;
    let wal = field.wal().await? - wal;
    let (first, last) =
        if way.has_ledger() { field.span().await? } else { own_span(&worker).await? };
    let (cpu, resident) = watch.between(first, last)?;
    worker.stop().await?;
    let rows = field.rows().await? - rows;
    check(way, field.found().await?, requests, refused)?;
    if let Some(stub) = stub {
        stub.ask(Signal::TERM, STUB_STOP).await;
        stub.kill().await;
    }
    tokio::fs::remove_file(&log).await?;

    let count = requests as f64;
    ensure!(last > first, "all requests were done in one instant, publish more");
    Ok(Run {
        rate: count / (last - first),
        cpu: cpu / count * 1_000.0,
        resident,
        rows: rows / count,
        wal: wal / count,
    })
}

/// A stub of its own for a way that calls, so that none finds one that remembers others' calls.
async fn with_stub(
    way: Way,
    settings: &Settings,
    log: &Path,
) -> anyhow::Result<(Option<Process>, Settings)> {
    if !way.calls() {
        return Ok((None, settings.clone()));
    }
    let (stub, url) = crate::apart::start(&log.with_extension("stub"), Life::Private).await?;
    crate::apart::behave(&url, "mailer", &Behaviour::Ok { latency_ms: LATENCY_MS }).await?;
    Ok((Some(stub), Settings { stub_url: url, ..settings.clone() }))
}

/// Waits until so many requests have come to their end.
pub(super) async fn until_done(worker: &Worker, requests: usize) -> anyhow::Result<()> {
    let mut known = 0.0;
    let mut moved = Instant::now();
    loop {
        let text = worker.metrics().await?;
        let ended = sum(&text, "longshore_requests_total", &["done", "dead"]);
        if ended >= requests as f64 {
            return Ok(());
        }
        if ended > known {
            (known, moved) = (ended, Instant::now());
        }
        if moved.elapsed() > STUCK {
            bail!(
                "{ended} of {requests} requests are done and it does not go on, {}",
                worker.tail()
            );
        }
        sleep(ASK).await;
    }
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

/// Looks at a process again and again.
struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    looking: tokio::task::AbortHandle,
}

/// What was seen, and when, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: f64,
    worked: f64,
    resident: f64,
}

impl Watch {
    fn over(process: Process) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&looks);
        let looking = tokio::spawn(async move {
            let mut ticks = interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while let (Some(worked), Some(resident)) = (process.worked(), process.resident()) {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let look = Look {
                    at: at.as_secs_f64(),
                    worked: worked.as_secs_f64(),
                    resident: resident as f64,
                };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                ticks.tick().await;
            }
        });
        Self { looks, looking: looking.abort_handle() }
    }

    /// The processor time it took between two instants, and its memory at the second.
    fn between(&self, first: f64, last: f64) -> anyhow::Result<(f64, f64)> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looks.iter().rev().find(|look| look.at <= first).or(looks.first());
        let after = looks.iter().find(|look| look.at >= last).or(looks.last());
        let (before, after) = before.zip(after).context("the worker was never looked at")?;
        Ok((after.worked - before.worked, after.resident))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.looking.abort();
    }
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
        assert_eq!(sum(TEXT, "longshore_requests_total", &["done", "dead"]), 7.0);
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
