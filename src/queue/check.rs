//! `longshore check`: what stands between these settings and a working subscription, in plain
//! sentences.

use super::{
    Settings,
    endpoint::Endpoint,
    link::{Dialer, Link, close_channel},
    topology::{self, Item},
    trouble::{Cause, Trouble},
    version::Broker,
};

/// A delivery limit below this may be used up by give-backs, where those count.
const GENEROUS: u32 = 20;

/// How good or bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Nothing to do, but to know.
    Note,
    /// The worker would not work.
    Problem,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was found, and what to do about it.
    pub text: String,
}

impl Finding {
    fn good(text: impl Into<String>) -> Self {
        Self { level: Level::Good, text: text.into() }
    }

    fn note(text: impl Into<String>) -> Self {
        Self { level: Level::Note, text: text.into() }
    }

    fn problem(text: impl Into<String>) -> Self {
        Self { level: Level::Problem, text: text.into() }
    }
}

/// Looks whether the brokers can be reached and have, or may be given, what is needed, and take
/// bodies of up to `max_message_bytes`. Creates nothing and takes no message.
pub async fn check(settings: &Settings, max_message_bytes: usize) -> Vec<Finding> {
    let problems = settings.problems();
    if !problems.is_empty() {
        return problems
            .into_iter()
            .map(|(key, text)| Finding::problem(format!("queue.{key} {text}")))
            .collect();
    }
    let mut findings = Vec::new();
    let dialer = match Dialer::new(settings, "longshore check") {
        Ok(dialer) => dialer,
        Err(trouble) => return vec![Finding::problem(trouble.text)],
    };
    let endpoints = dialer.endpoints().to_vec();
    let mut links = Vec::new();
    for (n, endpoint) in endpoints.iter().enumerate() {
        match dialer.dial_one(n, settings).await {
            Ok(link) => {
                let what =
                    link.broker.as_ref().map_or_else(String::new, |it| format!(", it is {it}"));
                findings.push(Finding::good(format!(
                    "{endpoint}: connected as `{}`{what}",
                    endpoint.user
                )));
                if let Some(broker) = &link.broker {
                    findings.extend(judge(broker, settings, max_message_bytes));
                }
                links.push(link);
            }
            Err(trouble) => findings.push(Finding::problem(trouble.text)),
        }
    }
    if let Some(link) = links.first() {
        for item in topology::items(settings) {
            if let Some(finding) = find(&item, link, settings).await {
                findings.push(finding);
            }
        }
    }
    for link in links {
        link.close(settings.operation_timeout).await;
    }
    findings
}

/// One item: is it there, and is it as we would declare it? Each question gets its own channel,
/// for the broker closes it with every refusal.
async fn find(item: &Item, link: &Link, settings: &Settings) -> Option<Finding> {
    if matches!(item, Item::Binding { .. }) {
        return None;
    }
    let what = item.describe();
    let problem = |trouble: Trouble| Some(Finding::problem(advice(&trouble, link, &what)));
    let channel = match link.channel(settings).await {
        Ok(channel) => channel,
        Err(trouble) => return problem(trouble),
    };
    let looked = item.look(&channel, settings).await;
    let differs = if looked.is_ok() && settings.declare {
        item.declare(&channel, settings).await
    } else {
        Ok(())
    };
    close_channel(&channel, settings.operation_timeout).await;
    match (looked, differs) {
        (Ok(()), Ok(())) => Some(Finding::good(format!("{what} is there"))),
        (Ok(()), Err(trouble)) => problem(trouble),
        (Err(Trouble { cause: Cause::Topology, .. }), _) if settings.declare => Some(
            Finding::note(format!("{what} is not there yet, the worker creates it when it starts")),
        ),
        (Err(Trouble { cause: Cause::Topology, .. }), _) => Some(Finding::problem(format!(
            "{what} is not there: create it, or set queue.declare = true"
        ))),
        (Err(Trouble { cause: Cause::Refused, .. }), _)
            if !settings.declare && !item.is_the_queue(settings) =>
        {
            Some(Finding::note(format!(
                "{what} cannot be looked for by the user `{}`, who has no right to it; see that it is there",
                link.endpoint.user
            )))
        }
        (Err(trouble), _) => problem(trouble),
    }
}

fn advice(trouble: &Trouble, link: &Link, what: &str) -> String {
    if trouble.cause == Cause::Refused {
        let Endpoint { user, vhost, .. } = &link.endpoint;
        format!(
            "{what}: {trouble}; the user `{user}` needs permission, e.g. `rabbitmqctl set_permissions -p {vhost} \
             {user} <configure> <write> <read>` with patterns that match this name"
        )
    } else {
        trouble.text.clone()
    }
}

/// What follows for these settings from what the broker is.
fn judge(broker: &Broker, settings: &Settings, max_message_bytes: usize) -> Vec<Finding> {
    let limit = settings.delivery_limit;
    let low = broker.features().is_some_and(|it| it.give_backs_count) && limit < GENEROUS;
    let low = low.then(|| {
        format!(
            "queue.delivery_limit is {limit}, and {broker} counts give-backs towards it: a message that \
             {limit} stops or pauses gave back goes to the dead-letter queue unworked; set at least {GENEROUS}"
        )
    });
    let notes = low.into_iter().chain(broker.refuses(max_message_bytes)).map(Finding::note);
    broker.fault().map(Finding::problem).into_iter().chain(notes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_means_for_the_settings_is_told() {
        let of = |version: &str, delivery_limit, bytes| {
            let broker = Broker { product: "RabbitMQ".to_owned(), version: version.to_owned() };
            let found = judge(&broker, &Settings { delivery_limit, ..Settings::sample() }, bytes);
            found.into_iter().map(|finding| finding.level).collect::<Vec<_>>()
        };
        assert_eq!(of("3.9.29", 200, 1 << 20), [Level::Problem]);
        assert_eq!(of("3.10.8", 10, 32 << 20), [Level::Note], "give-backs count");
        assert_eq!(of("4.0.5", 10, 32 << 20), [Level::Note, Level::Note]);
        assert_eq!(of("4.3.6", 10, 32 << 20), [Level::Note], "only the size");
        assert_eq!(of("4.3.6", 200, 1 << 20), []);
    }

    #[tokio::test]
    async fn wrong_settings_are_found_without_a_broker() {
        let settings = Settings { prefetch: Some(0), ..Settings::sample() };
        let findings = check(&settings, 1 << 20).await;
        assert!(
            findings.len() == 1 && findings[0].text.starts_with("queue.prefetch "),
            "{findings:?}"
        );
    }
}
