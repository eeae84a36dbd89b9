//! What goes wrong, and when it is over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    broker::Message,
    plan::origin,
    process::Process,
    services::CALLING,
    world::{Mood, World},
};
use crate::clock;

/// After this long without an end, something is stuck.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Those that work now.
#[derive(Clone)]
pub(super) struct Fleet {
    world: Arc<World>,
    processes: Arc<Mutex<(usize, Vec<Arc<Process>>)>>,
}

impl Fleet {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self { world: Arc::clone(world), processes: Arc::default() }
    }

    fn living(&self) -> Vec<Arc<Process>> {
        let mut fleet = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.1.retain(|process| process.is_alive());
        fleet.1.clone()
    }

    fn any(&self) -> Option<Arc<Process>> {
        let living = self.living();
        let which = self.world.state().chance.usize(..living.len().max(1));
        living.get(which).cloned()
    }

    fn start_one(&self) {
        let mut fleet = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        fleet.0 += 1;
        let process = Process::start(&self.world, fleet.0);
        fleet.1.push(process);
    }

    /// Starts another worker where one has ended.
    pub(super) async fn keep(self) {
        loop {
            let working = self.living().iter().filter(|process| !process.is_stopping()).count();
            if working < self.world.plan.workers {
                self.start_one();
            }
            sleep(Duration::from_millis(100) + self.world.nap(2_000)).await;
        }
    }

    /// Faults by chance until the trouble is over, and then until all is quiet.
    pub(super) async fn trouble(&self) {
        let world = &self.world;
        let until = Instant::now() + world.plan.trouble;
        while Instant::now() < until {
            sleep(Duration::from_millis(100) + world.nap(4_000)).await;
            let fault = world.state().chance.u8(..8);
            self.fault(fault).await;
        }
        {
            let mut state = world.state();
            state.calm = true;
            (state.postgres, state.broker_up) = (true, true);
            state.moods.clear();
        }
        world.tell("world", || "is calm".to_owned());
    }

    async fn fault(&self, fault: u8) {
        let (world, faults) = (&self.world, &self.world.plan.faults);
        match fault {
            0 if faults.kills => {
                if let Some(process) = self.any() {
                    world.kill(&process, "is killed");
                }
            }
            1 if faults.cuts => {
                if let Some(process) = self.any() {
                    world.state().vanished += 1;
                    world.cut(&process);
                }
            }
            2 if faults.broker_away => {
                world.tell("broker", || "is away".to_owned());
                world.state().broker_up = false;
                world.state().vanished += 1;
                self.living().iter().for_each(|process| world.cut(process));
                sleep(world.nap(8_000)).await;
                world.tell("broker", || "is back".to_owned());
                world.state().broker_up = true;
            }
            3 if faults.postgres_away => {
                world.tell("postgres", || "is away".to_owned());
                world.state().postgres = false;
                world.state().vanished += 1;
                sleep(world.nap(15_000)).await;
                world.tell("postgres", || "is back".to_owned());
                world.state().postgres = true;
            }
            4 if faults.freezes => {
                if let Some(process) = self.any() {
                    let time = world.nap(40_000);
                    world.tell(&process.name, || format!("freezes for {time:?}"));
                    process.freeze(time);
                    world.state().vanished += 1;
                    // The broker gives up on it when its heartbeats stay away.
                    let fleet = self.clone();
                    tokio::spawn(async move {
                        sleep(Duration::from_secs(6)).await;
                        if process.frozen_until().is_some() {
                            fleet.world.cut(&process);
                        }
                    });
                }
            }
            5 if faults.stops => {
                if let Some(process) = self.any() {
                    process.signal(world);
                }
            }
            6 if faults.dependencies => {
                let (which, mood) = {
                    let mut state = world.state();
                    let which = CALLING[state.chance.usize(..CALLING.len())].1;
                    let moods = [Mood::Well, Mood::Failing, Mood::Slow, Mood::Throttling];
                    (which, moods[state.chance.usize(..moods.len())])
                };
                world.tell(which, || format!("is {mood:?}"));
                world.state().moods.insert(which, mood);
            }
            7 if faults.clocks => {
                let seconds = world.state().chance.i64(-400..400);
                world.tell("clock", || format!("is set by {seconds} s"));
                clock::simulate(clock::now() + time::Duration::seconds(seconds));
                let ahead = world.nap(20_000);
                world.state().ahead += ahead;
                world.state().vanished += 1;
            }
            _ => {}
        }
    }

    /// Waits until nothing is left to do; false when that does not come about.
    pub(super) async fn quiet(&self) -> bool {
        let quiet = async {
            loop {
                sleep(Duration::from_millis(500)).await;
                let state = self.world.state();
                let open = state.model.rows.values().filter(|row| row.is_open()).count();
                if state.broker.is_empty() && state.ordered.is_empty() && open == 0 {
                    return;
                }
            }
        };
        timeout(LONGEST, quiet).await.is_ok()
    }

    /// Asks all to stop and waits until they have; the names of those that do not.
    pub(super) async fn end(&self) -> Vec<String> {
        self.living().iter().filter(|it| !it.is_stopping()).for_each(|it| it.signal(&self.world));
        let ended = async {
            while !self.living().is_empty() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        match timeout(LONGEST, ended).await {
            Ok(()) => Vec::new(),
            Err(_) => self.living().iter().map(|process| process.name.clone()).collect(),
        }
    }
}

/// Publishes what the plan says.
pub(super) async fn publish(world: Arc<World>) {
    let born = Instant::now();
    for (serial, publish) in world.plan.publishes.iter().enumerate() {
        tokio::time::sleep_until(born + publish.at).await;
        let said = if publish.confirmed { "confirmed" } else { "unknown" };
        world.tell("producer", || format!("publishes {}: {said}", publish.id));
        if publish.arrives {
            let message = Message::new(serial, publish.body.clone(), publish.message_id.clone());
            let mut state = world.state();
            if publish.in_order {
                state.arrivals.push(publish.id.clone());
            }
            state.queue(publish.in_order).publish(message);
        }
    }
}

/// Sets the clock on the wall.
pub(super) fn wind() {
    clock::simulate(origin());
}
