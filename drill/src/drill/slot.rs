//! One place for a worker process, with lines of its own to broker and database. Whoever dies in
//! it is followed by another, as an orchestrator would have it.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::bail;
use rustix::process::Signal;
use tokio::{
    process::Command,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    report::Faults,
    schedule::Fault,
    scratch::HEARTBEAT,
    tally::Tally,
    target::Target,
    worker::{READY, Worker},
};
use crate::proxy::{Direction, Proxy};

/// The broker gives a peer up after two heartbeats, and looks once in each.
const FREEZE: Duration = HEARTBEAT.saturating_mul(4);
/// How long a cut waits for a connection that it can meet: a server may be away meanwhile.
const MEET: Duration = Duration::from_secs(60);
/// How often a worker is frozen until the broker has given it up; one that was not connected to
/// begin with does not count.
const FREEZES: u32 = 3;
/// How long until the next worker when one has failed by itself.
const AGAIN: Duration = Duration::from_millis(500);
/// So many in a row without ever consuming are a reason to give up.
const HOPELESS: u32 = 60;
/// The variables that a worker inherits. Nothing of the operator's settings may reach it.
const INHERITED: [&str; 5] = ["PATH", "HOME", "TZ", "TMPDIR", "RUST_MIN_STACK"];

/// What all slots share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) exe: PathBuf,
    pub(super) settings: PathBuf,
    pub(super) target: Target,
    pub(super) tally: Mutex<Tally>,
    pub(super) faults: Mutex<Faults>,
    pub(super) started: Mutex<(u32, u32)>,
}

impl Shared {
    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workers started, and workers that ended without having been asked to.
    pub(super) fn started(&self) -> MutexGuard<'_, (u32, u32)> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the workers have told so far.
    pub(super) fn told(&self) -> Tally {
        self.tally().clone()
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program with its settings, and nothing of our own environment that could change them.
    pub(super) fn command(&self, amqp: &str, postgres: &str) -> Command {
        let mut command = Command::new(&self.exe);
        command
            .arg("--config")
            .arg(&self.settings)
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("AMQP_URL", amqp)
            .env("DATABASE_URL", postgres)
            .stdin(Stdio::null())
            // Ctrl-C is for the drill, which ends them in order.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// What a slot is told to do. It has been done when the order is dropped.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) fault: Fault,
    pub(super) chance: u64,
    /// Held until it is done.
    pub(super) _turn: (tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedMutexGuard<()>),
}

/// A place for a worker.
pub(super) struct Slot {
    shared: Arc<Shared>,
    broker: Proxy,
    postgres: Proxy,
}

impl Slot {
    pub(super) async fn new(shared: Arc<Shared>) -> anyhow::Result<Self> {
        let broker = Proxy::start(shared.target.broker).await?;
        let postgres = Proxy::start(shared.target.postgres).await?;
        Ok(Self { shared, broker, postgres })
    }

    /// Keeps a worker running, and does to it what is ordered, until nobody can order any more;
    /// then drains it. Connected tells whether one has ever consumed.
    pub(super) async fn live(
        self,
        mut orders: mpsc::Receiver<Order>,
        connected: watch::Sender<bool>,
    ) -> anyhow::Result<()> {
        let mut hopeless = 0;
        loop {
            let target = &self.shared.target;
            let (amqp, postgres) =
                (target.amqp_url(self.broker.addr), target.postgres_url(self.postgres.addr));
            let mut worker = Worker::start(&self.shared, &amqp, &postgres)?;
            let ended = loop {
                let order = tokio::select! {
                    status = worker.child.wait() => break Some(status?),
                    _ = worker.consumes.wait_for(|seen| seen.connected), if !*connected.borrow() => {
                        _ = connected.send_replace(true);
                        continue;
                    }
                    order = orders.recv() => order,
                };
                let Some(order) = order else {
                    return self.end(worker).await;
                };
                if self.carry_out(&order, &mut worker).await? {
                    break None;
                }
            };
            if let Some(status) = ended {
                self.shared.started().1 += 1;
                let consumed = worker.consumes.borrow().connections > 0;
                hopeless = if consumed { 0 } else { hopeless + 1 };
                if hopeless == HOPELESS {
                    bail!("workers end before they consume, {status}; {}", worker.last_words());
                }
                sleep(AGAIN).await;
            }
        }
    }

    /// Does to the worker, or to its lines, what is ordered; true when it has ended by that.
    async fn carry_out(&self, order: &Order, worker: &mut Worker) -> anyhow::Result<bool> {
        // A fault is to meet work, but one that finds none for long is not put off for ever.
        worker.until_connected().await;
        match order.fault {
            Fault::Kill => {
                let killed = worker.process.signal(Signal::KILL);
                worker.child.wait().await?;
                worker.hear_out().await;
                self.shared.faults().sigkill += u32::from(killed);
                Ok(true)
            }
            Fault::Terminate => {
                let status = worker.terminate().await?;
                let mut faults = self.shared.faults();
                faults.sigterm += 1;
                faults.sigterm_clean += u32::from(status.is_some_and(|status| status.success()));
                Ok(true)
            }
            Fault::Freeze => {
                for _try in 0..FREEZES {
                    if self.freeze(worker).await {
                        break;
                    }
                }
                Ok(false)
            }
            Fault::CutBroker | Fault::CutPostgres | Fault::CutProducer => {
                let broker = order.fault == Fault::CutBroker;
                let line = if broker { &self.broker } else { &self.postgres };
                let reset = cut(line, order.chance).await;
                let mut faults = self.shared.faults();
                faults.connections_reset += reset;
                let cuts = if broker { &mut faults.cuts_broker } else { &mut faults.cuts_postgres };
                *cuts += u32::from(reset > 0);
                Ok(false)
            }
        }
    }

    /// Stops a worker until the broker must have given it up, and lets it go on; whether it was.
    async fn freeze(&self, worker: &mut Worker) -> bool {
        worker.until_connected().await;
        let before = worker.consumes.borrow().disconnected;
        worker.process.signal(Signal::STOP);
        // The fault itself: so long it hears and says nothing.
        sleep(FREEZE).await;
        let went_on = worker.process.signal(Signal::CONT);
        let noticed = worker.consumes.wait_for(|seen| seen.disconnected > before);
        let noticed = timeout(READY, noticed).await.is_ok_and(|seen| seen.is_ok());
        let mut faults = self.shared.faults();
        faults.sigstop += u32::from(went_on);
        faults.sigstop_disconnected += u32::from(noticed);
        noticed
    }

    /// The drain at the end of the drill: the account is drawn up when nobody works.
    async fn end(&self, mut worker: Worker) -> anyhow::Result<()> {
        let status = worker.terminate().await?;
        if status.is_none_or(|status| !status.success()) {
            let status = status.map_or("had to be killed".to_owned(), |status| status.to_string());
            bail!("a worker did not drain at the end, {status}; {}", worker.last_words());
        }
        Ok(())
    }
}

/// Resets the connections of a line, half of the times in the middle of a frame; how many it met.
pub(super) async fn cut(line: &Proxy, chance: u64) -> u64 {
    let before = line.counters().cut;
    let met = || line.counters().cut - before;
    let until = Instant::now() + MEET;
    if chance.is_multiple_of(2) {
        let way =
            if chance.is_multiple_of(4) { Direction::FromClient } else { Direction::FromUpstream };
        line.cut_after_bytes((chance >> 8) % 20_000, way);
        while met() == 0 && Instant::now() + MEET * 5 / 6 < until {
            sleep(Duration::from_millis(10)).await;
        }
        line.pass();
    }
    while met() == 0 && Instant::now() < until {
        line.cut();
        sleep(Duration::from_millis(50)).await;
    }
    met()
}
