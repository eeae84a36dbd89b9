//! One worker: the real corridor, with a simulated subscription as its source.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{ledger::Memory, line::Subscription, services, world::World};
use crate::{
    handler::{Handler, Holding, Line, Lobby, Suspects},
    house::parked::{self, Bound},
    ledger::Fence,
    pause::{Pauses, Reason},
    queue::{
        Inbox,
        stand_in::{self, Intake},
    },
    stop::Stop,
    worker::{self, Worker},
};

pub(super) struct Process {
    pub(super) name: String,
    pub(super) stop: Stop,
    life: Mutex<Life>,
}

struct Life {
    alive: bool,
    frozen_until: Option<Instant>,
    /// To the queue, and to that of ordered kinds.
    lines: [Option<u64>; 2],
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

    pub(super) fn line(&self, in_order: bool) -> Option<u64> {
        self.life().lines[usize::from(in_order)]
    }

    pub(super) fn connected(&self, in_order: bool, line: u64) {
        self.life().lines[usize::from(in_order)] = Some(line);
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
            lines: [None; 2],
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
        let subscribe = |in_order| {
            let (intake, inbox) = Intake::open(process.stop.clone());
            let (close, closed) = oneshot::channel();
            let subscription = Subscription {
                world: Arc::clone(world),
                process: Arc::clone(&process),
                intake,
                pauses: pauses.clone(),
                in_order,
            };
            (inbox, close, tokio::spawn(subscription.run(closed)))
        };
        let ((inbox, close, ended), (in_order, close_it, it_ended)) =
            (subscribe(false), subscribe(true));
        let running = run(Arc::clone(world), Arc::clone(&process), pauses, inbox, in_order);
        let (world, it) = (Arc::clone(world), Arc::clone(&process));
        tokio::spawn(async move {
            running.await;
            let _told = (close.send(()).is_ok(), close_it.send(()).is_ok());
            let _ended = (ended.await.is_ok(), it_ended.await.is_ok());
            world.is_there(&it).await;
            world.tell(&it.name, || "ends".to_owned());
            it.ends();
        });
        process
    }
}

async fn run(
    world: Arc<World>,
    process: Arc<Process>,
    pauses: Pauses,
    inbox: Inbox,
    in_order: Inbox,
) {
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
        line: Line::default(),
        lobby: Lobby::new(
            world.plan.concurrency,
            world.plan.limits.of_user,
            world.plan.limits.aside,
        ),
        max_message_bytes: super::MOST_BYTES,
    });
    let settings = worker::Settings {
        concurrency: world.plan.concurrency,
        user_share: 1.0,
        kind_share: 1.0,
        due_share: 0.5,
        max_parked: u64::MAX,
        max_message_bytes: super::MOST_BYTES,
        max_in_line: world.plan.max_in_line,
        grace: world.plan.grace,
        counts_interval: Duration::from_secs(3),
        steering_interval: Duration::from_secs(1),
    };
    let bounds = services::CALLING
        .map(|(_, name)| Bound::new(name, Reason::Breaker(name.to_owned()), world.plan.max_parked));
    let counting =
        parked::keep(Arc::clone(&handler), bounds.into(), settings.counts_interval, |_| {});
    let (renewing, fetching) = (Arc::clone(&handler), Arc::clone(&handler));
    let lines = Arc::clone(&handler);
    let upkeep = [
        tokio::spawn(counting).abort_handle(),
        tokio::spawn(async move { renewing.renew_leases().await }).abort_handle(),
        tokio::spawn(async move { fetching.fetch_tokens().await }).abort_handle(),
        tokio::spawn(async move { lines.keep_lines().await }).abort_handle(),
    ];
    let (outside, who) = (Arc::clone(&world), Arc::clone(&process));
    tokio::spawn(async move {
        while let Some(reply) = answers.recv().await {
            outside.is_there(&who).await;
            let id = reply.message_id.unwrap_or_default();
            *outside.state().replies.entry(id).or_default() += 1;
        }
    });
    let drained = Worker::new(handler, settings, pauses, process.stop.clone())
        .run(inbox, Some(in_order))
        .await;
    world.is_there(&process).await;
    world.tell(&process.name, || format!("{drained:?}"));
    world.state().interrupted += u32::try_from(drained.interrupted).unwrap_or(u32::MAX);
    for task in upkeep {
        task.abort();
    }
}
