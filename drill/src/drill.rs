//! The whole proof, on servers of the operator's: numbered requests, workers that are killed and
//! lines that are cut under load, and the account of every request at the end.
//!
//! ```text
//! target    whose servers, and by which address they are reached
//! scratch   what a drill makes there, by name, and its removal
//! plan      what is published          schedule  which faults come when
//! producer  publishes until confirmed  slot      a worker, its lines, and what is done to them
//! progress  how far the ledger is      tally     what the workers tell      report
//! ```
//!
//! The work waits for the faults: what is published keeps two steps ahead of them, so that each one
//! meets a queue that is not empty, on a fast machine and on a slow one.

mod plan;
mod producer;
mod progress;
mod report;
mod schedule;
mod scratch;
mod slot;
mod tally;
mod target;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    sync::{Mutex as Turn, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use self::{
    plan::Plan,
    producer::{Leave, Producer},
    progress::{Counts, Progress},
    schedule::{Fault, Planned},
    scratch::Folder,
    slot::{Order, Shared, Slot},
};
pub use self::{
    report::{Faults, Report},
    scratch::Scratch,
    tally::Tally,
    target::{Servers, Target, Unfit},
};
use crate::{
    account::{self, Account, Sources, Terms},
    proxy::Proxy,
    stub::{Behaviour, Stub},
};

/// How long `longshore migrate` may take, and the first worker until it consumes.
const BEGIN: Duration = Duration::from_secs(90);
/// How long a fault waits for work to have been done while nothing moves at all.
const STALLED: Duration = Duration::from_secs(10);
/// How long the producer may take for the rest after the last fault.
const PUBLISH: Duration = Duration::from_secs(600);
/// How long nothing may move before what is left is taken for left over.
const STUCK: Duration = Duration::from_secs(90);
/// How long an account that does not add up is drawn up again: dead letters arrive when they do.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
const BETWEEN: Duration = Duration::from_millis(250);

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

    let orders = begin(options, &shared, tasks).await?;
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
        let chaos = chaos(options, &faults, &orders, &shared, lines, &leave, progress.clone());
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
        quiet(scratch, lines, progress.clone(), &mut notes).await
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
    let account = settle(scratch, lines, &stub, &account, &mut notes).await?;
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
    let output = timeout(BEGIN, command.arg("migrate").output())
        .await
        .with_context(|| format!("`longshore migrate` did not end within {BEGIN:?}"))??;
    if !output.status.success() {
        bail!("the scratch schema: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Where orders go, and who is busy with one.
struct Orders {
    slots: Vec<(mpsc::Sender<Order>, Arc<Turn<()>>)>,
    /// All but one worker may be busy: somebody works on.
    turns: Arc<Semaphore>,
    most: u32,
}

/// Starts the workers and waits until each consumes; the first of them declares the queues.
async fn begin(
    options: &Options,
    shared: &Arc<Shared>,
    tasks: &mut Tasks,
) -> anyhow::Result<Orders> {
    let mut slots = Vec::new();
    for _ in 0..options.workers {
        let slot = Slot::new(Arc::clone(shared)).await?;
        let (orders, orders_in) = mpsc::channel(1);
        let (connected, mut consumes) = watch::channel(false);
        tasks.slots.spawn(slot.live(orders_in, connected));
        tokio::select! {
            ready = timeout(BEGIN, consumes.wait_for(|connected| *connected)) => {
                ready.with_context(|| format!("no worker consumed within {BEGIN:?}"))??;
            }
            Some(ended) = tasks.slots.join_next() => {
                ended??;
                bail!("a worker's place was given up");
            }
        }
        slots.push((orders, Arc::default()));
    }
    let most = u32::try_from(options.workers).unwrap_or(u32::MAX).saturating_sub(1).max(1);
    Ok(Orders { slots, turns: Arc::new(Semaphore::new(most as usize)), most })
}

/// One fault after the other, each when its time has come, until all are over.
async fn chaos(
    options: &Options,
    faults: &[Planned],
    orders: &Orders,
    shared: &Shared,
    lines: &Lines,
    leave: &watch::Sender<Leave>,
    mut progress: watch::Receiver<Counts>,
) {
    for (over, planned) in faults.iter().enumerate() {
        let far_enough = |counts: &Counts| counts.ended >= planned.after;
        while !far_enough(&progress.borrow_and_update()) {
            // A server that is away for long is no reason not to go on.
            if timeout(STALLED, progress.changed()).await.is_err() {
                break;
            }
        }
        let now = schedule::allowed(options.requests, faults.len(), over + 1);
        if planned.fault == Fault::CutProducer {
            // Before the cut, for it is to meet publishes that nobody has confirmed.
            leave.send_replace(Leave::UpTo(now));
            let reset = slot::cut(&lines.producer, planned.chance).await;
            let mut faults = shared.faults();
            faults.connections_reset += reset;
            faults.cuts_producer += u32::from(reset > 0);
        } else if let Ok(turn) = Arc::clone(&orders.turns).acquire_owned().await {
            let count = orders.slots.len();
            let first = usize::try_from(planned.chance % count as u64).unwrap_or_default();
            let free = (0..count).map(|turn| &orders.slots[(first + turn) % count]);
            let free = free
                .filter_map(|(slot, busy)| Some((slot, Arc::clone(busy).try_lock_owned().ok()?)));
            if let Some((slot, busy)) = free.take(1).next() {
                let Planned { fault, chance, .. } = *planned;
                // A slot that is gone has failed, and the drill with it.
                let _sent = slot.send(Order { fault, chance, _turn: (turn, busy) }).await.is_ok();
            }
        }
        leave.send_replace(Leave::UpTo(now));
    }
    let _all = orders.turns.acquire_many(orders.most).await.is_ok();
    leave.send_replace(Leave::UpTo(u64::MAX));
}

/// Waits until nothing is open and the queue is empty, or nothing moves any more.
async fn quiet(
    scratch: &Scratch,
    lines: &Lines,
    mut progress: watch::Receiver<Counts>,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut last = *progress.borrow();
    let mut moved = Instant::now();
    loop {
        let queue = scratch.queue();
        let empty = account::until_empty(&lines.amqp, &queue, Duration::ZERO).await.is_ok();
        // The ledger as it is after the queue was seen empty.
        for _look in 0..2 {
            progress.borrow_and_update();
            let _looked = timeout(STALLED, progress.changed()).await.is_ok();
        }
        let counts = *progress.borrow();
        if empty && counts.open == 0 && counts.ended == last.ended {
            return Ok(());
        }
        if (counts.open, counts.ended) != (last.open, last.ended) {
            (last, moved) = (counts, Instant::now());
        }
        if moved.elapsed() > STUCK {
            notes.push(format!("nothing moved for {STUCK:?}, so it was not waited for longer"));
            return Ok(());
        }
        sleep(BETWEEN).await;
    }
}

/// The account; one that does not add up is drawn up again for a while.
async fn settle(
    scratch: &Scratch,
    lines: &Lines,
    stub: &Stub,
    account: &Mutex<Account>,
    notes: &mut Vec<String>,
) -> anyhow::Result<account::Report> {
    let sources = Sources {
        pg_url: lines.postgres.clone(),
        amqp_url: lines.amqp.clone(),
        queues: vec![scratch.queue()],
        dead_queue: scratch.dead(),
        schema: scratch.schema.clone(),
        effects: Some(scratch.effects()),
        users: None,
        stub_url: Some(stub.url.clone()),
    };
    let began = Instant::now();
    for look in 1.. {
        let observed = account::observe(&sources).await?;
        let report = account.lock().unwrap_or_else(PoisonError::into_inner).check(&observed);
        if report.passed() || began.elapsed() > LOOK_AGAIN {
            if look > 1 {
                let took = began.elapsed().as_secs_f64();
                notes.push(format!("the account was drawn up {look} times in {took:.1} s"));
            }
            return Ok(report);
        }
        sleep(BETWEEN * 8).await;
    }
    bail!("the account was never drawn up")
}
