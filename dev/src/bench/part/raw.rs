//! The ceiling: nothing is done with a message, and some are acknowledged at a time.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::{message::Delivery, options::BasicAckOptions};
use tokio::time::timeout;

use super::Tally;

const PREFETCH: u16 = 500;
/// How many at a time.
pub(super) const TOGETHER: u64 = 50;
/// After this long without a message what is left is acknowledged.
const LULL: Duration = Duration::from_millis(20);

pub(super) async fn work(tally: Arc<Tally>, together: u64) -> anyhow::Result<()> {
    let (_connection, _channel, mut consumer) = super::consume(PREFETCH).await?;
    tally.serve().await?;
    let mut held: Option<Delivery> = None;
    let mut count = 0;
    loop {
        match timeout(LULL, consumer.next()).await {
            Ok(delivery) => {
                held = Some(delivery.context("RabbitMQ ended the subscription")??);
                count += 1;
                if count < together {
                    continue;
                }
            }
            Err(_) if held.is_none() => continue,
            Err(_) => {}
        }
        if let Some(last) = held.take() {
            last.ack(BasicAckOptions { multiple: together > 1 }).await?;
            tally.done(std::mem::take(&mut count));
        }
    }
}
