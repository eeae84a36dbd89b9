//! The test's own queues, and a producer that keeps to the contract unless told otherwise.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use serde_json::Value;
use tokio::time::timeout;

use super::{PATIENCE, until};

pub(crate) struct Broker {
    pub(crate) url: String,
    pub(crate) exchange: String,
    pub(crate) queue: String,
    pub(crate) dead: String,
    /// Exchange and queue of ordered kinds.
    pub(crate) ordered: String,
    _connection: Connection,
    channel: Channel,
}

/// A message to be published.
#[derive(Debug, Clone, Default)]
pub(crate) struct Publish {
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BasicProperties,
    pub(crate) headers: BTreeMap<String, AMQPValue>,
}

impl Publish {
    pub(crate) fn raw(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            properties: BasicProperties::default().with_delivery_mode(2),
            headers: BTreeMap::new(),
        }
    }

    pub(crate) fn json(body: &Value) -> Self {
        Self::raw(serde_json::to_vec(body).unwrap())
    }

    pub(crate) fn with(mut self, change: impl FnOnce(BasicProperties) -> BasicProperties) -> Self {
        self.properties = change(self.properties);
        self
    }

    pub(crate) fn message_id(self, id: &str) -> Self {
        self.with(|properties| properties.with_message_id(ShortString::try_new(id).unwrap()))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), AMQPValue::LongString(LongString::from(value)));
        self
    }
}

/// A message found in a queue.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BasicProperties,
}

impl Broker {
    pub(crate) async fn connect(url: &str, name: &str) -> Self {
        let (connection, channel) = open(url).await;
        Self {
            url: url.to_owned(),
            exchange: name.to_owned(),
            queue: format!("{name}.requests"),
            dead: format!("{name}.dead"),
            ordered: format!("{name}.ordered"),
            _connection: connection,
            channel,
        }
    }

    /// Publishes through the exchange, mandatory, and waits for the confirmation. The worker has
    /// declared the queue before, or this fails.
    pub(crate) async fn publish(&self, message: Publish) {
        let exchange = self.exchange.clone();
        assert!(self.publish_to(&exchange, "any", message).await, "the broker confirmed it");
    }

    /// Publishes; true when it was confirmed and routed.
    pub(crate) async fn publish_to(&self, exchange: &str, key: &str, message: Publish) -> bool {
        let mut headers = FieldTable::default();
        for (name, value) in message.headers {
            headers.insert(ShortString::try_new(name).unwrap(), value);
        }
        let properties = message.properties.with_headers(headers);
        let published = self
            .channel
            .basic_publish(
                ShortString::try_new(exchange).unwrap(),
                ShortString::try_new(key).unwrap(),
                BasicPublishOptions { mandatory: true, immediate: false },
                &message.body,
                properties,
            )
            .await
            .unwrap();
        matches!(timeout(PATIENCE, published).await.unwrap().unwrap(), Confirmation::Ack(None))
    }

    /// Publishes bodies through the exchange with many confirmations under way, and waits for all.
    pub(crate) async fn publish_all(&self, bodies: &[Vec<u8>]) {
        self.publish_all_to(&self.exchange, bodies).await;
    }

    /// The same through another exchange; they stand in the queue in this order.
    pub(crate) async fn publish_all_to(&self, exchange: &str, bodies: &[Vec<u8>]) {
        let exchange = ShortString::try_new(exchange).unwrap();
        for some in bodies.chunks(1_000) {
            let mut confirms = Vec::with_capacity(some.len());
            for body in some {
                let published = self.channel.basic_publish(
                    exchange.clone(),
                    "any".into(),
                    BasicPublishOptions { mandatory: true, immediate: false },
                    body,
                    BasicProperties::default().with_delivery_mode(2),
                );
                confirms.push(published.await.unwrap());
            }
            for confirm in confirms {
                let confirmed = timeout(PATIENCE, confirm).await.unwrap().unwrap();
                assert!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
            }
        }
    }

    /// Connects anew, after the broker was restarted.
    pub(crate) async fn reconnect(&mut self) {
        (self._connection, self.channel) = open(&self.url).await;
    }

    /// Declares a queue of the test's own, for answers.
    pub(crate) async fn declare(&self, name: &str) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel
            .queue_declare(ShortString::try_new(name).unwrap(), options, FieldTable::default())
            .await
            .unwrap();
    }

    /// The next message of a queue, taken off it.
    pub(crate) async fn take(&self, queue: &str) -> Found {
        until(&format!("there is a message in {queue}"), async || self.try_take(queue).await).await
    }

    /// The next message of a queue, if there is one.
    pub(crate) async fn try_take(&self, queue: &str) -> Option<Found> {
        let got = self
            .channel
            .basic_get(ShortString::try_new(queue).unwrap(), BasicGetOptions { no_ack: false })
            .await
            .unwrap()?;
        got.delivery.ack(BasicAckOptions::default()).await.unwrap();
        Some(Found { body: got.delivery.data, properties: got.delivery.properties })
    }

    /// Ready messages in a queue.
    pub(crate) async fn ready(&self, queue: &str) -> u32 {
        let passive =
            QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declared = self
            .channel
            .queue_declare(ShortString::try_new(queue).unwrap(), passive, FieldTable::default())
            .await
            .unwrap();
        declared.message_count()
    }

    /// Waits until somebody consumes the queue. Each look takes a connection of its own, for the
    /// broker closes the channel that asks for a queue that is not there.
    pub(crate) async fn until_consumed(&self) {
        self.until_has_consumer(&self.queue).await;
    }

    /// The same of another queue.
    pub(crate) async fn until_has_consumer(&self, queue: &str) {
        until(&format!("{queue} is consumed"), async || {
            let (_connection, channel) = open(&self.url).await;
            let passive = QueueDeclareOptions {
                passive: true,
                durable: true,
                ..QueueDeclareOptions::default()
            };
            let queue = ShortString::try_new(queue).unwrap();
            let declared =
                channel.queue_declare(queue, passive, FieldTable::default()).await.ok()?;
            (declared.consumer_count() > 0).then_some(())
        })
        .await;
    }

    /// Waits until nothing is in the queue, neither ready nor delivered: who deletes it if empty and
    /// unused is refused while a worker consumes, so it is asked for its messages twice.
    pub(crate) async fn until_empty(&self) {
        until("the queue is empty", async || (self.ready(&self.queue).await == 0).then_some(()))
            .await;
    }

    /// Deletes the queue under whoever consumes it.
    pub(crate) async fn delete_queue(&self) {
        self.channel
            .queue_delete(
                ShortString::try_new(self.queue.as_str()).unwrap(),
                QueueDeleteOptions::default(),
            )
            .await
            .unwrap();
    }

    /// Deletes what the test has made, in the background.
    pub(crate) fn forget(&self) {
        let (url, exchange, queue) = (self.url.clone(), self.exchange.clone(), self.queue.clone());
        let (dead, ordered) = (self.dead.clone(), self.ordered.clone());
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            else {
                return;
            };
            let cleaned = runtime.block_on(async {
                timeout(Duration::from_secs(5), async {
                    // Not by `open`: with a private broker there may be nobody any more.
                    let properties = ConnectionProperties::default();
                    let connection = Connection::connect(&url, properties).await?;
                    let channel = connection.create_channel().await?;
                    for queue in [queue, dead.clone(), ordered.clone()] {
                        channel
                            .queue_delete(
                                ShortString::try_new(queue).unwrap(),
                                QueueDeleteOptions::default(),
                            )
                            .await?;
                    }
                    for exchange in [exchange, dead, ordered] {
                        channel
                            .exchange_delete(
                                ShortString::try_new(exchange).unwrap(),
                                ExchangeDeleteOptions::default(),
                            )
                            .await?;
                    }
                    Ok::<_, lapin::Error>(())
                })
                .await
            });
            // The broker may be gone with the test; then so are the queues.
            drop(cleaned);
        });
    }
}

async fn open(url: &str) -> (Connection, Channel) {
    let connected = timeout(PATIENCE, Connection::connect(url, ConnectionProperties::default()));
    let connection = connected.await.unwrap().unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}
