//! Asks the broker how much is waiting. Tolerant: without an answer there is no new depth, and
//! nothing else happens.

use std::sync::Arc;

use lapin::{Channel, options::QueueDeclareOptions, types::FieldTable};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{
    board::Board,
    link::{short, within},
    side::Side,
    trouble::{Cause, Trouble},
};
use crate::telemetry::metrics;

/// What the broker said last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Depth {
    /// Messages ready in the queue.
    pub(super) ready: u64,
}

/// Asks for ever; to be aborted.
pub(super) async fn run(side: Arc<Side>, board: Board, depth: watch::Sender<Depth>) {
    let mut ticks = interval(side.settings.poll_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut channel = None;
    let mut failing = false;
    loop {
        ticks.tick().await;
        match look(&side, &mut channel).await {
            Ok((ready, dead)) => {
                failing = false;
                metrics::queue_depth(&side.settings.name, ready);
                if let Some(dead) = dead {
                    metrics::queue_depth(&side.settings.dead_queue, dead);
                }
                board.ready(ready);
                depth.send_replace(Depth { ready });
            }
            Err(trouble) => {
                // The consuming connection reports outages; this would say everything twice.
                if !failing {
                    tracing::debug!(event = "queue.depth_unknown", error = %trouble, "the queue's depth is not known");
                }
                failing = true;
                channel = None;
            }
        }
    }
}

/// The depth of the queue, and of the dead-letter queue where this user may see it: since RabbitMQ
/// 4.3 that takes a right to it, and a worker needs none.
async fn look(side: &Side, channel: &mut Option<Channel>) -> Result<(u64, Option<u64>), Trouble> {
    let channel = match channel {
        Some(open) if open.status().connected() => open,
        _ => channel.insert(side.channel(false).await?),
    };
    let ready = ready(side, channel, &side.settings.name).await?;
    match self::ready(side, channel, &side.settings.dead_queue).await {
        Ok(dead) => Ok((ready, Some(dead))),
        // The refusal has closed the channel; the next look opens another.
        Err(trouble) if trouble.cause == Cause::Refused => Ok((ready, None)),
        Err(trouble) => Err(trouble),
    }
}

async fn ready(side: &Side, channel: &Channel, queue: &str) -> Result<u64, Trouble> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declare = channel.queue_declare(short(queue)?, options, FieldTable::default());
    let found = within(
        side.settings.operation_timeout,
        format!("asking for the depth of {queue}"),
        declare,
    )
    .await?;
    Ok(u64::from(found.message_count()))
}
