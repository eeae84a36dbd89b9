//! `longshore check`: what is in the way of a worker, in plain words.

use clap::Args;

use super::Exit;
use crate::{
    config::Config,
    downstream::Downstream,
    kind,
    ledger::Ledger,
    pause::Pauses,
    queue::{self, Level},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print every setting with its default and its meaning, and check nothing
    #[arg(long)]
    pub(super) defaults: bool,
}

pub(super) async fn run(config: Config) -> Exit {
    outln!("settings      ok");
    let mut faults = 0;
    let mut tell = |room: &str, finding: Option<String>| match finding {
        Some(text) => {
            faults += 1;
            outln!("{room:<13} {text}");
        }
        None => outln!("{room:<13} ok"),
    };

    let functions = kind::functions(&config.kinds);
    let found =
        match Ledger::open(config.ledger.clone(), &functions, "longshore check", Pauses::default())
        {
            Ok(ledger) => {
                let found = ledger.findings(&functions).await;
                if let Some(version) = ledger.server_version() {
                    outln!(
                        "{:<13} ok: {}, it is Postgres {version}",
                        "postgres",
                        ledger.endpoint()
                    );
                }
                found
            }
            Err(error) => vec![error],
        };
    tell_all(&mut tell, "postgres", found);

    let mut findings = queue::check(&config.queue, config.worker.max_message_bytes).await;
    if config.kinds.values().any(|kind| kind.ordered_by.is_some()) {
        let ordered = queue::check(&config.queue.ordered(), config.worker.max_message_bytes).await;
        for finding in ordered {
            // What both have is told once.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    for finding in findings {
        match finding.level {
            Level::Problem => tell("rabbitmq", Some(finding.text)),
            Level::Good | Level::Note => outln!("{:<13} ok: {}", "rabbitmq", finding.text),
        }
    }

    match Downstream::new(&config.dependencies) {
        Ok(downstream) => {
            for name in config.dependencies.keys() {
                match downstream.reach(name).await {
                    Ok(()) => outln!("{:<13} ok: {name}", "dependency"),
                    Err(error) => tell("dependency", Some(format!("{name}: {error}"))),
                }
            }
        }
        Err(error) => tell("dependency", Some(error.to_string())),
    }
    if config.kinds.is_empty() {
        tell(
            "kinds",
            Some(
                "none is configured: every request would be refused; add a [kinds.\"…\"] section"
                    .to_owned(),
            ),
        );
    }
    if faults == 0 {
        outln!("a worker with these settings can work");
        Exit::Clean
    } else {
        outln!("{faults} thing(s) in the way");
        Exit::Failed
    }
}

fn tell_all(tell: &mut impl FnMut(&str, Option<String>), room: &str, found: Vec<String>) {
    if found.is_empty() {
        tell(room, None);
    }
    for text in found {
        tell(room, Some(text));
    }
}
