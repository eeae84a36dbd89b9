//! The hand-over of one epoch: from the stream into the hatch, with everything that can interrupt
//! it.

use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use lapin::Event;
use tokio::time::{MissedTickBehavior, interval};

use super::{Epoch, failure};
use crate::{
    pause::Pauses,
    queue::{
        Shared,
        delivery::Delivery,
        monitor::Depth,
        quarantine::Quarantine,
        trouble::{Cause, Trouble},
    },
    telemetry::metrics,
};

/// How the hand-over ended.
pub(in crate::queue) enum End {
    /// A stop was asked for; the connection is still good.
    Stop,
    /// It is given up, for that is how deliveries that keep an order go back.
    Anew,
    /// The connection is of no more use.
    Trouble(Trouble),
}

impl Epoch {
    /// Subscribes and hands deliveries over until a stop is asked for or something breaks.
    pub(in crate::queue) async fn pump(
        &mut self,
        shared: &Shared,
        quarantine: &mut Quarantine,
    ) -> End {
        match self.pumping(shared, quarantine).await {
            Ok(end) => end,
            Err(trouble) => End::Trouble(trouble),
        }
    }

    async fn pumping(
        &mut self,
        shared: &Shared,
        quarantine: &mut Quarantine,
    ) -> Result<End, Trouble> {
        let Shared { settings, pauses, hatch, .. } = shared;
        let mut depth = shared.depth.subscribe();
        let mut look = interval(Duration::from_millis(500));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asked = shared.ended();
        let paused = paused_for(pauses, settings.pause_hold);
        let (mut asked, mut paused) = (std::pin::pin!(asked), std::pin::pin!(paused));

        loop {
            if self.consumer.is_none() {
                // Nothing is subscribed while anything forbids it.
                tokio::select! {
                    biased;
                    () = &mut asked => return Ok(End::Stop),
                    trouble = failure(&mut self.events, &mut self.settler) => return Err(trouble),
                    () = self.desk.until_returned() => return Ok(End::Anew),
                    () = async {
                        if settings.in_order {
                            self.desk.until_settled().await;
                        }
                        pauses.until_clear().await;
                    } => {}
                }
                let prefetch = if quarantine.is_on() { 1 } else { settings.prefetch() };
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
                () = &mut asked => return Ok(End::Stop),
                trouble = failure(&mut self.events, &mut self.settler) => return Err(trouble),
                () = self.desk.until_returned() => return Ok(End::Anew),
                () = &mut paused => {
                    if settings.in_order {
                        return Ok(End::Anew);
                    }
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
            let mut taken = Taken::default();
            while let Some(delivered) = item.take() {
                let Some(delivered) = delivered else {
                    return Err(Trouble::new(
                        Cause::Cancelled,
                        format!(
                            "the broker ended the subscription to {}: the queue was deleted or moved to another node, or \
                             (since RabbitMQ 4.3) a request was worked past its consumer timeout",
                            settings.name
                        ),
                    ));
                };
                let delivered = match delivered {
                    Ok(delivered) => delivered,
                    Err(error) => return Err(self.cause_of_death(&error)),
                };
                let now = Instant::now();
                self.proved = true;
                self.watchdog.fed();
                taken.count(delivered.redelivered);
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

    async fn leave_quarantine(
        &mut self,
        shared: &Shared,
        why: &'static str,
    ) -> Result<(), Trouble> {
        shared.board.quarantine(false);
        tracing::info!(event = "queue.quarantine_left", why, "fetching at full pace again");
        if shared.settings.in_order {
            return self.unsubscribe_in_order(shared).await;
        }
        self.unsubscribe(shared).await.map(drop)
    }

    fn check_for_stall(
        &mut self,
        shared: &Shared,
        depth: Depth,
        quarantine: &Quarantine,
    ) -> Result<(), Trouble> {
        let settings = &shared.settings;
        let prefetch = if quarantine.is_on() { 1 } else { u64::from(settings.prefetch()) };
        // With the prefetch used up the broker is right to send nothing.
        let owed = !shared.pauses.is_paused()
            && shared.hatch.is_hungry()
            && self.desk.outstanding() < prefetch;
        if self.watchdog.look(Instant::now(), depth.ready, owed, settings.stall_timeout) {
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
}

/// Counts deliveries, and tells of them together.
#[derive(Default)]
struct Taken {
    first: u64,
    again: u64,
}

impl Taken {
    fn count(&mut self, redelivered: bool) {
        *(if redelivered { &mut self.again } else { &mut self.first }) += 1;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        metrics::delivered(self.first, self.again);
    }
}

/// Completes once there has been a pause for as long as `hold` without interruption.
pub(in crate::queue) async fn paused_for(pauses: &Pauses, hold: Duration) {
    loop {
        pauses.until_paused().await;
        if tokio::time::timeout(hold, pauses.until_clear()).await.is_err() {
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
