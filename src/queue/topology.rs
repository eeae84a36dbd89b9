//! The exchanges and queues that must exist, as data, and the one place that makes them.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};

use super::{
    Settings,
    link::{self, Link, short},
    trouble::{Cause, Trouble},
};

/// One thing that must exist.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Exchange { name: String, fanout: bool },
    Queue { name: String, arguments: Vec<(&'static str, Argument)> },
    Binding { queue: String, exchange: String, key: String },
}

/// The value of a queue argument.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Argument {
    Text(String),
    Number(u32),
}

/// Everything, in the order in which it has to be declared: the dead-letter side first, so that
/// no message can die before there is a place for it.
pub(super) fn items(settings: &Settings) -> Vec<Item> {
    let text = |value: &str| Argument::Text(value.to_owned());
    vec![
        Item::Exchange { name: settings.dead_exchange.clone(), fanout: true },
        Item::Queue {
            name: settings.dead_queue.clone(),
            arguments: vec![("x-queue-type", text("quorum"))],
        },
        Item::Binding {
            queue: settings.dead_queue.clone(),
            exchange: settings.dead_exchange.clone(),
            key: String::new(),
        },
        Item::Exchange { name: settings.exchange.clone(), fanout: false },
        Item::Queue {
            name: settings.name.clone(),
            arguments: vec![
                ("x-queue-type", text("quorum")),
                // Explicit and positive: the default differs between versions, and on 3.10 a
                // limit of -1 kills a message at its first return.
                ("x-delivery-limit", Argument::Number(settings.delivery_limit)),
                ("x-dead-letter-exchange", text(&settings.dead_exchange)),
                // At-least-once needs both; without reject-publish it silently falls back.
                // https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ],
        },
        Item::Binding {
            queue: settings.name.clone(),
            exchange: settings.exchange.clone(),
            key: settings.binding.clone(),
        },
    ]
}

impl Item {
    /// What it is, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Exchange { name, .. } => format!("exchange `{name}`"),
            Self::Queue { name, .. } => format!("queue `{name}`"),
            Self::Binding { queue, exchange, key } => {
                format!("binding of `{queue}` to `{exchange}` by `{key}`")
            }
        }
    }

    /// Whether it is what requests are taken from. Nothing else has to be in sight of the worker's
    /// user; since RabbitMQ 4.3 only who has some right to a thing may look for it.
    pub(super) fn is_the_queue(&self, settings: &Settings) -> bool {
        matches!(self, Self::Queue { name, .. } if *name == settings.name)
    }

    /// Makes it, or makes sure that it is as wanted. A refusal closes the channel.
    pub(super) async fn declare(
        &self,
        channel: &Channel,
        settings: &Settings,
    ) -> Result<(), Trouble> {
        self.tell(channel, settings, false).await
    }

    /// Only looks whether it is there. Bindings cannot be looked at. A refusal closes the channel.
    pub(super) async fn look(&self, channel: &Channel, settings: &Settings) -> Result<(), Trouble> {
        match self {
            Self::Binding { .. } => Ok(()),
            _ => self.tell(channel, settings, true).await,
        }
    }

    async fn tell(
        &self,
        channel: &Channel,
        settings: &Settings,
        passive: bool,
    ) -> Result<(), Trouble> {
        let doing =
            format!("{} {}", if passive { "looking for" } else { "declaring" }, self.describe());
        let within = settings.operation_timeout;
        match self {
            Self::Exchange { name, fanout } => {
                let kind = if *fanout { ExchangeKind::Fanout } else { ExchangeKind::Topic };
                let options =
                    ExchangeDeclareOptions { durable: true, passive, ..Default::default() };
                let call =
                    channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
                link::within(within, doing, call).await
            }
            Self::Queue { name, arguments } => {
                let options = QueueDeclareOptions { durable: true, passive, ..Default::default() };
                let call = channel.queue_declare(short(name)?, options, table(arguments));
                link::within(within, doing, call).await.map(|_queue| ())
            }
            Self::Binding { queue, exchange, key } => {
                let call = channel.queue_bind(
                    short(queue)?,
                    short(exchange)?,
                    short(key)?,
                    QueueBindOptions::default(),
                    FieldTable::default(),
                );
                link::within(within, doing, call).await
            }
        }
    }
}

/// Makes everything, or looks for everything, as the settings say.
pub(super) async fn establish(
    link: &Link,
    channel: &Channel,
    settings: &Settings,
) -> Result<(), Trouble> {
    for item in items(settings) {
        if settings.declare {
            item.declare(channel, settings).await?;
            continue;
        }
        // A refusal closes the channel, and need not be the end.
        let looking = link.channel(settings).await?;
        let looked = item.look(&looking, settings).await;
        link::close_channel(&looking, settings.operation_timeout).await;
        match looked {
            Err(trouble) if trouble.cause == Cause::Refused && !item.is_the_queue(settings) => {
                tracing::debug!(
                    event = "queue.unseen",
                    error = %trouble,
                    "this user may not look for it, and the worker does not need to"
                );
            }
            looked => looked.map_err(|trouble| {
                Trouble::new(
                    trouble.cause,
                    format!("{trouble}; create it, or set queue.declare = true"),
                )
            })?,
        }
    }
    Ok(())
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            Argument::Number(number) => AMQPValue::LongLongInt(i64::from(*number)),
        };
        table.insert(ShortString::from(*name), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_have_a_place_before_there_are_any() {
        let items = items(&Settings::sample());
        let at = |wanted: &str| items.iter().position(|item| item.describe() == wanted);
        assert!(at("queue `longshore.dead`") < at("queue `longshore.requests`"));
        assert!(
            at("binding of `longshore.dead` to `longshore.dead` by ``")
                < at("queue `longshore.requests`")
        );
        assert_eq!(items.len(), 6);
    }

    #[test]
    fn the_queue_dead_letters_at_least_once_and_never_without_a_limit() {
        let items = items(&Settings::sample());
        let Some(Item::Queue { arguments, .. }) =
            items.iter().find(|item| item.describe() == "queue `longshore.requests`")
        else {
            panic!("the queue is not there");
        };
        for wanted in [
            ("x-queue-type", Argument::Text("quorum".into())),
            ("x-delivery-limit", Argument::Number(200)),
            ("x-dead-letter-exchange", Argument::Text("longshore.dead".into())),
            ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
            ("x-overflow", Argument::Text("reject-publish".into())),
        ] {
            assert!(arguments.contains(&wanted), "{wanted:?}");
        }
    }
}
