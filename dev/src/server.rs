//! What the two servers have in common: how they are started, waited for and stopped.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{process::Command, time::Instant};

use crate::{hold, process::Process};

/// How long a server may take until it answers in its own protocol.
pub(crate) const START: Duration = Duration::from_secs(180);
/// How long one attempt to talk to it may take.
pub(crate) const TALK: Duration = Duration::from_secs(5);
/// How long between two attempts.
const BETWEEN: Duration = Duration::from_millis(100);
/// How much of a log is shown when a start failed, in bytes.
const TAIL: u64 = 3_000;

/// How long a server lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until its handle is dropped, and not longer than this process.
    Private,
    /// Until somebody says `down`.
    Shared,
}

/// Starts a server in the background, its output going to the end of `log`.
pub(crate) fn spawn(mut command: Command, log: &Path, life: Life) -> anyhow::Result<Process> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        // Ctrl-C at the terminal must not reach it: it is stopped by us, in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let process = child.id().and_then(Process::of);
    let process = process.with_context(|| format!("{program} ended at once{}", tail(&[log])))?;
    if life == Life::Private {
        hold::watch(Process::current()?, process)?;
    }
    Ok(process)
}

/// Asks `talk` again and again until it succeeds, the process ends or [`START`] is over.
pub(crate) async fn until_ready<F>(
    what: &str,
    process: Process,
    logs: &[&Path],
    mut talk: impl FnMut() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let until = Instant::now() + START;
    loop {
        let answer = tokio::time::timeout(TALK, talk()).await;
        let why = match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {TALK:?}"),
        };
        if !process.is_alive() {
            bail!("{what} ended while it started, its log ends with{}", tail(logs));
        }
        if Instant::now() >= until {
            bail!("{what} was not ready within {START:?} ({why}), its log ends with{}", tail(logs));
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// The last lines of some logs.
pub(crate) fn tail(logs: &[&Path]) -> String {
    let mut text = String::new();
    for log in logs {
        let Ok(mut file) = File::open(log) else { continue };
        let length = file.metadata().map_or(0, |meta| meta.len());
        let mut bytes = Vec::new();
        if file
            .seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .and_then(|_| file.read_to_end(&mut bytes))
            .is_ok()
        {
            text.push_str(&format!("\n--- {}\n{}", log.display(), String::from_utf8_lossy(&bytes)));
        }
    }
    text
}

/// Reads a small JSON file; `None` where it is missing or makes no sense.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a small JSON file in one step: a reader sees the old one or the new one. Only its owner
/// may read it, for it may hold passwords.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let next = path.with_extension("json.next");
    File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&next)
        .and_then(|mut file| file.write_all(&serde_json::to_vec_pretty(value)?))
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
