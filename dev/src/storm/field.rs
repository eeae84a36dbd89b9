//! The servers, the workers and the stub, private to this.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Row, types::ToSql};

use super::load::{self, Publisher};
use crate::{
    account, apart,
    place::{self, Private},
    postgres::Postgres,
    process::Process,
    rabbit::Rabbit,
    server::Life,
    stub::{Behaviour, busiest_at},
    worker::{Settings, Worker},
};

const DATABASE: &str = "longshore_storm";
/// How long one question to the ledger may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the last requests of a phase may take.
const QUIET: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(200);
/// How long the stub may take to end.
const STUB_STOP: Duration = Duration::from_secs(10);

pub(super) struct Field {
    rabbit: Rabbit,
    postgres: Postgres,
    settings: Settings,
    count: usize,
    workers: Vec<Worker>,
    stub: Process,
    client: Client,
    // The last to be dropped: the servers live in it.
    dir: Private,
}

impl Field {
    /// Servers, stub, database and queue; no worker yet.
    pub(super) async fn open(workers: usize) -> anyhow::Result<Self> {
        let dir = Private::new("storm")?;
        let (rabbit, postgres) = tokio::try_join!(
            Rabbit::start(dir.path().join("rabbitmq"), "storm"),
            Postgres::start(dir.path().join("postgres")),
        )?;
        let (stub, stub_url) = apart::start(&dir.path().join("stub.log"), Life::Private).await?;
        let example = place::checkout().join("config/user-service");
        let settings = Settings {
            config: example.join("longshore.toml"),
            amqp_url: rabbit.url(),
            pg_url: postgres.create_database(DATABASE, None).await?,
            stub_url,
            log: dir.path().join("first.log"),
        };
        settings.command(&["migrate"]).await?;
        let client = longshore_drill::database::connect(&settings.pg_url).await?;
        let sql = tokio::fs::read_to_string(example.join("service.sql")).await?;
        client.batch_execute(&sql).await.context("the example service cannot be installed")?;
        // The first worker declares the exchange and the queue.
        Worker::start(&settings).await?.stop().await?;
        Ok(Self {
            rabbit,
            postgres,
            settings,
            count: workers,
            workers: Vec::new(),
            stub,
            client,
            dir,
        })
    }

    /// An empty ledger, and workers that know of no trouble.
    pub(super) async fn fresh(&mut self) -> anyhow::Result<()> {
        self.stop_workers().await?;
        self.behave(&Behaviour::default()).await?;
        let empty = "truncate longshore.requests, longshore.attempts, longshore.steering";
        self.client.batch_execute(empty).await?;
        for number in 0..self.count {
            let log = self.log(number);
            if log.exists() {
                tokio::fs::remove_file(&log).await?;
            }
            let mut command = self.settings.prepare()?;
            command.arg("run");
            let mut worker = Worker::spawn(command, &log, Life::Private)?;
            worker.until_ready().await?;
            self.workers.push(worker);
        }
        // From now on.
        self.busiest().await?;
        Ok(())
    }

    fn log(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("worker-{number}.log"))
    }

    /// What the workers have told, of the lines with this text in them.
    async fn lines<T>(
        &self,
        with: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> anyhow::Result<Vec<T>> {
        let mut told = Vec::new();
        for number in 0..self.count {
            let text = tokio::fs::read_to_string(self.log(number)).await?;
            let lines = text.lines().filter(|line| line.contains(with));
            let lines = lines.filter_map(|line| serde_json::from_str(line).ok());
            told.extend(lines.filter_map(|line: Value| read(&line)));
        }
        Ok(told)
    }

    /// The lines of an event.
    pub(super) async fn events(&self, event: &str) -> anyhow::Result<Vec<Value>> {
        self.lines(event, |line| (line["event"] == event).then(|| line.clone())).await
    }

    /// The requests that were parked on the geocoder.
    pub(super) async fn parked(&self) -> anyhow::Result<HashSet<String>> {
        let parked = |line: &Value| {
            let id = line["request_id"].as_str()?;
            (line["parked_on"] == "geocoder").then(|| id.to_owned())
        };
        Ok(self.lines("parked_on", parked).await?.into_iter().collect())
    }

    /// How long each attempt has held its slot, in milliseconds.
    pub(super) async fn held(&self) -> anyhow::Result<Vec<f64>> {
        self.lines("request.finished", |line| line["duration_ms"].as_f64()).await
    }

    /// Waits until every worker follows an order about this.
    pub(super) async fn until_steered(&self, subject: &str) -> anyhow::Result<()> {
        let give_up = Instant::now() + QUIET;
        loop {
            let applied = self.events("steer.applied").await?;
            if applied.iter().filter(|line| line["subject"] == subject).count() >= self.count {
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("the workers do not follow");
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until so many are parked.
    pub(super) async fn until_parked(&self, wanted: usize) -> anyhow::Result<()> {
        let give_up = Instant::now() + QUIET;
        let parked = "select count(*) from longshore.requests where state = 'parked'";
        while self.number(parked).await? < wanted as i64 {
            if Instant::now() > give_up {
                bail!("{wanted} requests are not parked, and it does not go on");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn publisher(&self) -> anyhow::Result<Publisher> {
        Publisher::connect(&self.rabbit.url()).await
    }

    /// How the geocoder behaves from now on.
    pub(super) async fn behave(&self, behaviour: &Behaviour) -> anyhow::Result<()> {
        apart::behave(&self.settings.stub_url, "geocoder", behaviour).await
    }

    /// The most calls at once that the geocoder had since this was last asked.
    pub(super) async fn busiest(&self) -> anyhow::Result<u64> {
        busiest_at(&self.settings.stub_url, "geocoder").await
    }

    pub(super) fn stub_url(&self) -> &str {
        &self.settings.stub_url
    }

    pub(super) fn workers(&self) -> usize {
        self.count
    }

    pub(super) async fn steer(&self, order: &[&str]) -> anyhow::Result<()> {
        self.settings.command(&[&["steer"], order].concat()).await
    }

    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> anyhow::Result<Vec<Row>> {
        let asked = timeout(ANSWER, self.client.query(sql, parameters)).await;
        Ok(asked.context("Postgres does not answer")??)
    }

    pub(super) async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let rows = self.query(sql, &[]).await?;
        Ok(rows.first().context("no row")?.try_get(0)?)
    }

    /// Waits until the queue is empty and nothing in the ledger is open.
    pub(super) async fn until_quiet(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + QUIET;
        account::until_empty(&self.rabbit.url(), load::QUEUE, QUIET).await?;
        loop {
            let open = "select count(*) from longshore.requests
                         where state in ('running', 'waiting', 'parked')";
            let open = self.number(open).await?;
            if open == 0 {
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("{open} requests are left open, and it does not go on");
            }
            sleep(LOOK).await;
        }
    }

    async fn stop_workers(&mut self) -> anyhow::Result<()> {
        for mut worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        Ok(())
    }

    /// Stops everything in order.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.stop_workers().await?;
        self.stub.ask(Signal::TERM, STUB_STOP).await;
        self.stub.kill().await;
        drop(self.client);
        self.rabbit.stop().await?;
        self.postgres.stop().await
    }
}
