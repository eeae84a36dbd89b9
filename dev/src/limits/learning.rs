//! A limit that learns, at a service that hinders itself, beside all fixed ones.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::{
    load::Producer,
    place::{Place, SERVICE, metric},
    verdict,
};
use crate::{stub::Behaviour, worker::Worker};

/// Where the service does most, first and then.
const OPTIMA: [u32; 2] = [12, 36];
/// How long a call takes alone.
const ALONE_MS: u64 = 120;
/// The fixed limits that are tried.
const FIXED: [u32; 7] = [4, 8, 12, 18, 26, 36, 52];
/// More than this never, fixed or not.
const CEILING: &str = "80";
/// It does at least so much of what the best fixed limit does.
const ENOUGH: f64 = 0.85;
/// How long it is given to find its limit.
const SEARCH: Duration = Duration::from_secs(30);
/// Until a change shows.
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

/// Enough work for this long.
const REQUESTS: usize = 25_000;

pub(super) async fn run(time: Duration) -> anyhow::Result<bool> {
    println!("A limit that learns: starting a RabbitMQ and a Postgres of their own …");
    let place = Place::open().await?;
    let mut producer = Producer::connect(&place.amqp_url()).await?;
    let users: Vec<String> = (0..REQUESTS).map(|number| format!("user-{}", number % 500)).collect();
    producer.publish(&users).await?;
    let mut best = Vec::new();
    let mut worker = start(&place, "false").await?;
    for at_best in OPTIMA {
        behave(&place, at_best).await?;
        let mut rates = Vec::new();
        for fixed in FIXED {
            place.steer(&["limit", SERVICE, &fixed.to_string()]).await?;
            until_limit(&worker, fixed).await?;
            sleep(SETTLE).await;
            let (rate, _) = measure(&worker, time).await?;
            println!("best at {at_best}: fixed limit {fixed:>3}: {rate:>6.1} calls a second");
            rates.push(rate);
        }
        best.push(rates.into_iter().fold(0.0, f64::max));
    }
    place.steer(&["limit", SERVICE, "auto"]).await?;
    worker.stop().await?;
    let mut worker = start(&place, "true").await?;
    let mut passed = true;
    // And back again.
    let moves = OPTIMA.into_iter().zip(&best).chain([(OPTIMA[0], &best[0])]);
    for (at_best, best) in moves {
        behave(&place, at_best).await?;
        let (_, searched) = measure(&worker, SEARCH).await?;
        let (rate, limits) = measure(&worker, 2 * time).await?;
        let of_best = rate / best;
        let lowest = searched.iter().chain(&limits).copied().fold(f64::MAX, f64::min);
        let said = format!(
            "best at {at_best}: {rate:.1} calls a second, {:.0} % of the best fixed limit's {best:.1}",
            100.0 * of_best
        );
        passed &= verdict(of_best >= ENOUGH, &said);
        // A look at half of what it began with is no collapse.
        let floor = 2.0;
        let most = limits.iter().copied().fold(0.0, f64::max);
        let said = format!("best at {at_best}: the limit was {lowest} to {most}");
        passed &= verdict(lowest > floor, &said);
    }
    // What is left is not waited for.
    worker.kill().await?;
    place.close().await;
    Ok(passed)
}

async fn start(place: &Place, adaptive: &str) -> anyhow::Result<Worker> {
    let variables = [
        ("DEPENDENCIES__MAILER__ADAPTIVE", adaptive),
        ("DEPENDENCIES__MAILER__MAX_IN_FLIGHT", CEILING),
        ("DEPENDENCIES__MAILER__MAX_PARKED", "1000"),
        ("DEPENDENCIES__MAILER__BREAKER__MODE", "observe"),
        ("DEPENDENCIES__MAILER__TIMEOUT", "9s"),
        ("WORKER__CONCURRENCY", "256"),
    ];
    place.worker(&variables).await
}

async fn behave(place: &Place, at_best: u32) -> anyhow::Result<()> {
    place.behave(&Behaviour::Crowded { alone_ms: ALONE_MS, at_best }).await
}

fn of_service(name: &str, further: &str) -> String {
    format!("{name}{{dependency=\"{SERVICE}\"{further}}}")
}

async fn until_limit(worker: &Worker, wanted: u32) -> anyhow::Result<()> {
    let (series, give_up) = (of_service("longshore_calls_limit", ""), Instant::now() + PATIENCE);
    while metric(worker, &series).await? != f64::from(wanted) {
        if Instant::now() > give_up {
            bail!("the worker did not follow to a limit of {wanted}, {}", worker.tail());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Calls done a second, and the limits that were seen meanwhile.
async fn measure(worker: &Worker, time: Duration) -> anyhow::Result<(f64, Vec<f64>)> {
    let done = of_service("longshore_calls_total", ",result=\"ok\"");
    let limit = of_service("longshore_calls_limit", "");
    let (begin, before) = (Instant::now(), metric(worker, &done).await?);
    let mut limits = Vec::new();
    while begin.elapsed() < time {
        sleep(Duration::from_millis(500)).await;
        limits.push(metric(worker, &limit).await?);
    }
    let more = metric(worker, &done).await? - before;
    Ok((more / begin.elapsed().as_secs_f64(), limits))
}
