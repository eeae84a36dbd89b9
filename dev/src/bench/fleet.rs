//! How speed grows with the number of worker processes.

use anyhow::{bail, ensure};

use super::{field::Field, run::until_done, watch::now, way::Way};
use crate::{server::Life, worker::Worker};

/// How many processes work side by side.
pub(super) const PROCESSES: [usize; 4] = [1, 2, 4, 8];

/// How often it is tried with twice as many requests.
const DOUBLINGS: usize = 6;

/// Requests a second of so many processes together, from when the last of them was ready. Where too
/// little was left by then, it is done again with twice as many.
pub(super) async fn measure(
    field: &mut Field,
    processes: usize,
    mut requests: usize,
) -> anyhow::Result<f64> {
    for _ in 0..DOUBLINGS {
        if let Some(rate) = once(field, processes, requests).await? {
            return Ok(rate);
        }
        requests *= 2;
    }
    bail!("{requests} requests are done before {processes} processes are ready")
}

async fn once(field: &mut Field, processes: usize, requests: usize) -> anyhow::Result<Option<f64>> {
    field.clear().await?;
    let way = Way::Update;
    if let Some(load) = way.load() {
        field.publisher.publish(load, requests).await?;
    }
    let mut workers = Vec::new();
    for _ in 0..processes {
        let command = way.command(&field.settings, requests, false, field.pool)?;
        workers.push(Worker::spawn(command, &field.log(), Life::Private)?);
    }
    for worker in &mut workers {
        worker.until_ready().await?;
    }
    let ready = now();
    until_done(&workers.iter().collect::<Vec<_>>(), requests).await?;
    let (_, last) = field.span(ready).await?;
    for worker in &mut workers {
        worker.stop().await?;
    }
    let ended = field.ended_after(ready).await? as f64;
    let found = field.found().await?;
    ensure!(found.done == requests as i64 && found.versions == found.done, "{found:?} was found");
    let enough = ended * 3.0 >= requests as f64;
    Ok(enough.then(|| ended / (last - ready)))
}
