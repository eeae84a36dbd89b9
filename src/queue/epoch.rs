//! One connection from its opening to its end.

mod pump;

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
use tokio::task::{AbortHandle, JoinHandle};

use super::{
    Shared, convert,
    delivery::Delivery,
    link::{Link, close_channel, short, within},
    settler::{self, Desk},
    topology,
    trouble::{Cause, Trouble},
    turn,
    watchdog::Watchdog,
};

/// Alive and subscribed for this long, a connection has proved itself even in an empty queue.
const PROOF: Duration = Duration::from_secs(5);
/// What is given up is closed politely only for so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a refused acknowledgement is kept back as the reason for an end: what closed the channel
/// says why, and is told by lapin a moment after the channel refuses.
const LAST_WORD: Duration = Duration::from_millis(250);

pub(super) use pump::End;
#[cfg(test)]
pub(super) use pump::paused_for;

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
    /// Something was delivered.
    proved: bool,
    watchdog: Watchdog,
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
        let channel = link.channel(&shared.settings).await?;
        topology::establish(&link, &channel, &shared.settings).await?;
        let in_order = shared.settings.in_order;
        if in_order {
            turn::take(&link, &shared.settings, &shared.pauses).await?;
        }
        // From here on: a look that was refused is told here as well, and is no failure. What breaks
        // before this line fails the next call.
        let events = Box::pin(link.connection.events_listener());
        let desk = if in_order { Desk::in_order } else { Desk::new };
        let desk = desk(number, shared.lost.clone());
        let settings = &shared.settings;
        let settling = settler::run(
            desk.clone(),
            channel.clone(),
            settings.gap_timeout,
            settings.operation_timeout,
        );
        let settler = tokio::spawn(async move {
            let ended = settling.await;
            if ended.is_err() {
                tokio::time::sleep(LAST_WORD).await;
            }
            ended
        });
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
            proved: false,
            watchdog: Watchdog::default(),
        })
    }

    /// Whether this connection was worth having, so that the next failure is a new one.
    pub(super) fn has_proved_itself(&self) -> bool {
        self.proved || self.subscribed_at.is_some_and(|at| at.elapsed() >= PROOF)
    }

    async fn subscribe(&mut self, shared: &Shared, prefetch: u16) -> Result<(), Trouble> {
        let settings = &shared.settings;
        // Before the subscription: a consumer's prefetch is fixed when it begins.
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions { global: false });
        within(settings.operation_timeout, "setting the prefetch", qos).await?;
        self.desk.subscribed(settings.ahead.min(prefetch));
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

    /// Ends the subscription and gives back whatever nobody has taken yet; returns how many.
    pub(super) async fn unsubscribe(&mut self, shared: &Shared) -> Result<u64, Trouble> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(0) };
        shared.board.consuming(false);
        let deadline = shared.settings.operation_timeout;
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within(deadline, "ending the subscription", cancel).await?;
        let mut given_back = shared.hatch.clear() as u64;
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
        Ok(given_back)
    }

    /// Ends the subscription and hands over what had arrived: what keeps an order is not given back.
    pub(super) async fn unsubscribe_in_order(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        shared.board.consuming(false);
        let deadline = shared.settings.operation_timeout;
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within(deadline, "ending the subscription", cancel).await?;
        let rest = async {
            while let Some(delivered) = consumer.next().await {
                shared.hatch.put(Delivery::new(delivered?, &self.desk));
            }
            Ok(())
        };
        within(deadline, "handing over what was prefetched", rest).await
    }

    /// Completes when the connection breaks; for the time in which only settlements are sent.
    pub(super) async fn until_broken(&mut self) -> Trouble {
        failure(&mut self.events, &mut self.settler).await
    }

    /// Drops everything; what is still out can no longer be settled.
    pub(super) async fn abandon(mut self) {
        self.desk.close();
        if let Some(mut consumer) = self.consumer.take() {
            // What has arrived and was never looked at; dropping it takes care.
            while let Some(Some(arrived)) = consumer.next().now_or_never() {
                if let Ok(delivery) = arrived {
                    convert::dispose(delivery.properties);
                }
            }
        }
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
