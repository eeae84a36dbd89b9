//! How long requests wait while they come in by the clock: at a tenth of what a worker can do, at
//! half of it, and near its limit.

use std::{fmt, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, sleep};

use super::{
    field::Field,
    load::{Sending, number_in},
    run::{done, until_done},
    spread,
    way::Way,
};
use crate::{server::Life, worker::Worker};

/// What was measured: from just before a request was handed to the client library for publishing to
/// the line that is written once Postgres has answered its commit, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// The share of the capacity at which requests came in.
    pub(super) share: f64,
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
        let Self { share, p50, p99, .. } = self;
        write!(f, "{rate:>7} /s ({share:.1})  p50 {p50:.2} ms  p99 {p99:.2} ms")
    }
}

/// The shares of its capacity at which a way is measured.
pub(super) const SHARES: [f64; 3] = [0.1, 0.5, 0.9];
/// How long requests have come in before ages count: connections are made, statements prepared.
const WARM_UP: Duration = Duration::from_secs(1);
/// How many requests wait, and how many are published before one looks again, while the capacity is
/// measured.
const AHEAD: usize = 5_000;
const TOGETHER: usize = 250;
/// How soon one looks again when that many wait.
const LOOK: Duration = Duration::from_millis(10);
/// How long a worker may take to get through what waits.
const STUCK: Duration = Duration::from_secs(60);

/// What a way can do while as many requests come in: publishing takes its part of the machine, so
/// that this is less than the speed at which a full queue is worked off. In requests a second.
pub(super) async fn capacity(field: &mut Field, way: Way, seconds: usize) -> anyhow::Result<f64> {
    field.clear().await?;
    let load = way.load().context("a way without a queue has no ages")?;
    let log = field.log();
    let mut worker =
        Worker::spawn(way.command(&field.settings, 0, true, field.pool)?, &log, Life::Private)?;
    worker.until_ready().await?;
    let mut sending = Sending::new(&field.publisher, load, 0);
    let mut published = 0;
    let since = Instant::now();
    let mut moved = since;
    let (mut counted, mut from) = (0.0, None);
    while since.elapsed() < WARM_UP + Duration::from_secs(seconds as u64) {
        let ended = done(&worker.metrics().await?);
        if since.elapsed() >= WARM_UP && from.is_none() {
            from = Some((Instant::now(), ended));
        }
        if ended > counted {
            (counted, moved) = (ended, Instant::now());
        }
        ensure!(moved.elapsed() < STUCK, "the worker does not go on, {}", worker.tail());
        if published as f64 - ended >= AHEAD as f64 {
            sleep(LOOK).await;
        } else {
            sending.publish(TOGETHER).await?;
            published += TOGETHER;
        }
    }
    let (begun, before) = from.context("no time to measure")?;
    let rate = (done(&worker.metrics().await?) - before) / begun.elapsed().as_secs_f64();
    sending.confirmed().await?;
    until_done(&[&worker], published).await?;
    worker.stop().await?;
    tokio::fs::remove_file(&log).await?;
    Ok(rate)
}

/// Measures one way at a share of its capacity.
pub(super) async fn measure(
    field: &mut Field,
    way: Way,
    capacity: f64,
    share: f64,
    seconds: usize,
) -> anyhow::Result<Ages> {
    field.clear().await?;
    let load = way.load().context("a way without a queue has no ages")?;
    let rate = (capacity * share).max(1.0);
    let warm_up = (rate * WARM_UP.as_secs_f64()).ceil() as usize;
    let requests = warm_up + (rate * seconds as f64).ceil() as usize;
    let log = field.log();
    let command = way.command(&field.settings, requests, true, field.pool)?;
    let mut worker = Worker::spawn(command, &log, Life::Private)?;
    worker.until_ready().await?;
    let sent = field.publisher.trickle(load, requests, rate).await?;
    until_done(&[&worker], requests).await?;
    worker.stop().await?;

    let mut ages = read(&tokio::fs::read_to_string(&log).await?, &sent, warm_up);
    let told = requests - warm_up;
    // A worker may rather drop lines than wait for a disk; a hundredth would not change what is said.
    ensure!(ages.len() * 100 >= told * 99, "{} ages of {told} requests were logged", ages.len());
    tokio::fs::remove_file(&log).await?;
    ages.sort_by(f64::total_cmp);
    let quantile = |share| spread::quantile(&ages, share);
    Ok(Ages { share, rate, p50: quantile(0.5), p99: quantile(0.99) })
}

/// The ages, in milliseconds, that a log tells of requests from this number on.
fn read(log: &str, sent_us: &[i64], from: usize) -> Vec<f64> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["event"] == "request.finished")
        .filter_map(|line| {
            let number = number_in(line["request_id"].as_str()?)?;
            let at = OffsetDateTime::parse(line["timestamp"].as_str()?, &Rfc3339).ok()?;
            let at_us = (at.unix_timestamp_nanos() / 1_000) as i64;
            (number >= from).then_some((at_us - sent_us.get(number)?) as f64 / 1_000.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_finished_requests_after_the_warm_up_have_an_age() {
        let line = |event: &str, number: usize| {
            format!(
                "{{\"timestamp\":\"1970-01-01T00:00:01.0{number}0500Z\",\"event\":\"{event}\",\
                 \"request_id\":\"bench-{number:010}\"}}\n"
            )
        };
        let log = line("request.finished", 0)
            + &line("request.finished", 1)
            + "not JSON\n"
            + &line("other", 2)
            + &line("request.finished", 2);
        assert_eq!(read(&log, &[1_000_000, 1_000_000, 1_000_000], 1), [10.5, 20.5]);
    }
}
