//! `make order`: the requests of each user are applied in the order of their queue, whatever happens.
//!
//! Servers of its own, several workers, two ordered kinds: one is applied, one calls a service first
//! that fails now and then. Workers are killed and stopped in turn while the queue is worked. Each
//! application notes itself in a table; at the end it is looked whether any user's were out of order.

mod fleet;
mod load;

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep, timeout};

use self::fleet::{Fleet, Found};

/// How often it is asked how far it is.
const ASK: Duration = Duration::from_millis(500);

/// How much, and how rough.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Requests in all.
    #[arg(long, default_value_t = 200_000)]
    requests: usize,
    /// Users, whose requests are published in turn.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Workers at any time.
    #[arg(long, default_value_t = 5)]
    workers: usize,
    /// From one kill or stop to the next.
    #[arg(long, default_value_t = 10)]
    every_seconds: u64,
    /// How long all of it may take.
    #[arg(long, default_value_t = 25)]
    minutes: u64,
}

/// Publishes, makes trouble, and prints what was found; true when every rule holds.
///
/// # Errors
/// When something cannot be started, or it is not over in time.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let all = Duration::from_secs(options.minutes * 60);
    timeout(all, work(options)).await.with_context(|| format!("it was not over within {all:?}"))?
}

async fn work(options: &Options) -> anyhow::Result<bool> {
    let &Options { requests, users, workers, every_seconds, .. } = options;
    println!("starting a RabbitMQ and a Postgres of their own, and {workers} workers …");
    let mut fleet = Fleet::open(workers).await?;
    let began = Instant::now();
    let publishing = tokio::spawn(load::publish(fleet.amqp_url(), requests, users));
    let (mut kills, mut stops) = (0, 0);
    let mut next = Instant::now() + Duration::from_secs(every_seconds);
    let mut told = 0;
    loop {
        let ended = fleet.ended().await?;
        if ended >= requests as i64 {
            break;
        }
        let tenth = ended * 10 / requests.max(1) as i64;
        if tenth > told {
            told = tenth;
            println!("{ended:>8} ended after {:.0} s", began.elapsed().as_secs_f64());
        }
        if Instant::now() >= next {
            // In turn, so that whoever consumes in order is among them.
            if kills <= stops {
                fleet.kill_one().await?;
                kills += 1;
            } else {
                fleet.stop_one().await?;
                stops += 1;
            }
            next = Instant::now() + Duration::from_secs(every_seconds);
        }
        sleep(ASK).await;
    }
    publishing.await??;
    let seconds = began.elapsed().as_secs_f64();
    let found = fleet.found().await?;
    fleet.close().await?;
    println!(
        "{requests} requests of {users} users by {workers} workers in {seconds:.0} s, {:.0} a second; \
         {kills} kills, {stops} stops, {} calls tried again\n",
        requests as f64 / seconds,
        found.tried_again
    );
    Ok(judge(&found, requests as i64))
}

fn judge(found: &Found, requests: i64) -> bool {
    let rules = [
        ("no user's requests are applied out of the order of the queue", found.inversions == 0),
        ("every request is applied", found.applied == requests),
        ("none is applied twice", found.twice == 0),
        ("none is dead", found.dead == 0),
        ("nothing is left in the queue", found.ready == 0),
        ("calls have failed, and were tried again", found.tried_again > 0),
    ];
    println!("{found:?}");
    for (rule, holds) in rules {
        println!("{} {rule}", if holds { "PASS" } else { "FAIL" });
    }
    rules.iter().all(|(_, holds)| *holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inversion_and_a_loss_are_failures() {
        let good = Found { applied: 9, inversions: 0, twice: 0, dead: 0, tried_again: 1, ready: 0 };
        assert!(judge(&good, 9));
        assert!(!judge(&Found { inversions: 1, ..good }, 9));
        assert!(!judge(&Found { applied: 8, ..good }, 9));
    }
}
