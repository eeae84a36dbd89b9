//! A message on loan from the broker, and the ticket that says what became of it.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{convert, settler::Desk};
use crate::{outcome::Settlement, request::Message};

/// A message and the right to settle it. Dropped, it is given back.
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    redelivered: bool,
    delivery_count: Option<u64>,
    ticket: Ticket,
}

impl Delivery {
    /// Takes over what lapin delivered; the desk is told of it.
    pub(super) fn new(delivery: lapin::message::Delivery, desk: &Arc<Desk>) -> Self {
        desk.register(delivery.delivery_tag);
        let ticket = Ticket { tag: delivery.delivery_tag, desk: desk.clone(), told: false };
        let redelivered = delivery.redelivered;
        let mut message = convert::message(delivery);
        let delivery_count = take_count(&mut message.properties.headers);
        Self { redelivered, delivery_count, message, ticket }
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
        self.delivery_count
    }
}

/// Takes the broker's own counts off the headers: what is left is the message as its producer sent
/// it, the same at each delivery.
fn take_count(headers: &mut Map<String, Value>) -> Option<u64> {
    let counts = ["x-acquired-count", "x-delivery-count"].map(|name| headers.remove(name));
    counts.into_iter().flatten().find_map(|count| count.as_u64())
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
