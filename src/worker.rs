//! The corridor: slot → delivery → task → outcome → settlement, and the drain at its end.

mod drain;
mod in_order;
mod settings;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::error;

use self::drain::Tally;
pub use self::{drain::Drained, settings::Settings};
use crate::{
    fail,
    handler::{Attempt, Handler, Slot, Started},
    ledger::{Keeper, Ledger},
    outcome::{ErrorCode, Failure, GiveBack, Outcome},
    pause::{Pauses, Reason},
    queue::{Inbox, Ticket},
    stop::Stop,
    telemetry,
};

/// How long a request that the hard stop interrupts has to be put down in the ledger.
const PUT_DOWN: Duration = Duration::from_secs(2);

/// How often it is looked what may be let go, while there is something: the places under a limit are
/// filled again as soon.
const LETTING_GO: Duration = Duration::from_millis(25);

/// How long after Postgres' return due work is left alone.
const HEAD_START: Duration = Duration::from_secs(1);

/// How long due work that is behind waits for further slots while it has one.
const GATHER: Duration = Duration::from_millis(5);

/// How long after a limit has room what is parked on it is left alone: more may come.
const ROOM: Duration = Duration::from_millis(5);

/// Takes requests as long as nobody asks to stop, and works each in a task of its own.
pub(crate) struct Worker<K: Keeper = Ledger> {
    pub(crate) handler: Arc<Handler<K>>,
    pub(crate) settings: Settings,
    pub(crate) pauses: Pauses,
    pub(crate) stop: Stop,
    pub(crate) slots: Arc<Semaphore>,
    /// As many as due work may hold of them.
    due_share: Arc<Semaphore>,
    tasks: TaskTracker,
    tally: Arc<Tally>,
}

impl<K: Keeper> Worker<K> {
    pub(crate) fn new(
        handler: Arc<Handler<K>>,
        settings: Settings,
        pauses: Pauses,
        stop: Stop,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        let due_share = Arc::new(Semaphore::new(settings.due_slots()));
        Self {
            handler,
            settings,
            pauses,
            stop,
            slots,
            due_share,
            tasks: TaskTracker::new(),
            tally: Arc::default(),
        }
    }

    /// Works until a stop is asked for and what was begun has come to an end, or the grace is over.
    /// `in_order` brings requests of ordered kinds, where there are such.
    pub(crate) async fn run(self, mut inbox: Inbox, in_order: Option<Inbox>) -> Drained {
        let asked = async {
            self.stop.asked().await;
            self.tally.start();
            self.pauses.add(Reason::Drain);
            Instant::now()
        };
        let (since, (), (), ()) = tokio::join!(
            asked,
            self.take_deliveries(&mut inbox),
            Box::pin(self.take_in_order(in_order)),
            self.take_due()
        );
        self.drain(since).await
    }

    /// Slot before message: what cannot be started is not taken.
    async fn take_deliveries(&self, inbox: &mut Inbox) {
        while !self.stop.is_asked() {
            if self.pauses.is_paused() {
                tokio::select! {
                    biased;
                    () = self.stop.asked() => break,
                    () = self.pauses.until_clear() => {}
                }
            }
            let Some(slot) = self.slot().await else { break };
            let slot = Slot::new(slot, None);
            // What lies ready is taken without the ado of waiting.
            let ready = if self.pauses.is_paused() { None } else { inbox.ready() };
            let delivery = match ready {
                Some(delivery) => Some(delivery),
                None => tokio::select! {
                    biased;
                    // A pause or a stop while waiting for a message: back to the top, without a slot.
                    () = self.pauses.until_paused() => continue,
                    delivery = inbox.next() => delivery,
                    // Due work waits for the only slot: it must not wait for a message to come.
                    () = sleep(self.handler.ledger.due_poll()), if self.settings.concurrency == 1 => continue,
                },
            };
            let Some(delivery) = delivery else { break };
            let redelivered = delivery.redelivered();
            let (message, ticket) = delivery.into_parts();
            let message = Box::new(message);
            self.begin(Started::Delivered { message, redelivered }, Some(ticket), slot);
            tokio::task::consume_budget().await;
        }
    }

    /// Due work walks the same way. It waits in line for its first slot like every delivery does,
    /// and holds no more than its share of the slots: neither can starve the other.
    async fn take_due(&self) {
        let most = self.settings.due_slots();
        let lease = self.handler.kinds.longest_timeout() + self.handler.ledger.lease_margin();
        let mut at_once = false;
        // What goes on by the clock is looked for at this pace, and what is let go more often.
        let poll = self.handler.ledger.due_poll();
        let mut looked_for_all = Instant::now();
        loop {
            if !at_once {
                let letting_go = self.handler.is_letting_go();
                tokio::select! {
                    biased;
                    () = self.stop.asked() => return,
                    // Somebody is first in a line now, and goes on by the clock.
                    () = self.handler.line.advanced() => at_once = true,
                    () = self.room() => {}
                    () = sleep(if letting_go { poll.min(LETTING_GO) } else { poll }) => {}
                }
            }
            if self.pauses.contains(&Reason::Postgres) {
                // Leases have run out while Postgres was away. Who holds a request through that may
                // finish it first, so that nothing is called twice for an outage.
                let back = async {
                    self.pauses.until_without(&Reason::Postgres).await;
                    sleep(HEAD_START).await;
                };
                tokio::select! {
                    biased;
                    () = self.stop.asked() => return,
                    () = back => continue,
                }
            }
            if self.pauses.contains(&Reason::Operator) {
                tokio::select! {
                    biased;
                    () = self.stop.asked() => return,
                    () = self.pauses.until_without(&Reason::Operator) => continue,
                }
            }
            let for_all = at_once || looked_for_all.elapsed() >= poll;
            let enough = if for_all { most } else { self.handler.may_let_go().min(most) };
            if enough == 0 {
                continue;
            }
            let changes = self.pauses.changes();
            let Some(share) = self.permit(&self.due_share).await else { return };
            let Some(first) = self.slot().await else { return };
            if self.pauses.changes() != changes {
                // The wait may have lasted through an outage: see above.
                drop((first, share));
                at_once = false;
                tokio::select! {
                    biased;
                    () = self.stop.asked() => return,
                    () = sleep(HEAD_START) => continue,
                }
            }
            if for_all {
                looked_for_all = Instant::now();
            }
            let mut slots = vec![Slot::new(first, Some(share))];
            let until = Instant::now() + GATHER;
            while slots.len() < enough
                && let Ok(share) = Arc::clone(&self.due_share).try_acquire_owned()
            {
                let slot = match Arc::clone(&self.slots).try_acquire_owned() {
                    Ok(slot) => slot,
                    // In line with the deliveries, so that each gets one in turn.
                    Err(_) if at_once => {
                        match timeout_at(until, Arc::clone(&self.slots).acquire_owned()).await {
                            Ok(Ok(slot)) => slot,
                            _ => break,
                        }
                    }
                    Err(_) => break,
                };
                slots.push(Slot::new(slot, Some(share)));
            }
            if self.stop.is_asked() {
                return;
            }
            let due = tokio::select! {
                biased;
                // What it has claimed by then comes back with its lease.
                () = self.stop.forced() => return,
                due = self.handler.bring_up(slots.len(), lease, fastrand::f64()) => due,
            };
            let Ok(due) = due else {
                at_once = false;
                continue;
            };
            at_once = due.len() == slots.len();
            for (started, slot) in due.into_iter().zip(slots) {
                self.begin(started, None, slot);
            }
        }
    }

    /// Completes when a limit may have room for what is parked on it.
    async fn room(&self) {
        self.handler.lobby.room().await;
        sleep(ROOM).await;
    }

    /// A slot, or nothing when a stop is asked for first.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.permit(&self.slots).await
    }

    async fn permit(&self, of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if !self.stop.is_asked()
            && let Ok(permit) = Arc::clone(of).try_acquire_owned()
        {
            return Some(permit);
        }
        tokio::select! {
            biased;
            () = self.stop.asked() => None,
            permit = Arc::clone(of).acquire_owned() => permit.ok(),
        }
    }

    fn begin(&self, started: Started, ticket: Option<Ticket>, mut slot: Slot) {
        let handler = Arc::clone(&self.handler);
        let (stop, tally) = (self.stop.clone(), Arc::clone(&self.tally));
        // Boxed here: on its way into its task it would be copied more than once.
        self.tasks.spawn(Box::pin(async move {
            let outcome = work(&handler, started, &mut slot, &stop, &tally).await;
            if let Some(ticket) = ticket {
                fail::at("before_ack", [""]);
                ticket.settle(outcome.settlement());
            }
            drop(slot);
        }));
    }

    /// Waits for what is begun until the grace is over, then has it put down and given back.
    async fn drain(self, since: Instant) -> Drained {
        self.tasks.close();
        fail::at("during_drain", [""]);
        tokio::select! {
            biased;
            () = self.tasks.wait() => {}
            () = sleep_until(since + self.settings.grace) => self.stop.force(),
            () = self.stop.forced() => {}
        }
        let settled = tokio::time::timeout(2 * PUT_DOWN, self.tasks.wait()).await;
        if settled.is_err() {
            error!(
                event = "drain.stuck",
                tasks = self.tasks.len(),
                "tasks did not end after the hard stop, their requests will be delivered again"
            );
        }
        self.tally.drained(since.elapsed(), self.stop.is_forced())
    }
}

/// One attempt: a panic is an outcome, and so is an interruption.
async fn work(
    handler: &Handler<impl Keeper>,
    started: Started,
    slot: &mut Slot,
    stop: &Stop,
    tally: &Tally,
) -> Outcome {
    let mut attempt = Attempt::new(&started, handler);
    let worked = tokio::select! {
        biased;
        worked = AssertUnwindSafe(handler.handle(started, slot, &mut attempt)).catch_unwind() => Some(worked),
        () = stop.forced() => None,
    };
    let outcome = match worked {
        Some(Ok(outcome)) => outcome,
        // A panic of the steps is caught where they are called. This one is ours.
        Some(Err(panic)) => {
            let failure = Failure::new(ErrorCode::Panic, telemetry::panic_text(&*panic));
            Box::pin(handler.panicked(failure, &mut attempt)).await
        }
        None => {
            tally.interrupted();
            tokio::time::timeout(PUT_DOWN, Box::pin(handler.interrupted(&mut attempt)))
                .await
                .unwrap_or(Outcome::GivenBack { why: GiveBack::Stop })
        }
    };
    handler.became(&outcome);
    tally.ended(&outcome);
    handler.line.ended(&attempt, &outcome);
    attempt.ended(&outcome, attempt.kind().and_then(|kind| handler.kinds.get(kind)));
    outcome
}
