//! `longshore steer`: what operators wish, written into the ledger, where every worker finds it.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Exit;
use crate::{
    admin::ask,
    config::Config,
    ledger::{Ledger, LedgerError, Schema},
    outcome::StepError,
    pause::Pauses,
    steer::{Order, Target},
};

const LONGEST_ACTOR: usize = 128;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    act: Option<Act>,
    /// Your name, for the audit
    #[arg(long, global = true, value_name = "NAME", env = "LONGSHORE_ACTOR")]
    actor: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Show what is wished, what is parked, and how one worker stands (without a command as well)
    Show {
        /// The admin address of that worker; `admin.bind` unless it is given
        #[arg(long, value_name = "HOST:PORT")]
        worker: Option<String>,
    },
    /// Decide about the breaker of a dependency
    Breaker {
        dependency: String,
        /// open: nothing goes through; close: everything does; observe: everything does, and it
        /// tells what it would have done; auto: what the settings say
        #[arg(value_parser = ["open", "close", "observe", "auto"])]
        verb: String,
    },
    /// Change how many calls of each worker may be under way at once to a dependency
    Limit {
        /// A dependency, or a kind with --kind
        name: String,
        /// A number, or auto: what the settings say
        limit: String,
        /// How many requests of a kind each worker may work at once
        #[arg(long)]
        kind: bool,
    },
    /// Change how many calls all workers together may begin a second to a dependency
    Rate {
        /// A dependency, or a kind with --kind
        name: String,
        /// So many a second, or auto: what the settings say
        rate: String,
        /// How many requests of a kind may be begun a second
        #[arg(long)]
        kind: bool,
    },
    /// Begin nothing more: of one kind, or at all
    Pause { kind: Option<String> },
    /// Let a paused kind, or a paused worker, go on
    Resume { kind: Option<String> },
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Exit {
    let Arguments { act, actor } = arguments;
    let order = match act.unwrap_or(Act::Show { worker: None }) {
        Act::Show { worker } => return show(config, worker).await,
        Act::Breaker { dependency, verb } => Order::breaker(&dependency, &verb),
        Act::Limit { name, limit, kind: false } => Order::limit(&name, &limit),
        Act::Limit { name, limit, kind: true } => Order::kind_limit(&name, &limit),
        Act::Rate { name, rate, kind: false } => Order::rate(&name, &rate),
        Act::Rate { name, rate, kind: true } => Order::kind_rate(&name, &rate),
        Act::Pause { kind } => Ok(Order::pause(kind.as_deref())),
        Act::Resume { kind } => Ok(Order::resume(kind.as_deref())),
    };
    let who = who(actor.as_deref());
    let (order, who) = match (order, who) {
        (Ok(order), Ok(who)) => (order, who),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("longshore: {error}");
            return Exit::Usage;
        }
    };
    if let Err(error) = known(&config, &order.target) {
        eprintln!("longshore: {error}");
        return Exit::Usage;
    }
    let within = humantime::format_duration(config.worker.steering_interval).to_string();
    let ledger = match open(config).await {
        Ok(ledger) => ledger,
        Err(error) => return failed(&error),
    };
    let steered = ledger.steer(&order, &who).await;
    ledger.close();
    match steered {
        Ok(steered) => {
            let text = |wish: Option<String>| wish.unwrap_or_else(|| "as the settings say".into());
            let (before, after) = (text(steered.before), text(steered.after));
            outln!("{}: {before} -> {after}; every worker follows within {within}", order.target);
            Exit::Clean
        }
        Err(error) => failed(&describe(&error)),
    }
}

fn failed(error: &str) -> Exit {
    eprintln!("longshore: {error}");
    Exit::Failed
}

/// Who acts, as the audit has it.
fn who(actor: Option<&str>) -> Result<String, String> {
    match actor {
        None => Ok("cli".to_owned()),
        Some(name)
            if (1..=LONGEST_ACTOR).contains(&name.len()) && !name.contains(char::is_control) =>
        {
            Ok(format!("cli:{name}"))
        }
        Some(_) => Err(format!("--actor takes up to {LONGEST_ACTOR} printable characters")),
    }
}

/// Whether the settings have what is to be steered: a wish for nothing would be kept for ever.
fn known(config: &Config, target: &Target) -> Result<(), String> {
    let missing = |what: &str, name: &str, there: Vec<&String>| {
        let there: Vec<&str> = there.into_iter().map(String::as_str).collect();
        format!("the settings have no {what} `{name}`, but: {}", there.join(", "))
    };
    match target {
        Target::Breaker(name) | Target::Limit(name) | Target::Rate(name)
            if !config.dependencies.contains_key(name) =>
        {
            Err(missing("dependency", name, config.dependencies.keys().collect()))
        }
        Target::Kind(name) | Target::KindLimit(name) | Target::KindRate(name)
            if !config.kinds.contains_key(name) =>
        {
            Err(missing("kind", name, config.kinds.keys().collect()))
        }
        _ => Ok(()),
    }
}

async fn open(config: Config) -> Result<std::sync::Arc<Ledger>, String> {
    let schema = config.ledger.schema.clone();
    let name = "longshore steer";
    let ledger = Ledger::open(config.ledger, &BTreeMap::new(), name, Pauses::default())?;
    match ledger.schema().await {
        Ok(Schema::Current) => Ok(ledger),
        Ok(other) => Err(other.remedy(&schema)),
        Err(error) => Err(describe(&error)),
    }
}

fn describe(error: &LedgerError) -> String {
    match error {
        LedgerError::Away(error) => {
            format!("{error}; nothing is known to be changed, see `longshore check`")
        }
        LedgerError::Step(StepError::Refused(failure) | StepError::Transient { failure, .. }) => {
            format!("nothing was changed: {}; see `longshore check`", failure.error)
        }
        LedgerError::Step(StepError::NotAdmitted { on, .. }) => format!("{on} is not admitted"),
    }
}

async fn show(config: Config, worker: Option<String>) -> Exit {
    let address = worker.unwrap_or_else(|| config.admin.bind.clone());
    let ledger = match open(config).await {
        Ok(ledger) => ledger,
        Err(error) => return failed(&error),
    };
    let (wishes, counts) = tokio::join!(ledger.wishes(), ledger.counts());
    ledger.close();
    let (wishes, counts) = match (wishes, counts) {
        (Ok(wishes), Ok(counts)) => (wishes, counts),
        (Err(error), _) | (_, Err(error)) => return failed(&describe(&error)),
    };
    outln!("wished of all workers");
    for (target, wish) in wishes.iter() {
        outln!("  {target:<40} {wish}");
    }
    if wishes.iter().next().is_none() {
        outln!("  nothing: all is as the settings say");
    }
    outln!("parked, by what it waits for");
    for (on, rows) in &counts.parked {
        outln!("  {on:<40} {rows}");
    }
    if counts.parked.is_empty() {
        outln!("  nothing");
    }
    match standing(&address).await {
        Ok((dependencies, kinds)) => tell_worker(&address, &dependencies, &kinds),
        Err(error) => outln!(
            "no worker answers at {address} ({error}); name another by `longshore steer show --worker HOST:PORT`"
        ),
    }
    Exit::Clean
}

/// What a worker says of itself.
async fn standing(address: &str) -> Result<(Value, Value), String> {
    let read = |text: String| {
        serde_json::from_str(&text).map_err(|_| "it answers, but not as a worker does".to_owned())
    };
    let dependencies = read(ask(address, "/api/dependencies").await?)?;
    Ok((dependencies, read(ask(address, "/api/kinds").await?)?))
}

fn tell_worker(address: &str, dependencies: &Value, kinds: &Value) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let paused: Vec<String> =
        list(&kinds["paused"]).iter().filter_map(|it| it.as_str().map(str::to_owned)).collect();
    let worker = dependencies["worker"].as_str().unwrap_or_default();
    match paused.is_empty() {
        true => outln!("worker {worker} at {address}"),
        false => outln!("worker {worker} at {address}, paused: {}", paused.join(", ")),
    }
    let row = |cells: [String; 11]| {
        let [name, cells @ ..] = cells;
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>10}")).collect();
        outln!("  {name:<20}{}", cells.concat());
    };
    let titles = [
        "dependency",
        "state",
        "mode",
        "calls",
        "failed",
        "slow",
        "opened",
        "in flight",
        "limit",
        "rate",
        "waiting",
    ];
    row(titles.map(str::to_owned));
    for dependency in list(&dependencies["dependencies"]) {
        let keys = [
            "name",
            "state",
            "mode",
            "calls",
            "failed",
            "slow",
            "opened",
            "in_flight",
            "max_in_flight",
            "rate",
            "waiting",
        ];
        row(keys.map(|key| match &dependency[key] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        }));
    }
    for kind in list(&kinds["kinds"]) {
        if !kind["in_flight"].is_null() {
            let cell = |key: &str| match &kind[key] {
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            outln!(
                "  kind {}: in flight {}, limit {}, rate {}, waiting {}",
                kind["name"].as_str().unwrap_or_default(),
                cell("in_flight"),
                cell("max_in_flight"),
                cell("rate"),
                cell("waiting")
            );
        }
        if kind["paused"] == true {
            outln!("  kind {} is paused", kind["name"].as_str().unwrap_or_default());
        }
    }
}
