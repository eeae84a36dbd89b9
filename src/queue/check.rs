//! `longshore check`: what stands between these settings and a working subscription, in plain
//! sentences.

use super::{
    Settings,
    endpoint::Endpoint,
    link::{Dialer, Link, close_channel, knock},
    topology::{self, Item},
    trouble::{Cause, Trouble},
};

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

/// Looks whether the brokers can be reached and have, or may be given, what is needed. Creates
/// nothing and takes no message.
pub async fn check(settings: &Settings) -> Vec<Finding> {
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
                findings.push(Finding::good(format!(
                    "{endpoint}: connected as `{}`{}",
                    endpoint.user,
                    product(settings, endpoint)
                        .await
                        .map_or_else(String::new, |product| format!(", it is {product}"))
                )));
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

/// What the broker says it is. lapin keeps that to itself, so this asks with a greeting of our
/// own, which the broker logs as a connection that ended early.
async fn product(settings: &Settings, endpoint: &Endpoint) -> Option<String> {
    if endpoint.tls {
        return None;
    }
    let greeting =
        tokio::time::timeout(settings.connect_timeout, knock(endpoint)).await.ok()?.ok()?;
    let text = |key: &str| long_string(&greeting, key);
    Some(format!("{} {}", text("product")?, text("version")?))
}

/// The long string behind a key of an AMQP table: a length byte, the key, `S`, four bytes of
/// length, the text. <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf> §4.2.1
fn long_string(table: &[u8], key: &str) -> Option<String> {
    let mut pattern = vec![u8::try_from(key.len()).ok()?];
    pattern.extend_from_slice(key.as_bytes());
    pattern.push(b'S');
    let at = table.windows(pattern.len()).position(|window| window == pattern)? + pattern.len();
    let length = u32::from_be_bytes(table.get(at..at + 4)?.try_into().ok()?);
    let text = table.get(at + 4..(at + 4).checked_add(usize::try_from(length).ok()?)?)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_version_is_read_from_its_greeting() {
        let greeting = b"\x01\x00\x00\x00\x00\x00\x40\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(long_string(greeting, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(long_string(greeting, "version").as_deref(), Some("3.10.8"));
        assert_eq!(long_string(greeting, "platform"), None);
        assert_eq!(long_string(&greeting[..20], "product"), None, "cut short");
    }

    #[tokio::test]
    async fn wrong_settings_are_found_without_a_broker() {
        let settings = Settings { prefetch: Some(0), ..Settings::sample() };
        let findings = check(&settings).await;
        assert!(
            findings.len() == 1 && findings[0].text.starts_with("queue.prefetch "),
            "{findings:?}"
        );
    }
}
