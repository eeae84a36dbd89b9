//! How much is parked: exported, and a reason to pause where it is too much.
//!
//! A request that is parked costs the ledger a row and two writes, and is safe there; so parking has a
//! bound for each dependency, and beyond it the queue keeps the rest. Consuming pauses earlier only
//! where every kind would be parked: then nothing is gained by taking requests out of the queue. As
//! long as one kind could still flow it goes on, for that kind's sake.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::{
    downstream::Dependency,
    handler::Handler,
    ledger::{Counts, Keeper, LedgerError, ORDER},
    pause::{Pauses, Reason},
    telemetry::metrics,
};

/// How often it is looked whether anything could flow: so much is taken in before a pause.
const LOOK: Duration = Duration::from_millis(250);

/// How much may be parked on something, and why nothing is consumed where it is more.
pub(crate) struct Bound {
    on: String,
    reason: Reason,
    limit: u64,
    /// More is parked, or was a moment ago.
    is_full: bool,
}

/// Exports what is in the ledger, and pauses where too much is parked or nothing could flow.
pub(crate) async fn keep<K: Keeper>(
    handler: Arc<Handler<K>>,
    mut bounds: Vec<Bound>,
    every: Duration,
    tell: impl Fn(&Counts),
) {
    let mut counting = interval(every);
    counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking = interval(LOOK.min(every));
    looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // It may take a while, and looking goes on.
    let counted = stream::unfold((counting, BTreeSet::new()), async |(mut counting, mut seen)| {
        counting.tick().await;
        let counts = count(&handler, &mut seen).await;
        // Where it took longer than that, there is a rest all the same.
        counting.reset();
        Some((counts, (counting, seen)))
    });
    let mut counted = pin!(counted);
    loop {
        tokio::select! {
            biased;
            Some(counts) = counted.next() => {
                if let Some(counts) = counts {
                    tell(&counts);
                    bounds.iter_mut().for_each(|bound| bound.counted(&counts));
                }
            }
            _ = looking.tick() => handler.downstream.iter().for_each(Dependency::export),
        }
        let in_vain = in_vain(handler.gates());
        bounds.iter().for_each(|bound| bound.keep(&handler.pauses, &in_vain));
    }
}

async fn count<K: Keeper>(handler: &Handler<K>, seen: &mut BTreeSet<String>) -> Option<Counts> {
    if handler.pauses.contains(&Reason::Postgres) {
        return None;
    }
    let counts = match handler.ledger.counts().await {
        Ok(counts) => counts,
        // Told by who notices it.
        Err(LedgerError::Away(_)) => return None,
        Err(error) => {
            warn!(event = "ledger.count_failed", %error, "what is not done could not be counted");
            return None;
        }
    };
    export(&counts, seen);
    handler.counted(&counts);
    let names = counts.parked.iter().map(|(on, _)| on.as_str());
    let strays: Vec<&str> = names
        .filter(|on| !["not_before", "stop", ORDER].contains(on) && !handler.is_gate(on))
        .collect();
    if !strays.is_empty() {
        handler.ledger.let_go_strays(&strays).await.ok()?;
    }
    Some(counts)
}

/// What each kind would be parked on, as far as it would be: where that is every kind, all that they
/// wait for. Otherwise it is worth consuming.
fn in_vain(kinds: impl Iterator<Item = Option<String>>) -> BTreeSet<String> {
    kinds.collect::<Option<BTreeSet<String>>>().unwrap_or_default()
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
    /// Nothing is parked yet, as far as is known.
    pub(crate) fn new(on: &str, reason: Reason, limit: u64) -> Self {
        Self { on: on.to_owned(), reason, limit, is_full: false }
    }

    /// Full at the limit, and no longer below nine tenths of it, so that it does not flutter.
    fn counted(&mut self, counts: &Counts) {
        let Self { on, limit, is_full, .. } = self;
        let parked = counts.parked.iter().find(|(name, _)| name == on).map_or(0, |(_, rows)| *rows);
        if parked >= *limit && !*is_full {
            *is_full = true;
            warn!(
                event = "worker.parked_full",
                on, parked, limit, "too much is parked, so nothing is consumed"
            );
        } else if parked < *limit - *limit / 10 {
            *is_full = false;
        }
    }

    fn keep(&self, pauses: &Pauses, in_vain: &BTreeSet<String>) {
        if self.is_full || in_vain.contains(&self.on) {
            pauses.add(self.reason.clone());
        } else {
            pauses.remove(&self.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_parked_pauses_until_it_has_clearly_become_less() {
        let pauses = Pauses::default();
        let mut bound = Bound::new("mailer", Reason::Breaker("mailer".to_owned()), 100);
        let mut paused = |parked| {
            let parked = vec![("bank".to_owned(), 1_000), ("mailer".to_owned(), parked)];
            bound.counted(&Counts { parked, ..Counts::default() });
            bound.keep(&pauses, &BTreeSet::new());
            pauses.is_paused()
        };
        assert_eq!(
            [paused(99), paused(100), paused(95), paused(90), paused(89)],
            [false, true, true, true, false]
        );
    }

    #[test]
    fn it_pauses_earlier_only_where_every_kind_would_be_parked() {
        let kinds =
            |gates: &[Option<&str>]| in_vain(gates.iter().map(|gate| gate.map(str::to_owned)));
        assert_eq!(kinds(&[Some("mailer"), None]).len(), 0, "one kind could flow");
        assert_eq!(kinds(&[]).len(), 0);
        let all = kinds(&[Some("mailer"), Some("kind:pay"), Some("mailer")]);
        let pauses = Pauses::default();
        let bound = |on: &str| Bound::new(on, Reason::Breaker(on.to_owned()), 100);
        for name in ["mailer", "bank"] {
            bound(name).keep(&pauses, &all);
        }
        assert_eq!(pauses.reasons(), ["breaker:mailer"]);
        bound("mailer").keep(&pauses, &kinds(&[None]));
        assert!(!pauses.is_paused());
    }
}
