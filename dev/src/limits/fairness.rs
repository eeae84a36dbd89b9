//! A user who floods, and how long the others wait.
//!
//! Requests come in waves, one a second, and each takes a fifth of a second in one of few slots. First
//! they are of many users evenly; then nine in ten are of one user, as many as before, and then three
//! times as many, which is more than can be worked. How old the requests of the others are when they are
//! done is compared.

use std::{collections::HashMap, time::Duration};

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::{
    load::Producer,
    place::{Place, metric},
    verdict,
};
use crate::stub::Behaviour;

/// Slots, and how long each call takes: eighty a second.
const SLOTS: &str = "16";
/// What is prefetched. Beyond the slots it is room for those who are put aside, and for those who are
/// just being written down.
const PREFETCH: &str = "160";
const LATENCY_MS: u64 = 200;
/// Requests a second.
const WAVE: usize = 60;
/// So many times as much is more than can be worked.
const BEYOND: usize = 3;
/// Of ten, so many are of others than the one who floods.
const OTHERS: usize = 1;
const USERS: usize = 100;
const FLOOD: &str = "flood";
const SHARE: &str = "0.25";
/// So much longer others may wait than if all were even.
const FAIR: f64 = 2.0;
/// How long the rest of the others may take.
const PATIENCE: Duration = Duration::from_secs(120);

struct Load {
    name: &'static str,
    share: &'static str,
    wave: usize,
    flood: bool,
}

pub(super) async fn run(time: Duration) -> anyhow::Result<bool> {
    println!("A user who floods: starting a RabbitMQ and a Postgres of their own …");
    let place = Place::open().await?;
    place.behave(&Behaviour::Ok { latency_ms: LATENCY_MS }).await?;
    let mut producer = Producer::connect(&place.amqp_url()).await?;
    let loads = [
        Load { name: "even", share: SHARE, wave: WAVE, flood: false },
        Load { name: "flooded", share: SHARE, wave: WAVE, flood: true },
        Load { name: "flooded beyond", share: SHARE, wave: BEYOND * WAVE, flood: true },
        Load { name: "flooded beyond, no share", share: "1.0", wave: BEYOND * WAVE, flood: true },
    ];
    let mut ages = Vec::new();
    for load in &loads {
        let (median, p99, parked) = measure(&place, &mut producer, load, time.as_secs()).await?;
        println!(
            "{:<26} {:>4} a second: the others' age {median:>6.2} s in the median, {p99:>6.2} s at p99; {parked} parked on their share",
            load.name, load.wave
        );
        ages.push(p99);
    }
    place.close().await;
    let mut passed = true;
    for (load, age) in loads.iter().zip(&ages).skip(1).take(2) {
        let times = age / ages[0];
        passed &= verdict(
            times <= FAIR,
            &format!("{}: {times:.2} times the p99 of the even load", load.name),
        );
    }
    let said =
        format!("without a share they would have waited {:.1} times as long", ages[3] / ages[2]);
    passed &= verdict(ages[3] > FAIR * ages[0], &said);
    Ok(passed)
}

/// Median and p99 of the others' age, and how often a request was parked on the share of its user.
async fn measure(
    place: &Place,
    producer: &mut Producer,
    load: &Load,
    seconds: u64,
) -> anyhow::Result<(f64, f64, u64)> {
    place.forget().await?;
    let variables = [
        ("WORKER__CONCURRENCY", SLOTS),
        ("QUEUE__PREFETCH", PREFETCH),
        ("WORKER__USER_SHARE", load.share),
    ];
    let mut worker = place.worker(&variables).await?;
    let mut chance = fastrand::Rng::with_seed(7);
    let published = producer
        .waves(seconds, || {
            (0..load.wave)
                .map(|_| match load.flood && chance.usize(..10) >= OTHERS {
                    true => FLOOD.to_owned(),
                    false => format!("user-{}", chance.usize(..USERS)),
                })
                .collect()
        })
        .await?;
    let give_up = Instant::now() + PATIENCE;
    let all = others(load, seconds);
    let done = loop {
        let done = place.done("user-%").await?;
        if done.len() >= all {
            break done;
        }
        if Instant::now() > give_up {
            bail!("{} of {all} requests of the others are done, {}", done.len(), worker.tail());
        }
        sleep(Duration::from_millis(200)).await;
    };
    let series = "longshore_limited_total{limit=\"limit:user\",how=\"parked\"}";
    let parked = metric(&worker, series).await?;
    worker.kill().await?;
    producer.purge().await?;
    let (median, p99) = spread(&done, &published);
    Ok((median, p99, parked as u64))
}

/// How many requests of others than the one who floods a load has.
fn others(load: &Load, seconds: u64) -> usize {
    let mut chance = fastrand::Rng::with_seed(7);
    let all = load.wave * usize::try_from(seconds).unwrap_or_default();
    let mut others = 0;
    for _ in 0..all {
        if !(load.flood && chance.usize(..10) >= OTHERS) {
            chance.usize(..USERS);
            others += 1;
        }
    }
    others
}

fn spread(done: &[(String, f64)], published: &HashMap<String, f64>) -> (f64, f64) {
    let mut ages: Vec<f64> =
        done.iter().filter_map(|(id, at)| Some(at - published.get(id)?)).collect();
    ages.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (ages.len() as f64 * part).ceil() as usize;
        ages.get(index.saturating_sub(1)).copied().unwrap_or_default()
    };
    (at(0.5), at(0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_from_publishing_to_done() {
        let published: HashMap<String, f64> =
            (0..100).map(|number| (number.to_string(), f64::from(number))).collect();
        let done: Vec<(String, f64)> = (0..100)
            .map(|number| (number.to_string(), f64::from(number) + f64::from(number + 1) / 10.0))
            .collect();
        let (median, p99) = spread(&done, &published);
        assert!((median - 5.0).abs() < 1e-9 && (p99 - 9.9).abs() < 1e-9, "{median}, {p99}");
    }

    #[test]
    fn an_even_load_has_others_only() {
        let load = |flood| Load { name: "", share: "1.0", wave: 100, flood };
        assert_eq!(others(&load(false), 10), 1_000);
        assert!((50..200).contains(&others(&load(true), 10)));
    }
}
