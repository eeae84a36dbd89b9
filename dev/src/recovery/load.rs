//! What is published: updates and calls in turn, all before the first restart, so that the queue
//! holds something whenever the broker comes back.

use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use longshore_drill::broker;
use serde_json::json;
use tokio::time::timeout;

use crate::account::{Account, Verdict};

/// The names of the contract; the broker is ours alone.
pub(super) const QUEUE: &str = "longshore.requests";
/// The broker's own dead-letter queue.
pub(super) const DEAD: &str = "longshore.dead";
const EXCHANGE: &str = "longshore";
/// So many requests for each restart are done while it is measured.
pub(super) const MARGIN: usize = 200;
/// How long the broker may take to answer.
const CONFIRM: Duration = Duration::from_secs(30);
/// How many confirmations are awaited together.
const TOGETHER: usize = 500;

/// Publishes so many requests, each confirmed, and notes them.
pub(super) async fn publish(url: &str, requests: usize) -> anyhow::Result<Account> {
    let connection = broker::connect(url).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut account = Account::new();
    let numbers: Vec<usize> = (0..requests).collect();
    for some in numbers.chunks(TOGETHER) {
        let mut confirms = Vec::with_capacity(some.len());
        for number in some {
            let kind = if number % 2 == 0 { "user.profile.update" } else { "user.welcome.send" };
            let id = format!("recovery-{number:06}");
            let body = json!({"request_id": id, "kind": kind, "user_id": number % 50,
                "payload": {"name": "Ada"}});
            let body = serde_json::to_vec(&body)?;
            let sent = channel.basic_publish(
                EXCHANGE.into(),
                ShortString::from(kind),
                BasicPublishOptions { mandatory: true, immediate: false },
                &body,
                BasicProperties::default().with_delivery_mode(2),
            );
            let confirm = timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??;
            confirms.push((id, kind, confirm));
        }
        for (id, kind, confirm) in confirms {
            let said = timeout(CONFIRM, confirm).await.context("RabbitMQ does not confirm")??;
            if !matches!(said, Confirmation::Ack(None)) {
                bail!("RabbitMQ did not take the request {id}: {said:?}");
            }
            account.published(&id, kind, Verdict::Confirmed);
        }
    }
    // It ends with this process at the latest.
    let _closed = timeout(CONFIRM, connection.close(200, "bye".into())).await.is_ok();
    Ok(account)
}
