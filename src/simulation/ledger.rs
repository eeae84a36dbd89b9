//! The ledger of a simulated worker: the model behind the real lanes, and Postgres' troubles.

mod batches;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use self::batches::{Claims, Finishing, ids};
use super::{
    plan::Nature,
    process::Process,
    world::{State, World},
};
use crate::{
    ledger::{
        Ask, Batch, BatchError, Bounds, Claim, Claimed, Counts, Due, Entered, Entry, Fence, Finish,
        Finished, Finishes, Hold, Keeper, Lanes, Lease, LedgerError, OfUsers, Outage, Verdict,
        Whose,
    },
    limit::{Draw, Grant},
    outcome::{ErrorCode, Failure, StepError},
    pause::Pauses,
    request::Message,
};

/// How often Postgres is tried while it is away.
const PROBE: Duration = Duration::from_millis(500);

pub(super) struct Memory {
    world: Arc<World>,
    process: Arc<Process>,
    outage: Outage,
    claims: Lanes<Claims>,
    finishes: Finishes<Finishing>,
}

impl Memory {
    pub(super) fn open(world: &Arc<World>, process: &Arc<Process>, pauses: Pauses) -> Arc<Self> {
        let lanes = world.plan.lanes;
        let bounds = Bounds { rows: world.plan.batch_rows, bytes: 100_000, linger: Duration::ZERO };
        let claims = Claims(Arc::clone(world), Arc::clone(process));
        let finishes = Finishing(Arc::clone(world), Arc::clone(process));
        let memory = Arc::new(Self {
            claims: Lanes::start(Arc::new(claims), lanes.div_ceil(2), bounds),
            finishes: Finishes::start(&Arc::new(finishes), lanes, lanes.div_ceil(2), bounds),
            outage: Outage::new(pauses, "the model".to_owned()),
            world: Arc::clone(world),
            process: Arc::clone(process),
        });
        tokio::spawn(Arc::clone(&memory).watch());
        memory
    }

    /// As the ledger does it.
    async fn watch(self: Arc<Self>) {
        loop {
            self.outage.noted().await;
            let probe = || async { Some(self.visit(|| "probe".to_owned(), |_, _| Ok(())).await) };
            self.outage.watch(PROBE, probe).await;
        }
    }

    /// Claims by the ledger itself.
    async fn bring_up(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut State, Duration) -> Vec<Due> + Send + 'static,
    ) -> Result<Vec<Due>, LedgerError> {
        if self.process.is_stopping() {
            self.world.broke(format!("{} {what} in a drain", self.process.name));
        }
        let due = self.visit(|| what.to_owned(), move |state, now| Ok(work(state, now))).await;
        let due = self.outage.noticed(due)?;
        for due in &due {
            self.process.has_begun(due.fence);
            if let Ok(request) = &due.request {
                self.world.tell(&self.process.name, || {
                    let (attempt, crashes, on) = (due.attempt, due.crashes, &due.parked_on);
                    format!("{} is due: attempt {attempt}, {crashes} crashes, {on:?}", request.id)
                });
            }
        }
        Ok(due)
    }

    async fn visit<T: Send + 'static>(
        &self,
        what: impl Fn() -> String + Send,
        work: impl FnOnce(&mut State, Duration) -> Result<T, BatchError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.world.visit(&self.process, what, work).await.map_err(LedgerError::from)
    }
}

impl Keeper for Memory {
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        self.process.begins(claim.fence, &self.world);
        let key = claim.request.user_id.clone();
        self.outage.noticed(self.claims.submit(&key, claim).await)
    }

    async fn finish(&self, finish: Finish) -> Result<Finished, LedgerError> {
        let (Hold::Fresh(fence) | Hold::Claimed(fence)) = finish.hold;
        self.process.begins(fence, &self.world);
        self.outage.noticed(self.finishes.file(finish).await)
    }

    async fn due(&self, ask: &Ask) -> Result<Vec<Due>, LedgerError> {
        let (ask, worker) = (ask.clone(), self.process.name.clone());
        self.bring_up("looks for due work", move |state, now| {
            state.model.due(&ask, &worker, now, |_| Fence::new())
        })
        .await
    }

    async fn of_users(&self, wanted: &OfUsers, lease: Duration) -> Result<Vec<Due>, LedgerError> {
        let (wanted, worker) = (wanted.clone(), self.process.name.clone());
        self.bring_up("looks for what is parked on shares", move |state, now| {
            state.model.of_users(&wanted, lease, &worker, now, |_| Fence::new())
        })
        .await
    }

    /// What `take_tokens` does.
    async fn tokens(&self, bucket: &str, draw: Draw) -> Result<Grant, LedgerError> {
        let bucket = bucket.to_owned();
        let work = move |state: &mut State, now: Duration| {
            let now = now.as_secs_f64();
            let full = now - draw.burst / draw.rate;
            let given_until = state.buckets.entry(bucket).or_insert(full);
            let since = given_until.max(full);
            let there = ((now - since) * draw.rate + 1e-6).floor().max(0.0);
            let tokens = there.min(f64::from(draw.tokens));
            *given_until = since + tokens / draw.rate;
            let next = (*given_until + 1.0 / draw.rate - now).max(0.0);
            Ok(Grant { tokens: tokens as u32, next_in: Duration::from_secs_f64(next) })
        };
        self.outage.noticed(self.visit(|| format!("asks for {draw:?}"), work).await)
    }

    async fn renew(&self, held: &[Lease]) -> Result<(), LedgerError> {
        let held = held.to_vec();
        let renewed = self
            .visit(
                || "renews leases".to_owned(),
                move |state, now| {
                    state.model.renew(&held, now);
                    Ok(())
                },
            )
            .await;
        self.outage.noticed(renewed)
    }

    async fn suspect(&self, id: &str, fence: Fence) -> Result<bool, LedgerError> {
        let (what, id) = (format!("suspects {id}"), id.to_owned());
        let suspected =
            self.visit(|| what.clone(), move |state, _| Ok(state.model.suspect(&id, fence))).await;
        self.outage.noticed(suspected)
    }

    async fn enter(&self, entries: &[Entry]) -> Result<Vec<Entered>, LedgerError> {
        let theirs = entries.to_vec();
        let what = || format!("enters {}", ids(theirs.iter().map(|entry| &*entry.request.id)));
        let entries = theirs.clone();
        let entered = self.visit(what, move |state, _| Ok(state.model.enter(&entries))).await;
        self.outage.noticed(entered)
    }

    async fn advance(&self, whose: &Whose) -> Result<u64, LedgerError> {
        let (what, whose) = (format!("advances {whose:?}"), whose.clone());
        let work = move |state: &mut State, now| Ok(state.model.advance(&whose, now));
        let advanced = self.visit(|| what.clone(), work).await;
        self.outage.noticed(advanced)
    }

    async fn in_line(&self, at_most: u64) -> Result<u64, LedgerError> {
        let work = move |state: &mut State, _| Ok(state.model.in_line(at_most));
        let counted = self.visit(|| "counts who stands in line".to_owned(), work).await;
        self.outage.noticed(counted)
    }

    async fn keep_unreadable(
        &self,
        message: &Message,
        _: Option<&str>,
        failure: &Failure,
    ) -> Result<(), LedgerError> {
        let (what, message) = (format!("keeps {}", failure.code), message.clone());
        let kept = self
            .visit(
                || what.clone(),
                move |state, _| {
                    state.kept.insert(message.body.to_vec());
                    state.model.keep_unreadable(&message);
                    Ok(())
                },
            )
            .await;
        self.outage.noticed(kept)
    }

    async fn counts(&self) -> Result<Counts, LedgerError> {
        let counts = self.visit(|| "counts".to_owned(), |state, _| Ok(state.model.counts())).await;
        self.outage.noticed(counts)
    }

    async fn let_go_strays(&self, on: &[&str]) -> Result<(), LedgerError> {
        // Here every worker has the same kinds.
        self.world.broke(format!("{on:?} are taken for gates that are no more"));
        Ok(())
    }

    fn due_poll(&self) -> Duration {
        Duration::from_millis(700)
    }

    fn probe_interval(&self) -> Duration {
        PROBE
    }

    fn lease_margin(&self) -> Duration {
        Duration::from_secs(4)
    }
}
