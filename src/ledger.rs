//! The ledger: the one place that knows Postgres, and the memory of what became of every request.
//!
//! [`Ledger::claim`] takes a request before it is called, [`Ledger::finish`] applies it and writes
//! its row in one transaction, [`Ledger::due`] brings up what has come due and what is let go. Claims
//! and finishes that arrive together share a transaction (`lanes`), and nothing outside this room
//! notices.

mod check;
mod claim;
mod counts;
mod due;
mod error;
mod finish;
mod keep;
mod keeper;
mod lanes;
mod line;
mod migrations;
#[cfg(test)]
pub(crate) mod model;
mod outage;
mod pool;
mod session;
mod settings;
mod shares;
mod sql;
mod steering;
mod suspect;
mod told;
mod version;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use deadpool_postgres::Pool;

pub use claim::{Claim, Claimed};
pub use counts::Counts;
pub use due::{Ask, Due, Gate, Lease};
pub use error::{LedgerError, step_error};
pub use finish::{Finish, Finished, Hold, Verdict};
pub(crate) use keeper::Keeper;
pub use line::{Entered, Entry, ORDER, Whose};
pub use migrations::Schema;
pub use settings::{PoolSettings, Settings};
pub use shares::OfUsers;
pub use sql::{Function, is_function_name};
pub use steering::Steered;
#[cfg(test)]
pub(crate) use {
    error::BatchError,
    finish::Finishes,
    lanes::{Batch, Bounds, Lanes},
    outage::Outage,
};

use crate::pause::Pauses;

/// A random number that a claim is known by. Who finishes must still hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence(pub i64);

impl Fence {
    /// A new one. Not a secret, only unlikely to meet its like.
    pub fn new() -> Self {
        Self(fastrand::i64(1..))
    }
}

impl Default for Fence {
    fn default() -> Self {
        Self::new()
    }
}

/// The ledger of one worker.
pub struct Ledger {
    pool: Pool,
    server: version::Server,
    settings: Settings,
    worker: String,
    endpoint: String,
    pauses: Pauses,
    outage: outage::Outage,
    statements: Statements,
    claims: lanes::Lanes<claim::ClaimBatch>,
    finishes: finish::Finishes<finish::FinishBatch>,
}

struct Statements {
    due: String,
    renew: String,
    suspect: String,
    of_users: String,
    tokens: String,
    unreadable: String,
    counts: [String; 3],
    enter: String,
    entered: String,
    advance: [String; 2],
    in_line: String,
    strays: String,
    prune: [String; 2],
}

impl Ledger {
    /// Prepares the ledger; connects to nothing yet. While Postgres is away, the reason
    /// [`Reason::Postgres`](crate::pause::Reason::Postgres) is set in `pauses`.
    ///
    /// # Errors
    /// Words for the operator: settings that cannot be used.
    pub fn open(
        settings: Settings,
        functions: &BTreeMap<String, Function>,
        worker: &str,
        pauses: Pauses,
    ) -> Result<Arc<Self>, String> {
        let server = version::Server::default();
        let pool = pool::build(&settings, &server)?;
        let schema = settings.schema.as_str();
        let bounds = lanes::Bounds {
            rows: settings.batch_rows,
            bytes: settings.batch_bytes,
            linger: Duration::ZERO,
        };
        let other_lanes = settings.other_lanes();
        let within = settings.statement_timeout + finish::PATIENCE;
        let claim = claim::ClaimBatch::new(pool.clone(), schema, worker.to_owned(), within);
        let finish = finish::FinishBatch::new(
            pool.clone(),
            schema,
            worker.to_owned(),
            settings.statement_timeout,
            functions,
        );
        let statements = Statements {
            due: sql::in_schema(due::DUE, schema),
            renew: sql::in_schema(due::RENEW, schema),
            suspect: sql::in_schema(suspect::SUSPECT, schema),
            of_users: sql::in_schema(shares::OF_USERS, schema),
            tokens: sql::in_schema(shares::TOKENS, schema),
            unreadable: sql::in_schema(keep::UNREADABLE, schema),
            counts: counts::COUNTS.map(|text| sql::in_schema(text, schema)),
            enter: sql::in_schema(line::ENTER, schema),
            entered: sql::in_schema(line::ENTERED, schema),
            advance: line::ADVANCE.map(|text| sql::in_schema(text, schema)),
            in_line: sql::in_schema(line::IN_LINE, schema),
            strays: sql::in_schema(keep::STRAYS, schema),
            prune: keep::PRUNE.map(|text| sql::in_schema(text, schema)),
        };
        Ok(Arc::new(Self {
            claims: lanes::Lanes::start(Arc::new(claim), other_lanes, bounds),
            finishes: finish::Finishes::start(
                &Arc::new(finish),
                settings.lanes,
                other_lanes,
                bounds,
            ),
            pool,
            server,
            worker: worker.to_owned(),
            outage: outage::Outage::new(pauses.clone(), pool::endpoint(&settings)),
            endpoint: pool::endpoint(&settings),
            pauses,
            statements,
            settings,
        }))
    }

    /// Starts the upkeep: noticing that Postgres is back, closing idle connections, pruning.
    pub fn start(self: &Arc<Self>) {
        tokio::spawn(Arc::clone(self).watch());
        tokio::spawn(Arc::clone(self).tidy());
        tokio::spawn(Arc::clone(self).prune_for_ever());
    }

    /// Claims a request, so that a crash in the middle of it is seen and counted.
    ///
    /// # Errors
    /// [`LedgerError::Away`]: whether it was claimed is unknown; asked again with the same fence it
    /// is the same claim.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerError> {
        let request = Arc::clone(&claim.request);
        let claimed = self.claims.submit(&request.user_id, claim).await;
        self.outage.noticed(claimed)
    }

    /// Applies a request and writes its row, together.
    ///
    /// # Errors
    /// [`LedgerError::Step`]: the apply step failed and nothing was written.
    /// [`LedgerError::Away`]: whether it was written is unknown; asked again with the same fence,
    /// it is written at most once.
    pub async fn finish(&self, finish: Finish) -> Result<Finished, LedgerError> {
        self.outage.noticed(self.finishes.file(finish).await)
    }

    /// Which database this is, for people; without the password.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the server says is its version, once there was a connection.
    pub fn server_version(&self) -> Option<String> {
        self.server.version()
    }

    /// How often due work is to be looked for.
    pub fn due_poll(&self) -> Duration {
        self.settings.due_poll
    }

    /// How often Postgres is tried while it is away.
    pub fn probe_interval(&self) -> Duration {
        self.settings.probe_interval
    }

    /// How much longer than its timeout a request is claimed for.
    pub fn lease_margin(&self) -> Duration {
        self.settings.lease_margin
    }

    /// Closes every connection.
    pub fn close(&self) {
        self.pool.close();
        self.outage.wake();
    }

    /// Whether this was not said yet of the outage that is now. For who waits before [`Ledger::start`].
    pub fn is_news(&self, error: &str) -> bool {
        self.outage.told.is_news(error)
    }

    fn patience(&self) -> Duration {
        self.settings.statement_timeout + finish::PATIENCE
    }
}

impl Schema {
    /// What to do about it, for people.
    pub fn remedy(&self, schema: &str) -> String {
        match self {
            Self::Current => format!("the ledger in schema {schema} is as it should be"),
            Self::Behind(missing) => {
                format!(
                    "the ledger in schema {schema} lacks {missing} migration(s); run `longshore migrate`"
                )
            }
            Self::Ahead(version) => format!(
                "the ledger in schema {schema} was migrated to version {version} by a newer longshore; run that version"
            ),
            Self::Altered(version) => format!(
                "migration {version} of the ledger in schema {schema} was applied from another text; run the version of longshore that made it"
            ),
        }
    }
}
