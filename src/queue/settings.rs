//! What can be set about the queue, and what makes no sense.

use std::{path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::endpoint;

/// The section `[queue]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `amqp://user:password@host[:port]/vhost`, or `amqps://…` for TLS. Several, separated by
    /// commas, are nodes of one cluster and tried in turn. Special characters in a name or
    /// password are percent-encoded; without a path the vhost is `/`.
    pub url: SecretString,
    /// Replaces the password in every URL.
    pub password: Option<SecretString>,
    /// The queue that requests are taken from.
    pub name: String,
    /// The topic exchange that producers publish to.
    pub exchange: String,
    /// Which routing keys of the exchange go into the queue; `#` is all.
    pub binding: String,
    /// The queue that requests of ordered kinds are taken from, by one worker at a time.
    pub ordered_name: String,
    /// The topic exchange that requests of ordered kinds are published to.
    pub ordered_exchange: String,
    /// The broker's own dead-letter queue: what cannot be stored, or used up the delivery limit.
    pub dead_queue: String,
    /// The fanout exchange through which the broker dead-letters.
    pub dead_exchange: String,
    /// Whether exchanges and queues are declared at each connection; otherwise they are only
    /// looked for.
    pub declare: bool,
    /// How many deliveries the broker hands out ahead of their acknowledgement. Where nothing is
    /// said, the configuration makes it one and a half times the worker's concurrency.
    pub prefetch: Option<u16>,
    /// How many of them nobody works: those beyond the worker's concurrency. Follows from the two.
    #[serde(skip)]
    pub ahead: u16,
    /// How often the broker delivers one message before it is dead-lettered. It only stops what
    /// the client library cannot even read; give-backs count towards it on RabbitMQ before 4.3.
    pub delivery_limit: u32,
    /// The heartbeat of the connections, in whole seconds; a peer that is silent for two of them
    /// is dead.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// The longest that reaching one broker may take: TCP, TLS and the AMQP handshake together.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// The longest wait for the broker's answer to anything else, a publisher confirm included.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// The longest delay before the first reconnection; it doubles with each that fails.
    #[serde(with = "humantime_serde")]
    pub reconnect_initial: Duration,
    /// No delay before a reconnection is longer.
    #[serde(with = "humantime_serde")]
    pub reconnect_max: Duration,
    /// Messages are ready and the worker is idle, yet nothing has come for this long: the
    /// connection is given up as stalled.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// How long a finished request waits for an older one that is still worked, so that both are
    /// acknowledged in one frame; after that it is acknowledged alone.
    #[serde(with = "humantime_serde")]
    pub gap_timeout: Duration,
    /// Further certificate authorities for `amqps`, as PEM, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// How often the depths of the queue and the dead-letter queue are asked for.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// A pause that is shorter than this keeps the subscription and what was prefetched.
    #[serde(with = "humantime_serde")]
    pub pause_hold: Duration,
    /// Whether these are the settings of the queue in order ([`Settings::ordered`]).
    #[serde(skip)]
    pub in_order: bool,
}

/// What the queue in order hands out ahead. Not a setting: where a worker has more out than the next
/// one takes, and both die, RabbitMQ puts what comes back behind what it had put back before.
const ORDERED_PREFETCH: u16 = 256;

/// What is prefetched where neither the settings nor a concurrency say how much.
const PREFETCH: u16 = 128;

impl Settings {
    /// The prefetch that counts.
    pub fn prefetch(&self) -> u16 {
        self.prefetch.unwrap_or(PREFETCH)
    }

    /// The settings of the queue in order.
    #[must_use]
    pub fn ordered(&self) -> Self {
        Self {
            name: self.ordered_name.clone(),
            exchange: self.ordered_exchange.clone(),
            binding: "#".to_owned(),
            prefetch: Some(ORDERED_PREFETCH),
            ahead: 0,
            in_order: true,
            ..self.clone()
        }
    }

    /// The exclusive queue that whoever consumes in order holds.
    pub(super) fn lock(&self) -> String {
        format!("{}.consumer", self.name)
    }

    /// What is wrong with these settings: the key within the section, and what to do about it.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut add = |key: &str, text: String| problems.push((key.to_owned(), text));

        if let Err(text) = endpoint::parse(self.url.expose_secret(), None) {
            add("url", text);
        }
        for (key, value) in self.names() {
            if value.is_empty() {
                add(key, "is empty, give it a name".to_owned());
            } else if value.len() > 255 {
                add(key, format!("has {} bytes, AMQP allows 255", value.len()));
            }
        }
        if self.binding.len() > 255 {
            add("binding", format!("has {} bytes, AMQP allows 255", self.binding.len()));
        }
        if self.name == self.dead_queue {
            add("dead_queue", "is the queue itself, use another name".to_owned());
        }
        if !self.in_order {
            for (key, this, others) in [
                ("ordered_name", &self.ordered_name, [&self.name, &self.dead_queue]),
                ("ordered_exchange", &self.ordered_exchange, [&self.exchange, &self.dead_exchange]),
            ] {
                if others.contains(&this) {
                    add(key, format!("`{this}` has another purpose already, use another name"));
                }
            }
        }
        if self.exchange == self.dead_exchange {
            add(
                "dead_exchange",
                "is the exchange that producers publish to, use another name".to_owned(),
            );
        }
        for (key, value) in [
            ("exchange", &self.exchange),
            ("ordered_exchange", &self.ordered_exchange),
            ("dead_exchange", &self.dead_exchange),
        ] {
            if value.starts_with("amq.") {
                add(
                    key,
                    "starts with `amq.`, which the broker keeps for itself, use another name"
                        .to_owned(),
                );
            }
        }
        if self.prefetch == Some(0) {
            add(
                "prefetch",
                "is 0, which AMQP takes as unlimited: set at least the number of slots".to_owned(),
            );
        }
        if self.delivery_limit == 0 {
            add(
                "delivery_limit",
                "is 0, a message would be dead after one give-back: set e.g. 200".to_owned(),
            );
        }
        let heartbeat = self.heartbeat.as_secs();
        if heartbeat == 0 || heartbeat > u64::from(u16::MAX) || self.heartbeat.subsec_nanos() != 0 {
            add(
                "heartbeat",
                "must be whole seconds from 1s to 65535s; 5s to 20s suit most networks".to_owned(),
            );
        }
        for (key, value) in [
            ("connect_timeout", self.connect_timeout),
            ("operation_timeout", self.operation_timeout),
            ("reconnect_initial", self.reconnect_initial),
            ("reconnect_max", self.reconnect_max),
            ("stall_timeout", self.stall_timeout),
            ("gap_timeout", self.gap_timeout),
            ("poll_interval", self.poll_interval),
        ] {
            if value.is_zero() {
                add(key, "is zero, set a positive duration such as 5s".to_owned());
            }
        }
        if self.reconnect_max < self.reconnect_initial {
            add("reconnect_max", "is shorter than reconnect_initial, raise it".to_owned());
        }
        if self.stall_timeout < self.poll_interval * 2 {
            add(
                "stall_timeout",
                "is shorter than two poll_interval, raise it: depth is known only that often"
                    .into(),
            );
        }
        problems
    }

    fn names(&self) -> [(&'static str, &str); 6] {
        [
            ("name", &self.name),
            ("exchange", &self.exchange),
            ("ordered_name", &self.ordered_name),
            ("ordered_exchange", &self.ordered_exchange),
            ("dead_queue", &self.dead_queue),
            ("dead_exchange", &self.dead_exchange),
        ]
    }

    #[cfg(test)]
    pub(super) fn sample() -> Self {
        Self {
            url: "amqp://guest:guest@127.0.0.1:5672/%2f".into(),
            password: None,
            name: "longshore.requests".into(),
            exchange: "longshore".into(),
            binding: "#".into(),
            ordered_name: "longshore.ordered".into(),
            ordered_exchange: "longshore.ordered".into(),
            dead_queue: "longshore.dead".into(),
            dead_exchange: "longshore.dead".into(),
            declare: true,
            prefetch: Some(200),
            delivery_limit: 200,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            reconnect_initial: Duration::from_millis(500),
            reconnect_max: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            gap_timeout: Duration::from_millis(50),
            ca_file: None,
            poll_interval: Duration::from_secs(5),
            pause_hold: Duration::from_secs(2),
            in_order: false,
            ahead: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recommended_settings_have_no_problem() {
        assert_eq!(Settings::sample().problems(), []);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let settings = Settings {
            url: "http://broker/".into(),
            prefetch: Some(0),
            delivery_limit: 0,
            heartbeat: Duration::from_millis(1500),
            dead_queue: "longshore.requests".into(),
            exchange: "x".repeat(256),
            gap_timeout: Duration::ZERO,
            ..Settings::sample()
        };
        let keys: Vec<String> = settings.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "url",
                "exchange",
                "dead_queue",
                "prefetch",
                "delivery_limit",
                "heartbeat",
                "gap_timeout"
            ]
        );
    }
}
