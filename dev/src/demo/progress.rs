//! What is shown while it runs: one line that changes on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::account::Account;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);
/// How often a line is written where it cannot be written over.
const LINE: Duration = Duration::from_secs(2);

pub(super) struct Progress {
    client: Client,
    published: Arc<AtomicUsize>,
    account: Arc<Mutex<Account>>,
    of: usize,
    live: bool,
    since: Instant,
    last: Option<Instant>,
}

impl Progress {
    pub(super) fn new(
        client: Client,
        published: Arc<AtomicUsize>,
        account: Arc<Mutex<Account>>,
        of: usize,
    ) -> Self {
        Self {
            client,
            published,
            account,
            of,
            live: stdout().is_terminal(),
            since: Instant::now(),
            last: None,
        }
    }

    /// Shows the progress until the number published, or the time, satisfies.
    pub(super) async fn until(&mut self, reached: impl Fn(usize) -> bool) -> anyhow::Result<()> {
        while !reached(self.published.load(Relaxed)) {
            self.show().await?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Requests that the ledger has neither done nor given up, and those it has not seen.
    pub(super) async fn open(&self) -> anyhow::Result<usize> {
        let sql = "select (select count(*) from longshore.requests where state in ('done', 'dead')),
                          (select count(*) from longshore.unreadable where error_code <> 'id_reused'),
                          (select count(*) from longshore.requests where state not in ('done', 'dead'))";
        let row = self.client.query_one(sql, &[]).await?;
        let count = |index| usize::try_from(row.get::<_, i64>(index)).unwrap_or_default();
        let published = self.account.lock().unwrap_or_else(PoisonError::into_inner).len();
        // What was too large to be read lies in the broker's dead-letter queue, not in the ledger.
        let seen = count(0) + count(1) + count(2);
        Ok(if seen + self.of / 100 < published { published - seen } else { count(2) })
    }

    pub(super) async fn show(&mut self) -> anyhow::Result<()> {
        if !self.live && self.last.is_some_and(|last| last.elapsed() < LINE) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let rows = self
            .client
            .query("select state, count(*) from longshore.requests group by 1", &[])
            .await?;
        let count = |state: &str| {
            rows.iter()
                .find(|row| row.get::<_, &str>(0) == state)
                .map_or(0, |row| row.get::<_, i64>(1))
        };
        let states = ["done", "running", "waiting", "parked", "dead"].map(count);
        let line = line(self.since.elapsed(), self.published.load(Relaxed), states);
        if self.live {
            print!("\r\x1b[2K{line}");
            stdout().flush()?;
        } else {
            println!("{line}");
        }
        Ok(())
    }

    /// Writes a line that stays.
    pub(super) fn say(&self, text: &str) {
        let clear = if self.live { "\r\x1b[2K" } else { "" };
        println!("{clear}{:5.1} s  {text}", self.since.elapsed().as_secs_f64());
    }

    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        self.last = None;
        self.show().await?;
        if self.live {
            println!();
        }
        Ok(())
    }
}

/// At most 79 columns: what wraps cannot be written over.
fn line(since: Duration, sent: usize, states: [i64; 5]) -> String {
    let [done, running, waiting, parked, dead] = states;
    format!(
        "{:5.1} s  sent {sent:>4}  done {done:>4}  running {running:>3}  waiting {waiting:>3}  \
         parked {parked:>4}  dead {dead:>3}",
        since.as_secs_f64(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_a_terminal() {
        let line = line(Duration::from_millis(999_900), 6_000, [6_000, 999, 6_000, 6_000, 999]);
        assert_eq!(line.chars().count(), 79, "{line}");
    }
}
