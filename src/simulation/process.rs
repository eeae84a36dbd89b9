//! One worker: the real corridor, with a simulated subscription as its source.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{
    broker::{Bells, Frame},
    ledger::Memory,
    services,
    world::World,
};
use crate::{
    handler::{Handler, Holding, Suspects},
    house::upkeep,
    ledger::Fence,
    outcome::Settlement,
    pause::Pauses,
    queue::{
        Frames, Inbox,
        stand_in::{self, Epoch, Intake},
    },
    stop::Stop,
    worker::{self, Worker},
};

/// How long a straggler may hold acknowledgements up.
const GAP: Duration = Duration::from_millis(100);
/// How long, in milliseconds, a worker takes to notice that its line is cut: up to this.
const UNNOTICED: u64 = 4_000;
/// How long a pause keeps the subscription.
const PAUSE_HOLD: Duration = Duration::from_secs(2);

pub(super) struct Process {
    pub(super) name: String,
    pub(super) stop: Stop,
    life: Mutex<Life>,
}

struct Life {
    alive: bool,
    frozen_until: Option<Instant>,
    line: Option<u64>,
    stopped_at: Option<Instant>,
    /// The fences of all that was begun.
    begun: BTreeSet<i64>,
}

impl Process {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.life().alive
    }

    /// False when it had ended before.
    pub(super) fn ends(&self) -> bool {
        std::mem::replace(&mut self.life().alive, false)
    }

    pub(super) fn line(&self) -> Option<u64> {
        self.life().line
    }

    pub(super) fn freeze(&self, time: Duration) {
        self.life().frozen_until = Some(Instant::now() + time);
    }

    pub(super) fn frozen_until(&self) -> Option<Instant> {
        self.life().frozen_until.filter(|until| *until > Instant::now())
    }

    /// The first signal; the second one forces.
    pub(super) fn signal(&self, world: &World) {
        if self.life().stopped_at.is_none() {
            world.tell(&self.name, || "is asked to stop".to_owned());
            self.life().stopped_at = Some(Instant::now());
            self.stop.ask();
        } else {
            world.tell(&self.name, || "is forced to stop".to_owned());
            self.stop.force();
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.life().stopped_at.is_some_and(|at| at < Instant::now())
    }

    pub(super) fn has_begun(&self, fence: Fence) {
        self.life().begun.insert(fence.0);
    }

    /// Something is done under this fence. After a stop it must be one that is known.
    pub(super) fn begins(&self, fence: Fence, world: &World) {
        let stopping = self.is_stopping();
        if self.life().begun.insert(fence.0) && stopping {
            world.broke(format!("{} begins a request in a drain", self.name));
        }
    }

    /// Starts a worker.
    pub(super) fn start(world: &Arc<World>, number: usize) -> Arc<Self> {
        let life = Life {
            alive: true,
            frozen_until: None,
            line: None,
            stopped_at: None,
            begun: BTreeSet::new(),
        };
        let process = Arc::new(Self {
            name: format!("worker-{number}"),
            stop: Stop::new(),
            life: Mutex::new(life),
        });
        world.tell(&process.name, || "starts".to_owned());
        let pauses = Pauses::default();
        let (intake, inbox) = Intake::open(process.stop.clone());
        let (close, closed) = oneshot::channel();
        let subscription = Subscription {
            world: Arc::clone(world),
            process: Arc::clone(&process),
            intake,
            pauses: pauses.clone(),
        };
        let ended = tokio::spawn(subscription.run(closed));
        let running = run(Arc::clone(world), Arc::clone(&process), pauses, inbox);
        let (world, it) = (Arc::clone(world), Arc::clone(&process));
        tokio::spawn(async move {
            running.await;
            let _told = close.send(()).is_ok();
            let _ended = ended.await.is_ok();
            world.is_there(&it).await;
            world.tell(&it.name, || "ends".to_owned());
            it.ends();
        });
        process
    }
}

async fn run(world: Arc<World>, process: Arc<Process>, pauses: Pauses, inbox: Inbox) {
    let ledger = Memory::open(&world, &process, pauses.clone());
    let downstream = services::downstream(&world);
    let kinds = services::kinds(&world, &process, &downstream);
    let (replies, mut answers) = stand_in::replies();
    let handler = Arc::new(Handler {
        ledger: Arc::clone(&ledger),
        downstream,
        kinds,
        replies,
        pauses: pauses.clone(),
        holding: Holding::default(),
        suspects: Suspects::default(),
        max_message_bytes: super::MOST_BYTES,
    });
    let settings = worker::Settings {
        concurrency: world.plan.concurrency,
        max_message_bytes: super::MOST_BYTES,
        grace: world.plan.grace,
        counts_interval: Duration::from_secs(3),
    };
    let limits = services::CALLING.map(|(_, name)| (name.to_owned(), world.plan.max_parked));
    let counting = upkeep::count(
        pauses.clone(),
        ledger,
        limits.into_iter().collect(),
        settings.counts_interval,
    );
    let renewing = Arc::clone(&handler);
    let upkeep = [
        tokio::spawn(counting).abort_handle(),
        tokio::spawn(async move { renewing.renew_leases().await }).abort_handle(),
    ];
    let (outside, who) = (Arc::clone(&world), Arc::clone(&process));
    tokio::spawn(async move {
        while let Some(reply) = answers.recv().await {
            outside.is_there(&who).await;
            let id = reply.message_id.unwrap_or_default();
            *outside.state().replies.entry(id).or_default() += 1;
        }
    });
    let drained = Worker::new(handler, settings, pauses, process.stop.clone()).run(inbox).await;
    world.is_there(&process).await;
    world.tell(&process.name, || format!("{drained:?}"));
    for task in upkeep {
        task.abort();
    }
}

/// What supervisor and epoch are to a worker.
struct Subscription {
    world: Arc<World>,
    process: Arc<Process>,
    intake: Intake,
    pauses: Pauses,
}

impl Subscription {
    async fn run(self, mut close: oneshot::Receiver<()>) {
        let (world, process) = (&self.world, &self.process);
        let mut number = 0;
        loop {
            tokio::select! {
                biased;
                () = self.intake.ended() => break,
                () = sleep(world.nap(800)) => {}
            }
            world.is_there(process).await;
            if !world.state().broker_up {
                continue;
            }
            number += 1;
            let line = world.state().broker.connect(world.plan.prefetch);
            process.life().line = Some(line);
            world.tell(&process.name, || format!("has line {line}"));
            let bells = world.state().broker.lines[&line].bells.clone();
            tokio::spawn(carry(Arc::clone(world), line, bells.clone()));
            let frames = Wire { world: Arc::clone(world), process: Arc::clone(process), line };
            let epoch = self.intake.epoch(number, frames, GAP);
            let mut broken = pin!(async {
                bells.cut.cancelled().await;
                sleep(world.nap(UNNOTICED)).await;
                world.is_there(process).await;
            });
            let stopped = tokio::select! {
                biased;
                () = &mut broken => false,
                () = self.pump(line, &bells, &epoch) => true,
            };
            if !stopped {
                world.tell(&process.name, || format!("finds line {line} cut"));
                self.intake.clear();
                epoch.abandon();
                continue;
            }
            // The stop: the line stays for the settlements of what is begun.
            self.intake.close();
            self.unsubscribe(line, &epoch);
            let closed = tokio::select! {
                biased;
                () = &mut broken => false,
                _ = &mut close => true,
            };
            if closed {
                epoch.finish(Duration::from_secs(5)).await;
                while world.state().broker.lines.get(&line).is_some_and(|it| !it.frames.is_empty())
                {
                    sleep(Duration::from_millis(5)).await;
                }
                world.is_there(process).await;
                world.state().broker.cut(line);
            } else {
                epoch.abandon();
            }
            world.tell(&process.name, || format!("{} settlements lost", self.intake.lost()));
            return;
        }
        self.intake.close();
    }

    /// Hands over until a stop is asked for.
    async fn pump(&self, line: u64, bells: &Bells, epoch: &Epoch) {
        let (world, process) = (&self.world, &self.process);
        loop {
            tokio::select! {
                biased;
                () = self.intake.ended() => return,
                () = self.pauses.until_clear() => {}
            }
            world.step(process, 20).await;
            world.state().broker.subscribe(line);
            let mut paused = pin!(stand_in::paused_for(&self.pauses, PAUSE_HOLD));
            loop {
                tokio::select! {
                    biased;
                    () = self.intake.ended() => return,
                    () = &mut paused => break,
                    () = self.intake.room() => {}
                }
                let parcel = {
                    let mut state = world.state();
                    state.broker.take(line)
                };
                match parcel {
                    Some(parcel) => {
                        world.is_there(process).await;
                        epoch.deliver(parcel);
                        tokio::task::yield_now().await;
                    }
                    None => {
                        tokio::select! {
                            biased;
                            () = self.intake.ended() => return,
                            () = &mut paused => break,
                            () = bells.delivered.notified() => {}
                        }
                    }
                }
            }
            self.unsubscribe(line, epoch);
        }
    }

    fn unsubscribe(&self, line: u64, epoch: &Epoch) {
        let rest = self.world.state().broker.unsubscribe(line);
        self.intake.clear();
        rest.into_iter().for_each(|parcel| epoch.give_back(parcel));
    }
}

/// What a worker says on one line.
struct Wire {
    world: Arc<World>,
    process: Arc<Process>,
    line: u64,
}

impl Wire {
    async fn send(&self, frame: Frame) -> lapin::Result<()> {
        self.world.step(&self.process, 3).await;
        match self.world.state().broker.lines.get_mut(&self.line) {
            Some(line) => {
                line.frames.push_back(frame);
                line.bells.said.notify_one();
            }
            None => return Err(stand_in::broken()),
        }
        Ok(())
    }
}

impl Frames for Wire {
    async fn settle(&self, tag: u64, settlement: Settlement) -> lapin::Result<()> {
        self.send(Frame::One(tag, settlement)).await
    }

    async fn acknowledge_up_to(&self, tag: u64) -> lapin::Result<()> {
        self.send(Frame::UpTo(tag)).await
    }
}

/// Brings what is said to the broker.
async fn carry(world: Arc<World>, line: u64, bells: Bells) {
    loop {
        tokio::select! {
            biased;
            () = bells.cut.cancelled() => return,
            () = bells.said.notified() => {}
        }
        sleep(world.nap(15)).await;
        loop {
            let frame = match world.state().broker.lines.get_mut(&line) {
                Some(line) => line.frames.pop_front(),
                None => return,
            };
            let Some(frame) = frame else { break };
            world.arrived(line, frame);
        }
    }
}

impl World {
    /// A frame has come to the broker. What is acknowledged must be known to the ledger.
    pub(super) fn arrived(&self, line: u64, frame: Frame) {
        let settled = self.state().broker.settle(line, frame);
        match settled {
            Err(why) => self.broke(format!("line {line}: {why}")),
            Ok(settled) => {
                for (message, settlement) in settled {
                    let id = self.plan.publishes[message.serial].id.clone();
                    self.tell("broker", || format!("{id}: {}", settlement.name()));
                    let known = self.state().knows(&id, &message);
                    if settlement == Settlement::Ack && !known {
                        self.broke(format!("{id} was acknowledged before the ledger knew it"));
                    }
                }
            }
        }
    }
}
