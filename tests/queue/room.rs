//! A worker's queue room with queues of its own, and a plain connection to look from outside.

use std::time::Duration;

use bytes::Bytes;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use longshore::{
    pause::Pauses,
    queue::{Delivery, Identity, Inbox, Publisher, Queue, Settings, Status, start},
    request::{Message, Properties},
    stop::Stop,
};
use tokio::time::timeout;

use longshore_dev::services::Services;
/// Nothing here takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A worker's queue room with its own queues, and a plain connection to look from outside.
pub(crate) struct Room {
    pub(crate) settings: Settings,
    pub(crate) queue: Queue,
    pub(crate) inbox: Inbox,
    pub(crate) pauses: Pauses,
    pub(crate) stop: Stop,
    pub(crate) publisher: Publisher,
    pub(crate) channel: Channel,
    pub(crate) _connection: Connection,
}

/// The shared broker: `amqp://guest:guest@host:port/%2f`.
pub(crate) async fn address() -> String {
    Services::shared().await.unwrap().rabbit.url()
}

pub(crate) async fn settings(prefix: &str) -> Settings {
    let prefix = format!("{prefix}-{}", uuid::Uuid::now_v7());
    Settings {
        url: address().await.into(),
        password: None,
        name: format!("{prefix}.requests"),
        exchange: prefix.clone(),
        binding: "#".into(),
        ordered_name: format!("{prefix}.ordered"),
        ordered_exchange: format!("{prefix}.ordered"),
        dead_queue: format!("{prefix}.dead"),
        dead_exchange: format!("{prefix}.dead"),
        declare: true,
        prefetch: Some(100),
        delivery_limit: 10,
        heartbeat: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        operation_timeout: Duration::from_secs(10),
        reconnect_initial: Duration::from_millis(50),
        reconnect_max: Duration::from_secs(1),
        stall_timeout: Duration::from_secs(60),
        gap_timeout: Duration::from_millis(50),
        ca_file: None,
        poll_interval: Duration::from_millis(200),
        pause_hold: Duration::from_millis(100),
        in_order: false,
        ahead: 0,
    }
}

pub(crate) async fn channel() -> (Connection, Channel) {
    let connection =
        Connection::connect(&address().await, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

impl Room {
    pub(crate) async fn open(settings: Settings) -> Self {
        let (pauses, stop) = (Pauses::default(), Stop::new());
        let identity = Identity { name: "room".into() };
        let (queue, inbox) =
            start(settings.clone(), pauses.clone(), stop.clone(), identity).unwrap();
        let publisher = Publisher::connect(&settings).await.unwrap();
        let (connection, channel) = channel().await;
        let room = Self {
            settings,
            queue,
            inbox,
            pauses,
            stop,
            publisher,
            channel,
            _connection: connection,
        };
        room.until(|status| status.consuming).await;
        room
    }

    pub(crate) async fn until(&self, wanted: impl FnMut(&Status) -> bool) -> Status {
        timeout(PATIENCE, self.queue.follow().wait_for(wanted))
            .await
            .expect("in time")
            .unwrap()
            .clone()
    }

    pub(crate) async fn publish(&self, bodies: &[&str]) {
        for body in bodies {
            let message = message(body);
            self.publisher
                .publish(&self.settings.exchange, "user.get", &message, true)
                .await
                .unwrap();
        }
    }

    pub(crate) async fn next(&mut self) -> Delivery {
        timeout(PATIENCE, self.inbox.next())
            .await
            .expect("a delivery in time")
            .expect("the inbox is open")
    }

    /// Messages ready in a queue, once `wanted` holds.
    pub(crate) async fn ready(&self, queue: &str, wanted: u32) -> u32 {
        let asking = async {
            loop {
                let options = QueueDeclareOptions { passive: true, ..Default::default() };
                let found = self
                    .channel
                    .queue_declare(queue.into(), options, FieldTable::default())
                    .await
                    .unwrap();
                if found.message_count() == wanted {
                    return wanted;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("{queue} never had {wanted} messages ready"))
    }

    /// Ends everything and removes the queues.
    pub(crate) async fn end(self) -> longshore::queue::Closed {
        self.stop.ask();
        drop(self.inbox);
        let closed = self.queue.close(Duration::from_secs(5)).await;
        self.publisher.close(Duration::from_secs(1)).await;
        for queue in [&self.settings.name, &self.settings.dead_queue] {
            self.channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .unwrap();
        }
        for exchange in [&self.settings.exchange, &self.settings.dead_exchange] {
            self.channel
                .exchange_delete(exchange.as_str().into(), Default::default())
                .await
                .unwrap();
        }
        closed
    }
}

pub(crate) fn message(body: &str) -> Message {
    let properties = Properties { message_id: Some(body.to_owned()), ..Properties::default() };
    Message { body: Bytes::copy_from_slice(body.as_bytes()), properties }
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message().body.to_vec()).unwrap()
}
