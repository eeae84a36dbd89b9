//! Reading the body: one pass over the bytes, values left as text until a rule needs them.

use std::fmt;

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::{MAX_DEPTH, MAX_USER_ID, excerpt, instant};
use crate::outcome::ErrorCode;

/// The known fields of the envelope, each read or with its own fault.
pub(super) struct Fields<'a> {
    pub(super) request_id: Result<Option<String>, String>,
    pub(super) kind: Result<Option<String>, String>,
    pub(super) user_id: Result<Option<String>, String>,
    pub(super) payload: Option<&'a str>,
    pub(super) deadline: Result<Option<OffsetDateTime>, String>,
    pub(super) not_before: Result<Option<OffsetDateTime>, String>,
    pub(super) unknown: usize,
    pub(super) repeated: Vec<&'static str>,
}

/// Reads the body as one JSON object.
///
/// # Errors
/// A code and a reason when it is not UTF-8, not JSON, nested too deep, or not an object.
pub(super) fn read(body: &[u8]) -> Result<Fields<'_>, (ErrorCode, String)> {
    let text = std::str::from_utf8(body).map_err(|error| {
        (
            ErrorCode::MalformedJson,
            format!("body is not UTF-8 from byte {} on", error.valid_up_to()),
        )
    })?;
    // serde_json skips unread values without counting their depth, and Postgres would count
    // with its stack: so it is counted here.
    // Most have fewer brackets than that, which is seen much faster.
    let depth = if brackets(body) > MAX_DEPTH { depth(body) } else { 0 };
    if depth > MAX_DEPTH {
        return Err((
            ErrorCode::MalformedJson,
            format!("body is nested {depth} deep, at most {MAX_DEPTH} are allowed"),
        ));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let raw = match reader
        .deserialize_map(EnvelopeVisitor)
        .and_then(|raw| reader.end().map(|()| raw))
    {
        Ok(raw) => raw,
        Err(error) if error.is_data() => {
            // Valid JSON of another shape (`[]`, `"text"`), or broken further on?
            return Err(match serde_json::from_str::<IgnoredAny>(text) {
                // Not in the words of the error, which has the whole text in it.
                Ok(_) => {
                    let what = match text.trim_start() {
                        text if text.starts_with('"') => "a string".to_owned(),
                        text => describe(text),
                    };
                    (ErrorCode::InvalidEnvelope, format!("body must be a JSON object, not {what}"))
                }
                Err(broken) => (ErrorCode::MalformedJson, format!("body is not JSON: {broken}")),
            });
        }
        Err(error) => return Err((ErrorCode::MalformedJson, format!("body is not JSON: {error}"))),
    };
    Ok(Fields {
        request_id: string(raw.request_id),
        kind: string(raw.kind),
        user_id: user_id(raw.user_id),
        payload: raw.payload.map(RawValue::get),
        deadline: time(raw.deadline),
        not_before: time(raw.not_before),
        unknown: raw.unknown,
        repeated: raw.repeated,
    })
}

#[derive(Default)]
struct Raw<'a> {
    request_id: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    deadline: Option<&'a RawValue>,
    not_before: Option<&'a RawValue>,
    unknown: usize,
    repeated: Vec<&'static str>,
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with request_id, kind, user_id and payload")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
        let mut raw = Raw::default();
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let (slot, name) = match key.as_ref() {
                "request_id" => (&mut raw.request_id, "request_id"),
                "kind" => (&mut raw.kind, "kind"),
                "user_id" => (&mut raw.user_id, "user_id"),
                "payload" => (&mut raw.payload, "payload"),
                "deadline" => (&mut raw.deadline, "deadline"),
                "not_before" => (&mut raw.not_before, "not_before"),
                _ => {
                    raw.unknown += 1;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            // Which of two would a producer mean? Nobody can tell, so neither is taken.
            if slot.replace(map.next_value()?).is_some() && !raw.repeated.contains(&name) {
                raw.repeated.push(name);
            }
        }
        Ok(raw)
    }
}

/// A JSON string; `null` counts as left out.
fn string(raw: Option<&RawValue>) -> Result<Option<String>, String> {
    let Some(text) = raw.map(RawValue::get).filter(|text| *text != "null") else { return Ok(None) };
    serde_json::from_str(text)
        .map(Some)
        .map_err(|_| format!("must be a string, not {}", describe(text)))
}

/// A string, or an integer of at most 64 bits, which becomes its digits.
fn user_id(raw: Option<&RawValue>) -> Result<Option<String>, String> {
    let Some(text) = raw.map(RawValue::get) else { return Ok(None) };
    if text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok() {
        return Ok(Some(text.to_owned()));
    }
    let user: String = serde_json::from_str(text)
        .map_err(|_| format!("must be a string or a 64-bit integer, not {}", describe(text)))?;
    let length = user.chars().count();
    if length == 0 {
        Err("is empty".to_owned())
    } else if length > MAX_USER_ID {
        Err(format!("has {length} characters, at most {MAX_USER_ID} are allowed"))
    } else if user.contains('\0') {
        Err("has the character '\\0'".to_owned())
    } else {
        Ok(Some(user))
    }
}

fn time(raw: Option<&RawValue>) -> Result<Option<OffsetDateTime>, String> {
    string(raw)?.map(|text| instant(&text)).transpose()
}

/// What a JSON text is, in a word a producer knows.
fn describe(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'"') => "a string with an invalid escape".to_owned(),
        Some(b'-' | b'0'..=b'9') => format!("the number {}", excerpt(text)),
        _ => excerpt(text),
    }
}

/// How many arrays and objects are opened, also in strings: they cannot nest deeper than that.
fn brackets(body: &[u8]) -> usize {
    body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count()
}

/// The greatest nesting of arrays and objects outside strings.
pub(crate) fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
