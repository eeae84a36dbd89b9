//! The servers, the worker and the stub of one measurement, private to it.

use super::load;
use crate::{account::Sources, server::Life, stage::Stage, stub::Behaviour, worker::Worker};

/// How long a call takes, and how many requests are worked at once: together some hundred a
/// second, so that work is under way at any moment and the queue lasts.
const LATENCY_MS: u64 = 150;
const CONCURRENCY: &str = "8";

pub(super) struct Fleet {
    worker: Option<Worker>,
    pub(super) stage: Stage,
}

impl Fleet {
    /// Servers, stub, database and queue; no worker yet.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let stage = Stage::of_the_example("recovery").await?;
        stage.behave("mailer", &Behaviour::Ok { latency_ms: LATENCY_MS }).await?;
        Ok(Self { worker: None, stage })
    }

    pub(super) async fn start_worker(&mut self) -> anyhow::Result<()> {
        let mut command = self.stage.settings.prepare()?;
        command.arg("run").env("LONGSHORE__WORKER__CONCURRENCY", CONCURRENCY);
        let mut worker = Worker::spawn(command, &self.stage.settings.log, Life::Private)?;
        worker.until_ready().await?;
        self.worker = Some(worker);
        Ok(())
    }

    /// Lets calls be answered at once, from now on: the rest is done quickly.
    pub(super) async fn hurry(&self) -> anyhow::Result<()> {
        self.stage.behave("mailer", &Behaviour::default()).await
    }

    /// Connects anew, after Postgres has come back.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.stage.reconnect().await
    }

    pub(super) async fn done(&self) -> anyhow::Result<i64> {
        self.stage.number("select count(*) from longshore.requests where state = 'done'").await
    }

    /// When the first request after this moment was done; both in seconds since 1970.
    pub(super) async fn first_done_after(&self, moment: f64) -> anyhow::Result<Option<f64>> {
        let sql = "select extract(epoch from min(finished_at))::float8 from longshore.requests
                    where state = 'done' and finished_at > to_timestamp($1)";
        let rows = self.stage.query(sql, &[&moment]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.flatten())
    }

    pub(super) fn sources(&self) -> Sources {
        Sources {
            pg_url: self.stage.settings.pg_url.clone(),
            amqp_url: self.stage.settings.amqp_url.clone(),
            queues: vec![load::QUEUE.to_owned()],
            dead_queue: load::DEAD.to_owned(),
            schema: "longshore".to_owned(),
            effects: None,
            users: Some("app.users".to_owned()),
            stub_url: Some(self.stage.settings.stub_url.clone()),
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
        self.stage.close().await;
        Ok(())
    }
}
