//! The servers, the workers and the stub, private to this.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use anyhow::bail;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::load::{self, Publisher};
use crate::{
    account,
    server::Life,
    stage::Stage,
    stub::{Behaviour, busiest_at},
    worker::Worker,
};

/// How long the last requests of a phase may take.
const QUIET: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct Field {
    workers: Vec<Worker>,
    pub(super) stage: Stage,
}

impl Field {
    /// Servers, stub, database and queue, and workers that know of no trouble.
    pub(super) async fn open(workers: usize) -> anyhow::Result<Self> {
        let stage = Stage::of_the_example("storm").await?;
        let mut field = Self { workers: Vec::new(), stage };
        for number in 0..workers {
            let mut command = field.stage.settings.prepare()?;
            command.arg("run");
            let mut worker = Worker::spawn(command, &field.log(number), Life::Private)?;
            worker.until_ready().await?;
            field.workers.push(worker);
        }
        Ok(field)
    }

    fn log(&self, number: usize) -> PathBuf {
        self.stage.dir.path().join(format!("worker-{number}.log"))
    }

    /// What the workers have told, of the lines with this text in them.
    async fn lines<T>(
        &self,
        with: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> anyhow::Result<Vec<T>> {
        let mut told = Vec::new();
        for number in 0..self.workers.len() {
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
            if applied.iter().filter(|line| line["subject"] == subject).count()
                >= self.workers.len()
            {
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
        self.until_there(wanted, "state = 'parked'").await
    }

    /// Waits until so many are in the ledger: what has left the queue may not be there yet.
    pub(super) async fn until_filed(&self, wanted: usize) -> anyhow::Result<()> {
        self.until_there(wanted, "true").await
    }

    async fn until_there(&self, wanted: usize, which: &str) -> anyhow::Result<()> {
        let give_up = Instant::now() + QUIET;
        let there = format!("select count(*) from longshore.requests where {which}");
        while self.stage.number(&there).await? < wanted as i64 {
            if Instant::now() > give_up {
                bail!("there are no {wanted} requests with {which}, and it does not go on");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn publisher(&self) -> anyhow::Result<Publisher> {
        Publisher::connect(&self.stage.rabbit.url()).await
    }

    /// How the geocoder behaves from now on.
    pub(super) async fn behave(&self, behaviour: &Behaviour) -> anyhow::Result<()> {
        self.stage.behave("geocoder", behaviour).await
    }

    /// The most calls at once that the geocoder had since this was last asked.
    pub(super) async fn busiest(&self) -> anyhow::Result<u64> {
        busiest_at(&self.stage.settings.stub_url, "geocoder").await
    }

    pub(super) fn stub_url(&self) -> &str {
        &self.stage.settings.stub_url
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Waits until the queue is empty and nothing in the ledger is open.
    pub(super) async fn until_quiet(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + QUIET;
        account::until_empty(&self.stage.rabbit.url(), load::QUEUE, QUIET).await?;
        loop {
            let open = "select count(*) from longshore.requests
                         where state in ('running', 'waiting', 'parked')";
            let open = self.stage.number(open).await?;
            if open == 0 {
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("{open} requests are left open, and it does not go on");
            }
            sleep(LOOK).await;
        }
    }

    /// Stops everything in order.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        for mut worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        self.stage.close().await;
        self.stage.rabbit.stop().await?;
        self.stage.postgres.stop().await
    }
}
