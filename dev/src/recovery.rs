//! `make recovery`: how soon the worker goes on after its servers have come back.
//!
//! A broker and a Postgres of its own are stopped in order and killed in turn, again and again,
//! while a worker with its usual settings works through a queue. What is measured is the time from
//! the moment a server answers again to the first request that is done, as the ledger has it. At
//! the end every request is accounted for.
//!
//! | room | what it knows |
//! |---|---|
//! | `fleet` | the servers, the worker, the stub |
//! | `load` | what is published |
//! | `back` | the moment at which a server answers again |

mod back;
mod fleet;
mod load;

use std::{fmt, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep, timeout};

use self::fleet::Fleet;
use crate::{
    account::{self, Report},
    bench::spread::{self, Spread},
};

/// How long all of it may take.
const ALL: Duration = Duration::from_secs(12 * 60);
/// How long after a return the first request may take before it counts as not going on.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How often the ledger is asked.
const ASK: Duration = Duration::from_millis(20);
/// So many requests are done between two restarts: it has gone on, and not only stirred.
const BETWEEN: i64 = 40;
/// How long the rest may take at the end.
const SETTLE: Duration = Duration::from_secs(120);

/// How often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often each server is restarted, in order and by a kill in turn.
    #[arg(long, default_value_t = 20)]
    restarts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Rabbit,
    Postgres,
}

impl Server {
    const BOTH: [Self; 2] = [Self::Rabbit, Self::Postgres];

    fn name(self) -> &'static str {
        match self {
            Self::Rabbit => "RabbitMQ",
            Self::Postgres => "Postgres",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    InOrder,
    Killed,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::InOrder => "stopped in order",
            Self::Killed => "killed",
        }
    }
}

/// One restart.
#[derive(Debug, Clone, Copy)]
struct Sample {
    server: Server,
    way: Way,
    /// From the first answer of the server to the first request done.
    seconds: f64,
}

/// Restarts, measures, prints the numbers; the account says whether anything was lost or doubled.
///
/// # Errors
/// When something cannot be started, or the worker does not go on after a return.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    timeout(ALL, measure(options.restarts))
        .await
        .with_context(|| format!("the measurement was not over within {ALL:?}"))?
}

async fn measure(restarts: u32) -> anyhow::Result<Report> {
    println!("starting a RabbitMQ and a Postgres of their own …");
    let mut fleet = Fleet::open().await?;
    let requests = restarts as usize * 2 * (BETWEEN as usize + load::MARGIN);
    let account = load::publish(&fleet.stage.rabbit.url(), requests).await?;
    println!("{requests} requests are in the queue, a worker with the usual settings begins");
    fleet.start_worker().await?;
    let mut samples = Vec::new();
    for server in Server::BOTH {
        for number in 0..restarts {
            let way = if number % 2 == 0 { Way::InOrder } else { Way::Killed };
            until_more(&mut fleet, BETWEEN).await?;
            let seconds = restart(&mut fleet, server, way).await.with_context(|| {
                format!("{} {}, restart {}", server.name(), way.name(), number + 1)
            })?;
            println!("{:<9} {:<17} {seconds:>7.3} s", server.name(), way.name());
            samples.push(Sample { server, way, seconds });
        }
    }
    fleet.hurry().await?;
    until_all(&mut fleet, requests as i64).await?;
    account::until_empty(&fleet.stage.rabbit.url(), load::QUEUE, SETTLE).await?;
    let report = account.check(&account::observe(&fleet.sources()).await?);
    fleet.stop_worker().await?;
    println!("\n{}\nThe account\n{report}", Table(&samples));
    Ok(report)
}

/// Takes a server away and brings it back; the seconds from its first answer to the first request
/// done.
async fn restart(fleet: &mut Fleet, server: Server, way: Way) -> anyhow::Result<f64> {
    let back = match server {
        Server::Rabbit => {
            match way {
                Way::InOrder => fleet.stage.rabbit.stop().await?,
                Way::Killed => fleet.stage.rabbit.kill().await,
            }
            let probe = back::broker(fleet.stage.rabbit.address());
            let (started, back) = tokio::join!(fleet.stage.rabbit.start_again(), probe);
            started?;
            back?
        }
        Server::Postgres => {
            match way {
                Way::InOrder => fleet.stage.postgres.stop().await?,
                Way::Killed => fleet.stage.postgres.kill().await,
            }
            let probe = back::postgres(fleet.stage.postgres.admin_url());
            let (started, back) = tokio::join!(fleet.stage.postgres.start_again(), probe);
            started?;
            fleet.reconnect().await?;
            back?
        }
    };
    let give_up = Instant::now() + GIVE_UP;
    loop {
        if let Some(first) = fleet.first_done_after(back).await? {
            return Ok(first - back);
        }
        if Instant::now() > give_up {
            bail!("nothing was done within {GIVE_UP:?} of the return, {}", fleet.tail());
        }
        sleep(ASK).await;
    }
}

async fn until_more(fleet: &mut Fleet, more: i64) -> anyhow::Result<()> {
    let wanted = fleet.done().await? + more;
    until_all(fleet, wanted).await
}

async fn until_all(fleet: &mut Fleet, wanted: i64) -> anyhow::Result<()> {
    let give_up = Instant::now() + SETTLE;
    loop {
        let done = fleet.done().await?;
        if done >= wanted {
            return Ok(());
        }
        if Instant::now() > give_up {
            bail!("{done} of {wanted} requests are done and it does not go on, {}", fleet.tail());
        }
        sleep(ASK).await;
    }
}

/// The numbers, a row for each server and way.
struct Table<'a>(&'a [Sample]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "From a server's first answer to the first request done, in seconds")?;
        writeln!(f, "| server | restarts | median | worst |\n|---|---|---|---|")?;
        for server in Server::BOTH {
            for ways in [&[Way::InOrder][..], &[Way::Killed], &[Way::InOrder, Way::Killed]] {
                let of_it =
                    |sample: &&Sample| sample.server == server && ways.contains(&sample.way);
                let seconds = || self.0.iter().filter(of_it).map(|sample| sample.seconds);
                let Spread { median, most, .. } = spread::of(seconds());
                let names: Vec<&str> = ways.iter().map(|way| way.name()).collect();
                let (count, how) = (seconds().count(), names.join(" or "));
                let server = server.name();
                writeln!(f, "| {server} | {count} × {how} | {median:.2} | {most:.2} |")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_median_and_worst_of_each_way() {
        let sample = |way, seconds| Sample { server: Server::Rabbit, way, seconds };
        let samples = [
            sample(Way::InOrder, 1.0),
            sample(Way::Killed, 5.0),
            sample(Way::InOrder, 2.0),
            sample(Way::InOrder, 9.0),
        ];
        let table = Table(&samples).to_string();
        assert!(table.contains("| RabbitMQ | 3 × stopped in order | 2.00 | 9.00 |"), "{table}");
        assert!(table.contains("| RabbitMQ | 1 × killed | 5.00 | 5.00 |"), "{table}");
        assert!(table.contains("| RabbitMQ | 4 × stopped in order or killed | 3.50 | 9.00 |"));
    }
}
