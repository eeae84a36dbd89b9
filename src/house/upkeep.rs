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

use super::helm::Helm;
use crate::{
    admin::{Health, Readiness},
    config::Config,
    downstream::Dependency,
    handler::Handler,
    ledger::{Counts, Keeper},
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
    let dependencies = config.dependencies.iter().map(|(name, dependency)| Bound {
        on: name.clone(),
        reason: Reason::Breaker(name.clone()),
        limit: dependency.max_parked,
    });
    let kinds = handler.kinds.iter().map(|kind| Bound {
        on: kind.parked_on(),
        reason: Reason::Kind(kind.name.clone()),
        limit: kind.max_parked,
    });
    // The same bounds for what is parked on a limit of theirs.
    let limits =
        config.dependencies.iter().map(|(name, it)| (format!("dependency:{name}"), it.max_parked));
    let limits =
        limits.chain(handler.kinds.iter().map(|it| (format!("kind:{}", it.name), it.max_parked)));
    let limits = limits.chain([("user".to_owned(), config.worker.max_parked)]);
    let limits = limits.map(|(of, limit)| Bound {
        on: format!("{PARKED_ON}{of}"),
        reason: Reason::Limit(of),
        limit,
    });
    let bounds = dependencies.chain(kinds).chain(limits).collect();
    tasks.spawn(tell_pauses(house.pauses.clone()));
    tasks.spawn(Arc::clone(&helm).follow(config.worker.steering_interval));
    let told = move |counts: &Counts| helm.counted(counts);
    tasks.spawn(count(handler.clone(), bounds, config.worker.counts_interval, told));
    if let Some(queue) = house.queue.get() {
        tasks.spawn(compare_limits(queue.clone(), config.worker.max_message_bytes));
    }
    tasks.spawn(watch_slots(slots, config.worker.concurrency));
    let tokens = Arc::clone(&handler);
    tasks.spawn(async move { tokens.fetch_tokens().await });
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

/// How much may be parked on something, and why nothing is consumed where it is more.
pub(crate) struct Bound {
    pub(crate) on: String,
    pub(crate) reason: Reason,
    pub(crate) limit: u64,
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

/// Exports what is in the ledger, and pauses where too much is parked.
pub(crate) async fn count<K: Keeper>(
    handler: Arc<Handler<K>>,
    bounds: Vec<Bound>,
    every: Duration,
    tell: impl Fn(&Counts),
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = BTreeSet::new();
    loop {
        ticks.tick().await;
        handler.downstream.iter().for_each(Dependency::export);
        if handler.pauses.contains(&Reason::Postgres) {
            continue;
        }
        let Ok(counts) = handler.ledger.counts().await else { continue };
        export(&counts, &mut seen);
        handler.counted(&counts);
        tell(&counts);
        for bound in &bounds {
            let parked =
                counts.parked.iter().find(|(on, _)| *on == bound.on).map_or(0, |(_, rows)| *rows);
            bound.keep(&handler.pauses, parked);
        }
    }
}

fn export(counts: &Counts, seen: &mut BTreeSet<String>) {
    let parked: u64 = counts.parked.iter().map(|(_, rows)| rows).sum();
    for (state, rows) in [
        ("running", counts.running),
        ("waiting", counts.waiting),
        ("parked", parked),
        ("dead", counts.dead),
    ] {
        metrics::ledger_rows(state, rows);
    }
    // What is no longer parked on anything must not be shown for ever.
    for gone in seen.iter().filter(|on| !counts.parked.iter().any(|(now, _)| now == *on)) {
        metrics::parked(gone, 0);
    }
    for (on, rows) in &counts.parked {
        metrics::parked(on, *rows);
        seen.insert(on.clone());
    }
}

impl Bound {
    /// Pauses above the limit, and goes on below nine tenths of it, so that it does not flutter.
    fn keep(&self, pauses: &Pauses, parked: u64) {
        let Self { on, reason, limit } = self;
        if parked >= *limit {
            if pauses.add(reason.clone()) {
                warn!(
                    event = "worker.parked_full",
                    on, parked, limit, "too much is parked, so nothing is consumed"
                );
            }
        } else if parked < limit - limit / 10 {
            pauses.remove(reason);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_parked_pauses_until_it_has_clearly_become_less() {
        let pauses = Pauses::default();
        let reason = Reason::Breaker("mailer".to_owned());
        let bound = Bound { on: "mailer".to_owned(), reason, limit: 100 };
        let paused = |parked| {
            bound.keep(&pauses, parked);
            pauses.is_paused()
        };
        assert_eq!(
            [paused(99), paused(100), paused(95), paused(90), paused(89)],
            [false, true, true, true, false]
        );
    }
}
