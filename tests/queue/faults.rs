//! What the room does when something goes wrong.

use std::time::Duration;

use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use longshore::{
    outcome::Settlement,
    pause::{Pauses, Reason},
    queue::{Identity, Settings, start},
    stop::Stop,
};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    proxy::{Fault, Proxy},
    raw,
    room::*,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_declared_again() {
    let mut room = Room::open(settings("deleted").await).await;
    room.channel
        .queue_delete(room.settings.name.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let status = room.until(|status| status.consuming && status.epoch > 1).await;
    assert_eq!(status.last_error, None);
    room.publish(&["after"]).await;
    let delivery = room.next().await;
    assert_eq!(text(&delivery), "after");
    delivery.into_parts().1.settle(Settlement::Ack);
    assert!(room.end().await.clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_voids_its_tickets_and_the_next_one_delivers_again() {
    let proxy = Proxy::start().await;
    let mut settings = settings("lost").await;
    settings.url = proxy.url().await.into();
    let mut room = Room::open(settings).await;
    room.publish(&["one"]).await;
    let delivery = room.next().await;
    let (_, ticket) = delivery.into_parts();
    proxy.cause(Fault::Cut);
    room.until(|status| status.consuming && status.epoch > 1).await;
    assert!(!ticket.is_current());
    ticket.settle(Settlement::Ack);
    let again = room.next().await;
    assert!(again.redelivered());
    again.into_parts().1.settle(Settlement::Ack);
    let closed = room.end().await;
    assert_eq!((closed.lost, closed.unsettled, closed.clean), (1, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_while_stopping_is_not_replaced() {
    let proxy = Proxy::start().await;
    let mut settings = settings("stopping").await;
    settings.url = proxy.url().await.into();
    let mut room = Room::open(settings).await;
    room.publish(&["one"]).await;
    let (_, ticket) = room.next().await.into_parts();
    room.stop.ask();
    assert!(timeout(PATIENCE, room.inbox.next()).await.unwrap().is_none());
    proxy.cause(Fault::Cut);
    room.until(|status| !status.connected).await;
    assert!(!ticket.is_current());
    ticket.settle(Settlement::Ack);
    assert_eq!(room.queue.status().epoch, 1);
    let closed = room.end().await;
    assert_eq!((closed.lost, closed.clean), (1, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_broker_closes_is_replaced() {
    let proxy = Proxy::start().await;
    let quiet = Duration::from_secs(60);
    let mut room = Room::open(Settings {
        url: proxy.url().await.into(),
        // Nothing else is on the line when the word comes.
        poll_interval: quiet,
        stall_timeout: quiet * 2,
        ..settings("closed").await
    })
    .await;
    let mut errors = room.queue.follow();
    proxy.cause(Fault::CloseChannel);
    let told = errors
        .wait_for(|status| status.last_error.as_ref().is_some_and(|error| error.contains("TIMED")));
    timeout(PATIENCE, told).await.expect("the worker notices").unwrap();
    room.until(|status| status.consuming && status.epoch > 1).await;
    room.publish(&["after"]).await;
    room.next().await.into_parts().1.settle(Settlement::Ack);
    assert!(room.end().await.clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_the_broker_gets_twice_costs_a_connection_and_nothing_else() {
    let proxy = Proxy::start().await;
    let mut room = Room::open(Settings {
        url: proxy.url().await.into(),
        // Acknowledged one by one, as soon as may be.
        gap_timeout: Duration::from_millis(1),
        ..settings("twice").await
    })
    .await;
    let bodies: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    room.publish(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut held = Vec::new();
    while held.len() < bodies.len() {
        held.push(room.next().await);
    }
    let mut errors = room.queue.follow();
    proxy.cause(Fault::AckTwice);
    let first = held.remove(0);
    let acknowledged = text(&first);
    first.into_parts().1.settle(Settlement::Ack);
    // The second one names a tag that the broker no longer knows.
    let told = errors.wait_for(|status| {
        status.last_error.as_ref().is_some_and(|error| error.contains("unknown delivery tag"))
    });
    let error =
        timeout(PATIENCE, told).await.expect("the worker notices").unwrap().last_error.clone();
    assert!(error.unwrap().contains("PRECONDITION_FAILED"));
    room.until(|status| status.consuming && status.epoch > 1).await;
    // Whatever is said about the others now is not sent: those tags are of the channel that is gone.
    for delivery in held {
        let (_, ticket) = delivery.into_parts();
        assert!(!ticket.is_current());
        ticket.settle(Settlement::Ack);
    }
    let mut again = std::collections::BTreeSet::new();
    while again.len() < bodies.len() - 1 {
        let delivery = room.next().await;
        assert!(delivery.redelivered() && again.insert(text(&delivery)));
        delivery.into_parts().1.settle(Settlement::Ack);
    }
    assert!(!again.contains(&acknowledged), "the first one was heard");
    let closed = room.end().await;
    assert_eq!((closed.lost, closed.unsettled, closed.clean), (19, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_brings_nothing_is_given_up() {
    let proxy = Proxy::start().await;
    let mut room = Room::open(Settings {
        url: proxy.url().await.into(),
        prefetch: Some(2),
        stall_timeout: Duration::from_millis(500),
        ..settings("stalled").await
    })
    .await;
    proxy.cause(Fault::Mute);
    // More than the prefetch: what the broker believes delivered is not ready.
    room.publish(&["one", "two", "three"]).await;
    let delivery = room.next().await;
    assert!(room.queue.status().epoch > 1, "it came on another connection");
    drop(delivery);
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_differs_is_named_and_waited_for() {
    let settings = settings("differs").await;
    let (_connection, other) = channel().await;
    let durable = QueueDeclareOptions::durable();
    other
        .queue_declare(settings.name.as_str().into(), durable, FieldTable::default())
        .await
        .unwrap();
    let identity = Identity { name: "room".into() };
    let (queue, _inbox) =
        start(settings.clone(), Pauses::default(), Stop::new(), identity).unwrap();
    let mut status = queue.follow();
    let error = timeout(PATIENCE, status.wait_for(|status| status.last_error.is_some()))
        .await
        .unwrap()
        .unwrap();
    let text = error.last_error.clone().unwrap();
    drop(error);
    assert!(text.contains("exists with another `x-"), "{text}");
    other.queue_delete(settings.name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    timeout(PATIENCE, status.wait_for(|status| status.consuming)).await.unwrap().unwrap();
    assert!(queue.close(Duration::from_secs(5)).await.clean);
    for queue in [&settings.name, &settings.dead_queue] {
        other.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_message_dies_alone() {
    let mut room = Room::open(settings("poison").await).await;
    room.pauses.add(Reason::Postgres);
    room.until(|status| !status.consuming).await;
    room.publish(&["before"]).await;
    raw::publish_unreadable(&room.settings.name).await;
    room.publish(&["after-1", "after-2"]).await;
    room.pauses.remove(&Reason::Postgres);
    room.until(|status| status.quarantine).await;
    let mut done = std::collections::BTreeSet::new();
    while done.len() < 3 {
        let delivery = room.next().await;
        let body = text(&delivery);
        let (_, ticket) = delivery.into_parts();
        // Those that came beside the unreadable one come again; the ledger would tell them apart.
        if ticket.is_current() {
            done.insert(body);
        }
        ticket.settle(Settlement::Ack);
    }
    room.ready(&room.settings.dead_queue, 1).await;
    room.until(|status| status.consuming && !status.quarantine).await;
    room.ready(&room.settings.name, 0).await;
    room.ready(&room.settings.dead_queue, 1).await;
    room.publish(&["healthy"]).await;
    while text(&room.next().await) != "healthy" {}
    room.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://u:p@{}/", listener.local_addr().unwrap());
    let settings = Settings {
        url: url.into(),
        connect_timeout: Duration::from_millis(200),
        ..settings("silent").await
    };
    let (queue, _inbox) =
        start(settings, Pauses::default(), Stop::new(), Identity { name: "room".into() }).unwrap();
    let mut status = queue.follow();
    let told = status.wait_for(|status| {
        status.last_error.as_ref().is_some_and(|error| error.contains("no answer within 200ms"))
    });
    timeout(PATIENCE, told).await.expect("the worker gives up").unwrap();
    // The line is cut, not only forgotten: lapin alone would hold it, and a thread, for ever.
    let (mut line, _) = listener.accept().await.unwrap();
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, line.read_to_end(&mut said)).await.expect("the line ends");
    assert!(ended.is_err() || said.starts_with(b"AMQP"), "{ended:?} {said:?}");
    queue.close(Duration::from_secs(1)).await;
}
