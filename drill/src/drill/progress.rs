//! How far the ledger is, and a line about it every now and then.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::{Say, slot::Shared};
use crate::database;

/// How often a line is said.
const LINE: Duration = Duration::from_secs(2);
/// How long one look may take, how long until the next, and until that after a failed one.
const LOOK: Duration = Duration::from_secs(20);
const BETWEEN: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(500);
/// Looking takes at most one part in so many of the database's time.
const SHARE: u32 = 10;

/// What the ledger holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Done, dead or unreadable.
    pub(super) ended: u64,
    /// Running, waiting or parked.
    pub(super) open: u64,
}

/// Looks at the ledger again and again, over all connections.
pub(super) struct Progress;

impl Progress {
    pub(super) fn start(
        postgres: &str,
        schema: &str,
        tasks: &mut JoinSet<()>,
    ) -> watch::Receiver<Counts> {
        let (counts, seen) = watch::channel(Counts::default());
        let (postgres, schema) = (postgres.to_owned(), schema.to_owned());
        tasks.spawn(async move {
            loop {
                // Ends with its connection only.
                let _ended = look(&postgres, &schema, &counts).await.is_ok();
                sleep(AGAIN).await;
            }
        });
        seen
    }
}

async fn look(postgres: &str, schema: &str, counts: &watch::Sender<Counts>) -> anyhow::Result<()> {
    let client = timeout(LOOK, database::connect(postgres)).await??;
    let sql = format!(
        "SELECT count(*) FILTER (WHERE state IN ('done', 'dead')) + (SELECT count(*) FROM {schema}.unreadable),
                count(*) FILTER (WHERE state NOT IN ('done', 'dead'))
           FROM {schema}.requests"
    );
    let statement = timeout(LOOK, client.prepare(&sql)).await??;
    loop {
        let began = Instant::now();
        let row = timeout(LOOK, client.query_one(&statement, &[])).await??;
        let count = |value: i64| u64::try_from(value).unwrap_or_default();
        let now = Counts { ended: count(row.try_get(0)?), open: count(row.try_get(1)?) };
        // Told each time: that nothing has changed is news, too.
        counts.send_replace(now);
        sleep(BETWEEN.max(began.elapsed() * SHARE)).await;
    }
}

/// Says how far it is.
pub(super) async fn tell(
    say: Say,
    progress: watch::Receiver<Counts>,
    confirmed: watch::Receiver<u64>,
    shared: Arc<Shared>,
) {
    let began = Instant::now();
    let mut ticks = interval(LINE);
    loop {
        ticks.tick().await;
        let Counts { ended, open } = *progress.borrow();
        let confirmed = *confirmed.borrow();
        let (kills, cuts) = {
            let faults = shared.faults();
            (faults.kills(), faults.cuts())
        };
        say(&format!(
            "{:7.1} s  confirmed {confirmed}  ended {ended}  open {open}  kills {kills}  cuts {cuts}",
            began.elapsed().as_secs_f64()
        ));
    }
}
