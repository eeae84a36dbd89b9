//! One owner of everything that is said about the deliveries of a channel.
//!
//! Two tasks that both send `multiple` acknowledgements overtake each other and the broker closes
//! the channel; so tickets only mark what became of their delivery on the [`Desk`], and one task
//! per channel turns whatever has gathered there into frames.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    link::within,
    trouble::Trouble,
    watermark::{Batch, Watermark},
};
use crate::{fail, outcome::Settlement, telemetry::metrics};

/// Where the prefetch has so many more than there are slots, the broker is not told at once: every
/// acknowledgement, however many deliveries it is about, is an entry in the log of a quorum queue. No
/// slot is empty for it unless more than 100,000 a second are settled.
const ROOMY: u16 = 1024;
/// How long it rests in between.
const REST: Duration = Duration::from_millis(10);

/// Where tickets of one epoch leave what became of their delivery. Never blocks for longer than
/// another ticket's mark. It holds one small slot per delivery that the broker has not heard of, and
/// when it was told of them, hence no more than twice the prefetch.
#[derive(Debug)]
pub(super) struct Desk {
    epoch: u64,
    state: Mutex<State>,
    rung: Notify,
    /// Rung when it takes no more marks.
    over: Notify,
    /// Whether the prefetch leaves room for a rest.
    roomy: AtomicBool,
    /// Where deliveries keep an order: cancelled when one was given back. RabbitMQ would deliver it
    /// again behind what is out already, so it is not told, and everything goes back with the channel.
    returned: Option<CancellationToken>,
    /// Settlements of all epochs that could not be told to the broker.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    watermark: Watermark,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Marks are taken and sent.
    Open,
    /// What is marked is still sent, nothing more is taken.
    Sealed,
    /// The channel is gone.
    Closed,
}

impl Desk {
    pub(super) fn new(epoch: u64, lost: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self::with(epoch, lost, None))
    }

    /// The same for a queue in order.
    pub(super) fn in_order(epoch: u64, lost: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self::with(epoch, lost, Some(CancellationToken::new())))
    }

    fn with(epoch: u64, lost: Arc<AtomicU64>, returned: Option<CancellationToken>) -> Self {
        let state = Mutex::new(State { watermark: Watermark::new(), phase: Phase::Open });
        let (rung, over, roomy) = (Notify::new(), Notify::new(), AtomicBool::new(false));
        Self { epoch, state, rung, over, roomy, returned, lost }
    }

    /// There is a subscription whose prefetch has so many more than there are slots.
    pub(super) fn subscribed(&self, ahead: u16) {
        self.roomy.store(ahead >= ROOMY, Ordering::Relaxed);
    }

    /// Completes when the broker may be told again.
    async fn rest(&self) {
        if self.roomy.load(Ordering::Relaxed) {
            tokio::select! {
                biased;
                () = self.over.notified() => {}
                () = tokio::time::sleep(REST) => {}
            }
        }
    }

    /// Completes when the channel is to be given up, for something was given back that keeps an order.
    pub(super) async fn until_returned(&self) {
        match &self.returned {
            Some(returned) => returned.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Completes when the broker has been told about all that came.
    pub(super) async fn until_settled(&self) {
        while self.outstanding() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A delivery came, in the order of the stream.
    pub(super) fn register(&self, tag: u64) {
        self.lock().watermark.register(tag);
    }

    /// Marks what became of a delivery. On a desk that is no longer open it counts as lost: the
    /// broker delivers it again, by itself.
    pub(super) fn tell(&self, tag: u64, settlement: Settlement) {
        if let (Some(returned), Settlement::GiveBack) = (&self.returned, settlement) {
            returned.cancel();
            return;
        }
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.watermark.tell(tag, settlement, Instant::now());
            drop(state);
            self.rung.notify_one();
        } else {
            drop(state);
            self.lose(1);
        }
    }

    /// Whether a mark would still reach the broker.
    pub(super) fn is_open(&self) -> bool {
        let returned = self.returned.as_ref().is_some_and(CancellationToken::is_cancelled);
        !returned && self.lock().phase == Phase::Open
    }

    /// Deliveries that nobody has told about.
    pub(super) fn working(&self) -> u64 {
        self.lock().watermark.working()
    }

    /// Deliveries that the broker has not heard about, as far as we know.
    pub(super) fn outstanding(&self) -> u64 {
        let state = self.lock();
        state.watermark.working() + state.watermark.unsent()
    }

    /// Takes no more marks, and lets the settler end once the present ones are sent.
    pub(super) fn seal(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Sealed;
        }
        drop(state);
        self.rung.notify_one();
        self.over.notify_one();
    }

    /// The channel is gone: what is marked and unsent is lost, and so is every mark to come.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        let unsent = if state.phase == Phase::Closed { 0 } else { state.watermark.unsent() };
        state.phase = Phase::Closed;
        drop(state);
        self.rung.notify_one();
        self.over.notify_one();
        self.lose(unsent);
    }

    fn take(&self, gap_timeout: Duration) -> (Batch, Phase, Option<Instant>) {
        let mut state = self.lock();
        let batch = match state.phase {
            Phase::Open => state.watermark.take(Instant::now(), gap_timeout),
            Phase::Sealed => state.watermark.take(Instant::now(), Duration::ZERO),
            Phase::Closed => Batch::default(),
        };
        (batch, state.phase, state.watermark.held_since().map(|since| since + gap_timeout))
    }

    fn lose(&self, count: u64) {
        if count > 0 {
            self.lost.fetch_add(count, Ordering::Relaxed);
            metrics::settled("lost", count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below the lock is whole, so a panic of another holder spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is taken off the desk and not yet sent; counts as lost when dropped.
struct Unsent<'a> {
    desk: &'a Desk,
    count: u64,
}

impl Unsent<'_> {
    fn sent(&mut self, settlement: Settlement, count: u64) {
        self.count -= count;
        if count > 0 {
            metrics::settled(settlement.name(), count);
        }
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.desk.lose(self.count);
    }
}

/// The channel, as far as it is the settler's business.
pub(crate) trait Frames: Send + Sync + 'static {
    /// Says what became of one delivery.
    fn settle(
        &self,
        tag: u64,
        settlement: Settlement,
    ) -> impl Future<Output = lapin::Result<()>> + Send;

    /// Acknowledges this delivery and all before it.
    fn acknowledge_up_to(&self, tag: u64) -> impl Future<Output = lapin::Result<()>> + Send;
}

impl Frames for Channel {
    async fn settle(&self, tag: u64, settlement: Settlement) -> lapin::Result<()> {
        match settlement {
            Settlement::Ack => self.basic_ack(tag, BasicAckOptions { multiple: false }).await,
            // Not `basic.reject`: since RabbitMQ 4.3 a rejection counts as a failed delivery.
            Settlement::GiveBack => {
                self.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
            }
            Settlement::Reject => {
                self.basic_reject(tag, BasicRejectOptions { requeue: false }).await
            }
        }
    }

    async fn acknowledge_up_to(&self, tag: u64) -> lapin::Result<()> {
        self.basic_ack(tag, BasicAckOptions { multiple: true }).await
    }
}

/// Sends what gathers on the desk until it is sealed and empty, or closed.
///
/// # Errors
/// The channel did not take a settlement; the desk is closed then.
pub(super) async fn run(
    desk: Arc<Desk>,
    channel: impl Frames,
    gap_timeout: Duration,
    deadline: Duration,
) -> Result<(), Trouble> {
    loop {
        let rung = desk.rung.notified();
        let (batch, phase, due) = desk.take(gap_timeout);
        if !batch.is_empty() {
            let mut unsent = Unsent { desk: &desk, count: batch.count() };
            if let Err(trouble) = send(&channel, &batch, deadline, &mut unsent).await {
                desk.close();
                return Err(trouble);
            }
            if phase == Phase::Open {
                desk.rest().await;
            }
            continue;
        }
        if phase != Phase::Open {
            return Ok(());
        }
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = rung => {}
            () = due => {}
        }
        // Those that were committed together come together: one frame for all of them.
        tokio::task::yield_now().await;
    }
}

async fn send(
    channel: &impl Frames,
    batch: &Batch,
    deadline: Duration,
    unsent: &mut Unsent<'_>,
) -> Result<(), Trouble> {
    if !batch.singles.is_empty() {
        let calls = batch.singles.iter().map(|(tag, settlement)| channel.settle(*tag, *settlement));
        within(deadline, "settling single deliveries", try_join_all(calls)).await?;
        for settlement in [Settlement::Ack, Settlement::GiveBack, Settlement::Reject] {
            let count = batch.singles.iter().filter(|(_, told)| *told == settlement).count();
            unsent.sent(settlement, count as u64);
        }
    }
    // Only now: it covers every smaller tag that the broker has not heard of.
    if let Some(up_to) = batch.up_to {
        let call = channel.acknowledge_up_to(up_to.tag);
        within(deadline, "acknowledging deliveries", call).await?;
        unsent.sent(Settlement::Ack, up_to.count);
        fail::at("ack_sent", [""]);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
