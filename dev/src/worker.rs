//! A worker process: how it is started, asked and stopped.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    hold,
    process::Process,
    server::{self, Life},
    stub,
};

/// How long a worker may take to start, and to drain.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) config: PathBuf,
    pub(crate) amqp_url: String,
    pub(crate) pg_url: String,
    pub(crate) stub_url: String,
    pub(crate) log: PathBuf,
}

impl Settings {
    /// The program with its settings; what is to be done comes behind.
    pub(crate) fn prepare(&self) -> anyhow::Result<Command> {
        let mut binary = std::env::current_exe()?;
        binary.set_file_name("longshore");
        if !binary.exists() {
            bail!("{} is not there, build it with `cargo build --workspace`", binary.display());
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
    pub(crate) async fn command(&self, arguments: &[&str]) -> anyhow::Result<()> {
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
pub(crate) struct Worker {
    child: Child,
    process: Process,
    log: PathBuf,
    /// Where its log begins in the file.
    from: u64,
    admin: String,
    client: reqwest::Client,
}

impl Worker {
    /// Starts a worker and waits until it consumes. It does not outlive this process.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let mut command = settings.prepare()?;
        command.arg("run");
        let mut worker = Self::spawn(command, &settings.log, Life::Private)?;
        worker.until_ready().await?;
        Ok(worker)
    }

    /// Starts a worker, or what behaves like one, with its output going to the end of `log`.
    pub(crate) fn spawn(mut command: Command, log: &Path, life: Life) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let from = out.metadata()?.len();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Ctrl-C ends who started it; the worker is stopped in order, or left.
            .process_group(0)
            .spawn()?;
        let process = child.id().and_then(Process::of).context("the worker ended at once")?;
        if life == Life::Private {
            hold::watch(Process::current()?, process)?;
        }
        Ok(Self {
            child,
            process,
            log: log.to_path_buf(),
            from,
            admin: String::new(),
            client: stub::client()?,
        })
    }

    /// Waits until it consumes.
    pub(crate) async fn until_ready(&mut self) -> anyhow::Result<()> {
        let give_up = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            if Instant::now() > give_up || !self.process.is_alive() {
                bail!("the worker did not become ready, {}", self.tail());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// The end of its log, for errors.
    pub(crate) fn tail(&self) -> String {
        format!("its log ends with{}", server::tail(&[&self.log]))
    }

    pub(crate) fn process(&self) -> Process {
        self.process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    pub(crate) fn admin(&self) -> &str {
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
        let answer = self.client.get(format!("http://{}/health/ready", self.admin)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// What it exports, as text.
    pub(crate) async fn metrics(&self) -> anyhow::Result<String> {
        let answer = self.client.get(format!("http://{}/metrics", self.admin)).send().await;
        let text = async { answer?.error_for_status()?.text().await };
        text.await.with_context(|| format!("the worker does not answer, {}", self.tail()))
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

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time, or not with 0.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.signal(rustix::process::Signal::TERM);
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("the worker did not end in time")??;
        if !status.success() {
            bail!("the worker did not end cleanly, {status}; {}", self.tail());
        }
        Ok(())
    }

    /// [`Worker::stop`]; what its account of the drain says.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<String> {
        self.stop().await?;
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
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the worker cannot be killed")
    }
}
