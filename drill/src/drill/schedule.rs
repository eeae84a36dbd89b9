//! Which faults come in which order, and when: after so many requests. The same for the same seed.

/// What is done to one worker or to one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGTERM: a drain.
    Terminate,
    /// SIGSTOP, until the broker has given the worker up, then SIGCONT.
    Freeze,
    /// A worker's connections to the broker are reset.
    CutBroker,
    /// A worker's connections to Postgres are reset.
    CutPostgres,
    /// The producer's connection is reset.
    CutProducer,
}

/// One fault and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    /// When so many requests have come to their end.
    pub(super) after: u64,
    /// Decides whom it meets, and where in a frame a line is cut.
    pub(super) chance: u64,
}

/// Of six kills three are SIGKILL, two SIGTERM and one SIGSTOP; of five cuts two meet the broker's
/// line, two that of Postgres and one the producer's.
pub(super) fn schedule(requests: u64, kills: u32, cuts: u32, seed: u64) -> Vec<Planned> {
    use Fault::{CutBroker, CutPostgres, CutProducer, Freeze, Kill, Terminate};
    let kill = [Kill, Terminate, Freeze, Kill, Terminate, Kill].into_iter().cycle();
    let cut = [CutBroker, CutPostgres, CutProducer, CutBroker, CutPostgres].into_iter().cycle();
    let mut faults: Vec<Fault> = kill.take(kills as usize).chain(cut.take(cuts as usize)).collect();
    // Another stream of chance than the plan's, which begins with the same seed.
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x6661_756c_7473);
    chance.shuffle(&mut faults);
    let steps = faults.len() as u64 + 1;
    let planned = faults.into_iter().zip(1..);
    planned
        .map(|(fault, turn)| Planned {
            fault,
            after: requests * turn / steps,
            chance: chance.u64(..),
        })
        .collect()
}

/// How many requests may have been published when so many faults are over: two steps more than
/// that, so that every fault meets work, and what is published waits for the faults.
pub(super) fn allowed(requests: u64, faults: usize, over: usize) -> u64 {
    (requests * (over as u64 + 3) / (faults as u64 + 1)).min(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_of_fault_is_there_in_its_share() {
        let planned = schedule(200_000, 72, 30, 7);
        let count = |fault| planned.iter().filter(|planned| planned.fault == fault).count();
        assert_eq!([Fault::Kill, Fault::Terminate, Fault::Freeze].map(count), [36, 24, 12]);
        assert_eq!(
            [Fault::CutBroker, Fault::CutPostgres, Fault::CutProducer].map(count),
            [12, 12, 6]
        );
        assert!(planned.is_sorted_by_key(|planned| planned.after));
        assert!(planned.iter().all(|planned| (1..200_000).contains(&planned.after)));
    }

    #[test]
    fn three_kills_are_one_of_each_sort() {
        let planned = schedule(100, 3, 0, 1);
        for fault in [Fault::Kill, Fault::Terminate, Fault::Freeze] {
            assert!(planned.iter().any(|planned| planned.fault == fault), "{fault:?}");
        }
    }

    #[test]
    fn the_same_seed_is_the_same_schedule() {
        assert_eq!(schedule(1_000, 6, 5, 1), schedule(1_000, 6, 5, 1));
        assert_ne!(schedule(1_000, 6, 5, 1), schedule(1_000, 6, 5, 2));
    }

    #[test]
    fn there_is_more_to_work_at_each_fault_and_all_is_published_after_the_last() {
        let planned = schedule(1_000, 6, 5, 1);
        for (over, planned) in planned.iter().enumerate() {
            assert!(allowed(1_000, 11, over) > planned.after.min(999), "{over}");
        }
        assert_eq!(allowed(1_000, 11, 11), 1_000);
        assert_eq!(allowed(1_000, 0, 0), 1_000);
    }
}
