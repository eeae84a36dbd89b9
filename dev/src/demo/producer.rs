//! The demo's producer: keeps to the contract, and notes what the broker says to each publish.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use longshore_drill::broker;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    ANSWERS, EXCHANGE,
    plan::{Item, Plan},
};
use crate::{
    account::{Account, ID_HEADER, Verdict},
    place,
};

/// Publishes whose confirmation is awaited at once.
const IN_FLIGHT: usize = 64;
/// How long a confirmation may take before it is unknown.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long a queue may take after the broker's start until its leader answers.
const LEADER: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) struct Producer {
    connection: Arc<Connection>,
    channel: Channel,
}

impl Producer {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = broker::connect(url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection: Arc::new(connection), channel })
    }

    /// Deletes what a demo leaves behind.
    pub(super) async fn clean(
        url: &str,
        queues: &[&str],
        exchanges: &[&str],
    ) -> anyhow::Result<()> {
        for queue in queues {
            broker::delete_queue(url, queue, LEADER).await.with_context(|| {
                let data = place::root().join("rabbitmq");
                format!("`make down`, delete {} and try again", data.display())
            })?;
        }
        broker::delete_exchanges(url, exchanges).await
    }

    /// Notes every answer that arrives.
    pub(super) async fn listen(
        &self,
        queue: &str,
        account: Arc<Mutex<Account>>,
    ) -> anyhow::Result<()> {
        let channel = self.connection.create_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut answers = channel
            .basic_consume(queue.into(), "demo".into(), options, FieldTable::default())
            .await?;
        tokio::spawn(async move {
            // Moved in: a channel that nobody holds is closed.
            let _channel = channel;
            while let Some(Ok(answer)) = answers.next().await {
                if let Some(id) = answer.properties.correlation_id() {
                    account.lock().unwrap_or_else(PoisonError::into_inner).replied(id.as_str());
                }
            }
        });
        Ok(())
    }

    /// Publishes the plan at this rate.
    pub(super) async fn publish(
        self,
        plan: Plan,
        rate: u32,
        account: Arc<Mutex<Account>>,
        published: Arc<AtomicUsize>,
    ) -> anyhow::Result<()> {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut confirming = FuturesUnordered::new();
        for item in plan {
            ticks.tick().await;
            if confirming.len() == IN_FLIGHT {
                confirming.next().await;
            }
            let (producer, account, published) = (&self, &account, &published);
            confirming.push(async move {
                for _ in 0..=item.again {
                    let verdict = producer.one(&item).await;
                    account
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .published(&item.id, item.kind, verdict);
                }
                published.fetch_add(1, Relaxed);
            });
        }
        while confirming.next().await.is_some() {}
        Ok(())
    }

    async fn one(&self, item: &Item) -> Verdict {
        let mut headers = FieldTable::default();
        headers.insert(ID_HEADER.into(), AMQPValue::LongString(LongString::from(item.id.as_str())));
        let mut properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_app_id("demo".into())
            .with_headers(headers);
        if item.names_itself {
            properties = properties.with_message_id(ShortString::from(item.id.as_str()));
        }
        if item.asks {
            properties = properties
                .with_reply_to(ANSWERS.into())
                .with_correlation_id(ShortString::from(item.id.as_str()));
        }
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let confirmed = async {
            let sent = self.channel.basic_publish(
                EXCHANGE.into(),
                item.kind.into(),
                options,
                &item.body,
                properties,
            );
            sent.await?.await
        };
        match timeout(CONFIRM, confirmed).await {
            Ok(Ok(Confirmation::Ack(None))) => Verdict::Confirmed,
            Ok(Ok(_)) => Verdict::Refused,
            Ok(Err(_)) | Err(_) => Verdict::Unknown,
        }
    }
}
