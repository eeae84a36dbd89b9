//! Lanes: requests that arrive while a commit is under way share the next one.
//!
//! An idle lane commits a single request at once, unless it is told to linger. One bad request must not
//! fail its neighbours, so a batch that fails is split until the culprit stands alone.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::error::{BatchError, LedgerError};
use crate::telemetry::metrics;

/// One statement for many jobs.
pub(crate) trait Batch: Send + Sync + 'static {
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

/// The most a batch may hold, and when it is closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    /// How long a batch waits for further requests once it has one.
    pub(crate) linger: Duration,
}

struct Item<B: Batch> {
    job: B::Job,
    answer: oneshot::Sender<Result<B::Answer, LedgerError>>,
}

/// Several lanes of the same batch. Jobs with the same key take the same lane, in order.
pub(crate) struct Lanes<B: Batch>(Vec<mpsc::Sender<Item<B>>>);

impl<B: Batch> Lanes<B> {
    /// Starts `count` lanes; they end when this is dropped and their jobs are done.
    pub(crate) fn start(batch: Arc<B>, count: usize, bounds: Bounds) -> Self {
        let lane = |_| {
            let (sender, receiver) = mpsc::channel(bounds.rows);
            tokio::spawn(lane(Arc::clone(&batch), receiver, bounds));
            sender
        };
        Self((0..count.max(1)).map(lane).collect())
    }

    /// Has a job done in the lane of `key`.
    pub(crate) async fn submit(&self, key: &str, job: B::Job) -> Result<B::Answer, LedgerError> {
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
        // Not where a batch has gathered already.
        if !bounds.linger.is_zero() && carried.is_empty() && jobs.len() + 1 < bounds.rows {
            sleep(bounds.linger).await;
        }
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
mod tests;
