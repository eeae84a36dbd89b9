//! `longshore publish`: the producer's side of the contract, done as the contract asks.
//!
//! Every request is read by the same code as the worker's, so what would be refused there is refused
//! here, with the line it stands on. What is published is persistent, `mandatory`, and confirmed.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, stdin},
    path::PathBuf,
};

use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Exit;
use crate::{
    config::Config,
    outcome::ErrorCode,
    queue::Publisher,
    request::{self, Message, Properties},
};

/// Publishes under way at once.
const IN_FLIGHT: usize = 64;

#[derive(Debug, Args)]
#[command(after_help = "\
One request from arguments:
  longshore publish --kind user.profile.update --user 42 --payload '{\"email\":\"ada@example.com\"}'
Many, one JSON object a line, from a file or from standard input:
  longshore publish requests.ndjson
  produce | longshore publish -")]
pub(super) struct Arguments {
    /// One request a line, as the contract has them; `-` is standard input
    #[arg(conflicts_with_all = ["kind", "user", "payload", "id", "deadline", "not_before"])]
    file: Option<PathBuf>,
    /// The kind of a single request
    #[arg(long, required_unless_present = "file")]
    kind: Option<String>,
    /// Whom it concerns
    #[arg(long, required_unless_present = "file", value_name = "USER_ID")]
    user: Option<String>,
    /// Its data, JSON
    #[arg(long, default_value = "{}", value_name = "JSON")]
    payload: String,
    /// Its identity; a new one where it is left out
    #[arg(long, value_name = "REQUEST_ID")]
    id: Option<String>,
    /// Do not start it after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// Do not start it before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// The queue that the outcome is to be published to
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// Publish kinds as well that these settings do not know
    #[arg(long)]
    any_kind: bool,
}

/// A line, and what is wrong with it if it cannot be published.
struct Candidate {
    line: usize,
    message: Result<(String, String, Message), String>,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Exit {
    let known: Vec<&str> = config.kinds.keys().map(String::as_str).collect();
    let known = (!known.is_empty() && !arguments.any_kind).then_some(known);
    let limit = config.worker.max_message_bytes;
    let reply_to = arguments.reply_to.clone();
    let bodies: Box<dyn Iterator<Item = Line> + Send> = match &arguments.file {
        None => Box::new(std::iter::once((1, single(&arguments)))),
        Some(path) => match lines(path, limit) {
            Ok(lines) => Box::new(lines),
            Err(error) => {
                eprintln!("longshore: {} cannot be read: {error}", path.display());
                return Exit::Failed;
            }
        },
    };
    let publisher = match Publisher::connect(&config.queue).await {
        Ok(publisher) => publisher,
        Err(trouble) => {
            eprintln!("longshore: {trouble}");
            return Exit::Failed;
        }
    };
    let candidates = bodies.map(|(line, body)| Candidate {
        line,
        message: body.and_then(|body| prepare(body, known.as_deref(), limit, reply_to.as_deref())),
    });
    let ordered = |kind: &str| config.kinds.get(kind).is_some_and(|it| it.ordered_by.is_some());
    // One after another where an order is to be kept.
    let in_order = config.kinds.values().any(|kind| kind.ordered_by.is_some());
    let in_flight = if in_order { 1 } else { IN_FLIGHT };
    let queue = &config.queue;
    let results = stream::iter(candidates)
        .map(|candidate| {
            let publisher = publisher.clone();
            async move {
                let published = match candidate.message {
                    Ok((id, kind, message)) => {
                        let exchange =
                            if ordered(&kind) { &queue.ordered_exchange } else { &queue.exchange };
                        publisher
                            .publish(exchange, &kind, &message, true)
                            .await
                            .map(|_| id)
                            .map_err(|error| error.to_string())
                    }
                    Err(refused) => Err(format!("refused: {refused}")),
                };
                (candidate.line, published)
            }
        })
        .buffered(in_flight);
    let (mut confirmed, mut failed) = (0_u64, 0_u64);
    let mut results = Box::pin(results);
    while let Some((line, published)) = results.next().await {
        match published {
            Ok(id) => {
                confirmed += 1;
                outln!("{id}");
            }
            Err(error) => {
                failed += 1;
                eprintln!("longshore: line {line}: {error}");
            }
        }
    }
    drop(results);
    publisher.close(config.queue.operation_timeout).await;
    eprintln!("longshore: {confirmed} published and confirmed, {failed} not");
    if failed == 0 { Exit::Clean } else { Exit::Failed }
}

/// The body of the request that the arguments describe.
fn single(arguments: &Arguments) -> Result<Vec<u8>, String> {
    let payload: Value = serde_json::from_str(&arguments.payload)
        .map_err(|error| format!("--payload is not JSON: {error}"))?;
    let mut body = Map::new();
    let id = arguments.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    body.insert("request_id".to_owned(), json!(id));
    body.insert("kind".to_owned(), json!(arguments.kind));
    body.insert("user_id".to_owned(), json!(arguments.user));
    body.insert("payload".to_owned(), payload);
    for (field, value) in [("deadline", &arguments.deadline), ("not_before", &arguments.not_before)]
    {
        if let Some(value) = value {
            body.insert(field.to_owned(), json!(value));
        }
    }
    serde_json::to_vec(&body).map_err(|error| error.to_string())
}

type Line = (usize, Result<Vec<u8>, String>);

/// The lines of a file, none of them read further than the worker would. Empty lines are skipped.
fn lines(
    path: &PathBuf,
    limit: usize,
) -> std::io::Result<impl Iterator<Item = Line> + Send + use<>> {
    let input: Box<dyn Read + Send> =
        if path.as_os_str() == "-" { Box::new(stdin()) } else { Box::new(File::open(path)?) };
    let mut input = BufReader::new(input);
    let mut number = 0;
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        while !ended {
            number += 1;
            let mut line = Vec::new();
            match input.by_ref().take(limit as u64 + 2).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => {
                    ended = true;
                    return Some((number, Err(format!("cannot be read: {error}"))));
                }
            }
            if line.last() != Some(&b'\n') && line.len() > limit {
                // The rest of it is skipped, so that the numbers of the lines stay right.
                if let Err(error) = input.skip_until(b'\n') {
                    ended = true;
                    return Some((number, Err(format!("cannot be read: {error}"))));
                }
                return Some((
                    number,
                    Err(format!("more than {limit} bytes, worker.max_message_bytes")),
                ));
            }
            let text = line.trim_ascii();
            if !text.is_empty() {
                return Some((number, Ok(text.to_vec())));
            }
        }
        None
    }))
}

/// Reads a body as the worker would, and puts the properties of the contract beside it.
fn prepare(
    body: Vec<u8>,
    known: Option<&[&str]>,
    limit: usize,
    reply_to: Option<&str>,
) -> Result<(String, String, Message), String> {
    if body.len() > limit {
        return Err(format!(
            "{}: body has {} bytes, at most {limit} are allowed",
            ErrorCode::TooLarge,
            body.len()
        ));
    }
    let message = Message { body: Bytes::from(body), properties: Properties::default() };
    let mut request = request::decode(message).map_err(|malformed| malformed.to_string())?;
    let now = OffsetDateTime::now_utc();
    if request.time_left(now).is_some_and(|left| left.is_zero()) {
        return Err(format!("{}: the deadline has passed", ErrorCode::Deadline));
    }
    if known.is_some_and(|known| !known.contains(&request.kind.as_str())) {
        return Err(format!(
            "{}: no kind `{}` is configured (--any-kind publishes it all the same)",
            ErrorCode::UnknownKind,
            request.kind
        ));
    }
    let millis = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    request.message.properties = Properties {
        message_id: Some(request.id.clone()),
        kind: Some(request.kind.clone()),
        app_id: Some("longshore-publish".to_owned()),
        content_type: Some("application/json".to_owned()),
        timestamp: u64::try_from(now.unix_timestamp()).ok(),
        reply_to: reply_to.map(str::to_owned),
        headers: Map::from_iter([("published_at_ms".to_owned(), json!(millis))]),
        ..Properties::default()
    };
    Ok((request.id, request.kind, request.message))
}
