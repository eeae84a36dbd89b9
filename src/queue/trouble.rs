//! What goes wrong with a broker, in the few kinds that are treated or counted differently.

use std::fmt;

use lapin::{ErrorKind, protocol::AMQPErrorKind};

/// Why a connection was given up, or could not be had: a closed set, and a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The broker could not be reached.
    Unreachable,
    /// The broker does not let this user in, or not do this.
    Refused,
    /// A queue or exchange is missing, or differs from what is wanted.
    Topology,
    /// The broker ended the subscription: the queue was deleted or lost its leader.
    Cancelled,
    /// The broker closed the channel or the connection.
    Closed,
    /// The line was cut, or the heartbeats stopped.
    Lost,
    /// The broker did not answer in time.
    Timeout,
    /// Messages are ready, the worker is idle, and nothing comes.
    Stalled,
    /// A message that the client library cannot read.
    Poison,
}

impl Cause {
    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Topology => "topology",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Lost => "lost",
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::Poison => "poison",
        }
    }
}

/// A failure of the broker side: its kind, and words that say what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    /// The kind.
    pub cause: Cause,
    /// What happened; no secret.
    pub text: String,
}

impl Trouble {
    pub(super) fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into() }
    }

    /// `doing` names what was being done, e.g. `subscribing to longshore.requests`.
    pub(super) fn timeout(doing: impl fmt::Display) -> Self {
        Self::new(Cause::Timeout, format!("{doing}: no answer from the broker in time"))
    }

    /// A failure that lapin reports, while `doing`.
    pub(super) fn of(doing: impl fmt::Display, error: &lapin::Error) -> Self {
        let (cause, text) = match error.kind() {
            ErrorKind::ParsingError(_) => (
                Cause::Poison,
                "a message cannot be read by the client library (a name or header that is not UTF-8)".to_owned(),
            ),
            ErrorKind::ProtocolError(error) => {
                let text = error.get_message().as_str();
                let cause = match (error.kind(), error.get_id()) {
                    // 403 ACCESS_REFUSED, 530 NOT_ALLOWED (no such vhost, or none of ours)
                    (_, 403 | 530) => Cause::Refused,
                    (AMQPErrorKind::Soft(_), 404 | 406) if Mismatch::read(text).is_some() || error.get_id() == 404 => {
                        Cause::Topology
                    }
                    _ => Cause::Closed,
                };
                let text = Mismatch::read(text).map_or_else(|| text.to_owned(), |mismatch| mismatch.to_string());
                (cause, text)
            }
            ErrorKind::MissingHeartbeatError => (Cause::Lost, "the broker's heartbeats stopped".to_owned()),
            _ => (Cause::Lost, error.to_string()),
        };
        Self::new(cause, format!("{doing}: {text}"))
    }
}

/// What a 406 to a declaration says, taken apart.
/// The broker's words are those of `rabbit_misc:assert_args_equivalence1/4`.
/// <https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbit_common/src/rabbit_misc.erl>
#[derive(Debug, PartialEq, Eq)]
struct Mismatch<'a> {
    argument: &'a str,
    resource: &'a str,
    ours: &'a str,
    theirs: &'a str,
}

impl<'a> Mismatch<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let rest = text.split_once("inequivalent arg '")?.1;
        let (argument, rest) = rest.split_once("' for ")?;
        let (resource, rest) = rest.split_once(" in vhost ")?;
        let (ours, theirs) = rest.split_once("received ")?.1.split_once(" but current is ")?;
        Some(Self { argument, resource, ours: plain(ours), theirs: plain(theirs) })
    }
}

/// `the value 'x' of type 'longstr'` and `'x'` are both `x`.
fn plain(text: &str) -> &str {
    let text = text.strip_prefix("the value ").unwrap_or(text);
    let text = text.split_once(" of type ").map_or(text, |(value, _)| value);
    text.trim_matches('\'')
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { argument, resource, ours, theirs } = self;
        write!(
            f,
            "{resource} exists with another `{argument}`: the broker has {theirs}, the settings say {ours}; \
             change the settings to match, or let it run empty and delete it so that it is declared anew, \
             or set queue.declare = false to use it as it is"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_declaration_names_the_argument_and_both_values() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': \
                    received '200' but current is '20'";
        assert_eq!(
            Mismatch::read(text),
            Some(Mismatch {
                argument: "x-delivery-limit",
                resource: "queue 'q'",
                ours: "200",
                theirs: "20"
            })
        );
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received the \
                    value 'reject-publish' of type 'longstr' but current is none";
        let Some(mismatch) = Mismatch::read(text) else { panic!("not read") };
        assert_eq!((mismatch.ours, mismatch.theirs), ("reject-publish", "none"));
    }

    #[test]
    fn other_words_of_the_broker_are_left_as_they_are() {
        assert_eq!(Mismatch::read("PRECONDITION_FAILED - unknown delivery tag 7"), None);
    }
}
