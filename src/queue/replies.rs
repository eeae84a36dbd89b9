//! Answers to producers that asked for one. An answer is a courtesy: the ledger has the result,
//! so a full queue or a broker in trouble costs the answer and never holds up the work.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Map;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    publisher::{PublishError, Publisher},
};
use crate::{
    request::{Message, Properties},
    telemetry::metrics,
};

/// How many answers may wait to be sent.
const WAITING: usize = 1_024;
/// How many may be on their way.
const IN_FLIGHT: usize = 32;

/// An answer to one request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request's `reply_to`: a queue's name.
    pub to: String,
    /// The request's `correlation_id`.
    pub correlation_id: Option<String>,
    /// The identity of the answer; the `request_id` does well.
    pub message_id: Option<String>,
    /// JSON.
    pub body: Bytes,
    /// The W3C trace context that the answer belongs to.
    pub traceparent: Option<String>,
}

/// Sends answers in the background. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replies {
    pub(super) waiting: mpsc::Sender<Reply>,
    pub(super) settings: Arc<Settings>,
}

impl Replies {
    /// Sends an answer, or drops it when too many wait already. Never blocks. What became of it
    /// is a metric. An answer into our own queues is refused: it would come back as a request.
    pub fn send(&self, reply: Reply) {
        if let Some(fault) = fault(&self.settings, &reply.to) {
            tracing::warn!(
                event = "reply.refused",
                fault,
                "an answer was refused, the producer should mend its reply_to"
            );
            metrics::reply("failed");
        } else if self.waiting.try_send(reply).is_err() {
            metrics::reply("dropped");
        }
    }
}

fn fault(settings: &Settings, to: &str) -> Option<&'static str> {
    if to.is_empty() {
        Some("reply_to is empty")
    } else if to.len() > 255 {
        Some("reply_to has more than 255 bytes")
    } else if to == settings.name || to == settings.dead_queue {
        Some("reply_to names a queue of this worker")
    } else {
        None
    }
}

/// The sending side, to be closed.
pub(super) struct Desk {
    task: JoinHandle<u64>,
    closing: CancellationToken,
}

pub(super) fn start(settings: Arc<Settings>, publisher: Publisher) -> (Replies, Desk) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let closing = CancellationToken::new();
    let task = tokio::spawn(run(receiver, publisher, closing.clone()));
    (Replies { waiting: sender, settings }, Desk { task, closing })
}

impl Desk {
    /// Sends what waits, takes nothing more; false when that took too long.
    pub(super) async fn close(mut self, within: Duration) -> bool {
        self.closing.cancel();
        let sent = tokio::time::timeout(within, &mut self.task).await.is_ok();
        self.task.abort();
        sent
    }
}

/// Counts answers as dropped when sending is cut short.
struct InFlight(bool);

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.0 {
            metrics::reply("dropped");
        }
    }
}

async fn run(
    mut waiting: mpsc::Receiver<Reply>,
    publisher: Publisher,
    closing: CancellationToken,
) -> u64 {
    let mut sending = FuturesUnordered::new();
    let mut failing = false;
    let mut sent = 0;
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled(), if !waiting.is_closed() => waiting.close(),
            Some(result) = sending.next() => match result {
                Ok(()) => {
                    failing = false;
                    sent += 1;
                }
                // One line for an outage, not one for each answer.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(event = "reply.failed", error = %error, "answers cannot be sent");
                }
                Err(_) => {}
            },
            reply = waiting.recv(), if sending.len() < IN_FLIGHT => match reply {
                Some(reply) => sending.push(send(&publisher, reply)),
                None if sending.is_empty() => return sent,
                // Closed; what is on its way is waited for.
                None => while sending.next().await.is_some() {},
            },
        }
    }
}

async fn send(publisher: &Publisher, reply: Reply) -> Result<(), PublishError> {
    let mut in_flight = InFlight(false);
    let Reply { to, correlation_id, message_id, body, traceparent } = reply;
    let headers = traceparent.map(|text| ("traceparent".to_owned(), text.into()));
    let properties = Properties {
        correlation_id,
        message_id,
        content_type: Some("application/json".to_owned()),
        headers: Map::from_iter(headers),
        ..Properties::default()
    };
    // The default exchange routes by queue name.
    let result = publisher.publish("", &to, &Message { body, properties }, true).await;
    in_flight.0 = true;
    match result {
        Ok(_) => {
            metrics::reply("sent");
            Ok(())
        }
        // The asker has gone: its business.
        Err(PublishError::Unroutable { .. }) => {
            metrics::reply("unroutable");
            tracing::debug!(event = "reply.unroutable", "nobody waits for the answer any more");
            Ok(())
        }
        Err(error) => {
            metrics::reply("failed");
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_never_becomes_a_request() {
        let settings = Settings::sample();
        assert!(fault(&settings, "longshore.requests").is_some());
        assert!(fault(&settings, "longshore.dead").is_some());
        assert!(fault(&settings, "").is_some());
        assert!(fault(&settings, &"x".repeat(256)).is_some());
        assert!(fault(&settings, "amq.rabbitmq.reply-to.g1h2").is_none());
    }
}
