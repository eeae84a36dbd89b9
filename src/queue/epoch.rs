//! One connection from its opening to its end: subscribe, hand over, pause, resume.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt};
use lapin::{
    Channel, Consumer, Event,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::{
    task::{AbortHandle, JoinHandle},
    time::{MissedTickBehavior, interval},
};

use super::{
    Shared,
    delivery::Delivery,
    link::{Link, close_channel, short, within},
    monitor::Depth,
    quarantine::Quarantine,
    settler::{self, Desk},
    topology,
    trouble::{Cause, Trouble},
};
use crate::{pause::Pauses, telemetry::metrics};

/// Alive and subscribed for this long, a connection has proved itself even in an empty queue.
const PROOF: Duration = Duration::from_secs(5);
/// What is given up is closed politely only for so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// How the hand-over ended.
pub(super) enum End {
    /// A stop was asked for; the connection is still good.
    Stop,
    /// The connection is of no more use.
    Trouble(Trouble),
}

/// One connection, its channel, and the desk of its deliveries.
pub(super) struct Epoch {
    link: Link,
    channel: Channel,
    pub(super) desk: Arc<Desk>,
    settler: JoinHandle<Result<(), Trouble>>,
    /// Ends the settler also when the epoch is dropped.
    _settler: AbortOnDrop,
    events: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
    consumer: Option<Consumer>,
    /// How often there was a subscription; part of the consumer tag.
    subscriptions: u32,
    subscribed_at: Option<Instant>,
    last_delivery: Option<Instant>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Epoch {
    /// Opens a channel on a fresh connection and makes sure of the queues.
    pub(super) async fn open(link: Link, number: u64, shared: &Shared) -> Result<Self, Trouble> {
        let events = Box::pin(link.connection.events_listener());
        let channel = link.channel(&shared.settings).await?;
        topology::establish(&channel, &shared.settings).await?;
        let desk = Desk::new(number, shared.lost.clone());
        let settings = &shared.settings;
        let settler = tokio::spawn(settler::run(
            desk.clone(),
            channel.clone(),
            settings.gap_timeout,
            settings.operation_timeout,
        ));
        let aborter = AbortOnDrop(settler.abort_handle());
        Ok(Self {
            link,
            channel,
            desk,
            settler,
            _settler: aborter,
            events,
            consumer: None,
            subscriptions: 0,
            subscribed_at: None,
            last_delivery: None,
        })
    }

    /// Whether this connection was worth having, so that the next failure is a new one.
    pub(super) fn has_proved_itself(&self) -> bool {
        self.last_delivery.is_some() || self.subscribed_at.is_some_and(|at| at.elapsed() >= PROOF)
    }

    /// Subscribes and hands deliveries over until a stop is asked for or something breaks.
    pub(super) async fn pump(&mut self, shared: &Shared, quarantine: &mut Quarantine) -> End {
        match self.pumping(shared, quarantine).await {
            Ok(()) => End::Stop,
            Err(trouble) => End::Trouble(trouble),
        }
    }

    async fn pumping(
        &mut self,
        shared: &Shared,
        quarantine: &mut Quarantine,
    ) -> Result<(), Trouble> {
        let Shared { settings, pauses, stop, hatch, .. } = shared;
        let mut depth = shared.depth.subscribe();
        let mut look = interval(Duration::from_millis(500));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asked = stop.asked();
        let paused = paused_for(pauses, settings.pause_hold);
        let (mut asked, mut paused) = (std::pin::pin!(asked), std::pin::pin!(paused));

        loop {
            if self.consumer.is_none() {
                // Nothing is subscribed while anything forbids it.
                tokio::select! {
                    biased;
                    () = &mut asked => return Ok(()),
                    trouble = failure(&mut self.events, &mut self.settler) => return Err(trouble),
                    () = pauses.until_clear() => {}
                }
                let prefetch = if quarantine.is_on() { 1 } else { settings.prefetch };
                self.subscribe(shared, prefetch).await?;
                quarantine.subscribed(Instant::now());
                paused.set(paused_for(pauses, settings.pause_hold));
            }
            let Some(consumer) = &mut self.consumer else { continue };
            let next = async {
                hatch.room().await;
                consumer.next().await
            };
            let item = tokio::select! {
                biased;
                () = &mut asked => return Ok(()),
                trouble = failure(&mut self.events, &mut self.settler) => return Err(trouble),
                () = &mut paused => {
                    self.unsubscribe(shared).await?;
                    continue;
                }
                _ = look.tick(), if quarantine.is_on() => {
                    if quarantine.look(Instant::now(), self.desk.outstanding()) {
                        self.leave_quarantine(shared, "the queue is empty").await?;
                    }
                    continue;
                }
                Ok(()) = depth.changed() => {
                    let depth = *depth.borrow_and_update();
                    self.check_for_stall(shared, depth, quarantine)?;
                    continue;
                }
                item = next => item,
            };
            let mut item = Some(item);
            while let Some(delivered) = item.take() {
                let Some(delivered) = delivered else {
                    return Err(Trouble::new(
                        Cause::Cancelled,
                        format!(
                            "the broker ended the subscription to {}: it was deleted, or moved to another node",
                            settings.name
                        ),
                    ));
                };
                let delivered = match delivered {
                    Ok(delivered) => delivered,
                    Err(error) => return Err(self.cause_of_death(&error)),
                };
                let now = Instant::now();
                self.last_delivery = Some(now);
                metrics::delivered(delivered.redelivered);
                hatch.put(Delivery::new(delivered, &self.desk));
                if quarantine.good(now) {
                    self.leave_quarantine(shared, "enough readable messages came").await?;
                    break;
                }
                // What else has arrived goes along, without another round of waiting.
                if hatch.has_room()
                    && let Some(consumer) = &mut self.consumer
                {
                    item = consumer.next().now_or_never();
                }
            }
            // lapin's stream is not part of tokio's cooperative budget.
            tokio::task::consume_budget().await;
        }
    }

    /// A stream's error is often only the consequence; the connection knows the reason.
    fn cause_of_death(&mut self, error: &lapin::Error) -> Trouble {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            if let Event::Error(error) = event {
                return Trouble::of("consuming", &error);
            }
        }
        Trouble::of("consuming", error)
    }

    async fn subscribe(&mut self, shared: &Shared, prefetch: u16) -> Result<(), Trouble> {
        let settings = &shared.settings;
        // Before the subscription: a consumer's prefetch is fixed when it begins.
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions { global: false });
        within(settings.operation_timeout, "setting the prefetch", qos).await?;
        self.subscriptions += 1;
        let tag = format!("{}.{}.{}", shared.name, self.desk.epoch(), self.subscriptions);
        let consume = self.channel.basic_consume(
            short(&settings.name)?,
            // Too long a name is no reason to fail: the broker makes one up for an empty tag.
            ShortString::try_new(tag).unwrap_or_default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let doing = format!("subscribing to {}", settings.name);
        self.consumer = Some(within(settings.operation_timeout, doing, consume).await?);
        self.subscribed_at = Some(Instant::now());
        shared.board.consuming(true);
        Ok(())
    }

    /// Ends the subscription and gives back whatever nobody has taken yet.
    pub(super) async fn unsubscribe(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        shared.board.consuming(false);
        let deadline = shared.settings.operation_timeout;
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within(deadline, "ending the subscription", cancel).await?;
        let mut given_back = shared.hatch.clear();
        // What had arrived before the broker agreed is still in the stream, and then it ends.
        let rest = async {
            while let Some(delivered) = consumer.next().await {
                drop(Delivery::new(delivered?, &self.desk));
                given_back += 1;
            }
            Ok(())
        };
        within(deadline, "giving back what was prefetched", rest).await?;
        tracing::debug!(event = "queue.unsubscribed", given_back, "the subscription has ended");
        Ok(())
    }

    async fn leave_quarantine(
        &mut self,
        shared: &Shared,
        why: &'static str,
    ) -> Result<(), Trouble> {
        shared.board.quarantine(false);
        tracing::info!(event = "queue.quarantine_left", why, "fetching at full pace again");
        self.unsubscribe(shared).await
    }

    fn check_for_stall(
        &self,
        shared: &Shared,
        depth: Depth,
        quarantine: &Quarantine,
    ) -> Result<(), Trouble> {
        let settings = &shared.settings;
        let prefetch = if quarantine.is_on() { 1 } else { u64::from(settings.prefetch) };
        let silent_since = self.last_delivery.max(self.subscribed_at);
        let silent = silent_since.is_some_and(|since| since.elapsed() >= settings.stall_timeout);
        // With the prefetch used up the broker is right to send nothing.
        let stalled = depth.ready > 0
            && silent
            && !shared.pauses.is_paused()
            && shared.hatch.is_hungry()
            && self.desk.outstanding() < prefetch;
        if stalled {
            return Err(Trouble::new(
                Cause::Stalled,
                format!(
                    "{} messages are ready in {} and none was delivered for {:?}; \
                     connecting anew, look at the queue's state in the broker if this repeats",
                    depth.ready, settings.name, settings.stall_timeout
                ),
            ));
        }
        Ok(())
    }

    /// Completes when the connection breaks; for the time in which only settlements are sent.
    pub(super) async fn until_broken(&mut self) -> Trouble {
        failure(&mut self.events, &mut self.settler).await
    }

    /// Drops everything; what is still out can no longer be settled.
    pub(super) async fn abandon(mut self) {
        self.desk.close();
        self.consumer = None;
        if close_channel(&self.channel, FAREWELL).await {
            self.link.close(FAREWELL).await;
        } else {
            // A connection that does not answer is not asked twice.
            self.link.close(FAREWELL / 4).await;
        }
    }

    /// Sends the last settlements and closes in order; true when the broker agreed to all of it.
    pub(super) async fn finish(mut self, within: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + within;
        self.desk.seal();
        let flushed = match tokio::time::timeout_at(deadline, &mut self.settler).await {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(trouble))) => {
                tracing::warn!(event = "queue.last_acks_lost", error = %trouble, "the last settlements were not sent");
                false
            }
            Ok(Err(_)) | Err(_) => false,
        };
        self.desk.close();
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        let channel = close_channel(&self.channel, left()).await;
        let connection = self.link.close(left().max(Duration::from_millis(100))).await;
        flushed && channel && connection
    }
}

/// Completes when the connection or the settler reports a failure.
async fn failure(
    events: &mut (impl Stream<Item = Event> + Unpin),
    settler: &mut JoinHandle<Result<(), Trouble>>,
) -> Trouble {
    loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(Event::Error(error)) => return Trouble::of("consuming", &error),
                Some(_) => {}
                None => return Trouble::new(Cause::Lost, "consuming: the connection has ended"),
            },
            ended = &mut *settler => return match ended {
                Ok(Err(trouble)) => trouble,
                Ok(Ok(())) | Err(_) => Trouble::new(Cause::Lost, "settling has ended before the connection"),
            },
        }
    }
}

/// Completes once there has been a pause for as long as `hold` without interruption.
async fn paused_for(pauses: &Pauses, hold: Duration) {
    let mut reasons = pauses.subscribe();
    loop {
        // The sender lives in `pauses`, so neither wait can fail.
        let _paused = reasons.wait_for(|set| !set.is_empty()).await.is_ok();
        let cleared =
            tokio::time::timeout(hold, reasons.wait_for(|set| set.is_empty())).await.is_ok();
        if !cleared {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pause::Reason;

    #[tokio::test(start_paused = true)]
    async fn a_short_pause_keeps_the_subscription() {
        let pauses = Pauses::default();
        let hold = Duration::from_secs(2);
        let mut long = std::pin::pin!(paused_for(&pauses, hold));
        pauses.add(Reason::Postgres);
        assert!(tokio::time::timeout(hold / 2, &mut long).await.is_err());
        pauses.remove(&Reason::Postgres);
        assert!(tokio::time::timeout(hold * 2, &mut long).await.is_err());
        pauses.add(Reason::Postgres);
        assert!(tokio::time::timeout(hold * 2, &mut long).await.is_ok());
    }
}
