//! Servers, a stub and a database of one's own, for as long as something is shown on them.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::timeout;
use tokio_postgres::{Client, Row, types::ToSql};

use crate::{
    apart,
    place::{self, Private},
    postgres::Postgres,
    process::Process,
    rabbit::Rabbit,
    server::Life,
    stub::Behaviour,
    worker::{Settings, Worker},
};

/// How long one question to the ledger may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the stub may take to end.
const STUB_STOP: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    pub(crate) rabbit: Rabbit,
    pub(crate) postgres: Postgres,
    pub(crate) settings: Settings,
    client: Client,
    stub: Process,
    // The last to be dropped: the servers live in it.
    pub(crate) dir: Private,
}

impl Stage {
    /// With the example service, its exchange and its queue.
    pub(crate) async fn of_the_example(name: &str) -> anyhow::Result<Self> {
        let example = place::checkout().join("config/user-service");
        let settings = tokio::fs::read_to_string(example.join("longshore.toml")).await?;
        let functions = tokio::fs::read_to_string(example.join("service.sql")).await?;
        let stage = Self::open(name, &settings, &functions).await?;
        // The first worker declares the exchange and the queue.
        Worker::start(&stage.settings).await?.stop().await?;
        Ok(stage)
    }

    /// With these settings and these functions. No worker runs yet.
    pub(crate) async fn open(name: &str, settings: &str, functions: &str) -> anyhow::Result<Self> {
        let dir = Private::new(name)?;
        let (rabbit, postgres) = tokio::try_join!(
            Rabbit::start(dir.path().join("rabbitmq"), name),
            Postgres::start(dir.path().join("postgres")),
        )?;
        let (stub, stub_url) = apart::start(&dir.path().join("stub.log"), Life::Private).await?;
        let config = dir.path().join("longshore.toml");
        tokio::fs::write(&config, settings).await?;
        let settings = Settings {
            config,
            amqp_url: rabbit.url(),
            pg_url: postgres.create_database(&format!("longshore_{name}"), None).await?,
            stub_url,
            log: dir.path().join("worker.log"),
        };
        settings.command(&["migrate"]).await?;
        let client = longshore_drill::database::connect(&settings.pg_url).await?;
        client.batch_execute(functions).await.context("the functions cannot be installed")?;
        Ok(Self { rabbit, postgres, settings, client, stub, dir })
    }

    /// How a service behaves from now on.
    pub(crate) async fn behave(&self, service: &str, as_told: &Behaviour) -> anyhow::Result<()> {
        apart::behave(&self.settings.stub_url, service, as_told).await
    }

    pub(crate) async fn steer(&self, order: &[&str]) -> anyhow::Result<()> {
        self.settings.command(&[&["steer"], order].concat()).await
    }

    /// Connects to Postgres anew, after it has come back.
    pub(crate) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.client = longshore_drill::database::connect(&self.settings.pg_url).await?;
        Ok(())
    }

    pub(crate) async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let asked = timeout(ANSWER, self.client.batch_execute(sql)).await;
        Ok(asked.context("Postgres does not answer")??)
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> anyhow::Result<Vec<Row>> {
        let asked = timeout(ANSWER, self.client.query(sql, parameters)).await;
        Ok(asked.context("Postgres does not answer")??)
    }

    /// The number that a query says.
    pub(crate) async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let rows = self.query(sql, &[]).await?;
        Ok(rows.first().context("no row")?.try_get(0)?)
    }

    /// Ends the stub. The servers end when this is dropped.
    pub(crate) async fn close(&self) {
        self.stub.ask(Signal::TERM, STUB_STOP).await;
        self.stub.kill().await;
    }
}
