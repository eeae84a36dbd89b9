//! The queue in order: one consumes at a time, and what he had out comes again before anything later.

use std::time::Duration;

use longshore::{
    outcome::Settlement,
    pause::Pauses,
    queue::{Identity, Inbox, Queue, start},
    stop::Stop,
};
use tokio::time::timeout;

use crate::room::{PATIENCE, Room, settings, text};

async fn publish(room: &Room, numbers: std::ops::Range<u32>) {
    let bodies: Vec<String> = numbers.map(|number| number.to_string()).collect();
    room.publish(&bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Another worker for the same queue.
fn another(room: &Room) -> (Queue, Inbox, Stop) {
    let stop = Stop::new();
    let identity = Identity { name: "another".into() };
    let (queue, inbox) =
        start(room.settings.clone(), Pauses::default(), stop.clone(), identity).unwrap();
    (queue, inbox, stop)
}

async fn take(inbox: &mut Inbox, count: usize) -> Vec<longshore::queue::Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = timeout(PATIENCE, inbox.next()).await.expect("a delivery in time");
        taken.push(next.expect("the inbox is open"));
    }
    taken
}

fn numbers(deliveries: &[longshore::queue::Delivery]) -> Vec<u32> {
    deliveries.iter().map(|delivery| text(delivery).parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_consumer_had_out_comes_to_the_next_one_in_its_order() {
    let mut room = Room::open(settings("in_order").await.ordered()).await;
    publish(&room, 0..60).await;
    let mut held = take(&mut room.inbox, 40).await;
    assert_eq!(numbers(&held), (0..40).collect::<Vec<_>>());
    let (queue, mut inbox, stop) = another(&room);
    timeout(PATIENCE, queue.follow().wait_for(|status| status.broker.is_some()))
        .await
        .expect("it is connected")
        .unwrap();
    for delivery in held.drain(..10) {
        delivery.into_parts().1.settle(Settlement::Ack);
    }
    assert!(!queue.status().consuming, "it is not its turn");
    room.stop.ask();
    assert!(room.queue.close(Duration::from_secs(5)).await.clean);
    drop(held);
    let next = take(&mut inbox, 50).await;
    assert_eq!(numbers(&next), (10..60).collect::<Vec<_>>());
    assert!(next[0].redelivered());
    for delivery in next {
        delivery.into_parts().1.settle(Settlement::Ack);
    }
    stop.ask();
    drop(inbox);
    queue.close(Duration::from_secs(5)).await;
    for queue in [&room.settings.name, &room.settings.dead_queue] {
        room.channel.queue_delete(queue.as_str().into(), Default::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_given_back_takes_all_that_was_out_with_it() {
    let mut room = Room::open(settings("in_order_back").await.ordered()).await;
    publish(&room, 0..30).await;
    let mut held = take(&mut room.inbox, 20).await;
    for delivery in held.drain(..5) {
        delivery.into_parts().1.settle(Settlement::Ack);
    }
    drop(held.remove(3));
    let (_, ticket) = held.remove(0).into_parts();
    assert!(!ticket.is_current(), "what came with it goes back, too");
    let (mut came, mut tickets) = (Vec::new(), Vec::new());
    while came.last() != Some(&29) {
        let delivery = room.next().await;
        let number: u32 = text(&delivery).parse().unwrap();
        let (_, ticket) = delivery.into_parts();
        // What was handed over before the connection was given up is void.
        if ticket.is_current() {
            came.push(number);
            tickets.push(ticket);
        }
    }
    // Whether the last acknowledgements arrived is the broker's word; from there on it is all.
    let from = came[0];
    assert!(from <= 5, "it begins with {from}");
    assert_eq!(came, (from..30).collect::<Vec<_>>());
    tickets.into_iter().for_each(|ticket| ticket.settle(Settlement::Ack));
    drop((held, ticket));
    room.end().await;
}
