//! The servers, the stub and the worker of one measurement, private to it.

use crate::{server::Life, stage::Stage, stub::Behaviour, worker::Worker};

/// The service that is called.
pub(super) const SERVICE: &str = "mailer";
/// The kind that calls it and does nothing else.
pub(super) const KIND: &str = "user.welcome.send";

pub(super) struct Place(Stage);

impl Place {
    pub(super) async fn open() -> anyhow::Result<Self> {
        Ok(Self(Stage::of_the_example("limits").await?))
    }

    pub(super) fn amqp_url(&self) -> String {
        self.0.rabbit.url()
    }

    /// Starts a worker with these variables, without their `LONGSHORE__`.
    pub(super) async fn worker(&self, variables: &[(&str, &str)]) -> anyhow::Result<Worker> {
        let mut command = self.0.settings.prepare()?;
        command.arg("run").env("LONGSHORE__WORKER__COUNTS_INTERVAL", "250ms");
        for (name, value) in variables {
            command.env(format!("LONGSHORE__{name}"), value);
        }
        let mut worker = Worker::spawn(command, &self.0.settings.log, Life::Private)?;
        worker.until_ready().await?;
        Ok(worker)
    }

    pub(super) async fn steer(&self, order: &[&str]) -> anyhow::Result<()> {
        self.0.steer(order).await
    }

    pub(super) async fn behave(&self, behaviour: &Behaviour) -> anyhow::Result<()> {
        self.0.behave(SERVICE, behaviour).await
    }

    /// Forgets all requests: no worker runs.
    pub(super) async fn forget(&self) -> anyhow::Result<()> {
        self.0.execute("truncate longshore.requests").await
    }

    /// When each request of these users was done, in seconds since 1970.
    pub(super) async fn done(&self, user: &str) -> anyhow::Result<Vec<(String, f64)>> {
        let sql =
            "select request_id, extract(epoch from finished_at)::float8 from longshore.requests
                    where state = 'done' and user_id like $1";
        let rows = self.0.query(sql, &[&user]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    pub(super) async fn close(self) {
        self.0.close().await;
    }
}

/// The value of a series that a worker exports; 0 where there is none.
pub(super) async fn metric(worker: &Worker, series: &str) -> anyhow::Result<f64> {
    let text = worker.metrics().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    Ok(value.unwrap_or_default())
}
