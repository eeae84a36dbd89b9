//! What is published, and when.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions},
    types::ShortString,
};
use longshore_drill::broker;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use super::place::KIND;

const QUEUE: &str = "longshore.requests";
const EXCHANGE: &str = "longshore";
/// How long the broker may take to answer.
const CONFIRM: Duration = Duration::from_secs(60);
/// How many confirmations are awaited together.
const TOGETHER: usize = 500;

/// A producer of one measurement.
pub(super) struct Producer {
    // Closed when it is dropped.
    _connection: Connection,
    channel: Channel,
    number: usize,
}

impl Producer {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = broker::connect(url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel, number: 0 })
    }

    /// Publishes a request for each of these users, and returns when each was published.
    pub(super) async fn publish(
        &mut self,
        users: &[String],
    ) -> anyhow::Result<HashMap<String, f64>> {
        let mut published = HashMap::new();
        for some in users.chunks(TOGETHER) {
            let mut confirms = Vec::with_capacity(some.len());
            for user in some {
                self.number += 1;
                let id = format!("limits-{:07}", self.number);
                let body = json!({"request_id": id, "kind": KIND, "user_id": user, "payload": {}});
                let body = serde_json::to_vec(&body)?;
                published.insert(id, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
                let sent = self.channel.basic_publish(
                    EXCHANGE.into(),
                    ShortString::from(KIND),
                    BasicPublishOptions { mandatory: true, immediate: false },
                    &body,
                    BasicProperties::default().with_delivery_mode(2),
                );
                confirms.push(timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??);
            }
            for confirm in confirms {
                let confirmed = timeout(CONFIRM, confirm).await;
                if confirmed.context("RabbitMQ does not confirm")?? != Confirmation::Ack(None) {
                    bail!("RabbitMQ did not take a request");
                }
            }
        }
        Ok(published)
    }

    /// Publishes a wave at the beginning of each second, for so many seconds.
    pub(super) async fn waves(
        &mut self,
        seconds: u64,
        mut wave: impl FnMut() -> Vec<String>,
    ) -> anyhow::Result<HashMap<String, f64>> {
        let begin = Instant::now();
        let mut published = HashMap::new();
        for second in 0..seconds {
            sleep_until(begin + Duration::from_secs(second)).await;
            published.extend(self.publish(&wave()).await?);
        }
        Ok(published)
    }

    /// Takes out of the queue what is left in it.
    pub(super) async fn purge(&self) -> anyhow::Result<()> {
        let purged = self.channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default());
        timeout(CONFIRM, purged).await.context("RabbitMQ does not answer")??;
        Ok(())
    }
}
