//! `make drill`: `longshore drill` at full size, on a broker and a database of its own, both of which
//! are stopped and killed under it meanwhile.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, timeout},
};

use crate::{place, postgres::Postgres, rabbit::Rabbit};

/// How long the whole may take.
const WHOLE: Duration = Duration::from_secs(15 * 60);
/// A quorum queue of RabbitMQ 3.10.8 was seen to be lost with a node that was killed about a second
/// after its declaration: nothing is restarted before this.
const DECLARED: Duration = Duration::from_secs(5);

/// How much of everything.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many requests.
    #[arg(long, default_value_t = 200_000)]
    requests: u64,
    /// How many times a worker is killed, ended or stopped.
    #[arg(long, default_value_t = 72)]
    kills: u64,
    /// How many times connections are cut.
    #[arg(long, default_value_t = 30)]
    cuts: u64,
    /// How many times the broker is restarted, and as often the database.
    #[arg(long, default_value_t = 5)]
    restarts: u64,
    /// Workers at a time.
    #[arg(long, default_value_t = 4)]
    workers: u16,
    /// Begin chance with this number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Which server, and how it goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    Rabbit { killed: bool },
    Postgres { killed: bool },
}

/// The broker and the database in turn, each in order first and killed the next time.
fn restarts(each: u64) -> Vec<Restart> {
    (0..each)
        .map(|turn| turn % 2 == 1)
        .flat_map(|killed| [Restart::Rabbit { killed }, Restart::Postgres { killed }])
        .collect()
}

/// Runs it; false when a rule is broken, or when less happened than was wanted.
///
/// # Errors
/// When something could not be started, or the drill did not come to its end.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = place::Private::new("drill")?;
    println!("starting a RabbitMQ and a Postgres of this drill's own ...");
    let mut rabbit = Rabbit::start(folder.path().join("rabbitmq"), "drill").await?;
    let mut postgres = Postgres::start(folder.path().join("postgres")).await?;
    let database = postgres.create_database("drill", None).await?;
    let json = place::root().join("drill.json");

    let mut command = Command::new(program()?);
    command
        .args(["drill", "--requests", &options.requests.to_string()])
        .args(["--kills", &options.kills.to_string(), "--cuts", &options.cuts.to_string()])
        .args(["--workers", &options.workers.to_string(), "--seed", &options.seed.to_string()])
        .arg("--json")
        .arg(&json)
        .env("AMQP_URL", rabbit.url())
        .env("DATABASE_URL", &database)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut drill = command.spawn().context("the drill cannot be started")?;
    let mut lines = BufReader::new(drill.stdout.take().context("no output")?).lines();
    let (told, ended) = watch::channel(0);
    let reading = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            println!("{line}");
            if let Some(count) = ended_in(&line) {
                told.send_replace(count);
            }
        }
    });
    let planned = restarts(options.restarts);
    let mut done = 0;
    let status = {
        let chaos = async {
            for (turn, restart) in (1..).zip(&planned) {
                let after = options.requests * turn / (planned.len() as u64 + 1);
                if !until_ended(ended.clone(), after).await {
                    return Ok(());
                }
                println!("          {restart:?}");
                again(*restart, &mut rabbit, &mut postgres).await?;
                println!("          {restart:?} is back");
                done += 1;
            }
            anyhow::Ok(())
        };
        let both = async {
            let (restarted, status) = tokio::join!(chaos, drill.wait());
            restarted?;
            anyhow::Ok(status?)
        };
        tokio::select! {
            both = timeout(WHOLE, both) => both.with_context(|| format!("it took longer than {WHOLE:?}"))??,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    };
    reading.await?;
    let report: Value = serde_json::from_slice(
        &std::fs::read(&json).context("the drill left no report, see above")?,
    )?;
    let missing = missing(options, &report, done);
    println!(
        "\n{} restarts of RabbitMQ and {} of Postgres, each second one by kill -9; {:.0} s in all; report: {}",
        done.div_ceil(2),
        done / 2,
        began.elapsed().as_secs_f64(),
        json.display()
    );
    for missing in &missing {
        println!("not as wanted: {missing}");
    }
    Ok(status.success() && missing.is_empty())
}

/// What has not happened as often as was wanted: a drill without its faults proves nothing.
fn missing(options: &Options, report: &Value, restarts: usize) -> Vec<String> {
    let fault = |names: &[&str]| -> u64 {
        names.iter().filter_map(|name| report["faults"][name].as_u64()).sum()
    };
    let confirmed = report["requests_confirmed"].as_u64().unwrap_or_default();
    [
        ("requests confirmed", confirmed, options.requests),
        ("kills", fault(&["sigkill", "sigterm", "sigstop_disconnected"]), options.kills),
        ("cuts", fault(&["cuts_broker", "cuts_postgres", "cuts_producer"]), options.cuts),
        ("restarts", restarts as u64, 2 * options.restarts),
    ]
    .into_iter()
    .filter(|(_, was, wanted)| was < wanted)
    .map(|(what, was, wanted)| format!("{was} {what} of {wanted}"))
    .collect()
}

/// The number of requests that have come to their end, in a line of the drill's progress.
fn ended_in(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("  ended ")?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Waits until so many have; false when the drill is over before.
async fn until_ended(mut ended: watch::Receiver<u64>, after: u64) -> bool {
    let declared = Instant::now() + DECLARED;
    let reached = ended.wait_for(|count| *count >= after && Instant::now() >= declared);
    reached.await.is_ok()
}

async fn again(
    restart: Restart,
    rabbit: &mut Rabbit,
    postgres: &mut Postgres,
) -> anyhow::Result<()> {
    match restart {
        Restart::Rabbit { killed: true } => rabbit.kill().await,
        Restart::Rabbit { killed: false } => rabbit.stop().await?,
        Restart::Postgres { killed: true } => postgres.kill().await,
        Restart::Postgres { killed: false } => postgres.stop().await?,
    }
    match restart {
        Restart::Rabbit { .. } => rabbit.start_again().await,
        Restart::Postgres { .. } => postgres.start_again().await,
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let mut program = std::env::current_exe()?;
    program.set_file_name("longshore");
    if !program.exists() {
        bail!("{} is not there, build it with `cargo build --workspace`", program.display());
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_servers_go_down_as_often_and_in_both_ways() {
        let planned = restarts(5);
        assert_eq!(planned.len(), 10);
        for restart in [
            Restart::Rabbit { killed: true },
            Restart::Rabbit { killed: false },
            Restart::Postgres { killed: true },
            Restart::Postgres { killed: false },
        ] {
            assert!(planned.iter().filter(|planned| **planned == restart).count() >= 2);
        }
    }

    #[test]
    fn the_progress_of_a_drill_is_understood() {
        let line = "    2.0 s  confirmed 2000  ended 1821  open 57  kills 2  cuts 2";
        assert_eq!(ended_in(line), Some(1_821));
        assert_eq!(ended_in("removed everything"), None);
    }

    #[test]
    fn a_drill_in_which_too_little_happened_is_told_of() {
        let options = Options { requests: 10, kills: 3, cuts: 2, restarts: 1, workers: 1, seed: 1 };
        let mut report = json!({
            "requests_confirmed": 10,
            "faults": {
                "sigkill": 1, "sigterm": 1, "sigstop": 1, "sigstop_disconnected": 1,
                "cuts_broker": 1, "cuts_postgres": 1, "cuts_producer": 0,
            },
        });
        assert_eq!(missing(&options, &report, 2), Vec::<String>::new());
        report["faults"]["sigstop_disconnected"] = json!(0);
        assert_eq!(missing(&options, &report, 1), ["2 kills of 3", "1 restarts of 2"]);
    }
}
