//! What holds for whatever a producer sends. Input: lines such as `message_id=a`, `type=user.get`
//! or `traceparent=…` (a header), an empty line, and the body.

use serde_json::{Value, value::RawValue};
use time::format_description::well_known::Rfc3339;

use super::*;
use crate::laws::named_and_rest;

/// The longest refusal, in bytes. It is logged and stored.
const LONGEST_REASON: usize = 4_096;
/// One of these stands in every refusal: it says where the fault is.
const PLACES: [&str; 8] = [
    "body",
    "request_id",
    "kind",
    "user_id",
    "deadline",
    "not_before",
    "payload",
    "content_encoding",
];

/// Panics where a law is broken.
pub fn hold(input: &[u8]) {
    let message = message(input);
    match decode(message.clone()) {
        Ok(request) => a_request_is_what_the_contract_says(&request, &message),
        Err(malformed) => a_refusal_says_where_and_loses_nothing(*malformed, message),
    }
}

fn message(input: &[u8]) -> Message {
    let (named, body) = named_and_rest(input);
    let mut properties = Properties::default();
    for (name, value) in named {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            continue;
        };
        let value = value.to_owned();
        match name {
            "message_id" => properties.message_id = Some(value),
            "type" => properties.kind = Some(value),
            "content_encoding" => properties.content_encoding = Some(value),
            "timestamp" => properties.timestamp = value.parse().ok(),
            _ => {
                let value = value.parse::<i64>().map_or_else(|_| value.into(), Value::from);
                properties.headers.insert(name.to_owned(), value);
            }
        }
    }
    Message { body: Bytes::copy_from_slice(body), properties }
}

fn a_request_is_what_the_contract_says(request: &Request, message: &Message) {
    assert_eq!(id_fault(&request.id), None);
    assert_eq!(kind_fault(&request.kind), None);
    assert!((1..=MAX_USER_ID).contains(&request.user_id.chars().count()));
    assert!(!request.user_id.contains('\0'), "Postgres has no such text");
    assert_eq!(request.message.body, message.body);
    assert!(depth(request.payload.as_bytes()) <= MAX_DEPTH);
    if let Some(at) = request.published_at() {
        assert!(at >= OffsetDateTime::UNIX_EPOCH);
    }
    if let Some(trace) = message.properties.trace_id() {
        assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    if let (Some(left), Some(deadline)) =
        (request.time_left(OffsetDateTime::UNIX_EPOCH), request.deadline)
    {
        assert_eq!(left.is_zero(), deadline <= OffsetDateTime::UNIX_EPOCH);
    }

    // Written anew, with its name in the body or beside it, it is the same request.
    let payload: &RawValue = serde_json::from_str(&request.payload).expect("the payload is JSON");
    let time = |at: Option<OffsetDateTime>| {
        at.map(|at| at.format(&Rfc3339).expect("what was read can be written"))
    };
    let inside = Envelope {
        request_id: Some(&request.id),
        kind: Some(&request.kind),
        user_id: &request.user_id,
        payload,
        deadline: time(request.deadline),
        not_before: time(request.not_before),
    };
    let beside = Properties {
        message_id: Some(request.id.clone()),
        kind: Some(request.kind.clone()),
        ..Properties::default()
    };
    let nameless = Envelope { request_id: None, kind: None, ..inside.clone() };
    for (envelope, properties) in [(inside, Properties::default()), (nameless, beside)] {
        let body = serde_json::to_vec(&envelope).expect("a request can be written").into();
        let again = decode(Message { body, properties }).expect("and read again");
        assert_eq!(
            (&again.id, &again.kind, &again.user_id, &again.payload, again.unknown_fields),
            (&request.id, &request.kind, &request.user_id, &request.payload, 0)
        );
        assert_eq!((again.deadline, again.not_before), (request.deadline, request.not_before));
    }
}

fn a_refusal_says_where_and_loses_nothing(malformed: Malformed, message: Message) {
    assert!(matches!(malformed.code, ErrorCode::MalformedJson | ErrorCode::InvalidEnvelope));
    let reason = &malformed.reason;
    assert!(reason.len() <= LONGEST_REASON, "{} bytes: {reason:.200}…", reason.len());
    assert!(PLACES.iter().any(|place| reason.contains(place)), "it does not say where: {reason}");
    assert!(!reason.contains(char::is_control), "not fit for a log or for Postgres: {reason:?}");
    assert!(malformed.id.as_deref().is_none_or(|id| id_fault(id).is_none()));
    assert!(malformed.kind.as_deref().is_none_or(|kind| kind_fault(kind).is_none()));
    let id = malformed.id.clone();
    let filed = malformed.into_request(message.clone());
    assert_eq!(
        filed.as_ref().map(|filed| &filed.id),
        id.as_ref(),
        "filed under its id, if it has one"
    );
    if let Some(filed) = filed {
        assert_eq!(filed.message.body, message.body, "and kept as it came");
        assert_eq!(filed.message.properties, message.properties);
    }
}

#[derive(Clone, serde::Serialize)]
struct Envelope<'a> {
    request_id: Option<&'a str>,
    kind: Option<&'a str>,
    user_id: &'a str,
    payload: &'a RawValue,
    deadline: Option<String>,
    not_before: Option<String>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_laws_hold_for_every_input_that_is_kept() {
        crate::laws::replay("envelope", super::hold);
    }
}
