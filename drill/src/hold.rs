//! The end of orphans: a server that a test started must not outlive the test process, however
//! that one dies.
//!
//! `PR_SET_PDEATHSIG` would be the kernel's own way, but it follows the *thread* that spawned, and
//! a test's thread ends long before its process. So a shell watches the two pids.

use std::process::{ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::process::Command;

use crate::process::Process;

/// `$1` is the parent, `$2` the child. A pid is taken for the same process only while its start
/// time (field 22 of `stat`) stays the same; zombies count as gone.
const WATCH: &str = r#"
started() {
  at=
  { IFS= read -r line < "/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${line##*) }
  [ "$1" = Z ] || at=${20}
}
started "$1"; parent=$at
started "$2"; child=$at
while [ -n "$child" ]; do
  started "$2"; [ "$at" = "$child" ] || exit 0
  started "$1"; [ -n "$parent" ] && [ "$at" = "$parent" ] || break
  sleep 0.5
done
kill -TERM "$2" 2>/dev/null
tries=0
while [ $tries -lt 20 ]; do
  started "$2"; [ "$at" = "$child" ] || exit 0
  sleep 0.5
  tries=$((tries + 1))
done
kill -KILL "$2" 2>/dev/null
"#;

/// Starts a watcher that ends `child` (SIGTERM, 10 s later SIGKILL) once `parent` has gone, and
/// that ends by itself once `child` has. Returns at once.
///
/// # Errors
/// When there is no `sh`.
pub fn watch(parent: Process, child: Process) -> anyhow::Result<()> {
    Command::new("sh")
        .args(["-c", WATCH, "longshore-hold", &parent.pid.to_string(), &child.pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C at the terminal is for the parent; the watcher must live to see it die.
        .process_group(0)
        .spawn()
        .context("cannot start sh, which watches over started servers")?;
    Ok(())
}

/// Runs a command that is ended when the process `parent` vanishes: the sub-command
/// `longshore-dev hold PARENT_PID -- command …`. SIGTERM and SIGINT are handed on to it.
///
/// # Errors
/// When the command cannot be started or the parent has gone already.
pub async fn run(parent: u32, program: &str, args: &[String]) -> anyhow::Result<ExitStatus> {
    use tokio::signal::unix::{SignalKind, signal};
    let parent = Process::of(parent)
        .with_context(|| format!("process {parent} has gone, nothing was started"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child =
        Command::new(program).args(args).process_group(0).kill_on_drop(true).spawn().with_context(
            || format!("cannot start {program}, check that it is installed and in PATH"),
        )?;
    let process = child.id().and_then(Process::of);
    if let Some(process) = process {
        watch(parent, process)?;
    }
    loop {
        let asked = tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = terminate.recv() => Signal::TERM,
            _ = interrupt.recv() => Signal::INT,
        };
        if let Some(process) = process {
            process.signal(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[tokio::test]
    async fn the_child_ends_with_its_parent() {
        let mut parent = Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let mut child = Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let pid = |child: &tokio::process::Child| Process::of(child.id().unwrap()).unwrap();
        watch(pid(&parent), pid(&child)).unwrap();
        parent.kill().await.unwrap();
        let status = tokio::time::timeout(std::time::Duration::from_secs(30), child.wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(15),
            "asked, not killed"
        );
    }

    #[tokio::test]
    async fn a_held_command_ends_by_itself_with_its_own_code() {
        let status =
            run(std::process::id(), "sh", &["-c".to_owned(), "exit 7".to_owned()]).await.unwrap();
        assert_eq!(status.code(), Some(7));
        let error = run(u32::MAX, "sh", &[]).await.unwrap_err();
        assert!(error.to_string().contains("nothing was started"), "{error}");
    }
}
