//! One worker process: how it is started and ended, and what it says.

use std::{
    collections::VecDeque,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::{slot::Shared, tally::Sign};
use crate::{hold, process::Process};

/// How long a worker may take to drain; its own grace is shorter.
const DRAIN: Duration = Duration::from_secs(45);
/// How long a fault waits for a worker that consumes, and for a worker's word that its connection is
/// gone.
pub(super) const READY: Duration = Duration::from_secs(20);
/// How many lines of a worker are kept for errors.
const KEPT: usize = 12;

/// What has been seen of a worker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// At this moment.
    pub(super) connected: bool,
    /// How often it was, and how often it no longer was.
    pub(super) connections: u32,
    pub(super) disconnected: u32,
}

/// A worker that runs.
pub(super) struct Worker {
    pub(super) child: Child,
    pub(super) process: Process,
    pub(super) consumes: watch::Receiver<Seen>,
    last: Arc<Mutex<VecDeque<String>>>,
    ears: Vec<JoinHandle<()>>,
}

impl Worker {
    /// Starts one, with broker and database by way of these URLs.
    pub(super) fn start(shared: &Arc<Shared>, amqp: &str, postgres: &str) -> anyhow::Result<Self> {
        let mut child = shared
            .command(amqp, postgres)
            .arg("run")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", shared.exe.display()))?;
        let process = child.id().and_then(Process::of).context("a worker ended at once")?;
        // Where there is no shell nobody watches; then the workers of a drill that is itself
        // killed find their lines gone, and stay without work until somebody ends them.
        let _watched = Process::current().is_ok_and(|me| hold::watch(me, process).is_ok());
        shared.started().0 += 1;
        let (seen, consumes) = watch::channel(Seen::default());
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let mut ears = Vec::new();
        if let Some(out) = child.stdout.take() {
            let heard = follow(out, Arc::clone(shared), seen.clone(), Arc::clone(&last));
            ears.push(tokio::spawn(heard));
        }
        if let Some(err) = child.stderr.take() {
            ears.push(tokio::spawn(follow(err, Arc::clone(shared), seen, Arc::clone(&last))));
        }
        Ok(Self { child, process, consumes, last, ears })
    }

    /// Once it has ended: reads what is left of what it said.
    pub(super) async fn hear_out(&mut self) {
        for ear in self.ears.drain(..) {
            let _heard = timeout(READY, ear).await.is_ok();
        }
    }

    /// Waits until it consumes, though not for ever.
    pub(super) async fn until_connected(&mut self) {
        let _ready = timeout(READY, self.consumes.wait_for(|seen| seen.connected)).await.is_ok();
    }

    /// SIGTERM; none when it had to be killed.
    pub(super) async fn terminate(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.process.signal(Signal::TERM);
        if let Ok(status) = timeout(DRAIN, self.child.wait()).await {
            self.hear_out().await;
            return Ok(Some(status?));
        }
        self.child.kill().await?;
        Ok(None)
    }

    pub(super) fn last_words(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = last.iter().map(String::as_str).collect();
        format!("its last lines:\n{}", lines.join("\n"))
    }
}

/// Counts what a worker says, to its last line.
async fn follow(
    out: impl AsyncRead + Unpin,
    shared: Arc<Shared>,
    seen: watch::Sender<Seen>,
    last: Arc<Mutex<VecDeque<String>>>,
) {
    let mut lines = BufReader::with_capacity(64 * 1024, out).lines();
    let mut draining = false;
    while let Ok(Some(line)) = lines.next_line().await {
        match shared.tally().read(&line, &mut draining) {
            Sign::Connected => seen.send_modify(|seen| {
                seen.connected = true;
                seen.connections += 1;
            }),
            Sign::Disconnected => seen.send_modify(|seen| {
                seen.connected = false;
                seen.disconnected += 1;
            }),
            Sign::None => {}
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(line);
    }
}
