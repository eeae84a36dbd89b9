//! `make demo`: the worker at work, with trouble on the way, and an account of every request.
//!
//! Real requests of all four kinds of the example service, duplicates and bad ones among them, go
//! through a real broker to a real worker, while its mailer fails for a while and it is itself
//! stopped, started, killed and started again. At the end everything published is looked for.

mod plan;
mod producer;
mod progress;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use self::{plan::Plan, producer::Producer, progress::Progress};
use crate::{
    account::{self, Account, Observed, Report, Sources},
    place,
    process::Process,
    server,
    services::Services,
    stub,
    worker::{self, Worker},
};

/// How many requests are published, repetitions not counted.
const REQUESTS: usize = 6_000;
/// How many a second, so that there is time to watch.
const RATE: u32 = 500;
/// How long after the last was published everything must have come to its end.
const SETTLE: Duration = Duration::from_secs(120);
/// How long the mailer fails.
const FAILS: Duration = Duration::from_secs(5);
/// How long the services behind it take: long enough for work to be under way at any moment.
const LATENCY_MS: u64 = 150;
/// The database of the demo, on this checkout's own server.
const DATABASE: &str = "longshore_demo";
/// The names of the contract; the broker is ours alone.
const QUEUE: &str = "longshore.requests";
const DEAD: &str = "longshore.dead";
const EXCHANGE: &str = "longshore";
const ANSWERS: &str = "demo.answers";
/// What there is to clean up at the broker.
const QUEUES: [&str; 3] = [QUEUE, DEAD, ANSWERS];
const EXCHANGES: [&str; 2] = [EXCHANGE, DEAD];

/// What a demo has running beside the servers: `make down` finds it here, however the demo ended.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Kept {
    processes: Vec<Process>,
}

/// Runs the demo; the account says whether it passed. What it started is stopped at its end, also
/// when it fails or is interrupted, unless it is to be kept.
///
/// # Errors
/// When something could not even be started, did not end in time, or a signal came.
pub async fn run(keep: bool) -> anyhow::Result<Report> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let left = stop_kept().await;
    // What an earlier demo kept is this one's to stop; what `make up` started is not.
    let found = !left && Services::running().await?.is_some();
    let shown = tokio::select! {
        shown = show(keep) => shown,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    if keep {
        if shown.is_err() {
            println!("\nthe demo did not come to its end; what runs is kept, `make down` stops it");
        }
        return shown;
    }
    if shown.is_err() {
        println!("\nthe demo did not come to its end; stopping what it started …");
    }
    let stopped = stop(found).await;
    // Why the demo failed matters more than why it could not be cleared away.
    let report = shown?;
    stopped?;
    Ok(report)
}

/// Stops worker and stub, and the servers unless they were found running.
async fn stop(found: bool) -> anyhow::Result<()> {
    stop_kept().await;
    if found {
        println!("stopped; RabbitMQ and Postgres ran before and go on, `make down` stops them");
    } else {
        Services::down().await.context("the servers still run, `make down` stops them")?;
        println!("stopped: worker, stub, RabbitMQ and Postgres");
    }
    Ok(())
}

async fn show(keep: bool) -> anyhow::Result<Report> {
    println!("starting RabbitMQ and Postgres of this checkout …");
    let services = Services::shared().await?;
    let stub_url = start_stub().await?;
    let pg_url = database(&services).await?;
    let amqp_url = services.rabbit.url();
    Producer::clean(&amqp_url, &QUEUES, &EXCHANGES).await?;
    let producer = Producer::connect(&amqp_url).await?;

    let settings = worker::Settings {
        config: place::checkout().join("config/user-service/longshore.toml"),
        amqp_url: amqp_url.clone(),
        pg_url: pg_url.clone(),
        stub_url: stub_url.clone(),
        log: place::root().join("demo-worker.log"),
    };
    settings.command(&["migrate"]).await?;
    let client = longshore_drill::database::connect(&pg_url).await?;
    let sql = tokio::fs::read_to_string(place::checkout().join("config/user-service/service.sql"))
        .await?;
    client.batch_execute(&sql).await.context("the example service cannot be installed")?;
    let mut worker = begin(&settings).await?;
    println!("the worker (pid {}) consumes; its log is {}", worker.pid(), settings.log.display());
    settings.command(&["check"]).await?;

    let account = Arc::new(Mutex::new(Account::new()));
    producer.listen(ANSWERS, account.clone()).await?;
    let published = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let publishing = tokio::spawn(producer.clone().publish(
        Plan::new(REQUESTS),
        RATE,
        account.clone(),
        published.clone(),
    ));
    println!("publishing {REQUESTS} requests, {RATE} a second");
    let mut progress = Progress::new(client, published.clone(), account.clone(), REQUESTS);

    progress.until(|published| published > REQUESTS / 5).await?;
    progress.say("the mailer answers 503 from now on");
    control(&stub_url, "mailer", &json!({"behaviour": "status", "code": 503})).await?;
    let mended = Instant::now() + FAILS;
    progress.until(|_| Instant::now() > mended).await?;
    progress.say("the mailer is well again");
    control(&stub_url, "mailer", &json!({"behaviour": "ok", "latency_ms": LATENCY_MS})).await?;

    progress.until(|published| published > REQUESTS / 2).await?;
    progress.say("SIGTERM to the worker, under load");
    let drained = worker.drain().await?;
    forget_process(worker.process())?;
    progress.say(&format!("drained: {drained}"));
    worker = begin(&settings).await?;
    progress.say(&format!("a new worker (pid {}) consumes", worker.pid()));

    progress.until(|published| published > REQUESTS * 7 / 10).await?;
    progress.say("SIGKILL to the worker, under load");
    worker.kill().await?;
    forget_process(worker.process())?;
    worker = begin(&settings).await?;
    progress.say(&format!("a new worker (pid {}) consumes", worker.pid()));
    progress
        .say("some requests stay `running`: the dead worker's leases must end first (about 20 s)");

    progress.until(|published| published >= REQUESTS).await?;
    publishing.await.context("the producer panicked")??;
    progress.say("everything is published; waiting for the last to come to its end");
    let give_up = Instant::now() + SETTLE;
    while progress.open().await? > 0 {
        if Instant::now() > give_up {
            bail!(
                "requests were still open {SETTLE:?} after the last was published, see {}",
                settings.log.display()
            );
        }
        progress.show().await?;
        sleep(Duration::from_millis(250)).await;
    }
    account::until_empty(&amqp_url, QUEUE, SETTLE).await?;
    // A count of the broker may be early: what it still held is then in the ledger by now.
    while progress.open().await? > 0 && Instant::now() < give_up {
        sleep(Duration::from_millis(250)).await;
    }
    progress.end().await?;

    let sources = Sources {
        pg_url: pg_url.clone(),
        amqp_url: amqp_url.clone(),
        queues: vec![QUEUE.to_owned()],
        dead_queue: DEAD.to_owned(),
        schema: "longshore".to_owned(),
        effects: None,
        users: Some("app.users".to_owned()),
        stub_url: Some(stub_url.clone()),
    };
    let observed = account::observe(&sources).await?;
    let report = account.lock().unwrap_or_else(PoisonError::into_inner).check(&observed);
    println!("\nThe account\n{report}\n{}", sum(&observed, &report));
    if keep {
        println!("still running, `make down` stops it:");
        println!(
            "  worker    pid {}, http://{}/health/ready and /metrics",
            worker.pid(),
            worker.admin()
        );
        println!("  RabbitMQ  {amqp_url}");
        println!("  Postgres  {pg_url}");
        println!("  stub      {stub_url}/_calls");
    } else {
        let drained = worker.drain().await?;
        forget_process(worker.process())?;
        println!("the worker has drained: {drained}");
        Producer::clean(&amqp_url, &QUEUES, &EXCHANGES).await?;
    }
    Ok(report)
}

/// Why the numbers of the account add up: what cannot be read, or not even be stored, has no row.
fn sum(observed: &Observed, report: &Report) -> String {
    let published = report.counts.iter().find(|(name, _)| name == "ids published");
    let published = published.map_or(0, |(_, count)| *count);
    let (rows, unreadable) = (observed.rows.len(), observed.unreadable.len());
    let dead = observed.dead.len();
    let sign = if (rows + unreadable + dead) as u64 == published { "=" } else { "but" };
    format!(
        "Each id is in one place: {rows} rows in the ledger + {unreadable} unreadable (kept whole\n\
         beside them) + {dead} in the broker's dead queue (too large to be stored)\n\
         {sign} {published} ids published. Repetitions of an id are duplicates and have no place of\n\
         their own."
    )
}

/// Ends what an earlier demo left running, or this one has: the worker before the stub it calls.
pub async fn stop_kept() -> bool {
    let Some(kept) = server::read_json::<Kept>(&kept_file()) else { return false };
    for process in kept.processes.iter().rev() {
        if !process.ask(rustix::process::Signal::TERM, Duration::from_secs(30)).await {
            process.kill().await;
        }
    }
    std::fs::remove_file(kept_file()).is_ok() && !kept.processes.is_empty()
}

fn kept_file() -> PathBuf {
    place::root().join("demo.json")
}

/// Starts a worker that is known to `make down` from its first moment, and waits until it consumes.
async fn begin(settings: &worker::Settings) -> anyhow::Result<Worker> {
    let mut command = settings.prepare()?;
    command.arg("run");
    let mut worker = Worker::spawn(command, &settings.log, server::Life::Shared)?;
    keep_process(worker.process())?;
    worker.until_ready().await?;
    Ok(worker)
}

fn keep_process(process: Process) -> anyhow::Result<()> {
    let mut kept =
        server::read_json::<Kept>(&kept_file()).unwrap_or(Kept { processes: Vec::new() });
    kept.processes.push(process);
    server::write_json(&kept_file(), &kept)
}

/// It has ended.
fn forget_process(process: Process) -> anyhow::Result<()> {
    let Some(mut kept) = server::read_json::<Kept>(&kept_file()) else { return Ok(()) };
    kept.processes.retain(|kept| *kept != process);
    server::write_json(&kept_file(), &kept)
}

/// The stub is a process of its own, so that it can stay when the demo has ended.
async fn start_stub() -> anyhow::Result<String> {
    let port = place::free_port()?;
    let bind = format!("127.0.0.1:{port}");
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["stub", "--bind", &bind]);
    let log = place::root().join("demo-stub.log");
    let process = server::spawn(command, &log, server::Life::Shared)?;
    keep_process(process)?;
    let url = format!("http://{bind}");
    server::until_ready("the stub", process, &[&log], || async {
        stub::calls_at(&url).await.map(drop)
    })
    .await?;
    for service in ["mailer", "geocoder"] {
        control(&url, service, &json!({"behaviour": "ok", "latency_ms": LATENCY_MS})).await?;
    }
    Ok(url)
}

async fn control(
    stub_url: &str,
    service: &str,
    behaviour: &serde_json::Value,
) -> anyhow::Result<()> {
    let url = format!("{stub_url}/_control/{service}");
    let sent = stub::client()?
        .put(url)
        .header("content-type", "application/json")
        .body(behaviour.to_string())
        .send()
        .await?;
    if !sent.status().is_success() {
        bail!("the stub did not take the behaviour: {}", sent.text().await?);
    }
    Ok(())
}

async fn database(services: &Services) -> anyhow::Result<String> {
    services.postgres.drop_database(DATABASE).await?;
    services.postgres.create_database(DATABASE, None).await
}
