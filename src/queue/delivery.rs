//! A message on loan from the broker, and the ticket that says what became of it.

use std::sync::Arc;

use serde_json::Value;

use super::{convert, settler::Desk};
use crate::{outcome::Settlement, request::Message};

/// A message and the right to settle it. Dropped, it is given back.
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    redelivered: bool,
    ticket: Ticket,
}

impl Delivery {
    /// Takes over what lapin delivered; the desk is told of it.
    pub(super) fn new(delivery: lapin::message::Delivery, desk: &Arc<Desk>) -> Self {
        desk.register(delivery.delivery_tag);
        let ticket = Ticket { tag: delivery.delivery_tag, desk: desk.clone(), told: false };
        Self { redelivered: delivery.redelivered, message: convert::message(delivery), ticket }
    }

    /// What was delivered.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message, and the ticket to settle it with.
    pub fn into_parts(self) -> (Message, Ticket) {
        (self.message, self.ticket)
    }

    /// The broker has handed this message out before; whether anybody saw it is not known.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// How often the broker says that it handed this message out before. The header differs
    /// between versions: `x-acquired-count` since RabbitMQ 4.3, `x-delivery-count` before; a
    /// classic queue has neither.
    pub fn delivery_count(&self) -> Option<u64> {
        let headers = &self.message.properties.headers;
        ["x-acquired-count", "x-delivery-count"]
            .iter()
            .find_map(|name| headers.get(*name).and_then(Value::as_u64))
    }
}

/// The right, and the duty, to say once what became of a delivery. Dropped unsettled, for
/// instance by a panic, it gives the delivery back.
#[derive(Debug)]
#[must_use = "a ticket that is dropped gives its delivery back"]
pub struct Ticket {
    tag: u64,
    desk: Arc<Desk>,
    told: bool,
}

impl Ticket {
    /// Says what became of the delivery. Never blocks. When the connection is gone the settlement
    /// counts as lost and is not sent: the broker delivers the message again.
    pub fn settle(mut self, settlement: Settlement) {
        self.told = true;
        self.desk.tell(self.tag, settlement);
    }

    /// Whether the connection that it came on is still there, so that settling has an effect.
    pub fn is_current(&self) -> bool {
        self.desk.is_open()
    }

    /// Which connection it came on, counted from 1.
    pub fn epoch(&self) -> u64 {
        self.desk.epoch()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.told {
            self.desk.tell(self.tag, Settlement::GiveBack);
        }
    }
}
