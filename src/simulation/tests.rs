//! Seeds, few of them in `make test` and as many as you like in `make simulate`.

use std::{
    env,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

use super::run;

/// `SEEDS`: how many are run.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// With `SEED` in the environment only that one is run, and all that happens is told.
#[test]
#[allow(clippy::print_stderr, reason = "a story is for the person who asks for it")]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = number("SEED") {
        let came = run(seed, true);
        for line in &came.story {
            eprintln!("{line}");
        }
        assert!(came.broken.is_empty(), "seed {seed}: {:#?}", came.broken);
        return;
    }
    let (seeds, first) = (number("SEEDS").unwrap_or(SEEDS), number("FIRST").unwrap_or(0));
    let next = AtomicU64::new(first);
    let (counts, began) = ([const { AtomicUsize::new(0) }; 3], Instant::now());
    let failed = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Relaxed);
                        if seed >= first + seeds || failed.len() > 4 {
                            return failed;
                        }
                        let came = run(seed, false);
                        for (sum, count) in counts.iter().zip(came.counts) {
                            sum.fetch_add(count, Relaxed);
                        }
                        if !came.broken.is_empty() {
                            failed.push((seed, came.broken));
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let [done, dead, vanished] = counts.map(AtomicUsize::into_inner);
    let took = began.elapsed();
    eprintln!(
        "{seeds} seeds in {took:.1?}: {done} requests done, {dead} dead, {vanished} times a worker vanished or seemed to"
    );
    for (seed, broken) in &failed {
        eprintln!("seed {seed} (make simulate SEED={seed}): {broken:#?}");
    }
    assert!(failed.is_empty(), "{} seeds broke a rule, the first ones are above", failed.len());
}

#[test]
fn a_seed_has_one_story() {
    for seed in 0..12 {
        let (one, other) = (run(seed, true), thread::spawn(move || run(seed, true)));
        let other = other.join().unwrap();
        if let Some(at) = (0..one.story.len()).find(|at| one.story.get(*at) != other.story.get(*at))
        {
            panic!("seed {seed}, line {at}: {:?}, {:?}", one.story.get(at), other.story.get(at));
        }
        assert_eq!(one, other);
        assert!(one.story.len() > 20);
    }
}
