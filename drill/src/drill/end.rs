//! The end: when nothing moves any more, and what is found then.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::bail;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Lines, Scratch, progress::Counts};
use crate::{
    account::{self, Account, Sources},
    stub::Stub,
};

/// How long one look at the ledger is waited for.
const LOOK: Duration = Duration::from_secs(10);
/// How long nothing may move before what is left is taken for left over.
const STUCK: Duration = Duration::from_secs(90);
/// How long an account that does not add up is drawn up again: dead letters arrive when they do.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
const BETWEEN: Duration = Duration::from_millis(250);

/// Waits until nothing is open and the queue is empty, or nothing moves any more.
pub(super) async fn quiet(
    scratch: &Scratch,
    lines: &Lines,
    mut progress: watch::Receiver<Counts>,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut last = *progress.borrow();
    let mut moved = Instant::now();
    loop {
        let queue = scratch.queue();
        let empty = account::until_empty(&lines.amqp, &queue, Duration::ZERO).await.is_ok();
        // The ledger as it is after the queue was seen empty.
        for _look in 0..2 {
            progress.borrow_and_update();
            let _looked = timeout(LOOK, progress.changed()).await.is_ok();
        }
        let counts = *progress.borrow();
        if empty && counts.open == 0 && counts.ended == last.ended {
            return Ok(());
        }
        if (counts.open, counts.ended) != (last.open, last.ended) {
            (last, moved) = (counts, Instant::now());
        }
        if moved.elapsed() > STUCK {
            notes.push(format!("nothing moved for {STUCK:?}, so it was not waited for longer"));
            return Ok(());
        }
        sleep(BETWEEN).await;
    }
}

/// The account; one that does not add up is drawn up again for a while.
pub(super) async fn settle(
    scratch: &Scratch,
    lines: &Lines,
    stub: &Stub,
    account: &Mutex<Account>,
    notes: &mut Vec<String>,
) -> anyhow::Result<account::Report> {
    let sources = Sources {
        pg_url: lines.postgres.clone(),
        amqp_url: lines.amqp.clone(),
        queues: vec![scratch.queue()],
        dead_queue: scratch.dead(),
        schema: scratch.schema.clone(),
        effects: Some(scratch.effects()),
        users: None,
        stub_url: Some(stub.url.clone()),
    };
    let began = Instant::now();
    for look in 1.. {
        let observed = account::observe(&sources).await?;
        let report = account.lock().unwrap_or_else(PoisonError::into_inner).check(&observed);
        if report.passed() || began.elapsed() > LOOK_AGAIN {
            if look > 1 {
                let took = began.elapsed().as_secs_f64();
                notes.push(format!("the account was drawn up {look} times in {took:.1} s"));
            }
            return Ok(report);
        }
        sleep(BETWEEN * 8).await;
    }
    bail!("the account was never drawn up")
}
