//! What differs between versions of RabbitMQ: the table in `src/queue/version.rs`, held against the
//! broker at hand. `make compat` does it with each of them.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
        BasicQosOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use longshore::{
    outcome::Settlement,
    queue::{Features, PublishError},
};
use longshore_dev::services::Services;

use crate::room::*;

/// What the table says of the broker that the room has met.
fn features(room: &Room) -> Features {
    room.queue.status().broker.unwrap().features().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_known_by_its_greeting() {
    let room = Room::open(settings("greeting").await).await;
    let broker = room.queue.status().broker.unwrap();
    assert_eq!((broker.product.as_str(), broker.fault()), ("RabbitMQ", None));
    // Another way to know it: the command of the node itself.
    let rabbit = Services::shared().await.unwrap().rabbit;
    let version = rabbit.ctl(&["eval", "rabbit_misc:version()."]).await.unwrap();
    assert_eq!(version.trim().trim_matches('"'), broker.version);
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn give_backs_use_up_the_delivery_limit_only_where_the_table_says_so() {
    const LIMIT: u64 = 3;
    let mut settings = settings("give_backs").await;
    settings.delivery_limit = u32::try_from(LIMIT).unwrap();
    let mut room = Room::open(settings).await;
    let counted = features(&room).give_backs_count;
    room.publish(&["again"]).await;
    for returned in 0..=LIMIT {
        let delivery = room.next().await;
        // Before its first return some versions say 0, and some nothing.
        assert_eq!(delivery.delivery_count().unwrap_or(0), returned);
        drop(delivery);
    }
    if counted {
        room.ready(&room.settings.dead_queue, 1).await;
    } else {
        for returned in LIMIT + 1..2 * LIMIT {
            let delivery = room.next().await;
            assert_eq!(delivery.delivery_count(), Some(returned));
            drop(delivery);
        }
        room.next().await.into_parts().1.settle(Settlement::Ack);
        room.ready(&room.settings.dead_queue, 0).await;
    }
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn returns_are_counted_in_the_header_of_the_table() {
    let room = Room::open(settings("counter").await).await;
    let counter = features(&room).counter;
    let queue = ShortString::try_new(format!("{}.counted", room.settings.exchange)).unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    room.channel.queue_declare(queue.clone(), options, arguments).await.unwrap();
    let publish = room.channel.basic_publish(
        "".into(),
        queue.clone(),
        BasicPublishOptions::default(),
        b"x",
        BasicProperties::default(),
    );
    publish.await.unwrap().await.unwrap();
    room.ready(queue.as_str(), 1).await;
    for returned in 0..3_i64 {
        room.ready(queue.as_str(), 1).await;
        let got = room.channel.basic_get(queue.clone(), BasicGetOptions { no_ack: false });
        let got = got.await.unwrap().unwrap().delivery;
        let headers = got.properties.headers().clone().unwrap_or_default();
        let count = headers.inner().get(counter).and_then(|value| match value {
            AMQPValue::LongLongInt(count) => Some(*count),
            AMQPValue::LongInt(count) => Some(i64::from(*count)),
            AMQPValue::ShortShortUInt(count) => Some(i64::from(*count)),
            _ => None,
        });
        assert_eq!(count.unwrap_or(0), returned, "{counter} in {headers:?}");
        let nack = BasicNackOptions { multiple: false, requeue: true };
        room.channel.basic_nack(got.delivery_tag, nack).await.unwrap();
    }
    room.channel.queue_delete(queue, QueueDeleteOptions::default()).await.unwrap();
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_brokers_limit_is_refused_in_words_and_one_at_the_limit_is_not() {
    let room = Room::open(settings("size").await).await;
    // 128 MiB, as older ones have it, are too many for a test: of those this size must be taken.
    let limit = features(&room).max_message_bytes;
    let most = limit.min(16 << 20);
    let publish = async |bytes: usize| {
        let mut message = message("large");
        message.body = Bytes::from(vec![b'x'; bytes]);
        room.publisher.publish(&room.settings.exchange, "user.get", &message, true).await
    };
    publish(most).await.unwrap();
    let over = publish(most + 1).await;
    if limit == most {
        let Err(error @ PublishError::TooLarge(_)) = over else { panic!("{over:?}") };
        let told = error.to_string();
        assert!(told.contains("max_message_size") && told.contains(&most.to_string()), "{told}");
    } else {
        over.unwrap();
    }
    // The connection is still good.
    publish(1).await.unwrap();
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefetch_is_that_of_the_consumer_and_holds() {
    let mut settings = settings("prefetch").await;
    settings.prefetch = Some(5);
    let mut room = Room::open(settings).await;
    let bodies: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    room.publish(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    room.ready(&room.settings.name, 15).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(room.next().await.into_parts().1);
    }
    assert_eq!(room.ready(&room.settings.name, 15).await, 15, "no more than the prefetch is out");
    held.pop().unwrap().settle(Settlement::Ack);
    room.ready(&room.settings.name, 14).await;
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_of_the_whole_channel_is_one_only_where_the_table_says_so() {
    let room = Room::open(settings("global").await).await;
    let global = features(&room).global_prefetch;
    let (_connection, channel) = channel().await;
    // A classic queue: quorum queues never knew it.
    let queue = ShortString::try_new(format!("{}.global", room.settings.exchange)).unwrap();
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.clone(), options, FieldTable::default()).await.unwrap();
    let properties = BasicProperties::default;
    for _ in 0..10 {
        let options = BasicPublishOptions::default();
        let publish = channel.basic_publish("".into(), queue.clone(), options, b"x", properties());
        publish.await.unwrap().await.unwrap();
    }
    room.ready(queue.as_str(), 10).await;
    channel.basic_qos(3, BasicQosOptions { global: true }).await.unwrap();
    let mut consumers = Vec::new();
    for tag in ["a", "b"] {
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(queue.clone(), tag.into(), options, FieldTable::default());
        consumers.push(consume.await.unwrap());
    }
    room.ready(queue.as_str(), if global { 7 } else { 4 }).await;
    channel.queue_delete(queue, QueueDeleteOptions::default()).await.unwrap();
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_for_answers_that_is_neither_durable_nor_exclusive_is_still_allowed() {
    let (_connection, channel) = channel().await;
    let name = ShortString::try_new(format!("transient-{}", uuid::Uuid::now_v7())).unwrap();
    let options = QueueDeclareOptions { durable: false, ..Default::default() };
    channel.queue_declare(name.clone(), options, FieldTable::default()).await.unwrap();
    channel.queue_delete(name, QueueDeleteOptions::default()).await.unwrap();
}
