//! The usual worker: a task for each message, one transaction, one acknowledgement.

use std::{io::Write as _, sync::Arc};

use anyhow::Context as _;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures_util::StreamExt as _;
use lapin::{message::Delivery, options::BasicAckOptions};
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use super::Tally;

/// Messages held for each connection, so that none waits for the broker's line. No more tasks than
/// that run, for no more messages are delivered.
const PREFETCH: u16 = 2;

const REMEMBER: &str =
    "insert into app.inbox (message_id) values ($1) on conflict (message_id) do nothing";

/// What `app.update_profile` does, without its checks.
const UPDATE: &str = "\
insert into app.users as u (user_id, email, name, locale, version) values ($1, $2, $3, $4, 1)
    on conflict (user_id) do update
   set email = coalesce(excluded.email, u.email), name = coalesce(excluded.name, u.name),
       locale = coalesce(excluded.locale, u.locale), version = u.version + 1, updated_at = now()";

#[derive(Debug, Deserialize)]
struct Body {
    request_id: String,
    user_id: String,
    payload: Profile,
}

#[derive(Debug, Deserialize)]
struct Profile {
    email: Option<String>,
    name: Option<String>,
    locale: Option<String>,
}

pub(super) async fn work(tally: Arc<Tally>) -> anyhow::Result<()> {
    let config = super::told("DATABASE_URL")?.parse()?;
    let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let connections: u16 = super::told("USUAL_POOL")?.parse()?;
    let pool = Pool::builder(Manager::from_config(config, NoTls, fast))
        .max_size(usize::from(connections))
        .runtime(Runtime::Tokio1)
        .build()?;
    let lines = super::told("LONGSHORE__LOG__REQUESTS")? == "all";
    let (_connection, _channel, mut consumer) = super::consume(connections * PREFETCH).await?;
    tally.serve().await?;
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => ended??,
            delivery = consumer.next() => {
                let delivery = delivery.context("RabbitMQ ended the subscription")??;
                tasks.spawn(one(pool.clone(), delivery, Arc::clone(&tally), lines));
            }
        }
    }
}

async fn one(pool: Pool, delivery: Delivery, tally: Arc<Tally>, lines: bool) -> anyhow::Result<()> {
    let body: Body = serde_json::from_slice(&delivery.data)?;
    let mut client = pool.get().await?;
    let transaction = client.transaction().await?;
    let remember = transaction.prepare_cached(REMEMBER).await?;
    if transaction.execute(&remember, &[&body.request_id]).await? == 1 {
        let update = transaction.prepare_cached(UPDATE).await?;
        let Profile { email, name, locale } = &body.payload;
        transaction.execute(&update, &[&body.user_id, email, name, locale]).await?;
    }
    transaction.commit().await?;
    drop(client);
    tally.done(1);
    if lines {
        let (id, now) = (&body.request_id, OffsetDateTime::now_utc().format(&Rfc3339)?);
        writeln!(
            std::io::stdout(),
            "{{\"timestamp\":\"{now}\",\"event\":\"request.finished\",\"request_id\":\"{id}\"}}"
        )?;
    }
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}
