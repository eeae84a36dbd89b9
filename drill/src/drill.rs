//! The whole proof, on servers of the operator's: numbered requests, workers that are killed and
//! lines that are cut under load, and the account of every request at the end.
//!
//! ```text
//! target    whose servers, and by which address they are reached
//! scratch   what a drill makes there, by name, and its removal
//! plan      what is published          schedule  which faults come when
//! producer  publishes until confirmed  slot      a worker's place, its lines, what is done to them
//! chaos     the faults in their order  worker    one process, and what it says
//! end       when all is quiet, and the account
//! progress  how far the ledger is      tally     what the workers tell      report
//! ```
//!
//! The work waits for the faults: what is published keeps two steps ahead of them, so that each one
//! meets a queue that is not empty, on a fast machine and on a slow one.

mod chaos;
mod end;
mod plan;
mod producer;
mod progress;
mod report;
mod schedule;
mod scratch;
mod slot;
mod tally;
mod target;
mod worker;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use self::{
    plan::Plan,
    producer::{Leave, Producer},
    progress::Progress,
    scratch::Folder,
    slot::Shared,
};
pub use self::{
    report::{Faults, Report},
    scratch::Scratch,
    tally::Tally,
    target::{Servers, Target, Unfit},
};
use crate::{
    account::{Account, Terms},
    proxy::Proxy,
    stub::{Behaviour, Stub},
};

/// How long `longshore migrate` may take.
const MIGRATE: Duration = Duration::from_secs(90);
/// How long the producer may take for the rest after the last fault.
const PUBLISH: Duration = Duration::from_secs(600);

/// What is wanted of a drill.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many requests.
    pub requests: u64,
    /// How many times a worker is killed, ended or stopped.
    pub kills: u32,
    /// How many times connections are reset.
    pub cuts: u32,
    /// Workers at a time.
    pub workers: usize,
    /// Requests published a second; as fast as it goes where it is left out.
    pub rate: Option<u32>,
    /// What chance begins with.
    pub seed: u64,
    /// After this nothing new is published or done to anybody.
    pub bound: Option<Duration>,
    /// Whether what was made stays at the end.
    pub keep: bool,
    /// The worker's program.
    pub exe: PathBuf,
}

/// Says a line to whoever watches.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Runs a drill; none when `stop` came first. What it made is removed at its end, however that
/// came, unless it is to be kept.
///
/// # Errors
/// When it could not be brought to its end. That a rule is broken is no error, but what the report
/// says.
pub async fn run(
    options: &Options,
    target: &Target,
    say: Say,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Option<Report>> {
    let lines = Lines::start(target).await?;
    let scratch = Scratch::new();
    scratch.check_absent(&lines.amqp, &lines.postgres).await?;
    say(&format!(
        "{}: exchanges and queues {0}*, schema {}, on {target}",
        scratch.prefix, scratch.schema
    ));
    let mut tasks = Tasks::default();
    let ended = tokio::select! {
        biased;
        () = stop => Ok(None),
        ran = drill(options, target, &scratch, &lines, &mut tasks, &say) => ran.map(Some),
    };
    // Workers die with their tasks, before what they use is removed.
    tasks.slots.shutdown().await;
    tasks.others.shutdown().await;
    if options.keep {
        say(&format!(
            "kept; `longshore drill --remove {}` removes it, with the same settings",
            scratch.prefix
        ));
    } else if let Err(left) = scratch.remove(&lines.amqp, &lines.postgres).await {
        say(&format!(
            "not removed: {left}. `longshore drill --remove {}` tries again, with the same settings",
            scratch.prefix
        ));
    } else {
        say("removed everything that this drill had made");
    }
    ended
}

/// Removes what an earlier drill has left.
///
/// # Errors
/// What could not be removed, all of it.
pub async fn remove(scratch: &Scratch, target: &Target) -> Result<(), String> {
    let lines = Lines::start(target).await.map_err(|error| format!("{error:#}"))?;
    scratch.remove(&lines.amqp, &lines.postgres).await
}

/// The drill's own lines, which are not cut, and the producer's, which is. Own lines go by a proxy
/// as well, so that every address is one that each client library can read.
struct Lines {
    amqp: String,
    postgres: String,
    producer: Proxy,
    producer_url: String,
    _own: [Proxy; 2],
}

impl Lines {
    async fn start(target: &Target) -> anyhow::Result<Self> {
        let (broker, postgres) =
            (Proxy::start(target.broker).await?, Proxy::start(target.postgres).await?);
        let producer = Proxy::start(target.broker).await?;
        Ok(Self {
            amqp: target.amqp_url(broker.addr),
            postgres: target.postgres_url(postgres.addr),
            producer_url: target.amqp_url(producer.addr),
            producer,
            _own: [broker, postgres],
        })
    }
}

/// What runs beside the drill; dropped, it ends.
#[derive(Default)]
struct Tasks {
    slots: JoinSet<anyhow::Result<()>>,
    others: JoinSet<()>,
}

async fn drill(
    options: &Options,
    target: &Target,
    scratch: &Scratch,
    lines: &Lines,
    tasks: &mut Tasks,
    say: &Say,
) -> anyhow::Result<Report> {
    let folder = Folder::new(scratch)?;
    let stub = Stub::start("127.0.0.1:0").await?;
    // Long enough for calls to be under way at any moment; a tenth of the others fails.
    stub.behave("call", Behaviour::Ok { latency_ms: 20 });
    stub.behave("flaky", Behaviour::Fail { share: 0.1, seed: options.seed });
    let faults = schedule::schedule(options.requests, options.kills, options.cuts, options.seed);
    let settings = folder.write("longshore.toml", &scratch.settings(&stub.url, faults.len()))?;
    let shared = Arc::new(Shared {
        exe: options.exe.clone(),
        settings,
        target: target.clone(),
        tally: Mutex::default(),
        faults: Mutex::new(Faults {
            kills_planned: options.kills,
            cuts_planned: options.cuts,
            ..Faults::default()
        }),
        started: Mutex::default(),
    });
    migrate(&shared, lines).await?;
    scratch.install(&lines.postgres).await?;

    let orders = chaos::begin(options, &shared, tasks).await?;
    let account = Arc::new(Mutex::new(Account::on(Terms {
        applying: plan::KINDS.map(str::to_owned).to_vec(),
        calling: plan::CALLING.map(str::to_owned).to_vec(),
        counted: None,
        all_done: true,
    })));
    let confirmed = watch::Sender::new(0);
    let progress = Progress::start(&lines.postgres, &scratch.schema, &mut tasks.others);
    let (leave, given) =
        watch::channel(Leave::UpTo(schedule::allowed(options.requests, faults.len(), 0)));
    tasks.others.spawn(producer::listen(
        lines.amqp.clone(),
        scratch.replies(),
        Arc::clone(&account),
    ));
    tasks.others.spawn(progress::tell(
        Arc::clone(say),
        progress.clone(),
        confirmed.subscribe(),
        Arc::clone(&shared),
    ));
    let producer = Producer {
        url: lines.producer_url.clone(),
        exchange: scratch.prefix.clone(),
        replies: scratch.replies(),
        account: Arc::clone(&account),
        leave: given,
        confirmed: confirmed.clone(),
    };
    let (published, publishing) = tokio::sync::oneshot::channel();
    let plan = Plan::new(options.requests, options.seed);
    let rate = options.rate;
    tasks.others.spawn(async move {
        producer.run(plan, rate).await;
        // Nobody waits any more when the drill was given up.
        let _told = published.send(()).is_ok();
    });

    let began = Instant::now();
    let mut notes = Vec::new();
    let story = async {
        let chaos = chaos::run(options, &faults, &orders, &shared, lines, &leave, progress.clone());
        let in_time = match options.bound {
            Some(bound) => timeout_at(began + bound, chaos).await.is_ok(),
            None => {
                chaos.await;
                true
            }
        };
        if !in_time {
            notes.push("the time was up before everything planned had happened".to_owned());
            leave.send_replace(Leave::Enough);
        }
        say(&format!("{:7.1} s  the faults are over", began.elapsed().as_secs_f64()));
        timeout(PUBLISH, publishing)
            .await
            .context("the broker did not confirm what was published, see its log")??;
        end::quiet(scratch, lines, progress.clone(), &mut notes).await
    };
    tokio::select! {
        told = story => told?,
        failed = tasks.slots.join_next() => match failed {
            Some(failed) => bail!("{:#}", failed.map_or_else(Into::into, |ended| {
                ended.err().unwrap_or_else(|| anyhow::anyhow!("a worker's place was given up"))
            })),
            None => bail!("no worker is left"),
        },
    }
    let took = began.elapsed();
    // Nobody gives orders any more: the workers drain.
    drop(orders);
    while let Some(ended) = tasks.slots.join_next().await {
        ended??;
    }
    say(&format!("{:7.1} s  the workers have drained; the account", began.elapsed().as_secs_f64()));
    let ended = progress.borrow().ended;
    let account = end::settle(scratch, lines, &stub, &account, &mut notes).await?;
    let (workers_started, workers_failed) = *shared.started();
    let (faults, told) = (shared.faults().clone(), shared.told());
    if faults.kills() < options.kills || faults.cuts() < options.cuts {
        notes.push("not every fault took place as planned, see kills and cuts".to_owned());
    }
    Ok(Report {
        name: scratch.prefix.clone(),
        seed: options.seed,
        requests_planned: options.requests,
        requests_confirmed: *confirmed.borrow(),
        workers: options.workers,
        workers_started,
        workers_failed,
        seconds: took.as_secs_f64(),
        requests_per_second: ended as f64 / took.as_secs_f64(),
        faults,
        told,
        passed: account.passed(),
        account,
        notes,
    })
}

async fn migrate(shared: &Shared, lines: &Lines) -> anyhow::Result<()> {
    let mut command = shared.command(&lines.amqp, &lines.postgres);
    let output = timeout(MIGRATE, command.arg("migrate").output())
        .await
        .with_context(|| format!("`longshore migrate` did not end within {MIGRATE:?}"))??;
    if !output.status.success() {
        bail!("the scratch schema: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
