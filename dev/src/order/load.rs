//! What is published: each user's requests carry their number, and stand in the queue in its order.

use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::{
    BasicProperties, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

const EXCHANGE: &str = "longshore.ordered";
/// How long the broker may take to answer.
const CONFIRM: Duration = Duration::from_secs(60);
/// How long the first worker may take to declare the exchange.
const DECLARED: Duration = Duration::from_secs(60);
/// How many confirmations are awaited together.
const TOGETHER: usize = 500;
/// Every so many requests there is a call.
const CALLS: usize = 5;

/// Publishes through one channel, so that the order of publishing is that of the queue.
pub(super) async fn publish(url: String, requests: usize, users: usize) -> anyhow::Result<()> {
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let declared = async {
        loop {
            let channel = connection.create_channel().await?;
            let passive = lapin::options::ExchangeDeclareOptions {
                passive: true,
                ..lapin::options::ExchangeDeclareOptions::default()
            };
            let found = channel
                .exchange_declare(
                    EXCHANGE.into(),
                    lapin::ExchangeKind::Topic,
                    passive,
                    lapin::types::FieldTable::default(),
                )
                .await;
            if found.is_ok() {
                return Ok::<_, anyhow::Error>(channel);
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let channel =
        timeout(DECLARED, declared).await.context("no worker declares the exchange")??;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let numbers: Vec<usize> = (0..requests).collect();
    for some in numbers.chunks(TOGETHER) {
        let mut confirms = Vec::with_capacity(some.len());
        for n in some {
            let (user, number) = (n % users, n / users);
            // Not the same users each time.
            let calls = (user + number) % CALLS == 0;
            let kind = if calls { "order.visit" } else { "order.step" };
            let body = json!({"request_id": format!("order-{n:06}"), "kind": kind,
                "user_id": user, "payload": {"number": number}});
            let body = serde_json::to_vec(&body)?;
            let sent = channel.basic_publish(
                EXCHANGE.into(),
                kind.into(),
                BasicPublishOptions { mandatory: true, immediate: false },
                &body,
                BasicProperties::default().with_delivery_mode(2),
            );
            confirms.push(timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??);
        }
        for confirm in confirms {
            let said = timeout(CONFIRM, confirm).await.context("RabbitMQ does not confirm")??;
            if !matches!(said, Confirmation::Ack(None)) {
                bail!("RabbitMQ did not take a request: {said:?}");
            }
        }
    }
    Ok(())
}
