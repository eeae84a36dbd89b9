//! Intake in order: what the queue in order brings is put down in the lines of the ledger, batch
//! after batch, each before the next is looked at. It is worked from there, by any worker.
//!
//! Nothing here is given back while the worker lives: a batch that cannot be put down is held. So of
//! what a connection brings nothing is put down before everything that came before it is.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{error, warn};

use super::Worker;
use crate::{
    handler::{Attempt, Slot, Started},
    kind::Kind,
    ledger::{Entered, Entry, Keeper, LedgerError},
    outcome::{Failure, Outcome, Settlement, StepError},
    pause::Reason,
    queue::{Delivery, Inbox, Ticket},
    request::{self, Message, Request},
    telemetry::metrics,
};

/// The most requests that are put down together, and the most bytes of their bodies.
const ROWS: usize = 256;
const BYTES: usize = 4 << 20;

/// How often it is looked whether the lines have become shorter.
const LOOK: Duration = Duration::from_millis(500);

/// A request of an ordered kind, as it was delivered.
struct Arrived<'a> {
    request: Arc<Request>,
    kind: &'a Kind,
    attempt: Attempt,
    redelivered: bool,
    ticket: Ticket,
}

/// A delivery, looked at.
enum Read<'a> {
    ToEnter(Box<Arrived<'a>>),
    /// It has no line: it is no request, too large, or of a kind without an order.
    Other(Box<Message>, bool, Ticket),
}

/// How many more may be put down before it is counted again, and what was seen of the order.
#[derive(Default)]
struct Watch {
    room: u64,
    /// The connection on which something came that had never been delivered before.
    fresh_on: Option<u64>,
}

impl Watch {
    /// Whether this delivery shows that the queue's order was broken: what was delivered before
    /// stands before everything that was not.
    fn is_late(&mut self, epoch: u64, redelivered: bool) -> bool {
        if !redelivered {
            self.fresh_on = Some(epoch);
        }
        redelivered && self.fresh_on == Some(epoch)
    }
}

impl<K: Keeper> Worker<K> {
    pub(super) async fn take_in_order(&self, inbox: Option<Inbox>) {
        let Some(mut inbox) = inbox else { return };
        let mut watch = Watch::default();
        while !self.stop.is_asked() {
            tokio::select! {
                biased;
                () = self.stop.asked() => return,
                () = self.pauses.until_clear() => {}
            }
            let first = tokio::select! {
                biased;
                () = self.pauses.until_paused() => continue,
                delivery = inbox.next() => delivery,
            };
            let Some(first) = first else { return };
            let (mut arrived, mut bytes) = (Vec::new(), 0);
            let mut next = Some(first);
            let mut other = None;
            while let Some(delivery) = next.take() {
                match self.read(delivery) {
                    // After something went back nothing that came behind it may go on.
                    None => {}
                    Some(Read::ToEnter(one)) => {
                        bytes += one.request.message.body.len();
                        arrived.push(*one);
                    }
                    Some(Read::Other(message, redelivered, ticket)) => {
                        other = Some((message, redelivered, ticket));
                        break;
                    }
                }
                if arrived.len() < ROWS && bytes < BYTES {
                    next = inbox.ready();
                }
            }
            if !arrived.is_empty() && self.enter(arrived, &mut watch).await.is_none() {
                return;
            }
            if let Some((message, redelivered, ticket)) = other {
                let Some(slot) = self.slot().await else { return };
                self.begin(
                    Started::Delivered { message, redelivered },
                    Some(ticket),
                    Slot::new(slot, None),
                );
            }
            tokio::task::consume_budget().await;
        }
    }

    fn read(&self, delivery: Delivery) -> Option<Read<'_>> {
        let redelivered = delivery.redelivered();
        let (message, ticket) = delivery.into_parts();
        if !ticket.is_current() {
            return None;
        }
        if message.body.len() > self.settings.max_message_bytes {
            return Some(Read::Other(Box::new(message), redelivered, ticket));
        }
        let request = match request::decode_or_return(message) {
            Ok(request) => Arc::new(request),
            Err(refused) => {
                let (_, message) = *refused;
                return Some(Read::Other(Box::new(message), redelivered, ticket));
            }
        };
        match self.handler.kinds.get(&request.kind) {
            Some(kind) if kind.ordered => {
                let attempt = Attempt::arrived(&request, redelivered);
                let arrived = Arrived { request, kind, attempt, redelivered, ticket };
                Some(Read::ToEnter(Box::new(arrived)))
            }
            _ => Some(Read::Other(Box::new(request.message.clone()), redelivered, ticket)),
        }
    }

    /// Puts a batch down, however long that takes; nothing when a stop came first.
    async fn enter(&self, arrived: Vec<Arrived<'_>>, watch: &mut Watch) -> Option<()> {
        let entries: Vec<Entry> =
            arrived.iter().map(|one| one.attempt.entry(&one.request)).collect();
        self.until_room(entries.len() as u64, watch).await?;
        let mut entered = Vec::with_capacity(entries.len());
        match self.put_down(&entries).await? {
            Ok(all) => entered.extend(all.into_iter().map(Ok)),
            // Somebody's row is refused: each for itself, in their order.
            Err(_) => {
                for entry in &entries {
                    let one = self.put_down(std::slice::from_ref(entry)).await?;
                    entered.push(one.map(|one| one[0]));
                }
            }
        }
        let stand =
            arrived.iter().zip(&entered).filter(|(_, it)| matches!(it, Ok(Entered::Stands)));
        self.handler.line.moved(stand.map(|(one, _)| one.request.user_id.as_str()));
        for (one, entered) in arrived.into_iter().zip(entered) {
            let late = watch.is_late(one.ticket.epoch(), one.redelivered);
            let outcome = match entered {
                Ok(Entered::Stands) => {
                    if late {
                        metrics::order_broken();
                        error!(
                            event = "order.broken",
                            request_id = one.request.id.as_str(),
                            user_id = one.request.user_id.as_str(),
                            "the broker delivered this again after others that came later; it stands behind them"
                        );
                    }
                    metrics::entered(&one.kind.name, "in_order");
                    one.ticket.settle(Settlement::Ack);
                    continue;
                }
                Ok(Entered::Duplicate) => Outcome::Duplicate,
                Ok(Entered::Reused) => tokio::select! {
                    biased;
                    () = self.stop.forced() => return None,
                    outcome = self.handler.keep_reused(&one.request) => outcome,
                },
                Err(failure) => Outcome::Rejected { failure },
            };
            one.ticket.settle(outcome.settlement());
            one.attempt.ended(&outcome, Some(one.kind));
        }
        Some(())
    }

    /// Asks until it is known: what was put down, or that Postgres refuses it.
    async fn put_down(&self, entries: &[Entry]) -> Option<Result<Vec<Entered>, Failure>> {
        loop {
            match self.handler.ledger.enter(entries).await {
                Ok(entered) => return Some(Ok(entered)),
                Err(LedgerError::Step(StepError::Refused(failure))) => return Some(Err(failure)),
                Err(_) => {
                    let again = async {
                        self.pauses.until_without(&Reason::Postgres).await;
                        sleep(self.handler.ledger.probe_interval()).await;
                    };
                    tokio::select! {
                        biased;
                        () = self.stop.asked() => return None,
                        () = again => {}
                    }
                }
            }
        }
    }

    /// Waits while the lines are too long. What is held meanwhile is no more than the prefetch.
    async fn until_room(&self, rows: u64, watch: &mut Watch) -> Option<()> {
        let most = self.settings.max_in_line;
        let mut told = false;
        while watch.room < rows {
            if let Ok(count) = self.handler.ledger.in_line(most).await {
                watch.room = most.saturating_sub(count);
                if watch.room > 0 {
                    // A batch may go beyond it: the bound is one of memory and disk, not of rules.
                    watch.room = watch.room.max(rows);
                    break;
                }
                if !std::mem::replace(&mut told, true) {
                    warn!(
                        event = "order.full",
                        most,
                        "too many requests stand in line, so no further ones are taken in order"
                    );
                }
            }
            tokio::select! {
                biased;
                () = self.stop.asked() => return None,
                () = sleep(LOOK) => {}
            }
        }
        watch.room -= rows;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_after_something_new_is_late() {
        let mut watch = Watch::default();
        assert!(!watch.is_late(1, true), "it was out with a worker that died");
        assert!(!watch.is_late(1, false));
        assert!(watch.is_late(1, true), "it stood before the one that is new");
        assert!(!watch.is_late(2, true), "another connection begins anew");
    }
}
