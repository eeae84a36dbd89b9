//! `make compat`: the same tests against other versions of RabbitMQ and Postgres, each pair from a
//! Debian of its own.
//!
//! | suite | which tests | what they show |
//! |---|---|---|
//! | `queue` | all of `tests/queue` | deliveries, settling, topology, reconnecting, what versions do differently |
//! | `it` | all of `tests/it` but those of `SKIPPED` | the contract, the drain, each fault, SIGKILL at each step, a small drill |

mod report;
mod system;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{process::Command, time::Instant};

use self::{
    report::{Report, Row},
    system::System,
};
use crate::{chroot, place, process::Process, services::Services};

/// Beyond this a suite hangs: it is ended, and has failed.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Integration tests, the fastest first.
const SUITES: [&str; 2] = ["queue", "it"];

/// What says nothing of a server's version: documents against the code, and the memory of a worker,
/// which takes long.
const SKIPPED: [&str; 2] = ["documents::", "memory::"];

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this system (bookworm, trixie, forky); may be repeated
    #[arg(long = "system", value_name = "NAME")]
    systems: Vec<String>,
    /// Only this suite (queue, it); may be repeated
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Only tests whose names contain one of these
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// Only set up the systems
    #[arg(long)]
    setup: bool,
}

/// Runs them, prints a table, and says whether all passed.
///
/// # Errors
/// When a system cannot be set up, or the tests cannot be built.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let named =
        |names: &[String], name: &str| names.is_empty() || names.iter().any(|it| it == name);
    let systems = system::all()?;
    let systems: Vec<System> =
        systems.into_iter().filter(|system| named(&options.systems, system.name)).collect();
    let suites: Vec<&str> =
        SUITES.into_iter().filter(|suite| named(&options.suites, suite)).collect();
    if systems.is_empty() || suites.is_empty() {
        bail!("no system or no suite of that name, see --help");
    }
    for system in &systems {
        system.set_up().await?;
    }
    if options.setup {
        return Ok(true);
    }
    let programs = build(&suites).await?;
    let mut rows = Vec::new();
    for system in &systems {
        let kept = system.dir.is_none() && Services::running().await?.is_some();
        let mut row = Row::of(system)?;
        for (suite, program) in suites.iter().zip(&programs) {
            println!("{:<10} {suite} …", system.name);
            let report = test(system, suite, program, &options.tests).await?;
            println!("{:<10} {suite} {report}", system.name);
            row.reports.push(report);
        }
        rows.push(row);
        if !kept {
            down(system).await?;
        }
    }
    report::print(&suites, &rows);
    Ok(rows.iter().all(Row::passed))
}

/// Builds the suites; their programs, in the same order.
async fn build(suites: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut cargo = Command::new("cargo");
    cargo
        // As `make test` does, so that nothing is built twice.
        .args(["test", "--locked", "--workspace", "--features", "longshore/fail-points"])
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .args(suites.iter().flat_map(|suite| ["--test", suite]))
        .current_dir(place::checkout())
        .stderr(Stdio::inherit());
    let built = cargo.output().await.context("cargo cannot be started")?;
    if !built.status.success() {
        bail!("the tests do not build");
    }
    let told = String::from_utf8_lossy(&built.stdout).into_owned();
    suites
        .iter()
        .map(|suite| {
            told.lines()
                .find_map(|line| report::program(line, suite))
                .with_context(|| format!("cargo did not say where the tests of {suite} are"))
        })
        .collect()
}

/// Runs one suite on one system, its output going to a log.
async fn test(
    system: &System,
    suite: &str,
    program: &Path,
    tests: &[String],
) -> anyhow::Result<Report> {
    let log = system::folder().join(format!("{}.{suite}.log", system.name));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(tests);
    for skipped in SKIPPED {
        command.args(["--skip", skipped]);
    }
    command
        .current_dir(place::checkout())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true);
    system.enter(&mut command);
    let begun = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let process = child.id().and_then(Process::of);
    let ended = tokio::time::timeout(LIMIT, child.wait()).await;
    if ended.is_err() {
        // With what it has started itself; its servers end with it.
        for process in process.iter().flat_map(Process::descendants).chain(process) {
            process.kill().await;
        }
    }
    let text = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let clean = matches!(ended, Ok(Ok(status)) if status.success());
    Ok(Report::read(&String::from_utf8_lossy(&text), clean, begun.elapsed(), log))
}

/// Stops the servers that the tests of a system have started.
async fn down(system: &System) -> anyhow::Result<()> {
    // A process of its own: which system it is about is told by the environment.
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("down").stdout(Stdio::null());
    system.enter(&mut command);
    if !command.status().await?.success() {
        bail!("the servers of {} could not be stopped, see {}", system.name, chroot::VARIABLE);
    }
    Ok(())
}
