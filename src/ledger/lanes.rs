//! Lanes: requests that arrive while a commit is under way share the next one.
//!
//! There is no linger: an idle lane commits a single request at once. One bad request must not
//! fail its neighbours, so a batch that fails is split until the culprit stands alone.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot};

use super::error::{BatchError, LedgerError};
use crate::telemetry::metrics;

/// One statement for many jobs.
pub(super) trait Batch: Send + Sync + 'static {
    /// One request's part in it.
    type Job: Send + Sync + 'static;
    /// What comes of it.
    type Answer: Send + 'static;
    /// Its name in metrics.
    const NAME: &'static str;

    /// The request: a batch holds each at most once.
    fn id(job: &Self::Job) -> &str;
    /// Its share of `batch_bytes`.
    fn weight(job: &Self::Job) -> usize;
    /// Whether it must not share a transaction.
    fn alone(job: &Self::Job) -> bool;
    /// Commits all of it or nothing; answers in the order of the jobs.
    fn run(
        &self,
        jobs: &[Self::Job],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, BatchError>> + Send;
}

/// The most a batch may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

struct Item<B: Batch> {
    job: B::Job,
    answer: oneshot::Sender<Result<B::Answer, LedgerError>>,
}

/// Several lanes of the same batch. Jobs with the same key take the same lane, in order.
pub(super) struct Lanes<B: Batch>(Vec<mpsc::Sender<Item<B>>>);

impl<B: Batch> Lanes<B> {
    /// Starts `count` lanes; they end when this is dropped and their jobs are done.
    pub(super) fn start(batch: Arc<B>, count: usize, bounds: Bounds) -> Self {
        let lane = |_| {
            let (sender, receiver) = mpsc::channel(bounds.rows);
            tokio::spawn(lane(Arc::clone(&batch), receiver, bounds));
            sender
        };
        Self((0..count.max(1)).map(lane).collect())
    }

    /// Has a job done in the lane of `key`.
    pub(super) async fn submit(&self, key: &str, job: B::Job) -> Result<B::Answer, LedgerError> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % self.0.len() as u64).unwrap_or_default();
        let (answer, answered) = oneshot::channel();
        let ended = || LedgerError::Away("the ledger has been closed".to_owned());
        self.0[lane].send(Item { job, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

async fn lane<B: Batch>(batch: Arc<B>, mut jobs: mpsc::Receiver<Item<B>>, bounds: Bounds) {
    let mut carried = VecDeque::new();
    loop {
        let first = match carried.pop_front() {
            Some(item) => item,
            None => match jobs.recv().await {
                Some(item) => item,
                None => return,
            },
        };
        let gathered = gather::<B>(first, &mut carried, &mut jobs, bounds);
        commit(&*batch, gathered).await;
    }
}

/// What has arrived, up to the bounds. What cannot come along is carried to the next batch, and
/// then nothing overtakes it.
fn gather<B: Batch>(
    first: Item<B>,
    carried: &mut VecDeque<Item<B>>,
    jobs: &mut mpsc::Receiver<Item<B>>,
    bounds: Bounds,
) -> Vec<Item<B>> {
    let mut bytes = B::weight(&first.job);
    // Hashes will do: two ids that share one wait for the next batch, which harms nobody.
    let hasher = RandomState::new();
    let mut ids = HashSet::from([hasher.hash_one(B::id(&first.job))]);
    let mut closed = B::alone(&first.job);
    let mut gathered = vec![first];
    let waiting = carried.len();
    let mut seen = 0;
    while !closed && gathered.len() < bounds.rows {
        let next = if seen < waiting { carried.pop_front() } else { jobs.try_recv().ok() };
        seen += 1;
        let Some(item) = next else { break };
        bytes += B::weight(&item.job);
        closed = B::alone(&item.job)
            || bytes > bounds.bytes
            || !ids.insert(hasher.hash_one(B::id(&item.job)));
        if closed {
            carried.push_front(item);
        } else {
            gathered.push(item);
        }
    }
    gathered
}

/// How often a batch that lost a race for an id is tried again as it is. Each loss means that
/// somebody else committed, so the next try sees that row.
const RACES: usize = 5;

async fn commit<B: Batch>(batch: &B, items: Vec<Item<B>>) {
    let (jobs, answers): (Vec<_>, Vec<_>) =
        items.into_iter().map(|item| (item.job, item.answer)).unzip();
    let mut answers: Vec<_> = answers.into_iter().map(Some).collect();
    let mut answer = |index: usize, what: Result<B::Answer, LedgerError>| {
        if let Some(sender) = answers[index].take() {
            // Whoever asked may have been interrupted; what is committed stays committed.
            let _gone = sender.send(what).is_err();
        }
    };
    // Ranges still to be committed, the next one last.
    let mut ranges = vec![(0..jobs.len(), 0)];
    while let Some((range, races)) = ranges.pop() {
        let part = &jobs[range.clone()];
        match batch.run(part).await {
            Ok(results) => {
                metrics::batch(B::NAME, part.len());
                for (index, result) in range.zip(results) {
                    answer(index, Ok(result));
                }
            }
            Err(BatchError::Raced) if races < RACES => ranges.push((range, races + 1)),
            Err(error @ BatchError::Away(_)) => {
                let error = LedgerError::from(error);
                for index in range.chain(ranges.drain(..).flat_map(|(rest, _)| rest)) {
                    answer(index, Err(error.clone()));
                }
            }
            Err(error) if part.len() == 1 => answer(range.start, Err(error.into())),
            // Halving would run into the same timeout once for every level.
            Err(BatchError::TimedOut(_)) => {
                ranges.extend(range.rev().map(|index| (index..index + 1, 0)));
            }
            Err(_) => {
                let middle = range.start + part.len() / 2;
                ranges.push((middle..range.end, 0));
                ranges.push((range.start..middle, 0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

    use std::sync::Mutex;

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

    const WIDE: Bounds = Bounds { rows: 100, bytes: 1_000 };

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
        let (batches, _) = run(&["a", "b", "c"], Bounds { rows: 2, bytes: 1_000 }).await;
        assert_eq!(batches, [vec!["a", "b"], vec!["c"]]);
        let (batches, _) = run(&["aaaa", "bbbb", "cc"], Bounds { rows: 9, bytes: 7 }).await;
        assert_eq!(batches, [vec!["aaaa"], vec!["bbbb", "cc"]]);
        let (batches, _) = run(&["a", "alone", "b", "c"], WIDE).await;
        assert_eq!(batches, [vec!["a"], vec!["alone"], vec!["b", "c"]]);
    }
}
