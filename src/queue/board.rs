//! How the queue is doing, for health checks and people.

use time::OffsetDateTime;
use tokio::sync::watch;

use super::version::Broker;
use crate::telemetry::metrics;

/// How the queue is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// There is a connection for consuming.
    pub connected: bool,
    /// There is a subscription: messages come as they are published.
    pub consuming: bool,
    /// Which connection this is, counted from 1; 0 before the first.
    pub epoch: u64,
    /// Where it leads, as `host:port/vhost`.
    pub endpoint: Option<String>,
    /// What is there, as it said itself.
    pub broker: Option<Broker>,
    /// The last thing that went wrong; `None` once a subscription has worked since.
    pub last_error: Option<String>,
    /// When `consuming` changed the last time.
    pub since: OffsetDateTime,
    /// One message is fetched at a time, because an unreadable one kills connections.
    pub quarantine: bool,
    /// Messages ready in the queue, when it was asked last.
    pub ready: Option<u64>,
}

/// Where the status is written.
#[derive(Debug, Clone)]
pub(super) struct Board {
    status: watch::Sender<Status>,
    /// Whether it is told in metrics; the queue in order is idle in all workers but one.
    told: bool,
}

impl Board {
    pub(super) fn new(told: bool) -> Self {
        if told {
            metrics::consumer_up(false);
        }
        let status = watch::Sender::new(Status {
            connected: false,
            consuming: false,
            epoch: 0,
            endpoint: None,
            broker: None,
            last_error: None,
            since: OffsetDateTime::now_utc(),
            quarantine: false,
            ready: None,
        });
        Self { status, told }
    }

    pub(super) fn read(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn follow(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// There is a connection to this broker; whether it is another one than before.
    pub(super) fn met(&self, broker: &Broker) -> bool {
        self.status.send_if_modified(|status| {
            let another = status.broker.as_ref() != Some(broker);
            if another {
                status.broker = Some(broker.clone());
            }
            another
        })
    }

    pub(super) fn connected(&self, epoch: u64, endpoint: String) {
        self.status.send_modify(|status| {
            status.connected = true;
            status.epoch = epoch;
            status.endpoint = Some(endpoint);
        });
    }

    pub(super) fn consuming(&self, on: bool) {
        if self.told {
            metrics::consumer_up(on);
        }
        self.status.send_modify(|status| {
            if status.consuming != on {
                status.consuming = on;
                status.since = OffsetDateTime::now_utc();
            }
            if on {
                status.last_error = None;
            }
        });
    }

    pub(super) fn disconnected(&self, error: Option<String>) {
        self.consuming(false);
        self.status.send_modify(|status| {
            status.connected = false;
            if error.is_some() {
                status.last_error = error;
            }
        });
    }

    pub(super) fn quarantine(&self, on: bool) {
        self.status.send_modify(|status| status.quarantine = on);
    }

    pub(super) fn ready(&self, ready: u64) {
        self.status.send_modify(|status| status.ready = Some(ready));
    }
}
