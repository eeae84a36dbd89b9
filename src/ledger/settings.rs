//! `[ledger]`.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;

/// How to reach Postgres and how to keep the ledger.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `postgresql://user:password@host:port/database?sslmode=…`, as libpq reads it.
    pub url: SecretString,
    /// Replaces the password of the URL.
    pub password: Option<SecretString>,
    /// Further certificate authorities to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// The schema that the tables live in.
    pub schema: String,
    /// Batchers of what is done without a claim, each committing on one connection at a time.
    /// Claims, what was claimed, and what is put down without a claim have half as many each.
    pub lanes: usize,
    /// The most requests that share a transaction.
    pub batch_rows: usize,
    /// The most body bytes that share a transaction.
    pub batch_bytes: usize,
    /// The longest a statement may run, on the server.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// How often due work is looked for.
    #[serde(with = "humantime_serde")]
    pub due_poll: Duration,
    /// How much longer than the kind's timeout a claim is held before others may take it.
    #[serde(with = "humantime_serde")]
    pub lease_margin: Duration,
    /// While Postgres is away: how often it is tried.
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
    /// How long done rows are kept: the time within which a repeated id is known.
    #[serde(with = "humantime_serde")]
    pub keep_done: Duration,
    /// How often old rows are looked for.
    #[serde(with = "humantime_serde")]
    pub prune_interval: Duration,
    /// The most rows that one pruning transaction deletes.
    pub prune_rows: u32,
    /// The connection pool.
    pub pool: PoolSettings,
}

/// `[ledger.pool]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// The most open connections.
    pub max_size: usize,
    /// The most connections that stay open without work.
    pub max_idle: usize,
    /// The age at which a connection is replaced, less up to a tenth by chance.
    #[serde(with = "humantime_serde")]
    pub max_lifetime: Duration,
    /// The longest wait for a free connection.
    #[serde(with = "humantime_serde")]
    pub wait_timeout: Duration,
    /// The longest that connecting may take.
    #[serde(with = "humantime_serde")]
    pub create_timeout: Duration,
    /// The longest that looking over a used connection may take.
    #[serde(with = "humantime_serde")]
    pub recycle_timeout: Duration,
}

impl Settings {
    /// Lanes of claims, of finishes of what was claimed, and of what is put down without a claim. What
    /// is claimed passes two of them, so half as many do as much at once, with batches that are larger.
    pub(super) fn other_lanes(&self) -> usize {
        self.lanes.div_ceil(2)
    }

    /// What is wrong with these settings: the key within the section, and the fault with its remedy.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut say = |key: &str, text: String| problems.push((key.to_owned(), text));
        if let Err(error) = super::pool::connection_config(self) {
            say("url", error);
        }
        if !super::sql::is_identifier(&self.schema) {
            say("schema", format!("`{}` is not a plain lower-case identifier", self.schema));
        }
        for (key, value) in [
            ("lanes", self.lanes),
            ("batch_rows", self.batch_rows),
            ("batch_bytes", self.batch_bytes),
            ("prune_rows", self.prune_rows as usize),
            ("pool.max_size", self.pool.max_size),
            ("pool.max_idle", self.pool.max_idle),
        ] {
            if value == 0 {
                say(key, "must be at least 1".to_owned());
            }
        }
        for (key, value) in [
            ("statement_timeout", self.statement_timeout),
            ("due_poll", self.due_poll),
            ("lease_margin", self.lease_margin),
            ("probe_interval", self.probe_interval),
            ("keep_done", self.keep_done),
            ("prune_interval", self.prune_interval),
            ("pool.max_lifetime", self.pool.max_lifetime),
            ("pool.wait_timeout", self.pool.wait_timeout),
            ("pool.create_timeout", self.pool.create_timeout),
            ("pool.recycle_timeout", self.pool.recycle_timeout),
        ] {
            if value < Duration::from_millis(1) {
                say(key, "must be at least 1ms".to_owned());
            }
        }
        if self.pool.max_idle > self.pool.max_size {
            say(
                "pool.max_idle",
                format!("is more than pool.max_size = {}, lower it", self.pool.max_size),
            );
        }
        // Each lane may hold one, and due work, probes and upkeep share one more.
        let needed =
            self.other_lanes().saturating_mul(3).saturating_add(self.lanes).saturating_add(1);
        if self.pool.max_size < needed {
            say(
                "pool.max_size",
                format!(
                    "is less than the {needed} connections that {} lanes and the upkeep use at once, raise it or lower ledger.lanes",
                    self.lanes
                ),
            );
        }
        problems
    }
}
