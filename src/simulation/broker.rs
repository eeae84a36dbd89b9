//! A quorum queue as a plain value: what is ready, what came back, what is out on which line, what is
//! dead, and whose turn it is.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{outcome::Settlement, queue::stand_in::Parcel};

/// More deliveries than this, and a message goes to the dead queue.
const DELIVERY_LIMIT: u32 = 200;

/// A message as it was published.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Which publish it was.
    pub(super) serial: usize,
    pub(super) body: Vec<u8>,
    pub(super) message_id: Option<String>,
    redeliveries: u32,
}

impl Message {
    pub(super) fn new(serial: usize, body: Vec<u8>, message_id: Option<String>) -> Self {
        Self { serial, body, message_id, redeliveries: 0 }
    }
}

/// What a worker says about its deliveries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Frame {
    One(u64, Settlement),
    UpTo(u64),
}

/// What those who wait at a line hear.
#[derive(Clone, Default)]
pub(super) struct Bells {
    /// Cancelled when the line is cut.
    pub(super) cut: CancellationToken,
    /// A delivery was sent.
    pub(super) delivered: Arc<Notify>,
    /// A frame was sent.
    pub(super) said: Arc<Notify>,
}

/// One connection.
pub(super) struct Line {
    pub(super) unacked: BTreeMap<u64, Message>,
    /// Sent, and not looked at by the worker.
    pub(super) prefetched: VecDeque<u64>,
    /// Sent by the worker, and not here yet.
    pub(super) frames: VecDeque<Frame>,
    pub(super) bells: Bells,
    next_tag: u64,
    prefetch: usize,
    subscribed: bool,
}

#[derive(Default)]
pub(super) struct Broker {
    pub(super) ready: VecDeque<Message>,
    /// What came back: delivered first, in the order of coming back.
    returned: VecDeque<Message>,
    /// The line that may consume, where only one may.
    turn: Option<u64>,
    pub(super) dead: Vec<Message>,
    pub(super) lines: BTreeMap<u64, Line>,
    lines_made: u64,
}

impl Broker {
    pub(super) fn publish(&mut self, message: Message) {
        self.ready.push_back(message);
        self.dispatch();
    }

    pub(super) fn connect(&mut self, prefetch: usize) -> u64 {
        self.lines_made += 1;
        let line = Line {
            unacked: BTreeMap::new(),
            prefetched: VecDeque::new(),
            frames: VecDeque::new(),
            bells: Bells::default(),
            next_tag: 1,
            prefetch,
            subscribed: false,
        };
        self.lines.insert(self.lines_made, line);
        self.lines_made
    }

    pub(super) fn subscribe(&mut self, line: u64) {
        if let Some(line) = self.lines.get_mut(&line) {
            line.subscribed = true;
        }
        self.dispatch();
    }

    /// Ends the subscription; returns what was sent and not looked at.
    pub(super) fn unsubscribe(&mut self, number: u64) -> Vec<Parcel> {
        let Some(line) = self.lines.get_mut(&number) else { return Vec::new() };
        line.subscribed = false;
        std::iter::from_fn(|| self.take(number)).collect()
    }

    /// The next delivery of this line.
    pub(super) fn take(&mut self, line: u64) -> Option<Parcel> {
        let line = self.lines.get_mut(&line)?;
        let tag = line.prefetched.pop_front()?;
        let message = line.unacked.get(&tag)?;
        Some(Parcel {
            tag,
            redelivered: message.redeliveries > 0,
            body: message.body.clone(),
            message_id: message.message_id.clone(),
            reply_to: Some("answers".to_owned()),
        })
    }

    /// Whether it is this line's turn, which it is until the line is gone.
    pub(super) fn has_turn(&mut self, line: u64) -> bool {
        let held = self.turn.filter(|holder| self.lines.contains_key(holder));
        self.turn = held.or(self.lines.contains_key(&line).then_some(line));
        self.turn == Some(line)
    }

    /// The line is gone: what was out on it is ready again.
    pub(super) fn cut(&mut self, line: u64) {
        let Some(line) = self.lines.remove(&line) else { return };
        line.bells.cut.cancel();
        for (_, message) in line.unacked {
            self.requeue(message);
        }
        self.dispatch();
    }

    /// A frame has come; returns what it settles, or why it closes the channel.
    pub(super) fn settle(
        &mut self,
        number: u64,
        frame: Frame,
    ) -> Result<Vec<(Message, Settlement)>, String> {
        let Some(line) = self.lines.get_mut(&number) else { return Ok(Vec::new()) };
        let (tags, settlement): (Vec<u64>, _) = match frame {
            Frame::One(tag, settlement) => (vec![tag], settlement),
            Frame::UpTo(tag) => {
                let covered = line.unacked.range(..=tag).map(|(tag, _)| *tag).collect();
                (covered, Settlement::Ack)
            }
        };
        let (Frame::One(tag, _) | Frame::UpTo(tag)) = frame;
        if !tags.contains(&tag) || !line.unacked.contains_key(&tag) {
            return Err(format!("406: unknown delivery tag {tag}"));
        }
        let settled: Vec<_> =
            tags.iter().filter_map(|tag| Some((line.unacked.remove(tag)?, settlement))).collect();
        line.prefetched.retain(|tag| !tags.contains(tag));
        for (message, settlement) in &settled {
            match settlement {
                Settlement::Ack => {}
                Settlement::GiveBack => self.requeue(message.clone()),
                Settlement::Reject => self.dead.push(message.clone()),
            }
        }
        self.dispatch();
        Ok(settled)
    }

    /// Whether nothing is ready and nothing is out.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.lines.values().all(|line| line.unacked.is_empty())
    }

    /// What could be delivered.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.returned.len()
    }

    fn requeue(&mut self, message: Message) {
        let message = Message { redeliveries: message.redeliveries + 1, ..message };
        if message.redeliveries > DELIVERY_LIMIT {
            self.dead.push(message);
        } else {
            self.returned.push_back(message);
        }
    }

    fn dispatch(&mut self) {
        while self.waiting() > 0 {
            let open = self.lines.values_mut();
            let open = open.filter(|line| line.subscribed && line.unacked.len() < line.prefetch);
            let Some(line) = open.min_by_key(|line| line.unacked.len()) else { return };
            let next = self.returned.pop_front().or_else(|| self.ready.pop_front());
            let Some(message) = next else { return };
            line.unacked.insert(line.next_tag, message);
            line.prefetched.push_back(line.next_tag);
            line.next_tag += 1;
            line.bells.delivered.notify_one();
        }
    }
}
