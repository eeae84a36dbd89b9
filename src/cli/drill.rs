//! `longshore drill`: the proof that nothing is lost and nothing done twice, on servers of the
//! operator's own. What it does is in the crate `longshore-drill`.

use std::{
    io::{IsTerminal as _, Write as _, stdin, stdout},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use longshore_drill::drill::{self, Options, Report, Scratch, Servers, Target, Unfit};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use crate::config::Config;

#[derive(Debug, Args)]
#[command(after_help = "\
The broker and the database are those of the settings, as for `longshore run`. A drill makes
exchanges and queues `longshore-drill-…` and a schema `longshore_drill_…` of its own there, touches
nothing else, and removes them at its end. Exit code 1 says that a rule is broken.

Some seconds of it, on servers of this machine:
  longshore drill --requests 5000 --kills 6 --cuts 5")]
pub(super) struct Arguments {
    /// How many requests are published
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// How many times a worker is killed: SIGKILL, SIGTERM, or SIGSTOP past its heartbeat
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,
    /// How many times connections are cut
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    cuts: u32,
    /// Workers at a time
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Requests published a second; as fast as it goes where it is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Begin chance with this number: the same requests and the same faults in the same order
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Publish nothing and harm nobody after this time, and draw up the account, e.g. 10m
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    bound: Option<Duration>,
    /// Write the report to this file as well, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not ask before working on servers that are not on this machine
    #[arg(long)]
    yes: bool,
    /// Leave queues and schema where they are at the end
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier drill has left, by the name that it gave, and do nothing else
    #[arg(long, value_name = "NAME", value_parser = Scratch::named)]
    remove: Option<Scratch>,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Exit {
    // Before anything is made: until then a signal would leave it behind.
    let (terminate, interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("longshore: signals cannot be caught: {error}");
                return Exit::Failed;
            }
        };
    let secret = |secret: &SecretString| secret.expose_secret().to_owned();
    let servers = Servers {
        amqp_url: secret(&config.queue.url),
        amqp_password: config.queue.password.as_ref().map(secret),
        postgres_url: secret(&config.ledger.url),
        postgres_password: config.ledger.password.as_ref().map(secret),
    };
    let target = match Target::find(&servers).await {
        Ok(target) => target,
        Err(Unfit::Settings(fault)) => {
            eprintln!("longshore: {fault}");
            return Exit::BadConfig;
        }
        Err(Unfit::Away(fault)) => {
            eprintln!("longshore: {fault}");
            return Exit::Failed;
        }
    };
    if !target.is_loopback() && !arguments.yes && !agreed(&target) {
        eprintln!(
            "longshore: {target} is not on this machine. Nothing was touched; --yes says that it may be"
        );
        return Exit::Usage;
    }
    if let Some(scratch) = &arguments.remove {
        return match drill::remove(scratch, &target).await {
            Ok(()) => {
                outln!("removed {} and {}", scratch.prefix, scratch.schema);
                Exit::Clean
            }
            Err(left) => {
                eprintln!("longshore: not removed: {left}");
                Exit::Failed
            }
        };
    }
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => {
            eprintln!("longshore: the program does not find itself: {error}");
            return Exit::Failed;
        }
    };
    let options = Options {
        requests: arguments.requests,
        kills: arguments.kills,
        cuts: arguments.cuts,
        workers: usize::from(arguments.workers),
        rate: arguments.rate,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
        bound: arguments.bound,
        keep: arguments.keep,
        exe,
    };
    let say = Arc::new(|line: &str| outln!("{line}"));
    let (mut terminate, mut interrupt) = (terminate, interrupt);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // Large, and made once.
    match Box::pin(drill::run(&options, &target, say, stop)).await {
        Ok(Some(report)) => tell(&report, arguments.json.as_deref()),
        Ok(None) => {
            eprintln!("longshore: the drill was stopped before its end; there is no account");
            Exit::Forced
        }
        Err(error) => {
            eprintln!("longshore: the drill could not be brought to its end: {error:#}");
            Exit::Failed
        }
    }
}

/// Asks whoever sits at the terminal; nobody does, nobody agrees.
fn agreed(target: &Target) -> bool {
    if !stdin().is_terminal() {
        return false;
    }
    outln!("This drill would kill workers of its own and load {target}.");
    let _asked = write!(stdout(), "Go on? Type yes: ").and_then(|()| stdout().flush()).is_ok();
    let mut answer = String::new();
    stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

fn tell(report: &Report, json: Option<&Path>) -> Exit {
    outln!("\n{report}");
    if let Some(path) = json {
        let written = serde_json::to_vec_pretty(report)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(path, text));
        if let Err(error) = written {
            eprintln!("longshore: {} cannot be written: {error}", path.display());
            return Exit::Failed;
        }
    }
    if report.passed { Exit::Clean } else { Exit::Failed }
}
