//! Which requests that the ledger keeps are to go on now.
//!
//! Some go on by the clock. Others are parked on a gate: a dependency, a kind that an operator has
//! paused, or a limit that was full. They are let go while it is open. Neither takes more than its share
//! of the slots.

use std::time::Duration;

use super::{Handler, Started};
use crate::{
    downstream::{Coming, Dependency},
    kind::{Kind, Work},
    ledger::{Ask, Due, Gate, Keeper, LedgerError},
    limit::Bounds,
    pause::Reason,
    telemetry::metrics,
};

impl<K: Keeper> Handler<K> {
    /// Claims what is to go on, with so many free slots: half of them at most are for what is parked on
    /// the shares of users, and half of what is left for what is parked on gates. With an odd one, and
    /// where there are more gates than slots, `chance` (in `0.0..1.0`) says whose it is.
    ///
    /// # Errors
    /// [`LedgerError::Away`]; nothing that was claimed is lost, its lease runs out.
    pub(crate) async fn bring_up(
        &self,
        slots: usize,
        lease: Duration,
        chance: f64,
    ) -> Result<Vec<Started>, LedgerError> {
        let odd = usize::from(slots % 2 == 1 && (chance * 100.0).fract() < 0.5);
        let mut started = self.of_shares(slots / 2 + odd, lease).await?;
        let left = slots - started.len();
        // A stop may have been asked for meanwhile.
        if left > 0 && !self.pauses.contains(&Reason::Drain) {
            let ask = self.ask(left, lease, chance);
            match self.ledger.due(&ask).await {
                Ok(due) => started.extend(self.brought_up(&ask, due)),
                Err(error) if started.is_empty() => return Err(error),
                // What was brought up is ours, and is worked.
                Err(_) => {}
            }
        }
        Ok(started)
    }

    fn ask(&self, slots: usize, lease: Duration, chance: f64) -> Ask {
        let gate = |on: &str, most| Gate { on: on.to_owned(), most, probes: false };
        let dependencies = self.downstream.iter().map(|dependency| {
            let (most, probes) = dependency.may_let_go();
            Gate { probes, ..gate(dependency.name(), most) }
        });
        let kinds = self.kinds.iter().filter(|kind| !kind.is_paused());
        let kinds = kinds.map(|kind| gate(&kind.parked_on(), slots));
        let limits = self.limits().map(|(bounds, most)| {
            bounds.parked.look();
            gate(bounds.on(), most)
        });
        let gates = dependencies.chain(kinds).chain(limits);
        let mut gates: Vec<Gate> = gates.filter(|gate| gate.most > 0).collect();
        let odd = usize::from(slots % 2 == 1 && chance < 0.5);
        share(&mut gates, slots / 2 + odd, (chance * 1_000.0).fract());
        Ask { limit: slots, gates, lease }
    }

    /// What has come of it is to be worked.
    fn brought_up(&self, ask: &Ask, due: Vec<Due>) -> Vec<Started> {
        let found =
            |gate: &Gate| due.iter().filter(|due| due.parked_on.as_ref() == Some(&gate.on)).count();
        due.iter().filter(|due| due.crashes > 0).for_each(|_| metrics::taken_over());
        // Who may wait for what it was parked on, and the dependency that it comes to.
        let mut let_go: Vec<(&str, Option<Coming>)> = Vec::new();
        for gate in &ask.gates {
            let (on, found) = (gate.on.as_str(), found(gate));
            if let Some(dependency) = self.downstream.get(on) {
                let coming = dependency.let_go(gate.most, found);
                let_go.extend(coming.map(|coming| (on, Some(coming))));
            } else if let Some(bounds) = self.bounds().find(|bounds| bounds.on() == on) {
                if found < gate.most {
                    bounds.parked.gone();
                }
                match self.downstream.iter().find(|it| it.bounds().on() == on) {
                    Some(dependency) => {
                        let coming = dependency.let_go_of_limits(found);
                        let_go.extend(coming.map(|coming| (on, Some(coming))));
                    }
                    None => let_go.extend((0..found).map(|_| (on, None))),
                }
            }
        }
        let started = due.into_iter().map(|due| {
            let of_it = |(on, _): &(&str, _)| Some(*on) == due.parked_on.as_deref();
            let let_go = let_go.iter().position(of_it).map(|at| let_go.swap_remove(at));
            let has_room = let_go.is_some();
            Started::Due { due, coming: let_go.and_then(|(_, coming)| coming), has_room }
        });
        started.collect()
    }

    /// How many slots are worth taking for what may be let go, between the looks for all. Those find also
    /// what is not worth a look of its own: somebody else's may stand in a limit's line for long.
    pub(crate) fn may_let_go(&self) -> usize {
        let dependencies = self.downstream.iter().map(|dependency| dependency.may_let_go().0);
        let worth = |(bounds, _): &(&Bounds, usize)| bounds.is_worth_a_look();
        let limits = self.limits().filter(worth).map(|(_, most)| most);
        let all = dependencies.chain(limits).fold(0, usize::saturating_add);
        let shares = if self.lobby.on_shares.any() { usize::MAX } else { 0 };
        all.saturating_mul(2).max(shares)
    }

    /// The limits that something is parked on, and how much room they have.
    fn limits(&self) -> impl Iterator<Item = (&Bounds, usize)> {
        let kinds = self.kinds.iter().map(|kind| {
            let open = kind.bounds.parked.any() && !kind.is_paused();
            (&*kind.bounds, if open { kind.bounds.room() } else { 0 })
        });
        kinds.chain(self.downstream.iter().map(|it| (it.bounds(), it.of_limits())))
    }

    /// Whether parked requests of any dependency go on as fast as they may.
    pub(crate) fn is_letting_go(&self) -> bool {
        self.downstream.iter().any(Dependency::is_letting_go)
    }

    /// What a request of each kind would be parked on if it came now, as far as that is known.
    pub(crate) fn gates(&self) -> impl Iterator<Item = Option<String>> {
        self.kinds.iter().map(|kind| match kind.is_paused() {
            true => Some(kind.parked_on()),
            false => self.shut(kind).map(|dependency| dependency.name().to_owned()),
        })
    }

    /// The dependency of a kind, where it would not let a request through that comes now. A kind written
    /// in Rust may call any.
    pub(super) fn shut(&self, kind: &Kind) -> Option<&Dependency> {
        let Work::Configured { call: Some(call) } = &kind.work else { return None };
        self.downstream.get(&call.dependency).filter(|dependency| dependency.turns_away())
    }

    /// Whether something is parked on what is a gate here: on a dependency, on one of our kinds, on a
    /// limit of theirs, or on the share of its user.
    pub(crate) fn is_gate(&self, on: &str) -> bool {
        self.downstream.get(on).is_some()
            || self.kinds.iter().any(|kind: &Kind| kind.parked_on() == on)
            || self.parked(on).is_some()
    }
}

/// Cuts what is wanted down to so many in all: each gets what it wants, or as much as any other that
/// wants more. Where there is not one for each, `chance` says who gets one.
fn share(gates: &mut Vec<Gate>, mut places: usize, chance: f64) {
    let first = (chance * gates.len() as f64) as usize;
    gates.rotate_left(first);
    gates.truncate(places);
    let mut left = gates.len();
    // Those who want least are seen to first, so that what they leave is there for the others.
    gates.sort_by_key(|gate| gate.most);
    for gate in &mut *gates {
        gate.most = gate.most.min(places.div_ceil(left.max(1)));
        places -= gate.most;
        left -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(wants: &[usize], places: usize, chance: f64) -> Vec<usize> {
        let gate =
            |(at, most): (usize, &usize)| Gate { on: at.to_string(), most: *most, probes: false };
        let some = |(_, most): &(usize, &usize)| **most > 0;
        let mut gates: Vec<Gate> = wants.iter().enumerate().filter(some).map(gate).collect();
        share(&mut gates, places, chance);
        let of = |at: usize| gates.iter().find(|gate| gate.on == at.to_string());
        (0..wants.len()).map(|at| of(at).map_or(0, |gate| gate.most)).collect()
    }

    #[test]
    fn who_wants_little_gets_it_and_the_others_share_alike() {
        assert_eq!(shares(&[100, 2, 100], 22, 0.5), [10, 2, 10]);
        assert_eq!(shares(&[3, 4], 50, 0.9), [3, 4]);
        assert!(shares(&[], 5, 0.0).is_empty());
        let one = |chance| shares(&[9, 0, 1, 9], 1, chance);
        assert_eq!([one(0.0), one(0.4), one(0.7)], [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]);
    }

    proptest! {
        #[test]
        fn all_places_are_used_and_no_more(
            wants in prop::collection::vec(0..50_usize, 0..8), places in 0..100_usize,
            chance in 0.0..1.0_f64,
        ) {
            let shares = shares(&wants, places, chance);
            prop_assert_eq!(shares.iter().sum::<usize>(), places.min(wants.iter().sum()));
            prop_assert!(shares.iter().zip(&wants).all(|(share, want)| share <= want));
            // Nobody has to do with less than another gets, unless he wants no more.
            let most = shares.iter().max().copied().unwrap_or_default();
            prop_assert!(shares.iter().zip(&wants).all(|(share, want)| share == want || share + 1 >= most));
        }
    }
}
