//! Publishing, one confirm at a time.
//!
//! lapin attaches a returned message to whichever confirm completes next, which need not be its
//! own. So a channel carries one publish at a time, and what is in flight together uses several
//! channels; then a return can only belong to the publish that waits.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lapin::{Channel, Confirmation, ErrorKind, options::BasicPublishOptions};
use tokio::sync::Semaphore;

use super::{
    Settings, convert,
    link::{close_channel, short},
    side::Side,
    trouble::Trouble,
};
use crate::request::Message;

/// How many publishes may be in flight at once; the others wait their turn.
const IN_FLIGHT: usize = 64;

/// A message arrived in every queue it was routed to.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// From the call to the broker's confirmation.
    pub took: Duration,
}

/// Why a message was not published, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker knows no queue for it.
    #[error("no queue is bound for it: exchange `{exchange}`, routing key `{routing_key}`")]
    Unroutable {
        /// Where it was sent.
        exchange: String,
        /// With which key.
        routing_key: String,
    },
    /// The broker refused to take it: the queue is full, or an internal error.
    #[error("the broker did not take it, try again later")]
    Nacked,
    /// The broker did not accept the publish at all: no such exchange, no permission.
    #[error("refused: {0}")]
    Refused(String),
    /// It is larger than the broker takes.
    #[error(
        "larger than the broker takes ({0}): raise max_message_size in its rabbitmq.conf, or publish where \
         the data are instead of the data"
    )]
    TooLarge(String),
    /// It cannot be put into AMQP's form; nothing was sent.
    #[error("cannot be published: {0}")]
    Invalid(String),
    /// There is no connection; nothing was sent.
    #[error("not connected: {0}")]
    NotConnected(Trouble),
    /// There was no confirmation in time, or the connection broke. It may have been published:
    /// publish it again with the same `message_id`.
    #[error("not known whether it was published ({0}); publish it again with the same message_id")]
    Unknown(String),
}

/// Publishes on a connection of its own. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    side: Arc<Side>,
    idle: Mutex<Vec<Channel>>,
    in_flight: Semaphore,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("free", &self.0.in_flight.available_permits()).finish()
    }
}

impl Publisher {
    /// Connects.
    ///
    /// # Errors
    /// The broker cannot be reached, or does not let us in.
    pub async fn connect(settings: &Settings) -> Result<Self, Trouble> {
        let side = Side::new(Arc::new(settings.clone()), "longshore (publish)".to_owned())?;
        let publisher = Self::on(Arc::new(side));
        let channel = publisher.0.side.channel(true).await?;
        publisher.put_back(channel);
        Ok(publisher)
    }

    pub(super) fn on(side: Arc<Side>) -> Self {
        Self(Arc::new(Inner { side, idle: Mutex::default(), in_flight: Semaphore::new(IN_FLIGHT) }))
    }

    /// Publishes a persistent message and waits for the broker's confirmation. With `mandatory`,
    /// a message that no queue is bound for is an error instead of gone.
    ///
    /// # Errors
    /// See [`PublishError`]; only `Unknown` leaves open whether the message was published.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
        mandatory: bool,
    ) -> Result<Published, PublishError> {
        let begun = Instant::now();
        let name = |text: &str| short(text).map_err(|trouble| PublishError::Invalid(trouble.text));
        let (to, key) = (name(exchange)?, name(routing_key)?);
        let properties = convert::properties(&message.properties).map_err(PublishError::Invalid)?;
        let options = BasicPublishOptions { mandatory, immediate: false };

        let deadline = self.0.side.settings.operation_timeout;
        let Ok(permit) = tokio::time::timeout(deadline, self.0.in_flight.acquire()).await else {
            return Err(PublishError::NotConnected(Trouble::timeout(
                "waiting for earlier publishes",
            )));
        };
        let channel = match self.take() {
            Some(channel) => channel,
            None => self.0.side.channel(true).await.map_err(PublishError::NotConnected)?,
        };
        let confirmed = tokio::time::timeout(deadline, async {
            channel.basic_publish(to, key, options, &message.body, properties).await?.await
        });
        let outcome = match confirmed.await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(Published { took: begun.elapsed() }),
            Ok(Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))) => {
                Err(PublishError::Unroutable {
                    exchange: exchange.to_owned(),
                    routing_key: routing_key.to_owned(),
                })
            }
            Ok(Ok(Confirmation::Nack(None))) => Err(PublishError::Nacked),
            Ok(Ok(Confirmation::NotRequested)) => {
                Err(PublishError::Unknown("the channel has no confirms".to_owned()))
            }
            Ok(Err(error)) => Err(match error.kind() {
                ErrorKind::ProtocolError(refusal) => refused(refusal.get_message().as_str()),
                _ => PublishError::Unknown(error.to_string()),
            }),
            // The frames may still go out: the channel is not used again, lest the late
            // confirmation is taken for that of another message.
            Err(_late) => {
                Err(PublishError::Unknown(format!("no confirmation within {deadline:?}")))
            }
        };
        let closed = |error: &PublishError| {
            use PublishError::{Refused, TooLarge, Unknown};
            matches!(error, Unknown(_) | Refused(_) | TooLarge(_))
        };
        if !outcome.as_ref().is_err_and(closed) {
            self.put_back(channel);
        }
        drop(permit);
        outcome
    }

    /// Closes the connection; whatever is still in flight becomes unknown.
    pub async fn close(self, within: Duration) {
        let idle = std::mem::take(&mut *self.0.idle.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + within;
        // Closed in order; a channel that is dropped would close itself in lapin's background,
        // where a failure takes the connection along.
        for channel in idle {
            close_channel(
                &channel,
                deadline.saturating_duration_since(tokio::time::Instant::now()),
            )
            .await;
        }
        self.0.side.close(within).await;
    }

    fn take(&self) -> Option<Channel> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(channel) = idle.pop() {
            if channel.status().connected() {
                return Some(channel);
            }
        }
        None
    }

    fn put_back(&self, channel: Channel) {
        if channel.status().connected() {
            self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        }
    }
}

/// What a broker's refusal says. It closes the channel of a message over its limit with 406 and
/// these words: <https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbit/src/rabbit_channel.erl>
fn refused(words: &str) -> PublishError {
    if words.contains("message size") && words.contains("larger than") {
        PublishError::TooLarge(words.to_owned())
    } else {
        PublishError::Refused(words.to_owned())
    }
}
