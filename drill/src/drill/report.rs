//! What a drill has found, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::tally::Tally;
use crate::account;

/// How often each fault has really happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Kills that were asked for, and cuts.
    pub kills_planned: u32,
    /// See there.
    pub cuts_planned: u32,
    /// Workers killed by SIGKILL.
    pub sigkill: u32,
    /// Workers ended by SIGTERM.
    pub sigterm: u32,
    /// Those of them that drained and ended with 0.
    pub sigterm_clean: u32,
    /// Workers stopped for longer than their heartbeat, and let go on.
    pub sigstop: u32,
    /// Those of them that had been given up by the broker when they went on.
    pub sigstop_disconnected: u32,
    /// Times that connections to the broker were reset, to Postgres, and the producer's.
    pub cuts_broker: u32,
    /// See there.
    pub cuts_postgres: u32,
    /// See there.
    pub cuts_producer: u32,
    /// Connections that were reset in all.
    pub connections_reset: u64,
}

impl Faults {
    /// Kills that happened: a stop counts when the broker had given the worker up.
    pub fn kills(&self) -> u32 {
        self.sigkill + self.sigterm + self.sigstop_disconnected
    }

    /// Cuts that happened.
    pub fn cuts(&self) -> u32 {
        self.cuts_broker + self.cuts_postgres + self.cuts_producer
    }
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The drill's name: that of its exchange.
    pub name: String,
    /// What chance began with.
    pub seed: u64,
    /// Requests that were planned, and those that the broker confirmed.
    pub requests_planned: u64,
    /// See there.
    pub requests_confirmed: u64,
    /// Workers at a time, and workers started in all.
    pub workers: usize,
    /// See there.
    pub workers_started: u32,
    /// Workers that ended without having been asked to.
    pub workers_failed: u32,
    /// From the first publish until the last request had come to its end.
    pub seconds: f64,
    /// Requests that came to their end in a second, on average.
    pub requests_per_second: f64,
    /// What happened to workers and lines.
    pub faults: Faults,
    /// What the workers tell.
    pub told: Tally,
    /// Every rule, and how it stands.
    pub account: account::Report,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// Whether every rule holds.
    pub passed: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, told, .. } = self;
        writeln!(f, "Drill {}, seed {}", self.name, self.seed)?;
        writeln!(
            f,
            "  requests    {} of {} confirmed, at their end in {:.1} s: {:.0} a second",
            self.requests_confirmed, self.requests_planned, self.seconds, self.requests_per_second
        )?;
        writeln!(
            f,
            "  workers     {} at a time, {} started, {} ended without having been asked to",
            self.workers, self.workers_started, self.workers_failed
        )?;
        writeln!(
            f,
            "  kills       {} of {}: {} SIGKILL; {} SIGTERM, {} of them drained; {} SIGSTOP, {} of them given up by the broker",
            faults.kills(),
            faults.kills_planned,
            faults.sigkill,
            faults.sigterm,
            faults.sigterm_clean,
            faults.sigstop,
            faults.sigstop_disconnected
        )?;
        writeln!(
            f,
            "  cuts        {} of {}: {} RabbitMQ, {} Postgres, {} producer; {} connections reset",
            faults.cuts(),
            faults.cuts_planned,
            faults.cuts_broker,
            faults.cuts_postgres,
            faults.cuts_producer,
            faults.connections_reset
        )?;
        writeln!(
            f,
            "  lines lost  {} to RabbitMQ, {} to Postgres, as the workers tell",
            told.broker_lost, told.postgres_lost
        )?;
        writeln!(
            f,
            "  it took     {} redeliveries, {} takeovers, {} fenced finishes, {} give-backs, {} retries, {} duplicates",
            told.redeliveries,
            told.takeovers,
            told.fenced,
            told.given_back,
            told.retries,
            told.duplicates
        )?;
        for note in &self.notes {
            writeln!(f, "  note        {note}")?;
        }
        write!(f, "\nThe account\n{}\n{}", self.account, verdict(&self.account))
    }
}

/// One line for those who read only one.
fn verdict(account: &account::Report) -> String {
    if account.passed() {
        "PASSED: nothing lost, nothing done twice, nothing left over".to_owned()
    } else {
        format!("FAILED: {}", account.broken().join("; "))
    }
}
