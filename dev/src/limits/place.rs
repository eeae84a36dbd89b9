//! The servers, the stub and the worker of one measurement, private to it.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::timeout;
use tokio_postgres::Client;

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

/// The service that is called.
pub(super) const SERVICE: &str = "mailer";
/// The kind that calls it and does nothing else.
pub(super) const KIND: &str = "user.welcome.send";
const DATABASE: &str = "longshore_limits";
/// How long one question to the ledger may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the stub may take to end.
const STUB_STOP: Duration = Duration::from_secs(10);

pub(super) struct Place {
    pub(super) rabbit: Rabbit,
    settings: Settings,
    stub: Process,
    client: Client,
    _postgres: Postgres,
    // The last to be dropped: the servers live in it.
    _dir: Private,
}

impl Place {
    pub(super) async fn open() -> anyhow::Result<Self> {
        let dir = Private::new("limits")?;
        let (rabbit, postgres) = tokio::try_join!(
            Rabbit::start(dir.path().join("rabbitmq"), "limits"),
            Postgres::start(dir.path().join("postgres")),
        )?;
        let (stub, stub_url) = apart::start(&dir.path().join("stub.log"), Life::Private).await?;
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
        Ok(Self { rabbit, settings, stub, client, _postgres: postgres, _dir: dir })
    }

    /// Starts a worker with these variables, without their `LONGSHORE__`.
    pub(super) async fn worker(&self, variables: &[(&str, &str)]) -> anyhow::Result<Worker> {
        let mut command = self.settings.prepare()?;
        command.arg("run").env("LONGSHORE__WORKER__COUNTS_INTERVAL", "250ms");
        for (name, value) in variables {
            command.env(format!("LONGSHORE__{name}"), value);
        }
        let mut worker = Worker::spawn(command, &self.settings.log, Life::Private)?;
        worker.until_ready().await?;
        Ok(worker)
    }

    pub(super) async fn steer(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.settings.command(&[&["steer"], arguments].concat()).await
    }

    pub(super) async fn behave(&self, behaviour: &Behaviour) -> anyhow::Result<()> {
        apart::behave(&self.settings.stub_url, SERVICE, behaviour).await
    }

    /// Forgets all requests: no worker runs.
    pub(super) async fn forget(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("truncate longshore.requests").await?)
    }

    /// When each request of these users was done, in seconds since 1970.
    pub(super) async fn done(&self, user: &str) -> anyhow::Result<Vec<(String, f64)>> {
        let sql =
            "select request_id, extract(epoch from finished_at)::float8 from longshore.requests
                    where state = 'done' and user_id like $1";
        let asked = timeout(ANSWER, self.client.query(sql, &[&user])).await;
        let rows = asked.context("Postgres does not answer")??;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    pub(super) async fn close(self) {
        self.stub.ask(Signal::TERM, STUB_STOP).await;
        self.stub.kill().await;
    }
}

/// The value of a series that a worker exports; 0 where there is none.
pub(super) async fn metric(worker: &Worker, series: &str) -> anyhow::Result<f64> {
    let text = worker.metrics().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    Ok(value.unwrap_or_default())
}
