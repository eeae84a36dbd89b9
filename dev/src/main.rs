//! `longshore-dev`: the servers of this checkout, and a stub downstream, from the command line.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this program's output is for the person who calls it"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use longshore_dev::{
    bench, broken, compat, demo, drill, hold, limits, order, recovery, services::Services, storm,
    stub::Stub,
};

/// Private servers for developing and testing Longshore.
#[derive(Debug, Parser)]
#[command(name = "longshore-dev", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start RabbitMQ and Postgres for this checkout, unless they run.
    Up {
        /// Print shell exports instead: `eval "$(longshore-dev up --env)"`.
        #[arg(long)]
        env: bool,
    },
    /// Stop them and keep their data; stops what a demo has left running as well.
    Down,
    /// Show the worker at work, with trouble on the way, and account for every request.
    Demo {
        /// Leave everything running at the end.
        #[arg(long)]
        keep: bool,
    },
    /// Run `longshore drill` on servers of its own, which are stopped and killed meanwhile.
    Drill(drill::Options),
    /// Run the tests against other versions of RabbitMQ and Postgres.
    Compat(compat::Options),
    /// Measure the worker's speed on servers of its own.
    Bench(bench::Options),
    /// Work off ten million requests in one go, on servers of its own.
    BenchDay(bench::day::Options),
    /// Break each rule in a copy of the checkout, and see that the tests notice.
    Broken {
        /// Names of patches in `dev/broken`; all of them without any.
        names: Vec<String>,
    },
    /// Show that the requests of each user are applied in their order, under kills and failing calls.
    Order(order::Options),
    /// Measure how soon the worker goes on after its servers have come back.
    Recovery(recovery::Options),
    /// Show what a dependency in trouble costs those who do not need it, and itself.
    Storm(storm::Options),
    /// Measure what limits and shares promise: a limit that learns, a user who floods.
    Limits(limits::Options),
    /// One of the ways that `bench` compares with; started by it.
    #[command(hide = true)]
    BenchPart {
        part: bench::part::Part,
        /// How many calls the client makes.
        #[arg(long)]
        requests: usize,
    },
    /// Say whether they run; exit code 1 when they do not.
    Status,
    /// Print shell exports for the running servers; exit code 1 when they do not run.
    Env,
    /// Run the stub downstream until interrupted.
    Stub {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:9700")]
        bind: String,
    },
    /// Run a command that is ended when another process vanishes.
    Hold {
        /// The pid of that process.
        parent: u32,
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { env } => {
            let services = Services::shared().await?;
            if env { println!("{}", services.env()) } else { show(&services) }
        }
        Command::Down => {
            let demo = demo::stop_kept().await;
            let mut stopped = Services::down().await?;
            stopped.extend(demo.then_some("what the demo had left"));
            match stopped.as_slice() {
                [] => println!("nothing was running"),
                stopped => println!("stopped {}", stopped.join(" and ")),
            }
        }
        Command::Demo { keep } => {
            if !demo::run(keep).await?.passed() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Drill(options) => {
            if !drill::run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Compat(options) => {
            if !compat::run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Bench(options) => bench::run(&options).await?,
        Command::BenchDay(options) => bench::day::run(&options).await?,
        Command::Broken { names } => {
            if !broken::run(&names)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Recovery(options) => {
            if !recovery::run(&options).await?.passed() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Limits(options) => {
            if !limits::run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Order(options) => {
            if !order::run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Storm(options) => {
            if !storm::run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::BenchPart { part, requests } => bench::part::run(part, requests).await?,
        Command::Status => match Services::running().await? {
            Some(services) => show(&services),
            None => {
                println!("not running, start with `longshore-dev up`");
                return Ok(ExitCode::FAILURE);
            }
        },
        Command::Env => match Services::running().await? {
            Some(services) => println!("{}", services.env()),
            None => anyhow::bail!("the servers do not run, start them with `longshore-dev up`"),
        },
        Command::Stub { bind } => {
            let stub = Stub::start(&bind).await?;
            println!("stub downstream at {}", stub.url);
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted?,
                _ = terminate.recv() => {}
            }
        }
        Command::Hold { parent, command } => {
            let Some((program, args)) = command.split_first() else {
                anyhow::bail!("name a command after `--`")
            };
            let status = hold::run(parent, program, args).await?;
            // As shells do: 128 and the signal's number where there is no code.
            let signal =
                std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
            let code =
                status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(services: &Services) {
    println!(
        "RabbitMQ  {}  (pid {})",
        services.rabbit.url(),
        services.rabbit.pid().unwrap_or_default()
    );
    println!("          log {}", services.rabbit.log().display());
    println!(
        "Postgres  {}  (pid {})",
        services.postgres.url(),
        services.postgres.pid().unwrap_or_default()
    );
    println!("          log {}", services.postgres.log().display());
}
