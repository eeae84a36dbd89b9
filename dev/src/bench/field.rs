//! The servers of a benchmark, and how each round finds them.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::{load::Publisher, way};
use crate::{
    place::{self, Private},
    postgres::Postgres,
    rabbit::Rabbit,
    server::Life,
    worker::{Settings, Worker},
};

const DATABASE: &str = "longshore_bench";
/// What every run's database is a copy of.
const TEMPLATE: &str = "longshore_bench_empty";
/// What is set for Postgres, the same for every way. Checkpoints come by time, not in the middle of
/// each run because a gigabyte was written; fsync and `synchronous_commit` stay on.
pub(super) const POSTGRES: [&str; 5] = [
    "shared_buffers=2GB",
    "wal_buffers=64MB",
    "max_wal_size=8GB",
    "min_wal_size=2GB",
    "checkpoint_timeout=15min",
];
/// How long Postgres may take to let go of a session whose client has ended.
const GOODBYE: Duration = Duration::from_secs(10);

/// What the usual worker remembers of its messages.
const INBOX: &str = "create table app.inbox (
    message_id  text        primary key,
    received_at timestamptz not null default now()
)";

/// The servers, private to this run.
pub(super) struct Field {
    pub(super) settings: Settings,
    pub(super) publisher: Publisher,
    pub(super) client: Client,
    pub(super) rabbit: Rabbit,
    pub(super) postgres: Postgres,
    /// How many connections the usual worker has.
    pub(super) pool: usize,
    /// Whether there is a kind with a function for many requests at once.
    pub(super) knows_batches: bool,
    logs: u32,
    // The last to be dropped: the servers live in it.
    dir: Private,
}

/// What the ledger and the tables behind it hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) done: i64,
    pub(super) dead: i64,
    pub(super) versions: i64,
}

impl Found {
    /// What has come since.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            done: self.done - before.done,
            dead: self.dead - before.dead,
            versions: self.versions - before.versions,
        }
    }
}

impl Field {
    pub(super) async fn open() -> anyhow::Result<Self> {
        let dir = Private::new("bench")?;
        let (rabbit, postgres) =
            tokio::try_join!(Rabbit::start(dir.path().join("rabbitmq"), "bench"), async {
                let home = dir.path().join("postgres");
                Postgres::start_for(&home, Life::Private, &POSTGRES).await
            },)?;
        let pg_url = postgres.create_database(TEMPLATE, None).await?;
        let example = place::checkout().join("config/user-service");
        let read = async |path: PathBuf| {
            let text = tokio::fs::read_to_string(&path).await;
            text.with_context(|| format!("cannot read {}", path.display()))
        };
        let sql = read(example.join("service.sql")).await?;
        let documented = read(place::checkout().join("config/longshore.toml")).await?;
        let batch = way::batch_settings(&documented, &sql);
        let knows_batches = batch.is_some();
        let config = dir.path().join("bench.toml");
        let text = read(example.join("longshore.toml")).await? + &batch.unwrap_or_default();
        tokio::fs::write(&config, text).await?;
        let mut settings = Settings {
            config,
            amqp_url: rabbit.url(),
            pg_url: pg_url.clone(),
            // Nobody is there; the ways that call have a stub of their own.
            stub_url: "http://127.0.0.1:9".to_owned(),
            log: dir.path().join("first.log"),
        };
        settings.command(&["migrate"]).await?;
        let client = longshore_drill::database::connect(&pg_url).await?;
        client.batch_execute(&sql).await.context("the example service cannot be installed")?;
        client.batch_execute(INBOX).await?;
        // The first worker declares the exchange and the queue.
        Worker::start(&settings).await?.stop().await?;
        drop(client);
        let publisher = Publisher::connect(&rabbit.url()).await?;
        let client = fresh(&postgres).await?;
        settings.pg_url = postgres.url_of(DATABASE);
        let pool = super::tune::POOLS[0];
        Ok(Self {
            settings,
            publisher,
            client,
            rabbit,
            postgres,
            pool,
            knows_batches,
            logs: 0,
            dir,
        })
    }

    /// As if nothing had been before: an empty queue and a new database. Tables that were merely
    /// emptied would keep statistics, and a run would go as the one before it had left them.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        self.publisher.purge().await?;
        self.client = fresh(&self.postgres).await?;
        self.settings.pg_url = self.postgres.url_of(DATABASE);
        Ok(())
    }

    /// A database that is kept from run to run, made where there is none: true for a new one.
    pub(super) async fn keep(&mut self, database: &str) -> anyhow::Result<bool> {
        self.publisher.purge().await?;
        let known = "select exists (select from pg_database where datname = $1)";
        let new = !self.client.query_one(known, &[&database]).await?.get::<_, bool>(0);
        if new {
            self.postgres.create_database(database, Some(TEMPLATE)).await?;
        }
        self.settings.pg_url = self.postgres.url_of(database);
        self.client = longshore_drill::database::connect(&self.settings.pg_url).await?;
        self.client.batch_execute("checkpoint").await?;
        Ok(new)
    }

    /// A log of its own for each process.
    pub(super) fn log(&mut self) -> PathBuf {
        self.logs += 1;
        self.dir.path().join(format!("{}.log", self.logs))
    }

    /// How much Postgres has written to its log since it was made, in bytes.
    pub(super) async fn wal(&self) -> anyhow::Result<f64> {
        let bytes = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8";
        Ok(self.client.query_one(bytes, &[]).await?.get(0))
    }

    /// How many rows were ever inserted, updated or deleted, those included that were undone. A
    /// session reports its own at its end at the latest, so all others must have ended.
    pub(super) async fn rows(&self) -> anyhow::Result<f64> {
        let others = "select count(*) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
               and backend_type = 'client backend'";
        let give_up = Instant::now() + GOODBYE;
        while self.client.query_one(others, &[]).await?.get::<_, i64>(0) > 0 {
            if Instant::now() > give_up {
                bail!("a session has not ended within {GOODBYE:?} of its client");
            }
            sleep(Duration::from_millis(20)).await;
        }
        let rows = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::float8
                      from pg_stat_user_tables";
        Ok(self.client.query_one(rows, &[]).await?.get(0))
    }

    pub(super) async fn found(&self) -> anyhow::Result<Found> {
        let row = self
            .client
            .query_one(
                // What a ledger was filled with is older.
                "select (select count(*) from longshore.requests
                          where state = 'done' and finished_at > now() - interval '12 hours'),
                        (select count(*) from longshore.requests
                          where state = 'dead' and finished_at > now() - interval '12 hours'),
                        (select coalesce(sum(version), 0)::bigint from app.users)",
                &[],
            )
            .await?;
        Ok(Found { done: row.get(0), dead: row.get(1), versions: row.get(2) })
    }

    /// When the first and the last of the requests that ended after an instant did so, in seconds
    /// since 1970, as Postgres wrote it beside them.
    pub(super) async fn span(&self, after: f64) -> anyhow::Result<(f64, f64)> {
        let row = self
            .client
            .query_one(
                // By the two indexes that there are.
                "select coalesce(extract(epoch from min(at)), 0)::float8,
                        coalesce(extract(epoch from max(at)), 0)::float8
                   from (select finished_at as at from longshore.requests
                          where state = 'done' and finished_at > to_timestamp($1)
                          union all
                         select finished_at from longshore.requests
                          where state = 'dead' and finished_at > to_timestamp($1)) as ended",
                &[&after],
            )
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// How many requests ended after this instant.
    pub(super) async fn ended_after(&self, seconds: f64) -> anyhow::Result<i64> {
        let count = "select count(*) from longshore.requests where finished_at > to_timestamp($1)";
        Ok(self.client.query_one(count, &[&seconds]).await?.get(0))
    }
}

/// A new database in place of the last one, with nothing left to flush.
async fn fresh(postgres: &Postgres) -> anyhow::Result<Client> {
    postgres.drop_database(DATABASE).await?;
    let client = longshore_drill::database::connect(
        &postgres.create_database(DATABASE, Some(TEMPLATE)).await?,
    )
    .await?;
    client.batch_execute("checkpoint").await?;
    Ok(client)
}
