//! The workers, and the faults in their order: each when its time has come.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    sync::{Mutex as Turn, Semaphore, mpsc, watch},
    time::timeout,
};

use super::{
    Lines, Options, Tasks,
    producer::Leave,
    progress::Counts,
    schedule::{self, Fault, Planned},
    slot::{self, Order, Shared, Slot},
};

/// How long the first worker may take until it consumes.
const BEGIN: Duration = Duration::from_secs(90);
/// How long a fault waits for work to have been done while nothing moves at all.
const STALLED: Duration = Duration::from_secs(10);

/// Where orders go, and who is busy with one.
pub(super) struct Orders {
    slots: Vec<(mpsc::Sender<Order>, Arc<Turn<()>>)>,
    /// All but one worker may be busy: somebody works on.
    turns: Arc<Semaphore>,
    most: u32,
}

/// Starts the workers and waits until each consumes; the first of them declares the queues.
pub(super) async fn begin(
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
pub(super) async fn run(
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
