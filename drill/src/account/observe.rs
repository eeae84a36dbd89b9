//! What is found afterwards: in the ledger, in the broker, at the stub.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context as _, bail};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{ID_HEADER, ID_REUSED};
use crate::{
    database,
    stub::{self, Calls},
};

/// How long one conversation with a server may take.
const TALK: Duration = Duration::from_secs(60);
/// How often a queue is asked whether it is empty.
const ASK: Duration = Duration::from_millis(200);
/// How many messages of the dead queue are read.
const MAX_DEAD: usize = 100_000;
/// How many rows of failed attempts are read; they are for histories only.
const MAX_ATTEMPTS: i64 = 200_000;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The worker's database.
    pub pg_url: String,
    /// The broker.
    pub amqp_url: String,
    /// The queues that must be empty, the queue of requests among them.
    pub queues: Vec<String>,
    /// The broker's own dead-letter queue.
    pub dead_queue: String,
    /// The schema of the ledger.
    pub schema: String,
    /// The table, with its schema, in which functions leave one row `(request_id, at)` for each
    /// effect, where there is one.
    pub effects: Option<String>,
    /// The table of the example's users, with its schema; looked at if it is there.
    pub users: Option<String>,
    /// The stub, where one took part.
    pub stub_url: Option<String>,
}

/// One row of the ledger's `requests`. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `request_id`.
    pub id: String,
    /// `kind`.
    pub kind: String,
    /// `user_id`.
    pub user_id: String,
    /// `state`.
    pub state: String,
    /// `attempt`.
    pub attempt: i32,
    /// `error_code`.
    pub error_code: Option<String>,
    /// `received_at`.
    pub received_ms: Option<i64>,
    /// `finished_at`.
    pub finished_ms: Option<i64>,
}

/// One row of the ledger's `attempts`: what did not go right the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// `request_id`.
    pub id: String,
    /// `attempt`.
    pub number: i32,
    /// `ended_at`.
    pub ended_ms: Option<i64>,
    /// `worker`.
    pub worker: Option<String>,
    /// `outcome`.
    pub outcome: String,
    /// `error_code`.
    pub error_code: Option<String>,
}

/// One row of the table of effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// `request_id`.
    pub id: String,
    /// `at`.
    pub at_ms: Option<i64>,
}

impl Row {
    /// Whether nothing will happen to it any more.
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "done" | "dead")
    }
}

/// One row of the ledger's `unreadable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its own number.
    pub number: i64,
    /// Its id in the account: from [`ID_HEADER`], `request_id` or `message_id`.
    pub id: Option<String>,
    /// Why.
    pub error_code: String,
}

/// All that was found.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The ledger.
    pub rows: Vec<Row>,
    /// What the ledger could not file under an id.
    pub unreadable: Vec<Unreadable>,
    /// Attempts that failed, as far as they are told in histories.
    pub attempts: Vec<AttemptRow>,
    /// Every effect, where functions leave a trace of it.
    pub effects: Option<Vec<Effect>>,
    /// The ids of the messages in the broker's dead queue, as far as they have one.
    pub dead: Vec<Option<String>>,
    /// Messages of the dead queue that the client library cannot read, and those behind them.
    pub dead_unread: u64,
    /// Messages ready, by queue; without the dead queue.
    pub queues: BTreeMap<String, u64>,
    /// What the stub remembers, by `Idempotency-Key`.
    pub calls: Option<HashMap<String, Calls>>,
    /// `sum(version)` over the example's users, where there are any.
    pub versions: Option<i64>,
}

impl Observed {
    /// In how many places each id is found.
    pub(super) fn places(&self) -> HashMap<&str, usize> {
        let rows = self.rows.iter().map(|row| row.id.as_str());
        let kept = self.unreadable.iter().filter(|message| message.error_code != ID_REUSED);
        let kept = kept.filter_map(|message| message.id.as_deref());
        let mut places = HashMap::new();
        for id in rows.chain(kept).chain(self.dead.iter().flatten().map(String::as_str)) {
            *places.entry(id).or_default() += 1;
        }
        places
    }

    /// The keys under which calls were made.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = self.calls.iter().flat_map(|calls| calls.keys());
        keys.filter(|key| !key.is_empty()).map(String::as_str)
    }

    /// The ids that effects are noted under.
    pub(super) fn effect_ids(&self) -> impl Iterator<Item = &str> {
        self.effects.iter().flatten().map(|effect| effect.id.as_str())
    }
}

/// Looks everywhere, once. Messages of the dead queue are read and put back.
///
/// # Errors
/// When one of the sources cannot be asked.
pub async fn observe(sources: &Sources) -> anyhow::Result<Observed> {
    let mut observed = Observed::default();
    timeout(TALK, ledger(sources, &mut observed)).await.context("Postgres does not answer")??;
    timeout(TALK, broker(sources, &mut observed)).await.context("RabbitMQ does not answer")??;
    if let Some(url) = &sources.stub_url {
        observed.calls = Some(stub::calls_at(url).await.context("the stub does not answer")?);
    }
    Ok(observed)
}

/// Waits until a queue is really empty. A passive declare counts from memory and says 0 for some
/// seconds after a restart, while a quorum queue recovers; so its 0 is believed only when a
/// `basic.get`, which the queue's leader itself answers, finds nothing either. That get may
/// raise one message's delivery count by one.
///
/// # Errors
/// When it is not empty within that time: with the number of messages seen last.
pub async fn until_empty(amqp_url: &str, queue: &str, within: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + within;
    loop {
        let why = match timeout(TALK, is_empty(amqp_url, queue)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(messages)) => format!("it holds {messages} messages"),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "RabbitMQ does not answer".to_owned(),
        };
        if Instant::now() >= until {
            bail!("queue {queue} was not empty within {within:?}: {why}");
        }
        tokio::time::sleep(ASK).await;
    }
}

async fn is_empty(amqp_url: &str, queue: &str) -> anyhow::Result<u64> {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut messages = depth(&channel, queue).await?;
    if messages == 0
        && let Some(message) =
            channel.basic_get(short(queue)?, BasicGetOptions { no_ack: false }).await?
    {
        messages = 1 + u64::from(message.message_count);
        channel
            .basic_nack(
                message.delivery.delivery_tag,
                BasicNackOptions { requeue: true, multiple: false },
            )
            .await?;
    }
    close(connection, channel).await;
    Ok(messages)
}

async fn ledger(sources: &Sources, observed: &mut Observed) -> anyhow::Result<()> {
    let client = database::connect(&sources.pg_url).await?;
    let schema = database::quoted(&sources.schema);
    let rows = format!(
        "SELECT request_id, kind, user_id, state, attempt, error_code, {}, {}
           FROM {schema}.requests ORDER BY request_id",
        millis("received_at"),
        millis("finished_at")
    );
    let rows = client.query(&rows, &[]).await;
    for row in rows.context("the ledger cannot be read, check that it was migrated")? {
        observed.rows.push(Row {
            id: row.try_get(0)?,
            kind: row.try_get(1)?,
            user_id: row.try_get(2)?,
            state: row.try_get(3)?,
            attempt: row.try_get(4)?,
            error_code: row.try_get(5)?,
            received_ms: row.try_get(6)?,
            finished_ms: row.try_get(7)?,
        });
    }
    let unreadable = format!(
        "SELECT id, coalesce(properties #>> ARRAY['headers', $1], request_id, properties ->> 'message_id'), error_code
           FROM {schema}.unreadable ORDER BY id"
    );
    for row in client.query(&unreadable, &[&ID_HEADER]).await? {
        observed.unreadable.push(Unreadable {
            number: row.try_get(0)?,
            id: row.try_get(1)?,
            error_code: row.try_get(2)?,
        });
    }
    let attempts = format!(
        "SELECT request_id, attempt, {}, worker, outcome, error_code
           FROM {schema}.attempts ORDER BY ended_at DESC LIMIT $1",
        millis("ended_at")
    );
    for row in client.query(&attempts, &[&MAX_ATTEMPTS]).await? {
        observed.attempts.push(AttemptRow {
            id: row.try_get(0)?,
            number: row.try_get(1)?,
            ended_ms: row.try_get(2)?,
            worker: row.try_get(3)?,
            outcome: row.try_get(4)?,
            error_code: row.try_get(5)?,
        });
    }
    if let Some(table) = &sources.effects {
        let effects = format!("SELECT request_id, {} FROM {table}", millis("at"));
        let rows = client.query(&effects, &[]).await?;
        let effect =
            |row: &tokio_postgres::Row| Ok(Effect { id: row.try_get(0)?, at_ms: row.try_get(1)? });
        observed.effects = Some(rows.iter().map(effect).collect::<anyhow::Result<_>>()?);
    }
    if let Some(users) = &sources.users
        && client.query_one("SELECT to_regclass($1) IS NOT NULL", &[users]).await?.try_get(0)?
    {
        let sum = format!("SELECT coalesce(sum(version), 0)::bigint FROM {users}");
        observed.versions = Some(client.query_one(&sum, &[]).await?.try_get(0)?);
    }
    Ok(())
}

/// A time as milliseconds since 1970.
fn millis(column: &str) -> String {
    format!("(extract(epoch FROM {column}) * 1000)::bigint")
}

async fn broker(sources: &Sources, observed: &mut Observed) -> anyhow::Result<()> {
    let connection =
        Connection::connect(&sources.amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for queue in &sources.queues {
        observed.queues.insert(queue.clone(), depth(&channel, queue).await?);
    }
    // Also says that there is such a queue: a get that fails below is the message's fault.
    let mut dead = depth(&channel, &sources.dead_queue).await?;
    let mut last = None;
    while observed.dead.len() < MAX_DEAD {
        let message = match channel
            .basic_get(short(&sources.dead_queue)?, BasicGetOptions { no_ack: false })
            .await
        {
            Ok(Some(message)) => message,
            Ok(None) => break,
            // What the library cannot parse ends its connection, and everything is put back.
            Err(_) => {
                observed.dead_unread = dead.max(1);
                return Ok(());
            }
        };
        dead = u64::from(message.message_count);
        last = Some(message.delivery.delivery_tag);
        observed.dead.push(id_of(&message.delivery));
    }
    observed.dead_unread = if observed.dead.len() < MAX_DEAD { 0 } else { dead };
    if let Some(last) = last {
        channel.basic_nack(last, BasicNackOptions { requeue: true, multiple: true }).await?;
    }
    close(connection, channel).await;
    Ok(())
}

fn id_of(delivery: &lapin::message::Delivery) -> Option<String> {
    let properties = &delivery.properties;
    let header = properties.headers().as_ref().and_then(|headers| headers.inner().get(ID_HEADER));
    let header = header.and_then(|value| value.as_long_string()).map(ToString::to_string);
    let body = || {
        serde_json::from_slice::<Value>(&delivery.data)
            .ok()?
            .get("request_id")?
            .as_str()
            .map(ToOwned::to_owned)
    };
    header.or_else(|| properties.message_id().as_ref().map(ToString::to_string)).or_else(body)
}

async fn depth(channel: &Channel, queue: &str) -> anyhow::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(short(queue)?, passive, FieldTable::default()).await?;
    Ok(u64::from(queue.message_count()))
}

/// The library's own conversion panics over 255 bytes.
fn short(name: &str) -> anyhow::Result<ShortString> {
    ShortString::try_new(name)
        .ok()
        .with_context(|| format!("{name:?} is too long for the name of a queue"))
}

async fn close(connection: Connection, channel: Channel) {
    // Both end with this process at the latest; what was wanted of them is done.
    let _closed = channel.close(200, "bye".into()).await.is_ok();
    let _closed = connection.close(200, "bye".into()).await.is_ok();
}
