//! RabbitMQ: where requests come from. The only room that knows lapin.
//!
//! ```text
//! supervisor   connection after connection, with delays between            trouble    why
//!   epoch      one connection: subscribe, hand over, pause, resume         endpoint   where
//!     hatch    a few deliveries between the subscription and the corridor  link       reaching it
//!     settler  one owner of all that is said about deliveries              watermark  how much at once
//!   quarantine what to do about a message that kills connections           topology   what must exist
//!   turn       in order: one worker consumes at a time
//!   watchdog   notices a subscription that brings nothing                  greeting   what the broker is
//! side         the second connection: monitor (depths), publisher, replies version    what follows
//! ```
//!
//! A delivery belongs to the connection it came on, its *epoch*. When that is gone the delivery
//! can no longer be settled: the broker delivers it again, and the ledger knows what became of it.

mod board;
mod check;
mod convert;
mod delivery;
mod endpoint;
mod epoch;
mod greeting;
mod hatch;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod link;
mod monitor;
mod publisher;
mod quarantine;
mod reactor;
mod replies;
mod settings;
mod settler;
mod side;
#[cfg(test)]
pub(crate) mod stand_in;
mod supervisor;
mod topology;
mod trouble;
mod turn;
mod version;
mod watchdog;
mod watermark;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

#[cfg(test)]
pub(crate) use self::settler::Frames;
use self::{board::Board, hatch::Hatch, monitor::Depth, side::Side, supervisor::Leftovers};
pub use self::{
    board::Status,
    check::{Finding, Level, check},
    delivery::{Delivery, Ticket},
    hatch::Inbox,
    publisher::{PublishError, Published, Publisher},
    replies::{Replies, Reply},
    settings::Settings,
    trouble::{Cause, Trouble},
    version::{Broker, Ends, Features},
};
use crate::{pause::Pauses, stop::Stop};

/// Who we are, in the broker's listings.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name of this worker's connections.
    pub name: String,
}

/// What the tasks of this room share.
#[derive(Clone)]
struct Shared {
    settings: Arc<Settings>,
    name: String,
    pauses: Pauses,
    stop: Stop,
    /// The queue is being closed without a stop of the whole worker.
    closing: CancellationToken,
    hatch: Arc<Hatch>,
    board: Board,
    depth: watch::Sender<Depth>,
    lost: Arc<AtomicU64>,
}

impl Shared {
    /// Completes when nothing more is to be taken in.
    async fn ended(&self) {
        tokio::select! {
            () = self.stop.asked() => {}
            () = self.closing.cancelled() => {}
        }
    }
}

/// The running room: how it does, where answers go, and its end.
pub struct Queue {
    shared: Shared,
    supervisor: JoinHandle<Leftovers>,
    close: oneshot::Sender<Duration>,
    replies: Replies,
    reply_desk: replies::Desk,
    publisher: Publisher,
    /// A queue that is dropped instead of closed ends, too.
    _ending: DropGuard,
}

/// What was left when the room closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Settlements that could not be told to the broker, since the start; it delivers those
    /// messages again.
    pub lost: u64,
    /// Deliveries that nobody had begun when the stop came; they are back in the queue.
    pub unbegun: u64,
    /// Deliveries that nobody had settled; they are back in the queue.
    pub unsettled: u64,
    /// Everything was flushed, and the broker agreed to the end, in time.
    pub clean: bool,
}

/// Starts to connect and subscribe, in the background, and goes on until a stop is asked for.
///
/// # Errors
/// The settings make no sense; [`Settings::problems`] says all that is wrong with them.
pub fn start(
    settings: Settings,
    pauses: Pauses,
    stop: Stop,
    service: Identity,
) -> Result<(Queue, Inbox), Trouble> {
    reactor::open();
    let settings = Arc::new(settings);
    let side = Arc::new(Side::new(settings.clone(), format!("{} (publish)", service.name))?);
    let shared = Shared {
        settings: settings.clone(),
        name: service.name,
        pauses,
        stop,
        closing: CancellationToken::new(),
        hatch: Arc::default(),
        board: Board::new(!settings.in_order),
        depth: watch::Sender::new(Depth::default()),
        lost: Arc::default(),
    };
    let (close, closed) = oneshot::channel();
    let supervisor = tokio::spawn(supervisor::run(shared.clone(), closed));
    let closing = shared.closing.clone();
    let looking = monitor::run(side.clone(), shared.board.clone(), shared.depth.clone());
    tokio::spawn(async move { closing.run_until_cancelled(looking).await });
    let publisher = Publisher::on(side);
    let (replies, reply_desk) = replies::start(settings, publisher.clone());
    let inbox = Inbox {
        hatch: shared.hatch.clone(),
        stop: shared.stop.clone(),
        closing: shared.closing.clone(),
    };
    let ending = shared.closing.clone().drop_guard();
    Ok((
        Queue { shared, supervisor, close, replies, reply_desk, publisher, _ending: ending },
        inbox,
    ))
}

impl Queue {
    /// How the queue is doing now.
    pub fn status(&self) -> Status {
        self.shared.board.read()
    }

    /// Follows how the queue is doing.
    pub fn follow(&self) -> watch::Receiver<Status> {
        self.shared.board.follow()
    }

    /// Settlements that could not be told to the broker, since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Where answers go.
    pub fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// Ends everything in order: no more intake, the last settlements and answers, the channels,
    /// the connections. To be called once no task works on a delivery any more; whatever is not
    /// settled then goes back to the queue. Takes hardly longer than `within`.
    pub async fn close(self, within: Duration) -> Closed {
        self.shared.closing.cancel();
        // The supervisor may have ended with its connection; then there is nobody to tell.
        let _told = self.close.send(within).is_ok();
        let supervisor_abort = self.supervisor.abort_handle();
        let (leftovers, answered) = tokio::join!(
            // It keeps the time by itself; this is for a deadline that could not be kept.
            tokio::time::timeout(within + Duration::from_secs(3), self.supervisor),
            self.reply_desk.close(within),
        );
        supervisor_abort.abort();
        self.publisher.close(Duration::from_secs(1).min(within)).await;
        let lost = self.shared.lost.load(Ordering::Relaxed);
        match leftovers {
            Ok(Ok(Leftovers { unbegun, unsettled, clean })) => {
                Closed { lost, unbegun, unsettled, clean: clean && answered }
            }
            Ok(Err(_)) | Err(_) => Closed { lost, unbegun: 0, unsettled: 0, clean: false },
        }
    }
}
