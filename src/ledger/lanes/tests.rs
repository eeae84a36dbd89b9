//! Lanes over a batch that fails by name.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::outcome::{ErrorCode, Failure, StepError};

/// Jobs named `bad…` fail their batch, `slow…` time it out, `away` loses the connection.
#[derive(Default)]
struct Fake(Mutex<Vec<Vec<&'static str>>>);

fn step(text: &str) -> StepError {
    StepError::Refused(Failure::new(ErrorCode::ApplyRefused, text))
}

impl Batch for Fake {
    type Job = &'static str;
    type Answer = String;
    const NAME: &'static str = "fake";
    fn id(job: &Self::Job) -> &str {
        job
    }
    fn weight(job: &Self::Job) -> usize {
        job.len()
    }
    fn alone(job: &Self::Job) -> bool {
        job.starts_with("alone")
    }
    async fn run(&self, jobs: &[Self::Job]) -> Result<Vec<String>, BatchError> {
        self.0.lock().unwrap().push(jobs.to_vec());
        if jobs.contains(&"away") {
            return Err(BatchError::Away("gone".into()));
        }
        if jobs.iter().any(|job| job.starts_with("slow")) {
            return Err(BatchError::TimedOut(step("slow")));
        }
        if jobs.iter().any(|job| job.starts_with("bad")) {
            return Err(BatchError::Failed(step("bad")));
        }
        Ok(jobs.iter().map(|job| format!("{job}!")).collect())
    }
}

/// Puts all jobs into one lane before it runs, and returns the batches tried and the answers.
async fn run(
    jobs: &[&'static str],
    bounds: Bounds,
) -> (Vec<Vec<&'static str>>, Vec<Result<String, LedgerError>>) {
    let fake = Arc::new(Fake::default());
    let (sender, receiver) = mpsc::channel(100);
    let mut answers = Vec::new();
    for job in jobs {
        let (answer, answered) = oneshot::channel();
        sender.send(Item { job: *job, answer }).await.unwrap();
        answers.push(answered);
    }
    drop(sender);
    lane(Arc::clone(&fake), receiver, bounds).await;
    let mut results = Vec::new();
    for answered in answers {
        results.push(answered.await.unwrap());
    }
    let batches = fake.0.lock().unwrap().clone();
    (batches, results)
}

const WIDE: Bounds = Bounds { rows: 100, bytes: 1_000, linger: Duration::ZERO };

#[tokio::test]
async fn what_has_gathered_shares_one_commit() {
    let (batches, answers) = run(&["a", "b", "c"], WIDE).await;
    assert_eq!(batches, [["a", "b", "c"]]);
    assert_eq!(answers, [Ok("a!".into()), Ok("b!".into()), Ok("c!".into())]);
}

#[tokio::test]
async fn a_culprit_fails_alone() {
    let (_, answers) = run(&["a", "b", "bad", "c", "d", "e", "bad2", "f"], WIDE).await;
    let failed: Vec<bool> = answers.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, false, false, false, true, false]);
}

#[tokio::test]
async fn a_timeout_is_met_once_in_company_and_once_alone() {
    let (batches, answers) = run(&["a", "slow", "b", "c"], WIDE).await;
    assert_eq!(batches.iter().filter(|batch| batch.contains(&"slow")).count(), 2);
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
}

#[tokio::test]
async fn a_lost_connection_is_told_to_all_that_are_left() {
    let (batches, answers) = run(&["a", "away", "b"], WIDE).await;
    assert_eq!(batches.len(), 1);
    assert!(answers.iter().all(|answer| matches!(answer, Err(LedgerError::Away(_)))));
}

#[tokio::test]
async fn one_id_stands_once_in_a_batch_and_keeps_its_order() {
    let (batches, answers) = run(&["a", "b", "a", "c"], WIDE).await;
    assert_eq!(batches, [vec!["a", "b"], vec!["a", "c"]]);
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn rows_bytes_and_loners_bound_a_batch() {
    let (batches, _) = run(&["a", "b", "c"], Bounds { rows: 2, ..WIDE }).await;
    assert_eq!(batches, [vec!["a", "b"], vec!["c"]]);
    let (batches, _) = run(&["aaaa", "bbbb", "cc"], Bounds { rows: 9, bytes: 7, ..WIDE }).await;
    assert_eq!(batches, [vec!["aaaa"], vec!["bbbb", "cc"]]);
    let (batches, _) = run(&["a", "alone", "b", "c"], WIDE).await;
    assert_eq!(batches, [vec!["a"], vec!["alone"], vec!["b", "c"]]);
}

#[tokio::test(start_paused = true)]
async fn only_a_lane_that_lingers_waits_for_who_comes_later() {
    for (linger, together) in [(0, false), (20, true)] {
        let fake = Arc::new(Fake::default());
        let bounds = Bounds { linger: Duration::from_millis(linger), ..WIDE };
        let lanes = Lanes::start(Arc::clone(&fake), 1, bounds);
        let since = tokio::time::Instant::now();
        let later = async {
            sleep(Duration::from_millis(15)).await;
            lanes.submit("user", "b").await
        };
        let (first, second) = tokio::join!(lanes.submit("user", "a"), later);
        assert!(first.is_ok() && second.is_ok());
        let batches = fake.0.lock().unwrap().clone();
        assert_eq!(batches.len(), if together { 1 } else { 2 }, "{batches:?}");
        assert!(since.elapsed() <= Duration::from_millis(25), "{:?}", since.elapsed());
    }
}

const NAMES: [&str; 13] =
    ["a", "b", "c", "d", "e", "f", "bad1", "bad2", "slow1", "slow2", "alone1", "alone2", "away"];

proptest! {
    /// Whatever is put in: each job is answered once and as it deserves, a batch holds no id twice
    /// and no more than it may, and what is committed is committed in the order of the jobs.
    #[test]
    fn splitting_answers_everybody_as_if_alone(
        jobs in prop::collection::vec(0..NAMES.len(), 1..30), rows in 1..12_usize, bytes in 1..60_usize,
    ) {
        let jobs: Vec<&'static str> = jobs.into_iter().map(|name| NAMES[name]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (batches, answers) = runtime.block_on(run(&jobs, Bounds { rows, bytes, ..WIDE }));
        let mut committed = Vec::new();
        for batch in &batches {
            let distinct: HashSet<&str> = batch.iter().copied().collect();
            prop_assert_eq!(distinct.len(), batch.len(), "an id twice");
            prop_assert!(batch.len() <= rows);
            let weight: usize = batch.iter().map(|job| job.len()).sum();
            prop_assert!(batch.len() == 1 || weight <= bytes);
            prop_assert!(batch.len() == 1 || !batch.iter().any(|job| job.starts_with("alone")));
            let fails = |job: &&str| ["bad", "slow", "away"].iter().any(|word| job.starts_with(word));
            if !batch.iter().any(fails) {
                committed.extend(batch.iter().copied());
            }
        }
        let ok: Vec<&str> =
            jobs.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(job, _)| *job).collect();
        prop_assert_eq!(&committed, &ok, "done is what was committed, in order");
        for (job, answer) in jobs.iter().zip(&answers) {
            match answer {
                Ok(text) => prop_assert_eq!(text, &format!("{job}!")),
                Err(LedgerError::Away(_)) => prop_assert!(jobs.contains(&"away")),
                Err(LedgerError::Step(_)) => prop_assert!(job.starts_with("bad") || job.starts_with("slow")),
            }
        }
    }
}
