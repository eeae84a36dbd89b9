//! Which deliveries of a channel the broker may be told about, and in how few frames.
//!
//! Delivery tags count up from 1 on each channel. An acknowledgement with `multiple` covers every
//! tag up to its own, also those still being worked, so it may reach exactly as far as everything
//! is finished. A pure machine: it is told what happens and answers with what to send.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::outcome::Settlement;

/// What to send to the broker: first the single settlements, in any order, and then the
/// acknowledgement up to a tag, which would cover them otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) singles: Vec<(u64, Settlement)>,
    pub(super) up_to: Option<UpTo>,
}

/// One `basic.ack` with `multiple`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UpTo {
    pub(super) tag: u64,
    /// How many deliveries it acknowledges.
    pub(super) count: u64,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.singles.is_empty() && self.up_to.is_none()
    }

    /// How many deliveries it settles.
    pub(super) fn count(&self) -> u64 {
        self.singles.len() as u64 + self.up_to.map_or(0, |up_to| up_to.count)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Delivered, and nobody said what became of it.
    Working,
    /// To be acknowledged, and waiting for older ones.
    Held,
    /// The broker has been told, or is told in the batch under way.
    Settled,
}

/// The deliveries of one channel that the broker waits to hear of, oldest first.
#[derive(Debug)]
pub(super) struct Watermark {
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Give-backs and rejections that were not sent yet.
    singles: Vec<(u64, Settlement)>,
    /// How many slots are `Held`.
    held: u64,
    /// How many slots are `Working`.
    working: u64,
    /// What was told to be acknowledged, and when, in that order. Some of it may have been sent since.
    told: VecDeque<(u64, Instant)>,
}

impl Watermark {
    pub(super) fn new() -> Self {
        Self {
            first: 1,
            slots: VecDeque::new(),
            singles: Vec::new(),
            held: 0,
            working: 0,
            told: VecDeque::new(),
        }
    }

    /// A delivery came. Tags that were skipped were delivered to nobody (the client library drops
    /// what arrives for a subscription that it has ended) and are given back.
    pub(super) fn register(&mut self, tag: u64) {
        let next = self.first + self.slots.len() as u64;
        for skipped in next..tag {
            self.slots.push_back(Slot::Settled);
            self.singles.push((skipped, Settlement::GiveBack));
        }
        if tag >= next {
            self.slots.push_back(Slot::Working);
            self.working += 1;
        }
    }

    /// Somebody says what became of a delivery. What was told before, or never came, changes
    /// nothing.
    pub(super) fn tell(&mut self, tag: u64, settlement: Settlement, now: Instant) {
        let Some(slot) = tag
            .checked_sub(self.first)
            .and_then(|n| usize::try_from(n).ok())
            .and_then(|n| self.slots.get_mut(n))
            .filter(|slot| **slot == Slot::Working)
        else {
            return;
        };
        self.working -= 1;
        if settlement == Settlement::Ack {
            *slot = Slot::Held;
            self.held += 1;
            self.told.push_back((tag, now));
        } else {
            *slot = Slot::Settled;
            self.singles.push((tag, settlement));
        }
    }

    /// What may be sent now. `gap_timeout` is how long something may be held behind an older
    /// delivery that is still worked; with zero, nothing is held.
    pub(super) fn take(&mut self, now: Instant, gap_timeout: Duration) -> Batch {
        let mut batch = Batch { singles: std::mem::take(&mut self.singles), up_to: None };
        while let Some(slot) = self.slots.front().filter(|slot| **slot != Slot::Working) {
            if *slot == Slot::Held {
                self.held -= 1;
                let count = batch.up_to.map_or(0, |up_to| up_to.count) + 1;
                batch.up_to = Some(UpTo { tag: self.first, count });
            }
            self.slots.pop_front();
            self.first += 1;
        }
        while let Some((tag, since)) = self.told.front().copied() {
            // What is before the first slot was covered just now, or before.
            if let Some(behind) = tag.checked_sub(self.first) {
                if now.saturating_duration_since(since) < gap_timeout {
                    break;
                }
                let slot = usize::try_from(behind).ok().and_then(|n| self.slots.get_mut(n));
                if let Some(slot) = slot {
                    *slot = Slot::Settled;
                    self.held -= 1;
                    batch.singles.push((tag, Settlement::Ack));
                }
            }
            self.told.pop_front();
        }
        batch
    }

    /// Since when the longest held one has waited behind an older delivery.
    pub(super) fn held_since(&self) -> Option<Instant> {
        self.told.front().map(|(_, since)| *since)
    }

    /// Deliveries that nobody has told about.
    pub(super) fn working(&self) -> u64 {
        self.working
    }

    /// Deliveries that were told about and not sent.
    pub(super) fn unsent(&self) -> u64 {
        self.held + self.singles.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const GAP: Duration = Duration::from_millis(50);

    fn started() -> (Watermark, Instant) {
        let mut watermark = Watermark::new();
        (1..=5).for_each(|tag| watermark.register(tag));
        (watermark, Instant::now())
    }

    #[test]
    fn a_finished_prefix_is_one_acknowledgement() {
        let (mut watermark, now) = started();
        for tag in [2, 1, 3] {
            watermark.tell(tag, Settlement::Ack, now);
        }
        let batch = watermark.take(now, GAP);
        assert_eq!(batch, Batch { singles: vec![], up_to: Some(UpTo { tag: 3, count: 3 }) });
        assert!(watermark.take(now, GAP).is_empty());
    }

    #[test]
    fn what_waits_too_long_behind_a_straggler_is_acknowledged_alone() {
        let (mut watermark, now) = started();
        watermark.tell(2, Settlement::Ack, now);
        watermark.tell(4, Settlement::Ack, now);
        assert!(watermark.take(now, GAP).is_empty());
        let batch = watermark.take(now + GAP, GAP);
        assert_eq!(batch.singles, [(2, Settlement::Ack), (4, Settlement::Ack)]);
        watermark.tell(1, Settlement::Ack, now + GAP);
        watermark.tell(3, Settlement::Ack, now + GAP);
        assert_eq!(watermark.take(now + GAP, GAP).up_to, Some(UpTo { tag: 3, count: 2 }));
    }

    /// Otherwise a window full of them would wait for one that waits in line for its dependency.
    #[test]
    fn nothing_waits_longer_though_the_oldest_is_another_each_time() {
        let (mut watermark, now) = started();
        watermark.tell(5, Settlement::Ack, now);
        for (tag, waited) in [(1, GAP / 3), (2, GAP / 2)] {
            watermark.tell(tag, Settlement::Ack, now + waited);
            let batch = watermark.take(now + waited, GAP);
            assert_eq!(batch, Batch { singles: vec![], up_to: Some(UpTo { tag, count: 1 }) });
        }
        assert_eq!(watermark.held_since(), Some(now));
        assert_eq!(watermark.take(now + GAP, GAP).singles, [(5, Settlement::Ack)]);
        assert_eq!((watermark.held_since(), watermark.unsent()), (None, 0));
    }

    #[test]
    fn a_give_back_is_sent_at_once_and_never_covered() {
        let (mut watermark, now) = started();
        watermark.tell(3, Settlement::GiveBack, now);
        assert_eq!(watermark.take(now, GAP).singles, [(3, Settlement::GiveBack)]);
        for tag in [1, 2] {
            watermark.tell(tag, Settlement::Ack, now);
        }
        assert_eq!(watermark.take(now, GAP).up_to, Some(UpTo { tag: 2, count: 2 }));
        watermark.tell(3, Settlement::Ack, now);
        assert!(watermark.take(now, GAP).is_empty(), "it was told before");
    }

    #[test]
    fn a_tag_that_came_to_nobody_is_given_back() {
        let mut watermark = Watermark::new();
        watermark.register(1);
        watermark.register(3);
        assert_eq!(watermark.take(Instant::now(), GAP).singles, [(2, Settlement::GiveBack)]);
        assert_eq!(watermark.working(), 2);
    }

    /// A broker that knows the rules of RabbitMQ: each tag is settled once, and an unknown tag is
    /// an error that closes the channel.
    #[derive(Default)]
    struct Broker {
        unacked: BTreeSet<u64>,
        settled: BTreeMap<u64, Settlement>,
    }

    impl Broker {
        fn settle(&mut self, tag: u64, settlement: Settlement) {
            assert!(self.unacked.remove(&tag), "406: unknown delivery tag {tag}");
            self.settled.insert(tag, settlement);
        }

        fn receive(&mut self, batch: &Batch) {
            for (tag, settlement) in &batch.singles {
                self.settle(*tag, *settlement);
            }
            if let Some(up_to) = batch.up_to {
                assert!(
                    self.unacked.contains(&up_to.tag),
                    "406: unknown delivery tag {}",
                    up_to.tag
                );
                let covered: Vec<u64> = self.unacked.range(..=up_to.tag).copied().collect();
                assert_eq!(covered.len() as u64, up_to.count);
                covered.into_iter().for_each(|tag| self.settle(tag, Settlement::Ack));
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver { skip: bool },
        Tell(prop::sample::Index, Settlement),
        Wait(u64),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        let settlement = prop_oneof![
            8 => Just(Settlement::Ack), 1 => Just(Settlement::GiveBack), 1 => Just(Settlement::Reject)
        ];
        prop_oneof![
            10 => prop::bool::weighted(0.05).prop_map(|skip| Step::Deliver { skip }),
            10 => (any::<prop::sample::Index>(), settlement).prop_map(|(tag, settlement)| Step::Tell(tag, settlement)),
            2 => (0..60_u64).prop_map(Step::Wait),
            4 => Just(Step::Take),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn everything_told_is_settled_as_told_and_nothing_else_is(steps in prop::collection::vec(step(), 0..200)) {
            let (mut watermark, mut broker) = (Watermark::new(), Broker::default());
            let (mut now, mut tag) = (Instant::now(), 0);
            let (mut working, mut told, mut skipped) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Deliver { skip } => {
                        tag += 1;
                        broker.unacked.insert(tag);
                        if skip {
                            skipped.insert(tag);
                        } else {
                            watermark.register(tag);
                            working.push(tag);
                        }
                    }
                    Step::Tell(_, _) if working.is_empty() => {}
                    Step::Tell(index, settlement) => {
                        let tag = working.swap_remove(index.index(working.len()));
                        watermark.tell(tag, settlement, now);
                        told.insert(tag, settlement);
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Take => broker.receive(&watermark.take(now, GAP)),
                }
                for (tag, settlement) in &broker.settled {
                    let expected = told.get(tag).copied().or(skipped.contains(tag).then_some(Settlement::GiveBack));
                    prop_assert_eq!(Some(*settlement), expected, "tag {}", tag);
                }
                prop_assert_eq!(watermark.working(), working.len() as u64);
            }
            broker.receive(&watermark.take(now, Duration::ZERO));
            for (tag, settlement) in &told {
                prop_assert_eq!(broker.settled.get(tag), Some(settlement), "tag {}", tag);
            }
            prop_assert_eq!(watermark.unsent(), 0);
        }
    }
}
