//! The command line: one subcommand a file, and every exit code in one place.

#![expect(clippy::print_stderr, reason = "what a command has to say goes to the terminal")]

/// Says a line on stdout. A reader that has seen enough (`| head`) is no reason to fail half-way.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _said = writeln!(std::io::stdout().lock(), $($text)*).is_ok();
    }};
}

mod check;
mod drill;
mod migrate;
mod publish;
mod run;
mod steer;

use std::{env, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::{config::Config, telemetry::version};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As it should.
    Clean,
    /// It failed, and said why.
    Failed,
    /// It was stopped before everything it had begun came to an end.
    Forced,
    /// The arguments are wrong (`EX_USAGE` of sysexits).
    Usage,
    /// The settings are wrong (`EX_CONFIG` of sysexits).
    BadConfig,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Failed => 1,
            Exit::Forced => 2,
            Exit::Usage => 64,
            Exit::BadConfig => 78,
        })
    }
}

/// Takes user requests off RabbitMQ and puts their effects into Postgres and the services behind it:
/// once each, in bounded number, every one accounted for.
#[derive(Debug, Parser)]
#[command(name = "longshore", version = version::VERSION, max_term_width = 100, after_help = "\
Settings: built-in defaults, then --config FILE, then AMQP_URL and DATABASE_URL, then
LONGSHORE__SECTION__KEY. `longshore check --defaults` prints every setting with its meaning.

Exit codes: 0 clean, 1 failed, 2 stopped by force, 64 wrong arguments, 78 wrong settings.")]
pub struct Cli {
    /// The settings file; only what differs from the defaults
    #[arg(long, short, global = true, value_name = "FILE", env = "LONGSHORE_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work requests until SIGTERM or SIGINT, then drain; a second signal stops at once
    Run,
    /// Make or update the ledger's tables
    Migrate,
    /// Say what is wrong with the settings, the broker, the database or the dependencies
    Check(check::Arguments),
    /// Publish requests, with confirms, and refuse what the worker would refuse
    Publish(publish::Arguments),
    /// Force a breaker, change a limit, pause and resume, on every worker of the ledger
    Steer(steer::Arguments),
    /// Prove on your own broker and database that nothing is lost and nothing done twice
    Drill(drill::Arguments),
}

/// Reads the arguments of this process and does what they ask for.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run(),
        Err(told) => {
            // Nowhere to say it is no other outcome.
            let _said = told.print().is_ok();
            // clap's own code for wrong arguments is the one of a forced stop here.
            match told.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Clean.into(),
                _ => Exit::Usage.into(),
            }
        }
    }
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        if let Command::Check(arguments) = &self.command
            && arguments.defaults
        {
            outln!("{}", crate::config::DEFAULTS.trim_end());
            return Exit::Clean.into();
        }
        let config = match Config::load(self.config.as_deref(), env::vars()) {
            Ok(config) => config,
            Err(mistakes) => {
                eprintln!("longshore: {mistakes}");
                return Exit::BadConfig.into();
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            // What strangers nested deep is taken down by recursion as well as built by it.
            .thread_stack_size(crate::stack::NEEDED)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("longshore: the runtime cannot start: {error}");
                return Exit::Failed.into();
            }
        };
        let exit = runtime.block_on(async {
            match self.command {
                Command::Run => run::run(config).await,
                Command::Migrate => migrate::run(config).await,
                Command::Check(_) => check::run(config).await,
                Command::Publish(arguments) => publish::run(config, arguments).await,
                Command::Steer(arguments) => steer::run(config, arguments).await,
                Command::Drill(arguments) => drill::run(config, arguments).await,
            }
        });
        // Whatever still runs is a probe or a socket of no further interest.
        runtime.shutdown_timeout(std::time::Duration::from_millis(200));
        exit.into()
    }
}
