//! What is published: requests of one size, persistent, each confirmed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use super::way::Way;

/// The size of a body, in bytes.
pub(super) const BODY: usize = 260;
/// How many users the requests are about.
pub(super) const USERS: u32 = 1_000;
/// Publishes whose confirmation is awaited at once.
const IN_FLIGHT: usize = 1_000;
/// How long a confirmation may take.
const CONFIRM: Duration = Duration::from_secs(30);
/// The names of the contract; the broker is ours alone.
pub(super) const QUEUE: &str = "longshore.requests";
const EXCHANGE: &str = "longshore";

/// Publishes.
pub(super) struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Publisher {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connecting =
            timeout(CONFIRM, Connection::connect(url, ConnectionProperties::default()));
        let connection = connecting.await.context("RabbitMQ does not answer")??;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Removes what is in the queue.
    pub(super) async fn purge(&self) -> anyhow::Result<()> {
        self.channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Publishes so many requests: as fast as they are confirmed, or at this rate, by the clock and
    /// whatever becomes of them. How many of them the function will refuse.
    pub(super) async fn publish(
        &self,
        way: Way,
        requests: usize,
        rate: Option<f64>,
    ) -> anyhow::Result<usize> {
        let Some(kind) = way.kind() else { return Ok(0) };
        // The same at every run.
        let mut chance = fastrand::Rng::with_seed(42);
        let mut confirming = FuturesUnordered::new();
        let since = Instant::now();
        let mut refused = 0;
        for number in 0..requests {
            match rate {
                Some(rate) => {
                    let due = since + Duration::from_secs_f64(number as f64 / rate);
                    sleep_until(due).await;
                }
                None if confirming.len() == IN_FLIGHT => confirmed(confirming.next().await)?,
                None => {}
            }
            let bad = chance.f64() < way.refused();
            refused += usize::from(bad);
            let id = format!("bench-{number:08}");
            let body = body(&id, kind, chance.u32(0..USERS), bad);
            let mut headers = FieldTable::default();
            headers.insert("published_at_ms".into(), AMQPValue::LongLongInt(now_ms()));
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/json".into())
                .with_message_id(ShortString::from(id))
                .with_headers(headers);
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let sent = self.channel.basic_publish(
                EXCHANGE.into(),
                kind.into(),
                options,
                &body,
                properties,
            );
            let confirm = timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??;
            confirming.push(async move { timeout(CONFIRM, confirm).await });
        }
        while !confirming.is_empty() {
            confirmed(confirming.next().await)?;
        }
        let late = rate.map(|rate| since.elapsed().as_secs_f64() / (requests as f64 / rate));
        if let Some(late) = late.filter(|late| *late > 1.5) {
            bail!("publishing took {late:.1} times as long as it should, the machine is too busy");
        }
        Ok(refused)
    }
}

type Confirmed = Result<lapin::Result<Confirmation>, tokio::time::error::Elapsed>;

fn confirmed(answer: Option<Confirmed>) -> anyhow::Result<()> {
    match answer {
        None => Ok(()),
        Some(Ok(Ok(Confirmation::Ack(None)))) => Ok(()),
        Some(Ok(Ok(_))) => bail!("RabbitMQ did not take a request"),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(_)) => bail!("RabbitMQ did not confirm a request within {CONFIRM:?}"),
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A body of [`BODY`] bytes. The function refuses an address without an `@`.
fn body(id: &str, kind: &str, user: u32, bad: bool) -> Vec<u8> {
    let email = if bad { "nowhere".to_owned() } else { format!("user{user}@example.com") };
    let of = |name: &str| {
        let payload = json!({"email": email, "locale": "en", "name": name});
        json!({"request_id": id, "kind": kind, "user_id": user.to_string(), "payload": payload})
            .to_string()
            .into_bytes()
    };
    let rest = BODY.saturating_sub(of("").len());
    of(&"n".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bodies_have_the_same_size() {
        for (user, bad) in [(1, false), (999, false), (7, true)] {
            assert_eq!(body("bench-00000001", "user.profile.update", user, bad).len(), BODY);
            assert_eq!(body("bench-00000001", "user.welcome.send", user, bad).len(), BODY);
        }
    }
}
