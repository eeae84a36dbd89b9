//! The line of a worker to the broker: a simulated subscription over the real hatch, desk and settler.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::sleep};

use super::{
    broker::{Bells, Frame},
    process::Process,
    world::World,
};
use crate::{
    outcome::Settlement,
    pause::Pauses,
    queue::{
        Frames,
        stand_in::{self, Epoch, Intake},
    },
};

/// How long a straggler may hold acknowledgements up.
const GAP: Duration = Duration::from_millis(100);
/// How long, in milliseconds, a worker takes to notice that its line is cut: up to this.
const UNNOTICED: u64 = 4_000;
/// How long a pause keeps the subscription.
const PAUSE_HOLD: Duration = Duration::from_secs(2);

/// What supervisor and epoch are to a worker.
pub(super) struct Subscription {
    pub(super) world: Arc<World>,
    pub(super) process: Arc<Process>,
    pub(super) intake: Intake,
    pub(super) pauses: Pauses,
}

impl Subscription {
    pub(super) async fn run(self, mut close: oneshot::Receiver<()>) {
        let (world, process) = (&self.world, &self.process);
        let mut number = 0;
        loop {
            tokio::select! {
                biased;
                () = self.intake.ended() => break,
                () = sleep(world.nap(800)) => {}
            }
            world.is_there(process).await;
            if !world.state().broker_up {
                continue;
            }
            number += 1;
            let line = world.state().broker.connect(world.plan.prefetch);
            process.connected(line);
            world.tell(&process.name, || format!("has line {line}"));
            let bells = world.state().broker.lines[&line].bells.clone();
            tokio::spawn(carry(Arc::clone(world), line, bells.clone()));
            let frames = Wire { world: Arc::clone(world), process: Arc::clone(process), line };
            let epoch = self.intake.epoch(number, frames, GAP);
            let mut broken = pin!(async {
                bells.cut.cancelled().await;
                sleep(world.nap(UNNOTICED)).await;
                world.is_there(process).await;
            });
            let stopped = tokio::select! {
                biased;
                () = &mut broken => false,
                () = self.pump(line, &bells, &epoch) => true,
            };
            if !stopped {
                world.tell(&process.name, || format!("finds line {line} cut"));
                self.intake.clear();
                epoch.abandon();
                continue;
            }
            // The stop: the line stays for the settlements of what is begun.
            self.intake.close();
            self.unsubscribe(line, &epoch);
            let closed = tokio::select! {
                biased;
                () = &mut broken => false,
                _ = &mut close => true,
            };
            if closed {
                epoch.finish(Duration::from_secs(5)).await;
                while world.state().broker.lines.get(&line).is_some_and(|it| !it.frames.is_empty())
                {
                    sleep(Duration::from_millis(5)).await;
                }
                world.is_there(process).await;
                world.state().broker.cut(line);
            } else {
                epoch.abandon();
            }
            world.tell(&process.name, || format!("{} settlements lost", self.intake.lost()));
            return;
        }
        self.intake.close();
    }

    /// Hands over until a stop is asked for.
    async fn pump(&self, line: u64, bells: &Bells, epoch: &Epoch) {
        let (world, process) = (&self.world, &self.process);
        loop {
            tokio::select! {
                biased;
                () = self.intake.ended() => return,
                () = self.pauses.until_clear() => {}
            }
            world.step(process, 20).await;
            world.state().broker.subscribe(line);
            let mut paused = pin!(stand_in::paused_for(&self.pauses, PAUSE_HOLD));
            loop {
                tokio::select! {
                    biased;
                    () = self.intake.ended() => return,
                    () = &mut paused => break,
                    () = self.intake.room() => {}
                }
                let parcel = {
                    let mut state = world.state();
                    state.broker.take(line)
                };
                match parcel {
                    Some(parcel) => {
                        world.is_there(process).await;
                        epoch.deliver(parcel);
                        tokio::task::yield_now().await;
                    }
                    None => {
                        tokio::select! {
                            biased;
                            () = self.intake.ended() => return,
                            () = &mut paused => break,
                            () = bells.delivered.notified() => {}
                        }
                    }
                }
            }
            self.unsubscribe(line, epoch);
        }
    }

    fn unsubscribe(&self, line: u64, epoch: &Epoch) {
        let rest = self.world.state().broker.unsubscribe(line);
        self.intake.clear();
        rest.into_iter().for_each(|parcel| epoch.give_back(parcel));
    }
}

/// What a worker says on one line.
struct Wire {
    world: Arc<World>,
    process: Arc<Process>,
    line: u64,
}

impl Wire {
    async fn send(&self, frame: Frame) -> stand_in::Sent {
        self.world.step(&self.process, 3).await;
        match self.world.state().broker.lines.get_mut(&self.line) {
            Some(line) => {
                line.frames.push_back(frame);
                line.bells.said.notify_one();
            }
            None => return Err(stand_in::broken()),
        }
        Ok(())
    }
}

impl Frames for Wire {
    async fn settle(&self, tag: u64, settlement: Settlement) -> stand_in::Sent {
        self.send(Frame::One(tag, settlement)).await
    }

    async fn acknowledge_up_to(&self, tag: u64) -> stand_in::Sent {
        self.send(Frame::UpTo(tag)).await
    }
}

/// Brings what is said to the broker.
async fn carry(world: Arc<World>, line: u64, bells: Bells) {
    loop {
        tokio::select! {
            biased;
            () = bells.cut.cancelled() => return,
            () = bells.said.notified() => {}
        }
        sleep(world.nap(15)).await;
        loop {
            let frame = match world.state().broker.lines.get_mut(&line) {
                Some(line) => line.frames.pop_front(),
                None => return,
            };
            let Some(frame) = frame else { break };
            world.arrived(line, frame);
        }
    }
}

impl World {
    /// A frame has come to the broker. What is acknowledged must be known to the ledger.
    pub(super) fn arrived(&self, line: u64, frame: Frame) {
        let settled = self.state().broker.settle(line, frame);
        match settled {
            Err(why) => self.broke(format!("line {line}: {why}")),
            Ok(settled) => {
                for (message, settlement) in settled {
                    let id = self.plan.publishes[message.serial].id.clone();
                    self.tell("broker", || format!("{id}: {}", settlement.name()));
                    let known = self.state().knows(&id, &message);
                    if settlement == Settlement::Ack && !known {
                        self.broke(format!("{id} was acknowledged before the ledger knew it"));
                    }
                }
            }
        }
    }
}
