//! Which broker this is, and what follows from it: the facts about RabbitMQ's versions that concern
//! us, in one table. `tests/queue/versions.rs` holds the table against the broker at hand.

use std::fmt;

/// What the broker says it is, in its greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// The product, e.g. `RabbitMQ`.
    pub product: String,
    /// Its version in full, e.g. `4.3.6`.
    pub version: String,
}

/// In which ways versions of RabbitMQ differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The largest body that the broker takes unless its `max_message_size` says otherwise, bytes.
    pub max_message_bytes: usize,
    /// A delivery that is given back (`basic.nack`) counts towards the queue's delivery limit. Lost
    /// connections and rejections count in every version.
    pub give_backs_count: bool,
    /// The header that says how often a message was handed out before.
    pub counter: &'static str,
    /// What the broker ends where a request is worked past its consumer timeout.
    pub timeout_ends: Ends,
    /// Whether the prefetch can be that of a whole channel (`basic.qos` with `global`); where not,
    /// it is taken for that of each consumer without a word. Ours is that of a consumer.
    pub global_prefetch: bool,
}

/// What ends with a consumer timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The channel, with a 406, and with it all subscriptions on it.
    Channel,
    /// The subscription alone, as when its queue is deleted.
    Subscription,
}

/// Major and minor.
type Version = (u32, u32);

/// The oldest that Longshore works with: before it, quorum queues do not dead-letter at least once.
/// <https://github.com/rabbitmq/rabbitmq-server/blob/main/release-notes/3.10.0.md>
const OLDEST: Version = (3, 10);

/// Since which version it is so; what is not named is as in the step before. From the release notes
/// of 4.0.1 and 4.3.0, <https://www.rabbitmq.com/docs/quorum-queues> and
/// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
const STEPS: [(Version, Features); 3] = {
    let since_3_10 = Features {
        max_message_bytes: 128 << 20,
        give_backs_count: true,
        counter: "x-delivery-count",
        timeout_ends: Ends::Channel,
        global_prefetch: true,
    };
    let since_4_0 = Features { max_message_bytes: 16 << 20, ..since_3_10 };
    let since_4_3 = Features {
        give_backs_count: false,
        counter: "x-acquired-count",
        timeout_ends: Ends::Subscription,
        global_prefetch: false,
        ..since_4_0
    };
    [(OLDEST, since_3_10), ((4, 0), since_4_0), ((4, 3), since_4_3)]
};

impl Broker {
    /// What this version does, as it comes; `None` for what is no RabbitMQ, or too old.
    pub fn features(&self) -> Option<Features> {
        let version = self.rabbitmq()?;
        STEPS.iter().rev().find(|(since, _)| *since <= version).map(|(_, features)| *features)
    }

    /// Why Longshore is not for this broker, and what to do; `None` where it is.
    pub fn fault(&self) -> Option<String> {
        match self.rabbitmq() {
            Some(version) if version < OLDEST => Some(format!(
                "{self} is too old: before 3.10 a message that dies in a quorum queue can be lost on \
                 its way to the dead-letter queue; upgrade the broker to 3.10 or newer"
            )),
            Some(_) => None,
            None => Some(format!(
                "{self} is not a RabbitMQ that is known here: Longshore needs its quorum queues with \
                 at-least-once dead-lettering, and is tested with RabbitMQ 3.10, 4.0 and 4.3 only"
            )),
        }
    }

    /// Why bodies of this size may be published in vain; `None` where they may not.
    pub fn refuses(&self, bytes: usize) -> Option<String> {
        let most = self.features()?.max_message_bytes;
        (bytes > most).then(|| {
            format!(
                "worker.max_message_bytes is {bytes}, and {self} takes {most} bytes unless its \
                 max_message_size is raised: producers are refused what is larger"
            )
        })
    }

    fn rabbitmq(&self) -> Option<Version> {
        (self.product == "RabbitMQ").then(|| parse(&self.version)).flatten()
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.product, self.version)
    }
}

/// Major and minor of e.g. `3.10.8` or `4.3.0-rc.1`.
fn parse(version: &str) -> Option<Version> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    fn rabbitmq(version: &str) -> Broker {
        Broker { product: "RabbitMQ".to_owned(), version: version.to_owned() }
    }

    #[test]
    fn versions_are_told_apart_by_major_and_minor_as_numbers() {
        assert_eq!(parse("3.10.8"), Some((3, 10)));
        assert_eq!(parse("4.3.0-rc.1"), Some((4, 3)));
        assert_eq!(parse("4.0"), Some((4, 0)));
        for unknown in ["", "4", "four.0", "4.x"] {
            assert_eq!(parse(unknown), None, "{unknown}");
        }
        assert!(rabbitmq("3.9.29").fault().unwrap().contains("upgrade the broker to 3.10"));
        assert_eq!(rabbitmq("3.10.0").fault(), None, "9 is less than 10");
    }

    #[test]
    fn a_version_has_what_came_with_it_and_before() {
        let of = |version: &str| rabbitmq(version).features().unwrap();
        assert_eq!(of("3.13.7"), of("3.10.0"));
        assert_eq!(of("4.2.1"), of("4.0.5"));
        assert_eq!(of("5.0.0"), of("4.3.0"));
        assert!(of("3.13.7").max_message_bytes > of("4.0.5").max_message_bytes);
        assert!(of("4.2.1").give_backs_count && !of("4.3.0").give_backs_count);
        assert_eq!(
            (of("4.2.1").timeout_ends, of("4.3.6").timeout_ends),
            (Ends::Channel, Ends::Subscription)
        );
        assert_eq!(rabbitmq("3.9.29").features(), None);
    }

    #[test]
    fn another_product_is_told_and_nothing_is_assumed_of_it() {
        let other = Broker { product: "LavinMQ".to_owned(), version: "2.4.0".to_owned() };
        assert!(other.fault().unwrap().starts_with("LavinMQ 2.4.0 is not"));
        assert_eq!((other.features(), other.refuses(usize::MAX)), (None, None));
    }

    #[test]
    fn a_limit_above_the_brokers_own_is_told_with_both() {
        let told = rabbitmq("4.0.5").refuses(32 << 20).unwrap();
        assert!(told.contains("33554432") && told.contains("16777216"), "{told}");
        assert_eq!(rabbitmq("4.0.5").refuses(16 << 20), None);
        assert_eq!(rabbitmq("3.10.8").refuses(32 << 20), None);
    }
}
