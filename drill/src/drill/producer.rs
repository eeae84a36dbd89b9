//! The drill's producer: keeps to the contract through every fault, and notes what the broker says
//! to each attempt.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};

use super::plan::{Item, Plan};
use crate::{
    account::{Account, ID_HEADER, Verdict},
    broker,
};

/// Publishes whose confirmation is awaited at once.
const IN_FLIGHT: usize = 256;
/// How long a confirmation may take before it is unknown.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long until the next try to connect, at most.
const RECONNECT: Duration = Duration::from_secs(1);

/// How often an idle producer looks whether it is still connected.
const LOOK: Duration = Duration::from_millis(250);

/// How far the producer may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Up to so many requests.
    UpTo(u64),
    /// Nothing new; what was begun is brought to its end.
    Enough,
}

/// Where the producer publishes.
#[derive(Debug, Clone)]
pub(super) struct Producer {
    pub(super) url: String,
    pub(super) exchange: String,
    pub(super) replies: String,
    pub(super) account: Arc<Mutex<Account>>,
    pub(super) leave: watch::Receiver<Leave>,
    /// Requests that have been confirmed.
    pub(super) confirmed: watch::Sender<u64>,
}

impl Producer {
    /// Publishes the plan as far as leave is given, each request until it is confirmed.
    pub(super) async fn run(mut self, mut plan: Plan, rate: Option<u32>) {
        let mut ticks = rate.map(|rate| {
            let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            ticks
        });
        let mut work = Work { begun: 0, again: VecDeque::new(), ended: false };
        while !work.is_over() {
            match open(&self.url).await {
                Ok((connection, channel)) => {
                    self.publish(&connection, &channel, &mut plan, &mut work, &mut ticks).await;
                }
                Err(_) => sleep(RECONNECT.mul_f64(fastrand::f64())).await,
            }
        }
    }

    /// Publishes until everything is confirmed or the connection is gone.
    async fn publish(
        &mut self,
        connection: &Connection,
        channel: &Channel,
        plan: &mut Plan,
        work: &mut Work,
        ticks: &mut Option<Interval>,
    ) {
        let (exchange, replies) = (self.exchange.clone(), self.replies.clone());
        let mut under_way = FuturesUnordered::new();
        loop {
            let lost = !connection.status().connected();
            let room = !lost && under_way.len() < IN_FLIGHT;
            let next = if room { self.next(plan, work) } else { None };
            match next {
                Some(item) => {
                    if let Some(ticks) = ticks {
                        ticks.tick().await;
                    }
                    under_way.push(attempt(channel, &exchange, &replies, item));
                }
                None => match under_way.next().await {
                    Some((item, verdict)) => self.note(item, verdict, work),
                    None if lost || work.is_over() => return,
                    // An idle connection that is lost is made anew as well, hence the look.
                    None => _ = timeout(LOOK, self.leave.changed()).await.is_ok(),
                },
            }
            while let Some(Some((item, verdict))) = under_way.next().now_or_never() {
                self.note(item, verdict, work);
            }
        }
    }

    fn next(&mut self, plan: &mut Plan, work: &mut Work) -> Option<Item> {
        if let Some(item) = work.again.pop_front() {
            return Some(item);
        }
        match *self.leave.borrow_and_update() {
            Leave::UpTo(most) if work.begun >= most => return None,
            Leave::UpTo(_) => {}
            Leave::Enough => {
                work.ended = true;
                return None;
            }
        }
        let item = plan.next();
        work.begun += u64::from(item.is_some());
        work.ended |= item.is_none();
        item
    }

    fn note(&self, mut item: Item, verdict: Verdict, work: &mut Work) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.published(&item.id, item.kind, verdict);
        drop(account);
        if verdict == Verdict::Confirmed {
            if item.again == 0 {
                self.confirmed.send_modify(|confirmed| *confirmed += 1);
                return;
            }
            item.again -= 1;
        }
        work.again.push_back(item);
    }
}

/// What is left to do, over all connections.
#[derive(Debug)]
struct Work {
    begun: u64,
    /// Not confirmed, or to be published once more; at most [`IN_FLIGHT`].
    again: VecDeque<Item>,
    ended: bool,
}

impl Work {
    fn is_over(&self) -> bool {
        self.ended && self.again.is_empty()
    }
}

async fn open(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let connection = broker::connect(url).await?;
    let opened = timeout(CONFIRM, async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        anyhow::Ok(channel)
    });
    let channel = opened.await??;
    Ok((connection, channel))
}

async fn attempt(channel: &Channel, exchange: &str, replies: &str, item: Item) -> (Item, Verdict) {
    let mut headers = FieldTable::default();
    headers.insert(ID_HEADER.into(), AMQPValue::LongString(LongString::from(item.id.as_str())));
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_app_id("longshore-drill".into())
        .with_headers(headers);
    if item.named {
        properties = properties.with_message_id(ShortString::from(item.id.as_str()));
    }
    if item.asks {
        properties = properties
            .with_reply_to(replies.into())
            .with_correlation_id(ShortString::from(item.id.as_str()));
    }
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirmed = async {
        let sent = channel.basic_publish(
            exchange.into(),
            item.kind.into(),
            options,
            &item.body,
            properties,
        );
        sent.await?.await
    };
    let verdict = match timeout(CONFIRM, confirmed).await {
        Ok(Ok(Confirmation::Ack(None))) => Verdict::Confirmed,
        Ok(Ok(_)) => Verdict::Refused,
        Ok(Err(_)) | Err(_) => Verdict::Unknown,
    };
    (item, verdict)
}

/// Notes every answer that arrives, over all connections. The queue is this connection's alone and
/// goes with it; answers are sent once at most, so that none is missed that was promised.
pub(super) async fn listen(url: String, queue: String, account: Arc<Mutex<Account>>) {
    loop {
        // Ends with its connection only.
        let _ended = answers(&url, &queue, &account).await.is_ok();
        sleep(RECONNECT.mul_f64(fastrand::f64())).await;
    }
}

async fn answers(url: &str, queue: &str, account: &Mutex<Account>) -> anyhow::Result<()> {
    let connection = broker::connect(url).await?;
    let begun = timeout(CONFIRM, async {
        let channel = connection.create_channel().await?;
        let mine = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        channel.queue_declare(queue.into(), mine, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let answers =
            channel.basic_consume(queue.into(), "drill".into(), options, FieldTable::default());
        // A channel that nobody holds is closed.
        anyhow::Ok((answers.await?, channel))
    });
    let (mut answers, _channel) = begun.await??;
    while let Some(answer) = answers.next().await {
        if let Some(id) = answer?.properties.correlation_id() {
            account.lock().unwrap_or_else(PoisonError::into_inner).replied(id.as_str());
        }
    }
    Ok(())
}
