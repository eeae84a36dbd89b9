//! The contract with producers: what a message must look like to be a request.
//!
//! [`decode`] turns a [`Message`] into a [`Request`] or says, fault by fault, why it cannot.
//! It is a plain function without I/O: the worker, `longshore publish` and the tests share it,
//! so that what is refused locally and what is refused by the worker cannot differ.

mod envelope;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod properties;

use std::{fmt, time::Duration};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

pub(crate) use envelope::depth;
pub use properties::Properties;

use crate::outcome::ErrorCode;

/// The longest `request_id`, in characters.
pub const MAX_REQUEST_ID: usize = 128;
/// The longest `user_id`, in characters.
pub const MAX_USER_ID: usize = 128;
/// The longest `kind`, in bytes: it is also a routing key, an AMQP short string.
pub const MAX_KIND: usize = 255;
/// How deep arrays and objects may nest in a body.
pub const MAX_DEPTH: usize = 128;

/// What came off the queue, or would go onto it: bytes and their properties.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body exactly as received.
    pub body: Bytes,
    /// The AMQP properties that the contract knows, and all headers.
    pub properties: Properties,
}

impl Message {
    /// SHA-256 over the body: tells a redelivered or republished request from another request
    /// that uses the same id.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.body).into()
    }
}

/// One request of a producer that met the contract.
#[derive(Debug, Clone)]
pub struct Request {
    /// The identity under which the request is done at most once.
    pub id: String,
    /// The name of the job type; what it does is configured.
    pub kind: String,
    /// Whom it concerns. Integers arrive here as their decimal digits.
    pub user_id: String,
    /// The data, as JSON text; `{}` when the producer left it out.
    pub payload: String,
    /// After this instant the request is not started any more.
    pub deadline: Option<OffsetDateTime>,
    /// Before this instant the request is not started.
    pub not_before: Option<OffsetDateTime>,
    /// Top-level fields that the contract does not know; they are ignored.
    pub unknown_fields: usize,
    /// The message it came in.
    pub message: Message,
}

impl Request {
    /// When the producer says it published this, if it says so.
    pub fn published_at(&self) -> Option<OffsetDateTime> {
        self.message.properties.published_at()
    }

    /// What is left until the deadline: `None` without a deadline, zero when it has passed.
    pub fn time_left(&self, now: OffsetDateTime) -> Option<Duration> {
        self.deadline.map(|deadline| Duration::try_from(deadline - now).unwrap_or(Duration::ZERO))
    }
}

/// Why a message is not a request, with whatever of its identity could be read, so that the
/// refusal can be filed under its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The closed-list code for the producer.
    pub code: ErrorCode,
    /// Every fault found, each naming its field.
    pub reason: String,
    /// A usable `request_id`, if there was one.
    pub id: Option<String>,
    /// The kind, if it could be read.
    pub kind: Option<String>,
    /// The user, if it could be read.
    pub user_id: Option<String>,
}

impl Malformed {
    /// The refused message in the form of a request, so that it can be filed under its id; `None`
    /// without a usable one. What could not be read is empty.
    pub fn into_request(self, message: Message) -> Option<Request> {
        Some(Request {
            id: self.id?,
            kind: self.kind.unwrap_or_default(),
            user_id: self.user_id.unwrap_or_default(),
            payload: "{}".to_owned(),
            deadline: None,
            not_before: None,
            unknown_fields: 0,
            message,
        })
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

impl std::error::Error for Malformed {}

/// Reads a message as a request.
///
/// # Errors
/// [`Malformed`] lists every fault, not the first: `malformed_json` where the body is not JSON
/// text at all, `invalid_envelope` where it is JSON but not the envelope of the contract.
pub fn decode(message: Message) -> Result<Request, Box<Malformed>> {
    decode_or_return(message).map_err(|refused| Box::new(refused.0))
}

/// Like [`decode`], and hands back the message that is no request.
///
/// # Errors
/// As [`decode`].
pub fn decode_or_return(message: Message) -> Result<Request, Box<(Malformed, Message)>> {
    match read(&message) {
        Ok(read) => Ok(Request {
            id: read.id,
            kind: read.kind,
            user_id: read.user_id,
            payload: read.payload,
            deadline: read.deadline,
            not_before: read.not_before,
            unknown_fields: read.unknown_fields,
            message,
        }),
        Err(malformed) => Err(Box::new((*malformed, message))),
    }
}

/// A request without its message.
struct Read {
    id: String,
    kind: String,
    user_id: String,
    payload: String,
    deadline: Option<OffsetDateTime>,
    not_before: Option<OffsetDateTime>,
    unknown_fields: usize,
}

fn read(message: &Message) -> Result<Read, Box<Malformed>> {
    let properties = &message.properties;
    let mut faults = Faults::default();

    let property_id = properties.message_id.as_deref().filter(|id| !id.is_empty());
    let property_kind = properties.kind.as_deref().filter(|kind| !kind.is_empty());
    if let Some(encoding) = properties.content_encoding.as_deref()
        && !encoding.is_empty()
        && !encoding.eq_ignore_ascii_case("identity")
        && !encoding.eq_ignore_ascii_case("utf-8")
    {
        faults.add(
            "content_encoding",
            format!("`{}` is not supported, send plain UTF-8 JSON", excerpt(encoding)),
        );
    }

    let fields = match envelope::read(&message.body) {
        Ok(fields) => fields,
        Err((code, reason)) => {
            return Err(Box::new(Malformed {
                code,
                reason,
                id: property_id.filter(|id| id_fault(id).is_none()).map(str::to_owned),
                kind: property_kind.filter(|kind| kind_fault(kind).is_none()).map(str::to_owned),
                user_id: None,
            }));
        }
    };

    let id = agree(&mut faults, "request_id", "message_id", fields.request_id, property_id);
    let id = id.and_then(|id| match id_fault(&id) {
        None => Some(id),
        Some(fault) => {
            faults.add("request_id", fault);
            None
        }
    });
    let kind = agree(&mut faults, "kind", "type", fields.kind, property_kind);
    if let Some(kind) = &kind
        && let Some(fault) = kind_fault(kind)
    {
        faults.add("kind", fault);
    }
    let user_id = faults.take("user_id", fields.user_id).and_then(|user| {
        if user.is_none() {
            faults.add("user_id", "is missing".to_owned());
        }
        user
    });
    let deadline = faults.take("deadline", fields.deadline).flatten();
    let not_before = faults.take("not_before", fields.not_before).flatten();
    for field in fields.repeated {
        faults.add(field, "is given twice".to_owned());
    }

    match (id, kind, user_id) {
        (Some(id), Some(kind), Some(user_id)) if faults.is_empty() => Ok(Read {
            id,
            kind,
            user_id,
            payload: fields.payload.map_or_else(|| "{}".to_owned(), str::to_owned),
            deadline,
            not_before,
            unknown_fields: fields.unknown,
        }),
        (id, kind, user_id) => Err(Box::new(Malformed {
            code: ErrorCode::InvalidEnvelope,
            reason: faults.into_reason(),
            id,
            kind: kind.filter(|kind| kind_fault(kind).is_none()),
            user_id,
        })),
    }
}

/// Why `id` cannot be a `request_id`, or `None` when it can.
pub fn id_fault(id: &str) -> Option<String> {
    let length = id.chars().count();
    if length == 0 {
        Some("is empty".to_owned())
    } else if length > MAX_REQUEST_ID {
        Some(format!("has {length} characters, at most {MAX_REQUEST_ID} are allowed"))
    } else {
        id.chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')))
            .map(|c| format!("has the character {c:?}, allowed are A-Z a-z 0-9 . _ : -"))
    }
}

fn kind_fault(kind: &str) -> Option<String> {
    if kind.is_empty() {
        Some("is empty".to_owned())
    } else if kind.len() > MAX_KIND {
        Some(format!("has {} bytes, at most {MAX_KIND} are allowed", kind.len()))
    } else {
        kind.chars().find(|c| c.is_control()).map(|c| format!("has the control character {c:?}"))
    }
}

/// The one value of a name that may stand in the body, in a property, or in both.
fn agree(
    faults: &mut Faults,
    field: &'static str,
    property: &'static str,
    body: Result<Option<String>, String>,
    given: Option<&str>,
) -> Option<String> {
    match (faults.take(field, body)?, given) {
        (Some(body), Some(given)) if body != given => {
            faults.add(
                field,
                format!(
                    "`{}` differs from the property {property} `{}`",
                    excerpt(&body),
                    excerpt(given)
                ),
            );
            None
        }
        (Some(value), _) => Some(value),
        (None, Some(given)) => Some(given.to_owned()),
        (None, None) => {
            faults.add(field, format!("is missing, in the body and as the property {property}"));
            None
        }
    }
}

/// At most 40 characters of a producer's text, for error messages.
fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short
}

/// An RFC 3339 instant, e.g. `2026-01-01T00:00:00Z`.
///
/// # Errors
/// The text says what was found instead.
pub fn instant(text: &str) -> Result<OffsetDateTime, String> {
    let instant = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        format!("`{}` is not an RFC 3339 time such as 2026-01-01T00:00:00Z", excerpt(text))
    })?;
    // Elsewhere it may still be the year 9999.
    instant
        .checked_to_offset(UtcOffset::UTC)
        .ok_or_else(|| format!("`{}` lies beyond the year 9999 in UTC", excerpt(text)))
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, field: &str, fault: String) {
        self.0.push(format!("{field} {fault}"));
    }

    fn take<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|fault| self.add(field, fault)).ok()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn into_reason(self) -> String {
        self.0.join("; ")
    }
}

#[cfg(test)]
mod tests;
