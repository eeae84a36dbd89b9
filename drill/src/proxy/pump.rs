//! One way of one connection: read, wait as the rules say, write.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Direction, Rules, Shared};

/// The most that is read at once, in bytes.
const CHUNK: usize = 16 * 1024;
/// How many chunks may be under way when there is a delay: 1 MiB.
const UNDER_WAY: usize = 64;

/// Why a connection did not come to a proper end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By a fault that was asked for.
    Cut,
    /// By one of its ends.
    Broken,
}

/// Carries bytes until the source closes its half, and then closes the sink's.
pub(super) async fn run(
    direction: Direction,
    mut source: ReadHalf<'_>,
    mut sink: WriteHalf<'_>,
    rules: &watch::Receiver<Rules>,
    shared: &Shared,
) -> Result<(), End> {
    // Between the two, so that a delay holds up each chunk but not the next one's reading.
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut open = rules.clone();
    let read = async move {
        loop {
            open.wait_for(|rules| !rules.holds(direction)).await.map_err(|_| End::Broken)?;
            let mut chunk = vec![0; CHUNK];
            match source.read(&mut chunk).await {
                Ok(0) => return Ok(()),
                Ok(length) => chunk.truncate(length),
                Err(_) => return Err(End::Broken),
            }
            let due = Instant::now() + open.borrow().delay;
            if under_way.send((due, chunk)).await.is_err() {
                return Err(End::Broken);
            }
        }
    };
    let mut open = rules.clone();
    let write = async move {
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            let mut rest = chunk.as_slice();
            while !rest.is_empty() {
                open.wait_for(|rules| !rules.holds(direction)).await.map_err(|_| End::Broken)?;
                let rate = open.borrow().rate;
                let step =
                    rate.map_or(rest.len(), |rate| rest.len().min((rate as usize / 20).max(1)));
                let allowed = burn(shared, direction, step);
                let (now, later) = rest.split_at(allowed.unwrap_or(step));
                sink.write_all(now).await.map_err(|_| End::Broken)?;
                count(shared, direction, now.len());
                if allowed.is_some() {
                    return Err(End::Cut);
                }
                rest = later;
                if let Some(rate) = rate {
                    sleep(Duration::from_secs_f64(step as f64 / f64::from(rate))).await;
                }
            }
        }
        sink.shutdown().await.map_err(|_| End::Broken)
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Takes `step` bytes from the fuse: `Some` of how many still go through when it strikes now.
fn burn(shared: &Shared, direction: Direction, step: usize) -> Option<usize> {
    let mut fuse = shared.fuse.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, left) = fuse.as_mut().filter(|(way, _)| *way == direction)?;
    if let Some(after) = left.checked_sub(step as u64) {
        *left = after;
        return None;
    }
    let allowed = usize::try_from(*left).unwrap_or(step);
    *fuse = None;
    Some(allowed)
}

fn count(shared: &Shared, direction: Direction, bytes: usize) {
    let counter = match direction {
        Direction::FromClient => &shared.from_client,
        Direction::FromUpstream => &shared.from_upstream,
    };
    counter.fetch_add(bytes as u64, Ordering::SeqCst);
}
