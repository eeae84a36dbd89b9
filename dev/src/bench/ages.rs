//! How long requests wait when there is little to do: they come in by the clock, far below what
//! the worker could do, and each line of its log says how old a request was when it was done.

use std::fmt;

use anyhow::ensure;
use serde_json::Value;

use super::{field::Field, run::until_done, spread, way::Way};
use crate::{server::Life, worker::Worker};

/// What was measured: from publishing to knowing that the commit is done, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// Requests a second that came in.
    pub(super) rate: f64,
    /// Half of them were younger.
    pub(super) p50: f64,
    /// One in a hundred was older.
    pub(super) p99: f64,
}

impl fmt::Display for Ages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = spread::grouped(self.rate, 0);
        write!(f, "{rate:>7} /s  p50 {} ms  p99 {} ms", self.p50, self.p99)
    }
}

/// How long requests have come in before ages count: connections are made, statements prepared.
const WARM_UP_SECS: f64 = 1.0;

/// Measures one way at this rate.
pub(super) async fn measure(
    field: &mut Field,
    way: Way,
    rate: f64,
    seconds: usize,
) -> anyhow::Result<Ages> {
    field.clear().await?;
    let warm_up = (rate * WARM_UP_SECS).ceil() as usize;
    let requests = warm_up + (rate * seconds as f64).ceil() as usize;
    let log = field.log();
    let command = way.command(&field.settings, requests, true)?;
    let mut worker = Worker::spawn(command, &log, Life::Private)?;
    worker.until_ready().await?;
    field.publisher.publish(way, requests, Some(rate)).await?;
    until_done(&worker, requests).await?;
    worker.stop().await?;

    let mut ages = read(&tokio::fs::read_to_string(&log).await?);
    ensure!(ages.len() == requests, "{} ages of {requests} requests were logged", ages.len());
    tokio::fs::remove_file(&log).await?;
    ages.drain(..warm_up);
    ages.sort_by(f64::total_cmp);
    Ok(Ages { rate, p50: spread::quantile(&ages, 0.5), p99: spread::quantile(&ages, 0.99) })
}

/// The ages that a log tells of, in the order in which requests were done.
fn read(log: &str) -> Vec<f64> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["event"] == "request.finished")
        .filter_map(|line| line["age_ms"].as_f64())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_finished_requests_have_an_age() {
        let log = "{\"event\":\"request.finished\",\"age_ms\":3}\nnot JSON\n{\"event\":\"other\",\"age_ms\":9}\n";
        assert_eq!(read(log), [3.0]);
    }
}
