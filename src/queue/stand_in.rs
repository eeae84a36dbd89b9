//! The parts of this room without a broker, for the simulation: hatch, desk, settler and tickets are
//! the real ones, and a simulated subscription does with them what supervisor and epoch do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lapin::BasicProperties;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Frames, Inbox, Replies, Reply, Settings,
    delivery::Delivery,
    hatch::Hatch,
    settler::{self, Desk},
    trouble::Trouble,
};
use crate::{pause::Pauses, stop::Stop};

/// A message as the broker hands it out.
#[derive(Debug, Clone)]
pub(crate) struct Parcel {
    pub(crate) tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) message_id: Option<String>,
    pub(crate) reply_to: Option<String>,
}

impl Parcel {
    fn unpack(self, desk: &Arc<Desk>) -> Delivery {
        let (exchange, key) = ("longshore".into(), "kind".into());
        let mut delivery =
            lapin::message::Delivery::mock(self.tag, exchange, key, self.redelivered, self.body);
        let mut properties = BasicProperties::default();
        if let Some(id) = self.message_id {
            properties = properties.with_message_id(id.into());
        }
        if let Some(to) = self.reply_to {
            properties = properties.with_reply_to(to.into());
        }
        delivery.properties = properties;
        Delivery::new(delivery, desk)
    }
}

/// The intake of one worker.
#[derive(Clone)]
pub(crate) struct Intake {
    hatch: Arc<Hatch>,
    stop: Stop,
    closing: CancellationToken,
    lost: Arc<AtomicU64>,
}

impl Intake {
    pub(crate) fn open(stop: Stop) -> (Self, Inbox) {
        let intake = Self {
            hatch: Arc::default(),
            stop,
            closing: CancellationToken::new(),
            lost: Arc::default(),
        };
        let Self { hatch, stop, closing, .. } = intake.clone();
        (intake, Inbox { hatch, stop, closing })
    }

    /// Completes when nothing more is to be taken in.
    pub(crate) async fn ended(&self) {
        tokio::select! {
            biased;
            () = self.stop.asked() => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// Completes when one more delivery fits.
    pub(crate) async fn room(&self) {
        self.hatch.room().await;
    }

    /// Takes everything back out.
    pub(crate) fn clear(&self) {
        self.hatch.clear();
    }

    /// The same, for good.
    pub(crate) fn close(&self) {
        self.hatch.close();
    }

    /// Settlements that could not be told to the broker.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// One connection.
    pub(crate) fn epoch(
        &self,
        number: u64,
        frames: impl Frames,
        gap_timeout: Duration,
        in_order: bool,
    ) -> Epoch {
        let desk = if in_order { Desk::in_order } else { Desk::new };
        let desk = desk(number, self.lost.clone());
        // Every other one rests between acknowledgements.
        desk.subscribed(if number.is_multiple_of(2) { u16::MAX } else { 0 });
        let within = Duration::from_secs(10);
        let settler = tokio::spawn(settler::run(desk.clone(), frames, gap_timeout, within));
        Epoch { desk, settler, hatch: self.hatch.clone() }
    }
}

/// One connection.
pub(crate) struct Epoch {
    desk: Arc<Desk>,
    settler: JoinHandle<Result<(), Trouble>>,
    hatch: Arc<Hatch>,
}

impl Epoch {
    /// Hands a delivery over.
    pub(crate) fn deliver(&self, parcel: Parcel) {
        self.hatch.put(parcel.unpack(&self.desk));
    }

    /// What had been prefetched when the subscription ended.
    pub(crate) fn give_back(&self, parcel: Parcel) {
        drop(parcel.unpack(&self.desk));
    }

    /// Completes when the connection is to be given up, for something that keeps an order went back.
    pub(crate) async fn until_returned(&self) {
        self.desk.until_returned().await;
    }

    /// The connection is gone.
    pub(crate) fn abandon(self) {
        self.desk.close();
        self.settler.abort();
    }

    /// Sends the last settlements; whether they were.
    pub(crate) async fn finish(mut self, within: Duration) -> bool {
        self.desk.seal();
        let flushed = matches!(timeout(within, &mut self.settler).await, Ok(Ok(Ok(()))));
        self.desk.close();
        self.settler.abort();
        flushed
    }
}

/// Answers that go nowhere but into this receiver.
pub(crate) fn replies() -> (Replies, mpsc::Receiver<Reply>) {
    let (waiting, receiver) = mpsc::channel(1_024);
    (Replies { waiting, settings: Arc::new(Settings::sample()) }, receiver)
}

/// See the pump of an epoch.
pub(crate) async fn paused_for(pauses: &Pauses, hold: Duration) {
    super::epoch::paused_for(pauses, hold).await;
}

/// What comes of a frame.
pub(crate) type Sent = lapin::Result<()>;

/// Why a frame could not be sent.
pub(crate) fn broken() -> lapin::Error {
    lapin::ErrorKind::MissingHeartbeatError.into()
}
