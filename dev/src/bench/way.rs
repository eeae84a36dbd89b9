//! What is measured, and how each is started.

use tokio::process::Command;

use super::{load::Load, part::Part};
use crate::worker::Settings;

/// One way of working off requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Consume and acknowledge 50 at a time, nothing else.
    Raw,
    /// Consume and acknowledge one by one.
    RawSingle,
    /// One Postgres transaction a message.
    Usual,
    /// Longshore, `user.profile.update`.
    Update,
    /// The same, with a log line for each request.
    UpdateLines,
    /// The same with a function that takes many requests at once, `apply_batch`.
    UpdateBatch,
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
/// Calls at once: of the client alone, and of the worker (`max_in_flight`).
pub(super) const CALLS: usize = 64;

/// The kind that has a function for many requests at once, and what makes it one. It is measured as
/// soon as the program knows the setting and the example has the function.
pub(super) const BATCH_KIND: &str = "user.profile.update_many";
const BATCH_FUNCTION: &str = "app.update_profiles";

/// What is added to the settings of the example service.
pub(super) fn batch_settings(documented: &str, example_sql: &str) -> Option<String> {
    let known = documented.contains("apply_batch") && example_sql.contains(BATCH_FUNCTION);
    known.then(|| {
        format!(
            "\n[kinds.\"{BATCH_KIND}\"]\napply = \"app.update_profile\"\napply_batch = \"{BATCH_FUNCTION}\"\n"
        )
    })
}

impl Way {
    /// In the order in which a round measures them.
    pub(super) const ALL: [Self; 10] = [
        Self::Raw,
        Self::RawSingle,
        Self::Usual,
        Self::Update,
        Self::UpdateLines,
        Self::UpdateBatch,
        Self::Refused1,
        Self::Refused30,
        Self::Client,
        Self::Call,
    ];

    /// As it is given on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawSingle => "raw-single",
            Self::Usual => "usual",
            Self::Update => "update",
            Self::UpdateLines => "update-lines",
            Self::UpdateBatch => "update-batch",
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
            Self::RawSingle => "consume and acknowledge one by one, and nothing else".to_owned(),
            Self::Usual => "the usual worker with the same crates: a task for each message, a pool of connections, a prefetch of twice the pool; one transaction a message (insert into an inbox, update of `app.users`, both prepared), acknowledged after its commit".to_owned(),
            Self::Update => "Longshore with its default settings, `user.profile.update`, `log.requests = \"problems\"`".to_owned(),
            Self::UpdateLines => "the same with `log.requests = \"all\"`: a line for each request".to_owned(),
            Self::UpdateBatch => format!("as `update`, with a kind that names a set-wise function, `apply_batch = \"{BATCH_FUNCTION}\"`"),
            Self::Refused1 => "as `update`, with 1 % of the requests refused by the function".to_owned(),
            Self::Refused30 => "as `update`, with 30 % of the requests refused by the function".to_owned(),
            Self::Client => format!("the HTTP client (reqwest) alone: {CALLS} calls at once to a stub that answers after {LATENCY_MS} ms"),
            Self::Call => format!("Longshore, `user.welcome.send`: a call to a stub that answers after {LATENCY_MS} ms, {CALLS} at once"),
        }
    }

    /// The requests that are published; the client alone has no queue.
    pub(super) fn load(self) -> Option<Load> {
        let refused = match self {
            Self::Refused1 => 0.01,
            Self::Refused30 => 0.3,
            _ => 0.0,
        };
        let kind = match self {
            Self::Client => return None,
            Self::Call => "user.welcome.send",
            Self::UpdateBatch => BATCH_KIND,
            _ => "user.profile.update",
        };
        Some(Load { refused, ..Load::of(kind) })
    }

    /// How many requests are measured where others take one, so that all are measured for about as
    /// long: the fastest would be done before connections and plans are warm.
    pub(super) fn weight(self) -> usize {
        match self {
            Self::Raw | Self::UpdateBatch => 6,
            Self::Update | Self::UpdateLines | Self::Refused1 => 3,
            Self::Client | Self::Call => 2,
            _ => 1,
        }
    }

    /// The share of its requests that are done and not refused.
    pub(super) fn good(self) -> f64 {
        1.0 - self.load().map_or(0.0, |load| load.refused)
    }

    /// Whether a stub takes part.
    pub(super) fn calls(self) -> bool {
        matches!(self, Self::Client | Self::Call)
    }

    /// Whether anything is written.
    pub(super) fn stores(self) -> bool {
        !matches!(self, Self::Raw | Self::RawSingle | Self::Client)
    }

    /// Whether it is Longshore, whose ledger says when what was done.
    pub(super) fn has_ledger(self) -> bool {
        self.part().is_none()
    }

    /// Whether it raises `app.users.version` by one for each request that is done.
    pub(super) fn updates(self) -> bool {
        self.stores() && self != Self::Call
    }

    /// Whether it can say, request by request, when it knew of the commit.
    pub(super) fn tells_ages(self) -> bool {
        matches!(self, Self::Usual | Self::Update | Self::UpdateBatch)
    }

    fn part(self) -> Option<Part> {
        match self {
            Self::Raw => Some(Part::Raw),
            Self::RawSingle => Some(Part::RawSingle),
            Self::Usual => Some(Part::Usual),
            Self::Client => Some(Part::Client),
            _ => None,
        }
    }

    /// How it is started. With `lines` it writes a line for each request; `pool` is how many
    /// connections the usual worker has.
    pub(super) fn command(
        self,
        settings: &Settings,
        requests: usize,
        lines: bool,
        pool: usize,
    ) -> anyhow::Result<Command> {
        let mut command = match self.part() {
            Some(part) => {
                let mut command = part.command(requests)?;
                command
                    .env("AMQP_URL", &settings.amqp_url)
                    .env("DATABASE_URL", &settings.pg_url)
                    .env("STUB_URL", &settings.stub_url)
                    .env("USUAL_POOL", pool.to_string());
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

    #[test]
    fn a_batch_is_measured_once_the_program_and_the_example_know_it() {
        assert_eq!(batch_settings("apply = 1", BATCH_FUNCTION), None);
        assert_eq!(batch_settings("# apply_batch = …", ""), None);
        assert!(batch_settings("# apply_batch = …", BATCH_FUNCTION).is_some());
    }
}
