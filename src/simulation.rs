//! The corridor in a world of chance: real workers, simulated surroundings, and time that passes
//! only when everybody waits.
//!
//! One seed decides everything: what is published, how the workers are set up, how long each step
//! takes, and what goes wrong at which of them. Worker, handler, drain, lanes, pauses, breakers,
//! hatch, desk and settler are those of the house; the ledger is its model
//! ([`crate::ledger::model`]), the broker and the services are here. A process that is killed comes
//! to a halt at whatever it waits for. When the faults are over and all is quiet, the account is
//! drawn up (`account`). What fails with a seed fails with it again, and tells its story then.
#![allow(clippy::unwrap_used, reason = "what cannot go on here has failed")]

mod account;
mod broker;
mod faults;
mod ledger;
mod line;
mod plan;
mod process;
mod services;
mod tests;
mod world;

use self::{faults::Fleet, plan::Plan, world::World};

/// Larger bodies are not read.
const MOST_BYTES: usize = 2_000;

/// What came of a seed.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    /// The rules that were broken.
    broken: Vec<String>,
    /// All that happened, where it was to be told.
    story: Vec<String>,
    /// Done, dead, and how often a process vanished.
    counts: [usize; 3],
}

/// Runs one seed on this thread.
fn run(seed: u64, telling: bool) -> Came {
    fastrand::seed(seed);
    let mut chance = fastrand::Rng::with_seed(seed);
    let plan = Plan::of(&mut chance);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        faults::wind();
        let world = World::new(plan, chance, telling);
        world.tell_plan();
        let fleet = Fleet::new(&world);
        let keeping = tokio::spawn(fleet.clone().keep());
        tokio::join!(faults::publish(world.clone()), fleet.trouble());
        if !fleet.quiet().await {
            world.broke("it does not come to an end".to_owned());
        }
        keeping.abort();
        for name in fleet.end().await {
            world.broke(format!("{name} does not end when it is asked to"));
        }
        world.draw_up();
        let story = world.story();
        let state = world.state();
        let count = |name| state.model.rows.values().filter(|row| row.state == name).count();
        Came {
            counts: [count("done"), count("dead"), state.vanished as usize],
            broken: state.broken.clone(),
            story,
        }
    })
}
