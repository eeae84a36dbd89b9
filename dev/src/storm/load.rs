//! What is published, by the clock and whatever becomes of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use longshore_drill::broker;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

/// The names of the contract; the broker is ours alone.
pub(super) const QUEUE: &str = "longshore.requests";
const EXCHANGE: &str = "longshore";
/// The kind that needs the dependency in trouble.
pub(super) const NEEDS: &str = "user.address.verify";
/// How long the broker may take to take a message.
const CONFIRM: Duration = Duration::from_secs(30);
/// How many confirmations are awaited at once.
const IN_FLIGHT: usize = 2_000;
/// What is due is published together this often.
const TICK: Duration = Duration::from_millis(5);
const USERS: u32 = 1_000;

/// How much comes in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix {
    /// Requests a second.
    pub(super) rate: f64,
    /// For so many seconds.
    pub(super) seconds: f64,
}

/// When each request was handed to the client library, in seconds since 1970, by its number.
pub(super) type Sent = Vec<f64>;

/// A connection that confirms.
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

    async fn send(
        &self,
        id: &str,
        kind: &str,
        user: u32,
        deadline: Option<&str>,
    ) -> anyhow::Result<Confirming> {
        let mut body = json!({"request_id": id, "kind": kind, "user_id": user,
            "payload": {"name": "Ada", "address": "1 Main Street"}});
        if let Some(deadline) = deadline {
            body["deadline"] = Value::from(deadline);
        }
        let body = serde_json::to_vec(&body)?;
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let sent =
            self.channel.basic_publish(EXCHANGE.into(), kind.into(), options, &body, properties);
        let confirm = timeout(CONFIRM, sent).await.context("RabbitMQ takes no more")??;
        Ok(timeout(CONFIRM, confirm).boxed())
    }

    /// Publishes requests of one kind as fast as they are confirmed.
    pub(super) async fn burst(
        &self,
        ids: impl Iterator<Item = String>,
        kind: &str,
        deadline: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut confirming = FuturesUnordered::new();
        for (number, id) in ids.enumerate() {
            while confirming.len() >= IN_FLIGHT {
                confirmed(confirming.next().await)?;
            }
            confirming.push(self.send(&id, kind, number as u32 % USERS, deadline).await?);
        }
        while !confirming.is_empty() {
            confirmed(confirming.next().await)?;
        }
        Ok(())
    }
}

type Confirming = BoxFuture<'static, Confirmed>;
type Confirmed = Result<lapin::Result<Confirmation>, tokio::time::error::Elapsed>;

fn confirmed(answer: Option<Confirmed>) -> anyhow::Result<()> {
    match answer {
        None | Some(Ok(Ok(Confirmation::Ack(None)))) => Ok(()),
        Some(Ok(Ok(_))) => bail!("RabbitMQ did not take a request"),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(_)) => bail!("RabbitMQ did not confirm a request within {CONFIRM:?}"),
    }
}

/// The kind of the request of this number: of ten, seven write, one mails, two need the geocoder.
fn kind(number: usize) -> &'static str {
    match number % 10 {
        3 | 8 => NEEDS,
        5 => "user.welcome.send",
        _ => "user.profile.update",
    }
}

pub(super) fn id(number: usize) -> String {
    format!("storm-{number:08}")
}

pub(super) fn number_in(id: &str) -> Option<usize> {
    id.strip_prefix("storm-")?.parse().ok()
}

/// Publishes the mix.
pub(super) async fn publish(publisher: &Publisher, mix: Mix) -> anyhow::Result<Sent> {
    let requests = (mix.rate * mix.seconds) as usize;
    let mut sent = Vec::with_capacity(requests);
    let mut chance = fastrand::Rng::with_seed(7);
    let mut confirming = FuturesUnordered::new();
    let since = Instant::now();
    let mut tick = since;
    while sent.len() < requests {
        tick += TICK;
        sleep_until(tick).await;
        let due = ((tick - since).as_secs_f64() * mix.rate) as usize;
        while sent.len() < due.min(requests) {
            while confirming.len() >= IN_FLIGHT {
                confirmed(confirming.next().await)?;
            }
            let number = sent.len();
            sent.push(now());
            let user = chance.u32(0..USERS);
            confirming.push(publisher.send(&id(number), kind(number), user, None).await?);
        }
        while let Some(Some(answer)) = confirming.next().now_or_never() {
            confirmed(Some(answer))?;
        }
    }
    while !confirming.is_empty() {
        confirmed(confirming.next().await)?;
    }
    let late = since.elapsed().as_secs_f64() / mix.seconds;
    if late > 1.5 {
        bail!("publishing took {late:.1} times as long as it should, lower --rate");
    }
    Ok(sent)
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_needs_the_dependency() {
        let needs = (0..1_000).filter(|number| kind(*number) == NEEDS).count();
        assert_eq!(needs, 200);
        assert_eq!(number_in(&id(1_234)), Some(1_234));
        assert_eq!(number_in("other-1"), None);
    }
}
