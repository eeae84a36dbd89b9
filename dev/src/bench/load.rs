//! What is published: requests of one size, persistent, each confirmed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions},
    types::ShortString,
};
use longshore_drill::broker;
use tokio::time::{Instant, sleep_until, timeout};

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

/// What the requests of one measurement are like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) kind: &'static str,
    /// The share of them that the function refuses.
    pub(super) refused: f64,
    pub(super) ids: Ids,
    pub(super) users: u32,
    pub(super) body: usize,
}

/// In which order ids come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    /// One after the other, as ids do that begin with the time: an index grows at its end.
    Ordered,
    /// By chance, other ones for each number: they lie all over the index.
    Scattered(u64),
}

impl Load {
    pub(super) fn of(kind: &'static str) -> Self {
        Self { kind, refused: 0.0, ids: Ids::Ordered, users: USERS, body: BODY }
    }
}

/// Publishes.
pub(super) struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Publisher {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = broker::connect(url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Removes what is in the queue.
    pub(super) async fn purge(&self) -> anyhow::Result<()> {
        self.channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Publishes so many requests as fast as they are confirmed; how many will be refused.
    pub(super) async fn publish(&self, load: Load, requests: usize) -> anyhow::Result<usize> {
        let mut sending = Sending::new(self, load, 0);
        sending.publish(requests).await?;
        sending.confirmed().await?;
        Ok(sending.refused)
    }

    /// Publishes so many requests at this rate, by the clock and whatever becomes of them; when
    /// each was handed to the client library, in microseconds since 1970.
    pub(super) async fn trickle(
        &self,
        load: Load,
        requests: usize,
        rate: f64,
    ) -> anyhow::Result<Vec<i64>> {
        let mut sending = Sending::new(self, load, 0);
        let mut sent = Vec::with_capacity(requests);
        let since = Instant::now();
        for number in 0..requests {
            sleep_until(since + Duration::from_secs_f64(number as f64 / rate)).await;
            sent.push(now_us());
            sending.one().await?;
        }
        let late = since.elapsed().as_secs_f64() / (requests as f64 / rate);
        if late > 1.5 {
            bail!("publishing took {late:.1} times as long as it should, the machine is too busy");
        }
        sending.confirmed().await?;
        Ok(sent)
    }
}

/// Requests on their way to the broker.
pub(super) struct Sending<'a> {
    publisher: &'a Publisher,
    load: Load,
    confirming: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    chance: fastrand::Rng,
    number: usize,
    refused: usize,
}

impl<'a> Sending<'a> {
    /// From the request of this number on.
    pub(super) fn new(publisher: &'a Publisher, load: Load, first: usize) -> Self {
        // The same at every run.
        let seed = match load.ids {
            Ids::Ordered => 42 + first as u64,
            Ids::Scattered(seed) => seed,
        };
        Self {
            publisher,
            load,
            confirming: FuturesUnordered::new(),
            chance: fastrand::Rng::with_seed(seed),
            number: first,
            refused: 0,
        }
    }

    /// Publishes the next ones, with a bounded number of confirmations outstanding.
    pub(super) async fn publish(&mut self, requests: usize) -> anyhow::Result<()> {
        for _ in 0..requests {
            if self.confirming.len() >= IN_FLIGHT {
                confirmed(self.confirming.next().await)?;
            }
            // What has been confirmed meanwhile is taken without waiting.
            while let Some(Some(answer)) = self.confirming.next().now_or_never() {
                confirmed(Some(answer))?;
            }
            self.one().await?;
        }
        Ok(())
    }

    async fn one(&mut self) -> anyhow::Result<()> {
        let Load { kind, refused, ids, users, body: size } = self.load;
        let bad = self.chance.f64() < refused;
        self.refused += usize::from(bad);
        let id = match ids {
            Ids::Ordered => ordered(self.number),
            Ids::Scattered(_) => format!("{:032x}", self.chance.u128(..)),
        };
        self.number += 1;
        let body = body(&id, kind, self.chance.u32(0..users), bad, size);
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(ShortString::from(id));
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let channel = &self.publisher.channel;
        let sent = channel.basic_publish(EXCHANGE.into(), kind.into(), options, &body, properties);
        let confirm = timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??;
        self.confirming.push(timeout(CONFIRM, confirm).boxed());
        Ok(())
    }

    /// Waits until the broker has taken all of them.
    pub(super) async fn confirmed(&mut self) -> anyhow::Result<()> {
        while !self.confirming.is_empty() {
            confirmed(self.confirming.next().await)?;
        }
        Ok(())
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

/// Microseconds since 1970.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The id of a request, when ids come in order.
pub(super) fn ordered(number: usize) -> String {
    format!("bench-{number:010}")
}

/// The number in such an id.
pub(super) fn number_in(id: &str) -> Option<usize> {
    id.strip_prefix("bench-")?.parse().ok()
}

/// A body of `size` bytes, or as small as one can be. The function refuses an address without an
/// `@`.
fn body(id: &str, kind: &str, user: u32, bad: bool, size: usize) -> Vec<u8> {
    let email = if bad { "nowhere".to_owned() } else { format!("user{user}@example.com") };
    let mut body = format!(
        "{{\"request_id\":\"{id}\",\"kind\":\"{kind}\",\"user_id\":\"{user}\",\
         \"payload\":{{\"email\":\"{email}\",\"locale\":\"en\",\"name\":\""
    );
    let end = "\"}}";
    let rest = size.saturating_sub(body.len() + end.len()).max(1);
    body.extend(std::iter::repeat_n('n', rest));
    body.push_str(end);
    body.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn all_bodies_are_json_of_the_same_size() {
        for (user, bad) in [(1, false), (999, false), (7, true)] {
            for kind in ["user.profile.update", "user.welcome.send"] {
                let body = body(&ordered(1), kind, user, bad, BODY);
                assert_eq!(body.len(), BODY);
                let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(read["user_id"], user.to_string());
            }
        }
        assert!(body(&ordered(1), "user.profile.update", 1, false, 0).ends_with(b"\"n\"}}"));
    }

    #[test]
    fn an_ordered_id_tells_its_number() {
        assert_eq!(number_in(&ordered(1_234_567)), Some(1_234_567));
        assert!(ordered(9) < ordered(10) && ordered(999_999_999) < ordered(1_000_000_000));
        assert_eq!(number_in("other-1"), None);
    }
}
