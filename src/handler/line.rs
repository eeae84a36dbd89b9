//! Lines: keeping those of ordered kinds going, and putting down who came another way.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{Attempt, Handler, write::unwritten};
use crate::{
    kind::Kind,
    ledger::{Entered, Entry, Keeper, LedgerError, ORDER, Whose},
    outcome::{GiveBack, Outcome},
    pause::Reason,
    request::Request,
    telemetry::metrics,
};

/// How often all lines are looked at: for those whose worker died between an end and what follows.
const SWEEP: Duration = Duration::from_secs(5);

/// Whose lines may have moved, and who wants to know that somebody was brought up.
#[derive(Debug, Default)]
pub(crate) struct Line {
    moved: Mutex<BTreeSet<String>>,
    rung: Notify,
    advanced: Notify,
}

impl Line {
    /// Somebody has entered the lines of these users, or left them.
    pub(crate) fn moved<'a>(&self, users: impl IntoIterator<Item = &'a str>) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.extend(users.into_iter().map(str::to_owned));
        drop(moved);
        self.rung.notify_one();
    }

    /// An attempt has come to its end.
    pub(crate) fn ended(&self, attempt: &Attempt, outcome: &Outcome) {
        if let (Some(user), Outcome::Done | Outcome::Duplicate | Outcome::Dead { .. }) =
            (attempt.in_line_of(), outcome)
        {
            self.moved([user]);
        }
    }

    /// Completes when somebody was brought up here since it was asked last.
    pub(crate) async fn advanced(&self) {
        self.advanced.notified().await;
    }

    fn take(&self) -> Vec<String> {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *moved).into_iter().collect()
    }
}

impl<K: Keeper> Handler<K> {
    /// Brings up who is first in a line, as soon as a line has moved. Never completes.
    pub(crate) async fn keep_lines(&self) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let whose = tokio::select! {
                biased;
                () = self.line.rung.notified() => Whose::Theirs(self.line.take()),
                _ = sweep.tick() => Whose::Everybodys,
            };
            self.pauses.until_without(&Reason::Postgres).await;
            match self.ledger.advance(&whose).await {
                Ok(0) => {}
                Ok(_) => self.line.advanced.notify_one(),
                Err(_) => {
                    sleep(self.ledger.probe_interval()).await;
                    if let Whose::Theirs(users) = &whose {
                        self.line.moved(users.iter().map(String::as_str));
                    }
                }
            }
        }
    }

    /// Puts down a request of an ordered kind that came by the queue without an order: behind those
    /// of its user that are in the ledger by now, which is all that can be said of its place.
    pub(super) async fn enter_elsewhere(
        &self,
        kind: &Kind,
        request: Arc<Request>,
        attempt: &Attempt,
    ) -> Outcome {
        let entry = attempt.entry(&request);
        match self.ledger.enter(&[entry]).await.as_deref() {
            Ok([Entered::Stands]) => {
                metrics::entered(&kind.name, "elsewhere");
                self.line.moved([request.user_id.as_str()]);
                Outcome::Parked { on: ORDER.to_owned(), due_in: None }
            }
            Ok([Entered::Reused]) => self.reused(&request).await,
            Ok(_) => Outcome::Duplicate,
            Err(LedgerError::Step(error)) => unwritten(LedgerError::Step(error.clone())),
            Err(LedgerError::Away(_)) => Outcome::GivenBack { why: GiveBack::Postgres },
        }
    }

    /// Keeps a request that has the id of another one, until that is done.
    pub(crate) async fn keep_reused(&self, request: &Request) -> Outcome {
        loop {
            match self.reused(request).await {
                Outcome::GivenBack { .. } => {
                    self.pauses.until_without(&Reason::Postgres).await;
                    sleep(self.ledger.probe_interval()).await;
                }
                outcome => return outcome,
            }
        }
    }
}

impl Attempt {
    /// What it is to stand in line with.
    pub(crate) fn entry(&self, request: &Arc<Request>) -> Entry {
        Entry { request: Arc::clone(request), fence: self.fence, received_at: self.received_at }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_line_that_moved_is_told_once_however_often_it_did() {
        let line = Line::default();
        line.moved(["ada", "bob"]);
        line.moved(["ada"]);
        assert!(line.rung.notified().now_or_never().is_some());
        assert_eq!(line.take(), ["ada", "bob"]);
        assert!(line.take().is_empty());
    }
}
