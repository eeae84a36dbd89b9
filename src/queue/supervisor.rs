//! Keeps a subscription alive: connection after connection, each from nothing.
//!
//! lapin's own recovery is left off. It restores a lost connection silently, and a channel that
//! the broker closed not at all: the consumer then waits for ever.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{
    Shared,
    epoch::{End, Epoch},
    link::Dialer,
    quarantine::{self, Quarantine},
    trouble::{Cause, Trouble},
    version::Broker,
};
use crate::{retry::reconnect_delay, telemetry::metrics};

/// What was left when the consuming side closed.
pub(super) struct Leftovers {
    /// Deliveries that nobody had begun when the stop came; they were given back.
    pub(super) unbegun: u64,
    /// Deliveries that nobody had settled; the broker delivers them again.
    pub(super) unsettled: u64,
    /// The broker agreed to everything in time.
    pub(super) clean: bool,
}

/// Runs until a stop is asked for, and then until `close` says how long closing may take.
pub(super) async fn run(shared: Shared, close: oneshot::Receiver<Duration>) -> Leftovers {
    let mut worry = Worry::default();
    let mut quarantine = Quarantine::default();
    let mut last = None;
    // Whether the last connection ended against our will, or there never was one.
    let mut troubled = false;
    match Dialer::new(&shared.settings, shared.name.clone()) {
        Ok(mut dialer) => {
            let mut number = 0;
            loop {
                number += 1;
                match connected_once(&shared, &mut dialer, number, &mut quarantine, &mut worry)
                    .await
                {
                    Next::Again(delay) => {
                        troubled = true;
                        tokio::select! {
                            biased;
                            () = shared.ended() => break,
                            () = tokio::time::sleep(delay) => {}
                        }
                    }
                    Next::Drain(epoch) => {
                        last = Some(epoch);
                        break;
                    }
                    Next::End => break,
                }
            }
        }
        // The settings are checked before anything starts; this is for those who did not.
        Err(trouble) => {
            worry.report(&trouble);
            shared.board.disconnected(Some(trouble.text));
            shared.ended().await;
        }
    }
    match last {
        Some(epoch) => drain(&shared, *epoch, close).await,
        None => {
            shared.hatch.close();
            shared.board.disconnected(None);
            Leftovers { unbegun: shared.hatch.turned_away(), unsettled: 0, clean: !troubled }
        }
    }
}

enum Next {
    Again(Duration),
    Drain(Box<Epoch>),
    End,
}

async fn connected_once(
    shared: &Shared,
    dialer: &mut Dialer,
    number: u64,
    quarantine: &mut Quarantine,
    worry: &mut Worry,
) -> Next {
    let settings = &shared.settings;
    let open = async {
        let link = dialer.dial(settings).await?;
        let endpoint = link.endpoint.to_string();
        if let Some(broker) = &link.broker
            && shared.board.met(broker)
        {
            introduce(broker, &endpoint);
        }
        let configuration = link.connection.configuration();
        let (heartbeat, frame_max) = (configuration.heartbeat(), configuration.frame_max());
        let epoch = Epoch::open(link, number, shared).await?;
        if quarantine.is_on() {
            tracing::debug!(
                event = "queue.connected",
                epoch = number,
                endpoint,
                "connected to RabbitMQ"
            );
        } else {
            tracing::info!(
                event = "queue.connected",
                epoch = number,
                endpoint,
                heartbeat_s = heartbeat,
                frame_max,
                "connected to RabbitMQ"
            );
        }
        shared.board.connected(number, endpoint);
        Ok::<_, Trouble>(epoch)
    };
    let opened = tokio::select! {
        biased;
        () = shared.ended() => return Next::End,
        opened = open => opened,
    };
    let trouble = match opened {
        Ok(mut epoch) => match epoch.pump(shared, quarantine).await {
            End::Stop => return Next::Drain(Box::new(epoch)),
            End::Anew => {
                epoch.desk.close();
                shared.hatch.clear();
                worry.recovered();
                epoch.abandon().await;
                shared.board.disconnected(None);
                tracing::debug!(
                    event = "queue.given_back_in_order",
                    queue = settings.name,
                    "what was delivered in order goes back with its connection"
                );
                return Next::Again(settings.reconnect_initial);
            }
            End::Trouble(trouble) => {
                // What was handed over and not taken belongs to this epoch; its tickets are void.
                epoch.desk.close();
                shared.hatch.clear();
                if epoch.has_proved_itself() {
                    worry.recovered();
                }
                epoch.abandon().await;
                trouble
            }
        },
        Err(trouble) => trouble,
    };
    metrics::reconnecting(trouble.cause.name());
    shared.board.disconnected(Some(trouble.text.clone()));
    if trouble.cause == Cause::Poison {
        if quarantine.poisoned(Instant::now()) {
            shared.board.quarantine(true);
            tracing::warn!(
                event = "queue.quarantine_entered",
                error = %trouble,
                queue = settings.name,
                dead_queue = settings.dead_queue,
                "a message in the queue kills each connection: fetching one at a time until the broker has \
                 dead-lettered it; find its producer"
            );
        } else {
            tracing::debug!(
                event = "queue.poisoned",
                deaths = quarantine.deaths(),
                "the unreadable message came again"
            );
        }
        return Next::Again(quarantine::DELAY);
    }
    worry.report(&trouble);
    let attempt = worry.failed();
    Next::Again(reconnect_delay(
        settings.reconnect_initial,
        settings.reconnect_max,
        attempt,
        fastrand::f64(),
    ))
}

/// Tells what the broker is. Told before anything is asked of it: what an old one refuses is
/// understood then.
fn introduce(broker: &Broker, endpoint: &str) {
    let features = broker.features();
    tracing::info!(
        event = "queue.broker",
        endpoint,
        product = broker.product,
        version = broker.version,
        max_message_bytes = features.map(|it| it.max_message_bytes),
        give_backs_count = features.map(|it| it.give_backs_count),
        "the broker says what it is"
    );
    if let Some(fault) = broker.fault() {
        tracing::warn!(event = "queue.broker_unsupported", fault, "this may not work");
    }
}

/// The stop: no more deliveries, and the connection stays for the settlements of what is begun.
async fn drain(
    shared: &Shared,
    mut epoch: Epoch,
    mut close: oneshot::Receiver<Duration>,
) -> Leftovers {
    // The corridor may have closed it before us.
    shared.hatch.close();
    let unsubscribed = match shared.settings.in_order {
        // What is not begun goes back with the channel, after what is begun was told.
        true => Ok(0),
        false => epoch.unsubscribe(shared).await,
    };
    let (streamed, mut broken) = match unsubscribed {
        Ok(streamed) => (streamed, None),
        Err(trouble) => (0, Some(trouble)),
    };
    let unbegun = match shared.settings.in_order {
        // They are among the unsettled.
        true => 0,
        false => shared.hatch.turned_away() + streamed,
    };
    shared.board.consuming(false);
    tracing::info!(
        event = "queue.intake_ended",
        given_back = unbegun,
        "no more requests are taken from the queue"
    );
    let mut within = shared.settings.operation_timeout;
    if broken.is_none() {
        tokio::select! {
            biased;
            trouble = epoch.until_broken() => broken = Some(trouble),
            // A queue that is dropped instead of closed still says goodbye.
            asked = &mut close => within = asked.unwrap_or(within),
        }
    }
    let unsettled = epoch.desk.working();
    let clean = match broken {
        Some(trouble) => {
            tracing::warn!(
                event = "queue.lost_while_stopping",
                error = %trouble,
                unsettled,
                "the broker will deliver again what is not settled"
            );
            metrics::reconnecting(trouble.cause.name());
            epoch.abandon().await;
            shared.board.disconnected(Some(trouble.text));
            false
        }
        None => {
            let clean = epoch.finish(within).await;
            shared.board.disconnected(None);
            clean
        }
    };
    Leftovers { unbegun, unsettled, clean }
}

/// How often in a row it went wrong, and what has been said about it already.
#[derive(Default)]
struct Worry {
    failures: u32,
    reported: Option<String>,
}

impl Worry {
    /// Counts a failure; how many in a row it makes.
    fn failed(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    fn recovered(&mut self) {
        *self = Self::default();
    }

    /// A long outage is one line in the log, not one for each attempt.
    fn report(&mut self, trouble: &Trouble) {
        let cause = trouble.cause.name();
        if self.reported.as_ref() == Some(&trouble.text) {
            tracing::debug!(event = "queue.still_disconnected", cause, error = %trouble, "still no subscription");
        } else {
            tracing::warn!(event = "queue.disconnected", cause, error = %trouble, "no subscription, trying again");
            self.reported = Some(trouble.text.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_counted_until_a_connection_proves_itself() {
        let mut worry = Worry::default();
        assert_eq!((worry.failed(), worry.failed()), (1, 2));
        worry.recovered();
        assert_eq!(worry.failed(), 1);
    }
}
