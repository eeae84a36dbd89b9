//! What goes on beside the corridor: health, counts, and telling why nothing is consumed.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    helm::Helm,
    parked::{self, Bound},
};
use crate::{
    admin::{Health, Readiness},
    config::Config,
    handler::Handler,
    ledger::Counts,
    limit::PARKED_ON,
    pause::{Pauses, Reason},
    queue::Status,
    stop::Stop,
    telemetry::metrics,
};

/// What the probes look at.
pub(super) struct House {
    pub(super) pauses: Pauses,
    pub(super) stop: Stop,
    queue: OnceLock<watch::Receiver<Status>>,
    helm: OnceLock<Arc<Helm>>,
}

impl House {
    pub(super) fn new(pauses: Pauses, stop: Stop) -> Self {
        Self { pauses, stop, queue: OnceLock::new(), helm: OnceLock::new() }
    }

    /// The queue has been opened.
    pub(super) fn opened(&self, queue: watch::Receiver<Status>) {
        let _only_once = self.queue.set(queue).is_ok();
    }

    /// It can be steered.
    pub(super) fn manned(&self, helm: Arc<Helm>) {
        let _only_once = self.helm.set(helm).is_ok();
    }

    pub(super) fn helm(&self) -> Option<&Arc<Helm>> {
        self.helm.get()
    }
}

impl Health for House {
    /// Ready means consuming, or not consuming for a reason that is known and passes by itself.
    fn ready(&self) -> Readiness {
        let mut detail = Vec::new();
        let reasons = self.pauses.reasons();
        if !reasons.is_empty() {
            detail.push(("paused".to_owned(), reasons.join(", ")));
        }
        let status = self.queue.get().map(|queue| queue.borrow().clone());
        if let Some(error) = status.as_ref().and_then(|status| status.last_error.clone()) {
            detail.push(("broker".to_owned(), error));
        }
        let (ready, state) = match &status {
            _ if self.stop.is_asked() => (false, "draining"),
            None => (false, "starting"),
            Some(status) if !status.connected => (false, "reconnecting"),
            Some(_) if !reasons.is_empty() => (true, "paused"),
            Some(status) if status.consuming => (true, "consuming"),
            Some(_) => (false, "subscribing"),
        };
        Readiness { ready, state: state.to_owned(), detail }
    }
}

/// Starts the upkeep; it ends when the set is dropped.
pub(super) fn start(
    house: Arc<House>,
    handler: Arc<Handler>,
    helm: Arc<Helm>,
    config: &Config,
    slots: Arc<Semaphore>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let dependencies = config.dependencies.iter().map(|(name, dependency)| {
        Bound::new(name, Reason::Breaker(name.clone()), dependency.max_parked)
    });
    let kinds = handler.kinds.iter().map(|kind| {
        Bound::new(&kind.parked_on(), Reason::Kind(kind.name.clone()), kind.max_parked)
    });
    // The same bounds for what is parked on a limit of theirs.
    let limits =
        config.dependencies.iter().map(|(name, it)| (format!("dependency:{name}"), it.max_parked));
    let limits =
        limits.chain(handler.kinds.iter().map(|it| (format!("kind:{}", it.name), it.max_parked)));
    let limits = limits.chain([("user".to_owned(), config.worker.max_parked)]);
    let limits =
        limits.map(|(of, limit)| Bound::new(&format!("{PARKED_ON}{of}"), Reason::Limit(of), limit));
    let bounds = dependencies.chain(kinds).chain(limits).collect();
    tasks.spawn(tell_pauses(house.pauses.clone()));
    tasks.spawn(Arc::clone(&helm).follow(config.worker.steering_interval));
    let told = move |counts: &Counts| helm.counted(counts);
    tasks.spawn(parked::keep(handler.clone(), bounds, config.worker.counts_interval, told));
    if let Some(queue) = house.queue.get() {
        tasks.spawn(compare_limits(queue.clone(), config.worker.max_message_bytes));
    }
    tasks.spawn(watch_slots(slots, config.worker.concurrency));
    let tokens = Arc::clone(&handler);
    tasks.spawn(async move { tokens.fetch_tokens().await });
    let lines = Arc::clone(&handler);
    tasks.spawn(async move { lines.keep_lines().await });
    tasks.spawn(async move { handler.renew_leases().await });
    tasks
}

/// Tells log and metrics each reason that comes and goes.
async fn tell_pauses(pauses: Pauses) {
    let (mut told, mut changes) = (BTreeSet::new(), 0);
    loop {
        let (now, so_far) = pauses.until_changed(changes).await;
        for reason in now.difference(&told) {
            metrics::paused(&reason.to_string(), true);
            info!(event = "worker.paused", reason = %reason, "nothing is consumed");
        }
        for reason in told.difference(&now) {
            metrics::paused(&reason.to_string(), false);
            info!(event = "worker.resumed", reason = %reason, "this reason not to consume is gone");
        }
        (told, changes) = (now, so_far);
    }
}

/// Tells where the worker would take bodies that the broker does not.
async fn compare_limits(mut queue: watch::Receiver<Status>, max_message_bytes: usize) {
    let mut told = None;
    loop {
        let broker = queue.borrow_and_update().broker.clone();
        if broker != told {
            let refused = broker.as_ref().and_then(|broker| broker.refuses(max_message_bytes));
            if let Some(refused) = refused {
                warn!(
                    event = "worker.message_limit",
                    refused, "the limits of worker and broker differ"
                );
            }
            told = broker;
        }
        if queue.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_slots(slots: Arc<Semaphore>, of: usize) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics::slots(of.saturating_sub(slots.available_permits()), of);
    }
}
