//! What is measured, and how each is started.

use tokio::process::Command;

use super::part::Part;
use crate::worker::Settings;

/// One way of working off requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Consume and acknowledge 50 at a time, nothing else.
    Raw,
    /// One Postgres transaction a message.
    Usual,
    /// Longshore, `user.profile.update`.
    Update,
    /// The same, with a log line for each request.
    UpdateLines,
    /// The same as `update`, with 1 % that the function refuses.
    Refused1,
    /// The same, with 30 %.
    Refused30,
    /// The HTTP client alone against the stub.
    Client,
    /// Longshore, `user.welcome.send`, against the stub.
    Call,
}

/// How long the stub takes to answer, in milliseconds.
pub(super) const LATENCY_MS: u64 = 5;

impl Way {
    /// In the order in which a round measures them.
    pub(super) const ALL: [Self; 8] = [
        Self::Raw,
        Self::Usual,
        Self::Update,
        Self::UpdateLines,
        Self::Refused1,
        Self::Refused30,
        Self::Client,
        Self::Call,
    ];

    /// As it is given on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Usual => "usual",
            Self::Update => "update",
            Self::UpdateLines => "update-lines",
            Self::Refused1 => "refused1",
            Self::Refused30 => "refused30",
            Self::Client => "client",
            Self::Call => "call",
        }
    }

    /// What it does, for the page.
    pub(super) fn does(self) -> String {
        match self {
            Self::Raw => "consume and acknowledge with `multiple`, 50 at a time, and nothing else: the ceiling".to_owned(),
            Self::Usual => "the usual worker with the same crates: prefetch 64, a task for each message, a pool of 25 connections; one transaction a message (insert into an inbox, update of `app.users`), acknowledged after its commit".to_owned(),
            Self::Update => "Longshore with its default settings, `user.profile.update`, `log.requests = \"problems\"`".to_owned(),
            Self::UpdateLines => "the same with `log.requests = \"all\"`: a line for each request".to_owned(),
            Self::Refused1 => "as `update`, with 1 % of the requests refused by the function".to_owned(),
            Self::Refused30 => "as `update`, with 30 % of the requests refused by the function".to_owned(),
            Self::Client => format!("the HTTP client (reqwest) alone: 64 calls at once to a stub that answers after {LATENCY_MS} ms"),
            Self::Call => format!("Longshore, `user.welcome.send`: a call to a stub that answers after {LATENCY_MS} ms, 64 slots"),
        }
    }

    /// The kind of the requests that are published; the client alone has no queue.
    pub(super) fn kind(self) -> Option<&'static str> {
        match self {
            Self::Client => None,
            Self::Call => Some("user.welcome.send"),
            _ => Some("user.profile.update"),
        }
    }

    /// Which share of the requests the function refuses.
    pub(super) fn refused(self) -> f64 {
        match self {
            Self::Refused1 => 0.01,
            Self::Refused30 => 0.3,
            _ => 0.0,
        }
    }

    /// Whether a stub takes part.
    pub(super) fn calls(self) -> bool {
        matches!(self, Self::Client | Self::Call)
    }

    /// Whether it is Longshore, whose ledger says when what was done.
    pub(super) fn has_ledger(self) -> bool {
        self.part().is_none()
    }

    /// Whether it raises `app.users.version` by one for each request that is done.
    pub(super) fn updates(self) -> bool {
        self.kind() == Some("user.profile.update") && self != Self::Raw
    }

    /// Whether it can say, request by request, how old each was when it was done.
    pub(super) fn tells_ages(self) -> bool {
        matches!(self, Self::Usual | Self::Update)
    }

    fn part(self) -> Option<Part> {
        match self {
            Self::Raw => Some(Part::Raw),
            Self::Usual => Some(Part::Usual),
            Self::Client => Some(Part::Client),
            _ => None,
        }
    }

    /// How it is started. With `lines` it writes a line for each request.
    pub(super) fn command(
        self,
        settings: &Settings,
        requests: usize,
        lines: bool,
    ) -> anyhow::Result<Command> {
        let mut command = match self.part() {
            Some(part) => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .args(["bench-part", part.name(), "--requests", &requests.to_string()])
                    .env("AMQP_URL", &settings.amqp_url)
                    .env("DATABASE_URL", &settings.pg_url)
                    .env("STUB_URL", &settings.stub_url);
                command
            }
            None => {
                let mut command = settings.prepare()?;
                command.arg("run");
                command
            }
        };
        let lines = if lines || self == Self::UpdateLines { "all" } else { "problems" };
        command.env("LONGSHORE__LOG__REQUESTS", lines);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_way_has_the_name_it_is_asked_for_by() {
        assert_eq!(Way::value_variants(), Way::ALL);
        for way in Way::ALL {
            assert_eq!(Way::from_str(way.name(), false), Ok(way));
        }
    }
}
