//! The worker process of the demo.

use std::{fs::File, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{forget_process, keep_process};
use crate::{process::Process, server, stub};

/// How long a worker may take to start, and to drain.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// How workers are started.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) config: PathBuf,
    pub(super) amqp_url: String,
    pub(super) pg_url: String,
    pub(super) stub_url: String,
    pub(super) log: PathBuf,
}

impl Settings {
    fn prepare(&self) -> anyhow::Result<Command> {
        let mut binary = std::env::current_exe()?;
        binary.set_file_name("longshore");
        if !binary.exists() {
            bail!("{} is not there, build it with `cargo build`", binary.display());
        }
        let mut command = Command::new(binary);
        command
            .arg("--config")
            .arg(&self.config)
            .env("AMQP_URL", &self.amqp_url)
            .env("DATABASE_URL", &self.pg_url)
            .env("LONGSHORE__DEPENDENCIES__GEOCODER__URL", format!("{}/geocoder", self.stub_url))
            .env("LONGSHORE__DEPENDENCIES__MAILER__URL", format!("{}/mailer", self.stub_url))
            .env("LONGSHORE__ADMIN__BIND", "127.0.0.1:0");
        Ok(command)
    }

    /// Runs a command to its end, showing what it says.
    pub(super) async fn command(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = self.prepare()?;
        let status = timeout(PATIENCE, command.args(arguments).kill_on_drop(true).status());
        let status =
            status.await.with_context(|| format!("longshore {arguments:?} did not end"))??;
        if !status.success() {
            bail!("longshore {arguments:?} failed, {status}");
        }
        Ok(())
    }
}

/// A running worker.
pub(super) struct Worker {
    child: Child,
    process: Process,
    log: PathBuf,
    /// Where its log begins in the file.
    from: u64,
    admin: String,
}

impl Worker {
    /// Starts a worker and waits until it consumes.
    pub(super) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(&settings.log)?;
        let from = log.metadata()?.len();
        let child = settings
            .prepare()?
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C ends the demo; the worker is stopped in order, or left.
            .process_group(0)
            .spawn()?;
        let process = child.id().and_then(Process::of).context("the worker ended at once")?;
        keep_process(process)?;
        let mut worker =
            Self { child, process, log: settings.log.clone(), from, admin: String::new() };
        let give_up = Instant::now() + PATIENCE;
        while !worker.is_ready().await {
            if Instant::now() > give_up || !process.is_alive() {
                bail!(
                    "the worker did not become ready, its log ends with{}",
                    server::tail(&[&settings.log])
                );
            }
            sleep(LOOK).await;
        }
        Ok(worker)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid
    }

    pub(super) fn admin(&self) -> &str {
        &self.admin
    }

    async fn is_ready(&mut self) -> bool {
        if self.admin.is_empty() {
            let Some(address) = self
                .event("admin.listening")
                .and_then(|line| Some(line["address"].as_str()?.to_owned()))
            else {
                return false;
            };
            self.admin = address;
        }
        let Ok(client) = stub::client() else { return false };
        let answer = client.get(format!("http://{}/health/ready", self.admin)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// The last line of this event in this worker's part of the log.
    fn event(&self, event: &str) -> Option<Value> {
        let text = std::fs::read(&self.log).ok()?;
        let ours = text.get(usize::try_from(self.from).ok()?..)?;
        let lines = ours.split(|byte| *byte == b'\n').rev();
        lines
            .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
            .find(|line| line["event"] == event)
    }

    /// SIGTERM; what its account of the drain says.
    ///
    /// # Errors
    /// When it does not end in time, or not with 0.
    pub(super) async fn drain(&mut self) -> anyhow::Result<String> {
        self.process.signal(rustix::process::Signal::TERM);
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("the worker did not drain in time")??;
        forget_process(self.process)?;
        if !status.success() {
            bail!(
                "the worker did not drain cleanly, {status}; its log ends with{}",
                server::tail(&[&self.log])
            );
        }
        let line =
            self.event("worker.drained").context("the worker gave no account of its drain")?;
        Ok(format!(
            "finished {}, given back {}, interrupted {}, in {:.2} s, exit 0",
            line["finished"],
            line["given_back"],
            line["interrupted"],
            line["seconds"].as_f64().unwrap_or_default()
        ))
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the worker cannot be killed")?;
        forget_process(self.process)
    }
}
