//! The line of a worker to the broker: a simulated subscription over the real hatch, desk and settler.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::sleep};

use super::{
    broker::{Bells, Frame},
    process::Process,
    world::{World, named},
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
    /// Whether it is of the queue of ordered kinds.
    pub(super) in_order: bool,
}

/// Why a subscription has ended.
#[derive(PartialEq)]
enum End {
    Stop,
    Broken,
    /// What was delivered goes back with the line.
    Anew,
}

impl Subscription {
    pub(super) async fn run(self, mut close: oneshot::Receiver<()>) {
        let (world, process, in_order) = (&self.world, &self.process, self.in_order);
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
            let line = world.state().queue(in_order).connect(world.plan.prefetch);
            process.connected(in_order, line);
            world.tell(&process.name, || format!("has {}", named(in_order, line)));
            let bells = world.state().queue(in_order).lines[&line].bells.clone();
            tokio::spawn(carry(Arc::clone(world), in_order, line, bells.clone()));
            let frames =
                Wire { world: Arc::clone(world), process: Arc::clone(process), in_order, line };
            let epoch = self.intake.epoch(number, frames, GAP, in_order);
            let mut broken = pin!(async {
                bells.cut.cancelled().await;
                sleep(world.nap(UNNOTICED)).await;
                world.is_there(process).await;
            });
            let end = tokio::select! {
                biased;
                () = &mut broken => End::Broken,
                end = self.pump(line, &bells, &epoch) => end,
            };
            if end != End::Stop {
                world.tell(&process.name, || format!("gives {} up", named(in_order, line)));
                epoch.abandon();
                self.intake.clear();
                world.is_there(process).await;
                world.cut_line(process, in_order, line);
                continue;
            }
            // The stop: the line stays for the settlements of what is begun.
            self.intake.close();
            if !in_order {
                self.unsubscribe(line, &epoch);
            }
            let closed = tokio::select! {
                biased;
                () = &mut broken => false,
                _ = &mut close => true,
            };
            if closed {
                epoch.finish(Duration::from_secs(5)).await;
                while world
                    .state()
                    .queue(in_order)
                    .lines
                    .get(&line)
                    .is_some_and(|it| !it.frames.is_empty())
                {
                    sleep(Duration::from_millis(5)).await;
                }
                world.is_there(process).await;
                world.state().queue(in_order).cut(line);
            } else {
                epoch.abandon();
            }
            world.tell(&process.name, || format!("{} settlements lost", self.intake.lost()));
            return;
        }
        self.intake.close();
    }

    /// Hands over until a stop is asked for.
    async fn pump(&self, line: u64, bells: &Bells, epoch: &Epoch) -> End {
        let (world, process, in_order) = (&self.world, &self.process, self.in_order);
        loop {
            tokio::select! {
                biased;
                () = self.intake.ended() => return End::Stop,
                () = self.pauses.until_clear() => {}
            }
            world.step(process, 20).await;
            if in_order && !world.state().ordered.has_turn(line) {
                tokio::select! {
                    biased;
                    () = self.intake.ended() => return End::Stop,
                    () = sleep(world.nap(1_500)) => continue,
                }
            }
            world.state().queue(in_order).subscribe(line);
            let mut paused = pin!(stand_in::paused_for(&self.pauses, PAUSE_HOLD));
            loop {
                tokio::select! {
                    biased;
                    () = self.intake.ended() => return End::Stop,
                    () = epoch.until_returned() => return End::Anew,
                    () = &mut paused => break,
                    () = self.intake.room() => {}
                }
                let parcel = {
                    let mut state = world.state();
                    state.queue(in_order).take(line)
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
                            () = self.intake.ended() => return End::Stop,
                            () = epoch.until_returned() => return End::Anew,
                            () = &mut paused => break,
                            () = bells.delivered.notified() => {}
                        }
                    }
                }
            }
            if in_order {
                return End::Anew;
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
    in_order: bool,
    line: u64,
}

impl Wire {
    async fn send(&self, frame: Frame) -> stand_in::Sent {
        self.world.step(&self.process, 3).await;
        match self.world.state().queue(self.in_order).lines.get_mut(&self.line) {
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
async fn carry(world: Arc<World>, in_order: bool, line: u64, bells: Bells) {
    loop {
        tokio::select! {
            biased;
            () = bells.cut.cancelled() => return,
            () = bells.said.notified() => {}
        }
        sleep(world.nap(15)).await;
        loop {
            let frame = match world.state().queue(in_order).lines.get_mut(&line) {
                Some(line) => line.frames.pop_front(),
                None => return,
            };
            let Some(frame) = frame else { break };
            world.arrived(in_order, line, frame);
        }
    }
}

impl World {
    /// A frame has come to the broker. What is acknowledged must be known to the ledger.
    pub(super) fn arrived(&self, in_order: bool, line: u64, frame: Frame) {
        let settled = self.state().queue(in_order).settle(line, frame);
        match settled {
            Err(why) => self.broke(format!("{}: {why}", named(in_order, line))),
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
