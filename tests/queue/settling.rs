//! Deliveries, answers and publishing while nothing is wrong.

use std::time::Duration;

use bytes::Bytes;
use lapin::{
    options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use longshore::{
    outcome::Settlement,
    pause::Reason,
    queue::{Level, PublishError, Reply, Settings, check},
};
use tokio::time::timeout;

use crate::room::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_delivery_is_settled_as_told() {
    let mut room = Room::open(settings("settle").await).await;
    room.publish(&["ack", "reject", "return"]).await;
    for _ in 0..3 {
        let delivery = room.next().await;
        assert!(!delivery.redelivered());
        assert_eq!(delivery.message().properties.routing_key, "user.get");
        let body = text(&delivery);
        let (_, ticket) = delivery.into_parts();
        assert!(ticket.is_current());
        match body.as_str() {
            "ack" => ticket.settle(Settlement::Ack),
            "reject" => ticket.settle(Settlement::Reject),
            _ => drop(ticket),
        }
    }
    let again = room.next().await;
    assert_eq!((text(&again).as_str(), again.redelivered()), ("return", true));
    assert_eq!(again.delivery_count(), Some(1));
    again.into_parts().1.settle(Settlement::Ack);
    room.ready(&room.settings.dead_queue, 1).await;
    let closed = room.end().await;
    assert_eq!((closed.lost, closed.unsettled, closed.clean), (0, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_finished_out_of_order_are_each_acknowledged_once() {
    let mut settings = settings("many").await;
    settings.prefetch = Some(500);
    let mut room = Room::open(settings).await;
    let bodies: Vec<String> = (0..3_000).map(|n| n.to_string()).collect();
    let publishing = async {
        let publishes = bodies.iter().map(|body| {
            let message = message(body);
            let publisher = room.publisher.clone();
            let exchange = room.settings.exchange.clone();
            async move { publisher.publish(&exchange, "user.get", &message, true).await.unwrap() }
        });
        futures_util::future::join_all(publishes).await;
    };
    publishing.await;
    let mut held = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < bodies.len() {
        let delivery = room.next().await;
        assert!(!delivery.redelivered());
        assert!(seen.insert(text(&delivery)));
        held.push(delivery.into_parts().1);
        if held.len() > 50 {
            held.swap_remove(fastrand::usize(..held.len())).settle(Settlement::Ack);
        }
    }
    held.into_iter().for_each(|ticket| ticket.settle(Settlement::Ack));
    let closed = room.end().await;
    assert_eq!((closed.lost, closed.unsettled, closed.clean), (0, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_back_what_was_not_begun_and_keeps_what_was() {
    let mut room = Room::open(settings("stop").await).await;
    let bodies: Vec<String> = (0..90).map(|n| n.to_string()).collect();
    room.publish(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let begun = room.next().await;
    room.stop.ask();
    assert!(timeout(PATIENCE, room.inbox.next()).await.unwrap().is_none());
    room.ready(&room.settings.name, 89).await;
    let (_, ticket) = begun.into_parts();
    assert!(ticket.is_current(), "the connection stays for what is begun");
    ticket.settle(Settlement::Ack);
    let queue = room.settings.name.clone();
    let (_connection, channel) = channel().await;
    let closed = room.queue.close(Duration::from_secs(5)).await;
    assert_eq!((closed.lost, closed.unsettled, closed.clean), (0, 0, true));
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let left =
        channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    assert_eq!(left.message_count(), 89, "the acknowledgement reached the broker before the end");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_gives_back_and_its_end_resumes_on_the_same_connection() {
    let mut room = Room::open(settings("pause").await).await;
    let epoch = room.queue.status().epoch;
    room.pauses.add(Reason::Postgres);
    room.until(|status| !status.consuming).await;
    room.publish(&["later"]).await;
    room.ready(&room.settings.name, 1).await;
    room.pauses.remove(&Reason::Postgres);
    let delivery = room.next().await;
    delivery.into_parts().1.settle(Settlement::Ack);
    assert_eq!(room.queue.status().epoch, epoch);
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_is_bound_for_comes_back_to_its_publisher() {
    let room = Room::open(settings("unroutable").await).await;
    let message = message("lost");
    let good = room.publisher.publish(&room.settings.exchange, "user.get", &message, true);
    let nowhere = room.publisher.publish("", "no-such-queue", &message, true);
    let no_exchange = room.publisher.publish("no-such-exchange", "x", &message, true);
    let (good, nowhere, no_exchange) = tokio::join!(good, nowhere, no_exchange);
    assert!(good.is_ok(), "{good:?}");
    assert!(matches!(nowhere, Err(PublishError::Unroutable { .. })), "{nowhere:?}");
    assert!(matches!(no_exchange, Err(PublishError::Refused(_))), "{no_exchange:?}");
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_arrives_where_it_was_asked_for() {
    let room = Room::open(settings("reply").await).await;
    let answers = format!("{}.answers", room.settings.exchange);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    room.channel
        .queue_declare(answers.as_str().into(), options, FieldTable::default())
        .await
        .unwrap();
    let reply = |to: &str| Reply {
        to: to.to_owned(),
        correlation_id: Some("c1".into()),
        message_id: Some("m1".into()),
        body: Bytes::from_static(b"{\"ok\":true}"),
        traceparent: None,
    };
    let replies = room.queue.replies();
    replies.send(reply("nobody-is-here"));
    replies.send(reply(&room.settings.name));
    replies.send(reply(&answers));
    room.ready(&answers, 1).await;
    let answer = room
        .channel
        .basic_get(answers.as_str().into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.delivery.data, b"{\"ok\":true}");
    assert_eq!(answer.delivery.properties.correlation_id().as_ref().unwrap().as_str(), "c1");
    room.ready(&room.settings.name, 0).await;
    assert!(room.end().await.clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_in_words_what_differs() {
    let mut settings_of_room = settings("check").await;
    // Enough also where give-backs count.
    settings_of_room.delivery_limit = 30;
    let room = Room::open(settings_of_room).await;
    let findings = check(&room.settings, 1 << 20).await;
    assert!(findings.iter().all(|finding| finding.level == Level::Good), "{findings:#?}");
    assert!(findings[0].text.contains("it is RabbitMQ "), "{findings:#?}");

    let other = Settings { delivery_limit: 31, ..room.settings.clone() };
    let findings = check(&other, 1 << 20).await;
    let problems: Vec<&str> =
        findings.iter().filter(|f| f.level == Level::Problem).map(|f| f.text.as_str()).collect();
    assert_eq!(problems.len(), 1, "{findings:#?}");
    assert!(
        problems[0].contains("another `x-delivery-limit`: the broker has 30, the settings say 31"),
        "{}",
        problems[0]
    );

    let absent = settings("absent").await;
    assert!(check(&absent, 1 << 20).await.iter().any(|f| f.level == Level::Note));
    let absent = Settings { declare: false, ..absent };
    assert!(check(&absent, 1 << 20).await.iter().any(|f| f.level == Level::Problem));

    let stranger = Settings { password: Some("wrong".into()), ..room.settings.clone() };
    let findings = check(&stranger, 1 << 20).await;
    assert!(findings[0].text.contains("check the user `guest`"), "{findings:#?}");
    let nowhere = address().await.replace("%2f", "no-such-vhost").into();
    let findings = check(&Settings { url: nowhere, ..room.settings.clone() }, 1 << 20).await;
    assert!(findings[0].text.contains("no-such-vhost"), "{findings:#?}");
    room.end().await;
}
