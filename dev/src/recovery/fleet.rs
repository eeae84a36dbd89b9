//! The servers, the worker and the stub of one measurement, private to it.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::load;
use crate::{
    account::Sources,
    apart,
    place::{self, Private},
    postgres::Postgres,
    process::Process,
    rabbit::Rabbit,
    server::Life,
    stub::Behaviour,
    worker::{Settings, Worker},
};

const DATABASE: &str = "longshore_recovery";
/// How long a call takes, and how many requests are worked at once: together some hundred a
/// second, so that work is under way at any moment and the queue lasts.
const LATENCY_MS: u64 = 150;
const CONCURRENCY: &str = "8";
/// How long one question to the ledger may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the stub may take to end.
const STUB_STOP: Duration = Duration::from_secs(10);

pub(super) struct Fleet {
    pub(super) rabbit: Rabbit,
    pub(super) postgres: Postgres,
    settings: Settings,
    worker: Option<Worker>,
    stub: Process,
    client: Client,
    // The last to be dropped: the servers live in it.
    _dir: Private,
}

impl Fleet {
    /// Servers, stub, database and queue; no worker yet.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let dir = Private::new("recovery")?;
        let (rabbit, postgres) = tokio::try_join!(
            Rabbit::start(dir.path().join("rabbitmq"), "recovery"),
            Postgres::start(dir.path().join("postgres")),
        )?;
        let (stub, stub_url) = apart::start(&dir.path().join("stub.log"), Life::Private).await?;
        let latency = Behaviour::Ok { latency_ms: LATENCY_MS };
        apart::behave(&stub_url, "mailer", &latency).await?;
        let example = place::checkout().join("config/user-service");
        let settings = Settings {
            config: example.join("longshore.toml"),
            amqp_url: rabbit.url(),
            pg_url: postgres.create_database(DATABASE, None).await?,
            stub_url,
            log: dir.path().join("worker.log"),
        };
        settings.command(&["migrate"]).await?;
        let client = longshore_drill::database::connect(&settings.pg_url).await?;
        let sql = tokio::fs::read_to_string(example.join("service.sql")).await?;
        client.batch_execute(&sql).await.context("the example service cannot be installed")?;
        // The first worker declares the exchange and the queue.
        Worker::start(&settings).await?.stop().await?;
        Ok(Self { rabbit, postgres, settings, worker: None, stub, client, _dir: dir })
    }

    pub(super) async fn start_worker(&mut self) -> anyhow::Result<()> {
        let mut command = self.settings.prepare()?;
        command.arg("run").env("LONGSHORE__WORKER__CONCURRENCY", CONCURRENCY);
        let mut worker = Worker::spawn(command, &self.settings.log, Life::Private)?;
        worker.until_ready().await?;
        self.worker = Some(worker);
        Ok(())
    }

    /// Lets calls be answered at once, from now on: the rest is done quickly.
    pub(super) async fn hurry(&self) -> anyhow::Result<()> {
        apart::behave(&self.settings.stub_url, "mailer", &Behaviour::default()).await
    }

    /// Connects anew, after Postgres has come back.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.client = longshore_drill::database::connect(&self.settings.pg_url).await?;
        Ok(())
    }

    pub(super) async fn done(&self) -> anyhow::Result<i64> {
        let sql = "select count(*) from longshore.requests where state = 'done'";
        let asked = timeout(ANSWER, self.client.query_one(sql, &[])).await;
        Ok(asked.context("Postgres does not answer")??.try_get(0)?)
    }

    /// When the first request after this moment was done; both in seconds since 1970.
    pub(super) async fn first_done_after(&self, moment: f64) -> anyhow::Result<Option<f64>> {
        let sql = "select extract(epoch from min(finished_at))::float8 from longshore.requests
                    where state = 'done' and finished_at > to_timestamp($1)";
        let asked = timeout(ANSWER, self.client.query_one(sql, &[&moment])).await;
        Ok(asked.context("Postgres does not answer")??.try_get(0)?)
    }

    pub(super) fn sources(&self) -> Sources {
        Sources {
            pg_url: self.settings.pg_url.clone(),
            amqp_url: self.settings.amqp_url.clone(),
            queues: vec![load::QUEUE.to_owned()],
            dead_queue: load::DEAD.to_owned(),
            schema: "longshore".to_owned(),
            effects: None,
            users: Some("app.users".to_owned()),
            stub_url: Some(self.settings.stub_url.clone()),
        }
    }

    /// The end of the worker's log, for errors.
    pub(super) fn tail(&self) -> String {
        self.worker.as_ref().map_or_else(|| "no worker runs".to_owned(), Worker::tail)
    }

    pub(super) async fn stop_worker(&mut self) -> anyhow::Result<()> {
        if let Some(mut worker) = self.worker.take() {
            worker.stop().await?;
        }
        self.stub.ask(Signal::TERM, STUB_STOP).await;
        self.stub.kill().await;
        Ok(())
    }
}
