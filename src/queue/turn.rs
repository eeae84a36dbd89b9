//! Whose turn it is to consume in order: one worker's at a time, as long as his connection lives.
//!
//! The turn is an exclusive queue beside the one with the requests. RabbitMQ lets one connection have
//! it, and drops it with that connection. The others do not even subscribe. `x-single-active-consumer`
//! would be less to do, and is of no use here: when the active consumer closes its channel or cancels,
//! the broker first delivers to the next one what comes after, and only then puts back what was out
//! (seen with 3.10.8, each time). Without another consumer it is put back where it was.

use std::time::Duration;

use lapin::{ErrorKind, options::QueueDeclareOptions, types::FieldTable};
use tokio::time::sleep;

use super::{
    Settings,
    link::{Link, close_channel, short, within},
    trouble::Trouble,
};
use crate::pause::Pauses;

/// How often it is asked for, more or less by half.
const ASK: Duration = Duration::from_secs(1);
/// From having it to subscribing. What the last one had out is put back within milliseconds after it
/// lost its turn.
const SETTLE: Duration = Duration::from_millis(500);
/// The reply code of a queue that is another connection's: 405 RESOURCE_LOCKED.
const LOCKED: u16 = 405;

/// Completes when it is ours, which it is for as long as the connection lives. While something
/// forbids consuming it is left to others.
pub(super) async fn take(link: &Link, settings: &Settings, pauses: &Pauses) -> Result<(), Trouble> {
    loop {
        pauses.until_clear().await;
        if ask(link, settings).await? {
            sleep(SETTLE).await;
            return Ok(());
        }
        sleep(ASK.mul_f64(0.5 + fastrand::f64())).await;
    }
}

async fn ask(link: &Link, settings: &Settings) -> Result<bool, Trouble> {
    // A refusal closes the channel.
    let channel = link.channel(settings).await?;
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let declare = channel.queue_declare(short(&settings.lock())?, options, FieldTable::default());
    let mut refused = false;
    let declare = async {
        let declared = declare.await;
        refused = declared.as_ref().is_err_and(|error| {
            matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == LOCKED)
        });
        declared
    };
    let doing = format!("asking for the turn to consume {} in order", settings.name);
    let declared = within(settings.operation_timeout, doing, declare).await;
    close_channel(&channel, settings.operation_timeout).await;
    match declared {
        Err(_) if refused => Ok(false),
        declared => declared.map(|_ours| true),
    }
}
