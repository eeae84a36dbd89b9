//! What is outside of the workers: broker, ledger, services and what goes wrong with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    broker::{Broker, Message},
    plan::{Nature, Plan},
    process::Process,
};
use crate::ledger::{BatchError, model::Model};

/// How a dependency does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Failing,
    Slow,
    Throttling,
}

pub(super) struct World {
    state: Mutex<State>,
    pub(super) plan: Plan,
    born: Instant,
}

pub(super) struct State {
    pub(super) chance: Rng,
    pub(super) model: Model,
    pub(super) broker: Broker,
    /// The queue of ordered kinds.
    pub(super) ordered: Broker,
    /// What came into it, in its order.
    pub(super) arrivals: Vec<String>,
    pub(super) natures: BTreeMap<String, Nature>,
    pub(super) moods: BTreeMap<&'static str, Mood>,
    pub(super) postgres: bool,
    pub(super) broker_up: bool,
    /// Faults are over.
    pub(super) calm: bool,
    /// How far the clock of Postgres has been set forward.
    pub(super) ahead: Duration,
    /// Bodies that were kept among the unreadable.
    pub(super) kept: BTreeSet<Vec<u8>>,
    /// Up to when the tokens of each rate are given out.
    pub(super) buckets: BTreeMap<String, f64>,
    pub(super) calls: BTreeMap<String, u32>,
    pub(super) replies: BTreeMap<String, u32>,
    pub(super) kills: BTreeMap<String, u32>,
    /// How often a process vanished, or seemed to.
    pub(super) vanished: u32,
    /// How often a stop cut a request off.
    pub(super) interrupted: u32,
    /// What was seen that must never be.
    pub(super) broken: Vec<String>,
    story: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(plan: Plan, chance: Rng, telling: bool) -> Arc<Self> {
        let state = State {
            chance,
            model: Model::default(),
            broker: Broker::default(),
            ordered: Broker::default(),
            arrivals: Vec::new(),
            natures: plan.natures.iter().cloned().collect(),
            moods: BTreeMap::new(),
            postgres: true,
            broker_up: true,
            calm: false,
            ahead: Duration::ZERO,
            kept: BTreeSet::new(),
            buckets: BTreeMap::new(),
            calls: BTreeMap::new(),
            replies: BTreeMap::new(),
            kills: BTreeMap::new(),
            vanished: 0,
            interrupted: 0,
            broken: Vec::new(),
            story: telling.then(Vec::new),
        };
        Arc::new(Self { state: Mutex::new(state), plan, born: Instant::now() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened, where somebody wants to read it.
    pub(super) fn tell(&self, who: &str, what: impl FnOnce() -> String) {
        let at = self.born.elapsed();
        if let Some(story) = &mut self.state().story {
            story.push(format!("{:>9.3}  {who:<9} {}", at.as_secs_f64(), what()));
        }
    }

    pub(super) fn tell_plan(&self) {
        let Plan { workers, concurrency, prefetch, lanes, batch_rows, .. } = self.plan;
        let Plan { grace, max_parked, max_in_flight, limits, faults, trouble, .. } = &self.plan;
        self.tell("plan", || {
            format!(
                "{workers} workers of {concurrency}, prefetch {prefetch}, {lanes} lanes of {batch_rows}, grace \
                 {grace:?}, {max_parked} parked, {max_in_flight} in flight, {limits:?}; for {trouble:?}: {faults:?}"
            )
        });
        for (id, nature) in &self.plan.natures {
            self.tell("plan", || format!("{id}: {nature:?}"));
        }
    }

    /// Notes that a rule was broken.
    pub(super) fn broke(&self, what: String) {
        self.tell("RULE", || what.clone());
        self.state().broken.push(what);
    }

    pub(super) fn story(&self) -> Vec<String> {
        self.state().story.take().unwrap_or_default()
    }

    /// Up to so many milliseconds, by chance.
    pub(super) fn nap(&self, most: u64) -> Duration {
        Duration::from_millis(self.state().chance.u64(..=most))
    }

    /// True as often as this says, but never in calm.
    pub(super) fn strikes(&self, chance: f64) -> bool {
        let mut state = self.state();
        chance > 0.0 && !state.calm && state.chance.f64() < chance
    }

    /// A step of a process: it takes some time, and the process may vanish at it.
    pub(super) async fn step(&self, process: &Process, most: u64) {
        sleep(self.nap(most)).await;
        self.is_there(process).await;
        if self.strikes(self.plan.faults.death) {
            self.kill(process, "vanishes at a step");
            pending::<()>().await;
        }
    }

    /// Nothing that a process does goes on when it has vanished, or before it wakes up again.
    pub(super) async fn is_there(&self, process: &Process) {
        while let Some(until) = process.frozen_until() {
            sleep_until(until).await;
        }
        if !process.is_alive() {
            pending::<()>().await;
        }
    }

    /// The process is no more: what it had sent may arrive or not.
    pub(super) fn kill(&self, process: &Process, why: &str) {
        if process.ends() {
            self.tell(&process.name, || why.to_owned());
            self.state().vanished += 1;
            self.cut(process);
        }
    }

    /// The line of a process to the broker is cut.
    pub(super) fn cut(&self, process: &Process) {
        for in_order in [false, true] {
            if let Some(line) = process.line(in_order) {
                self.cut_line(process, in_order, line);
            }
        }
    }

    /// A line is no more; what was under way on it arrives or not.
    pub(super) fn cut_line(&self, process: &Process, in_order: bool, line: u64) {
        let arriving = {
            let mut state = self.state();
            let State { broker, ordered, chance, .. } = &mut *state;
            let broker = if in_order { ordered } else { broker };
            let Some(line) = broker.lines.get_mut(&line) else { return };
            let arriving = chance.usize(..=line.frames.len());
            line.frames.drain(..arriving).collect::<Vec<_>>()
        };
        for frame in arriving {
            self.arrived(in_order, line, frame);
        }
        self.state().queue(in_order).cut(line);
        self.tell(&process.name, || format!("{} is cut", named(in_order, line)));
    }

    /// A visit of a process to Postgres, in which `work` is one transaction.
    pub(super) async fn visit<T: Send + 'static>(
        self: &Arc<Self>,
        process: &Arc<Process>,
        what: impl Fn() -> String + Send,
        work: impl FnOnce(&mut State, Duration) -> Result<T, BatchError> + Send + 'static,
    ) -> Result<T, BatchError> {
        let lost = self.plan.faults.lost;
        let slow = self.strikes(0.02);
        self.step(process, if slow { 4_000 } else { 12 }).await;
        if !self.state().postgres {
            self.step(process, 400).await;
            return Err(BatchError::Away("it is down".to_owned()));
        }
        if self.strikes(lost) {
            self.tell(&process.name, || format!("{}: lost on the way there", what()));
            return Err(BatchError::Away("the line was lost".to_owned()));
        }
        if self.strikes(lost / 2.0) {
            self.tell(&process.name, || format!("{}: given up, and done later", what()));
            let (world, later) = (Arc::clone(self), self.nap(9_000));
            tokio::spawn(async move {
                sleep(later).await;
                if world.state().postgres {
                    let _nobody_asks = world.transact(work).is_ok();
                }
            });
            return Err(BatchError::Away("no answer".to_owned()));
        }
        let done = self.transact(work);
        let said = if done.is_ok() { "" } else { ": refused" };
        self.tell(&process.name, || format!("{}{said}", what()));
        self.step(process, 4).await;
        if !self.state().postgres || self.strikes(lost) {
            self.tell(&process.name, || format!("{}: the answer was lost", what()));
            return Err(BatchError::Away("the answer was lost".to_owned()));
        }
        done
    }

    fn transact<T>(
        &self,
        work: impl FnOnce(&mut State, Duration) -> Result<T, BatchError>,
    ) -> Result<T, BatchError> {
        let mut state = self.state();
        let now = self.born.elapsed() + state.ahead;
        work(&mut state, now)
    }
}

/// A line, for people.
pub(super) fn named(in_order: bool, line: u64) -> String {
    format!("line {line}{}", if in_order { " in order" } else { "" })
}

impl State {
    /// The queue of ordered kinds, or the other one.
    pub(super) fn queue(&mut self, in_order: bool) -> &mut Broker {
        if in_order { &mut self.ordered } else { &mut self.broker }
    }

    /// Whether the ledger, or the broker's dead queue, has this very message.
    pub(super) fn knows(&self, id: &str, message: &Message) -> bool {
        let filed = self.model.rows.get(id);
        filed.is_some_and(|row| row.request.message.body == message.body)
            || self.kept.contains(&message.body)
            || self
                .broker
                .dead
                .iter()
                .chain(&self.ordered.dead)
                .any(|dead| dead.serial == message.serial)
    }
}
