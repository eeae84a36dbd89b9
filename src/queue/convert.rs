//! Messages between lapin's words and ours.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};
use serde_json::{Map, Number, Value};

use crate::request::{Message, Properties};

/// Tables and arrays within headers are followed this deep. What lies deeper is replaced by
/// [`TOO_DEEP`]: nobody needs it, and a hostile message nests tens of thousands.
const MAX_DEPTH: usize = 64;
const TOO_DEEP: &str = "nested too deep";
/// Enough for the deepest nesting that fits into a header frame.
const STACK: usize = 64 << 20;

/// A delivery as the contract knows messages. The body is not copied.
pub(super) fn message(delivery: lapin::message::Delivery) -> Message {
    let from = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    let properties = Properties {
        message_id: text(from.message_id()),
        kind: text(from.kind()),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        app_id: text(from.app_id()),
        timestamp: *from.timestamp(),
        content_type: text(from.content_type()),
        content_encoding: text(from.content_encoding()),
        headers: from.headers().as_ref().map(|headers| map(headers, 0)).unwrap_or_default(),
        exchange: delivery.exchange.into(),
        routing_key: delivery.routing_key.into(),
    };
    dispose(delivery.properties);
    Message { body: Bytes::from(delivery.data), properties }
}

/// Drops properties, also such as would overflow the stack: dropping a value drops what is nested
/// in it, call within call, and a hostile header of 128 KiB nests some 26,000 deep. In a thread of
/// tokio's usual size that aborts the process.
pub(super) fn dispose(properties: BasicProperties) {
    let deep = properties
        .headers()
        .as_ref()
        .is_some_and(|headers| headers.inner().values().any(|it| is_deep(it, 1)));
    if deep {
        let dropping =
            std::thread::Builder::new().stack_size(STACK).spawn(move || drop(properties));
        // Waited for, so that there is one such thread at a time; it takes about a millisecond.
        // Without a thread the closure was dropped here, and there is nothing left to do.
        let _dropped = dropping.map(std::thread::JoinHandle::join).is_ok();
    }
}

fn is_deep(value: &AMQPValue, depth: usize) -> bool {
    depth > MAX_DEPTH
        || match value {
            AMQPValue::FieldArray(it) => it.as_slice().iter().any(|it| is_deep(it, depth + 1)),
            AMQPValue::FieldTable(it) => it.inner().values().any(|it| is_deep(it, depth + 1)),
            _ => false,
        }
}

/// Properties for publishing, always persistent. Where the message was sent before is not part of
/// them.
///
/// # Errors
/// Names the property that does not fit into AMQP's 255 bytes.
pub(super) fn properties(from: &Properties) -> Result<BasicProperties, String> {
    let mut to = BasicProperties::default().with_delivery_mode(2);
    let short = |name: &str, text: &str| {
        ShortString::try_new(text)
            .map_err(|_| format!("{name} has {} bytes, AMQP allows 255", text.len()))
    };
    macro_rules! carry {
        ($($name:literal: $field:ident => $with:ident),+) => {
            $(if let Some(text) = &from.$field {
                to = to.$with(short($name, text)?);
            })+
        };
    }
    carry! {
        "message_id": message_id => with_message_id,
        "type": kind => with_type,
        "correlation_id": correlation_id => with_correlation_id,
        "reply_to": reply_to => with_reply_to,
        "app_id": app_id => with_app_id,
        "content_type": content_type => with_content_type,
        "content_encoding": content_encoding => with_content_encoding
    }
    if let Some(timestamp) = from.timestamp {
        to = to.with_timestamp(timestamp);
    }
    if !from.headers.is_empty() {
        to = to.with_headers(table(&from.headers, 0)?);
    }
    Ok(to)
}

fn map(table: &FieldTable, depth: usize) -> Map<String, Value> {
    table
        .inner()
        .iter()
        .map(|(key, found)| (key.as_str().to_owned(), value(found, depth + 1)))
        .collect()
}

fn array(array: &FieldArray, depth: usize) -> Vec<Value> {
    array.as_slice().iter().map(|found| value(found, depth + 1)).collect()
}

fn value(from: &AMQPValue, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return TOO_DEEP.into();
    }
    match from {
        AMQPValue::Boolean(it) => (*it).into(),
        AMQPValue::ShortShortInt(it) => (*it).into(),
        AMQPValue::ShortShortUInt(it) => (*it).into(),
        AMQPValue::ShortInt(it) => (*it).into(),
        AMQPValue::ShortUInt(it) => (*it).into(),
        AMQPValue::LongInt(it) => (*it).into(),
        AMQPValue::LongUInt(it) => (*it).into(),
        AMQPValue::LongLongInt(it) => (*it).into(),
        AMQPValue::Timestamp(it) => (*it).into(),
        AMQPValue::Float(it) => float(f64::from(*it)),
        AMQPValue::Double(it) => float(*it),
        AMQPValue::DecimalValue(it) => decimal(it.value, it.scale).into(),
        AMQPValue::ShortString(it) => it.as_str().into(),
        AMQPValue::LongString(it) => bytes(it.as_bytes()),
        AMQPValue::ByteArray(it) => binary(it.as_slice()),
        AMQPValue::FieldArray(it) => array(it, depth).into(),
        AMQPValue::FieldTable(it) => map(it, depth).into(),
        AMQPValue::Void => Value::Null,
    }
}

fn float(it: f64) -> Value {
    // JSON has no NaN and no infinity.
    Number::from_f64(it).map_or_else(|| it.to_string().into(), Value::Number)
}

/// `value / 10^scale`, written out so that no digit is lost.
fn decimal(value: u32, scale: u8) -> String {
    let (digits, scale) = (value.to_string(), usize::from(scale));
    if scale == 0 {
        return digits;
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{whole}.{fraction}")
}

fn bytes(it: &[u8]) -> Value {
    match String::from_utf8_lossy(it) {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(_) => binary(it),
    }
}

fn binary(it: &[u8]) -> Value {
    Value::Object(Map::from_iter([("base64".to_owned(), BASE64_STANDARD.encode(it).into())]))
}

fn table(from: &Map<String, Value>, depth: usize) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (key, found) in from {
        let key = ShortString::try_new(key.as_str())
            .map_err(|_| format!("a header's name has {} bytes, AMQP allows 255", key.len()))?;
        table.insert(key, amqp(found, depth + 1)?);
    }
    Ok(table)
}

fn amqp(from: &Value, depth: usize) -> Result<AMQPValue, String> {
    if depth > MAX_DEPTH {
        return Ok(AMQPValue::LongString(TOO_DEEP.into()));
    }
    Ok(match from {
        Value::Null => AMQPValue::Void,
        Value::Bool(it) => AMQPValue::Boolean(*it),
        Value::Number(it) => match (it.as_i64(), it.as_f64()) {
            (Some(whole), _) => AMQPValue::LongLongInt(whole),
            (None, Some(float)) => AMQPValue::Double(float),
            (None, None) => AMQPValue::LongString(it.to_string().into()),
        },
        // Never a short string: RabbitMQ closes the connection over one in a table.
        Value::String(it) => AMQPValue::LongString(LongString::from(it.as_str())),
        Value::Array(it) => {
            let values: Result<Vec<AMQPValue>, String> =
                it.iter().map(|found| amqp(found, depth + 1)).collect();
            AMQPValue::FieldArray(values?.into())
        }
        Value::Object(it) => match it.get("base64").and_then(Value::as_str) {
            // The form that `value` gives to bytes, turned back.
            Some(text) if it.len() == 1 => match BASE64_STANDARD.decode(text) {
                Ok(bytes) => AMQPValue::LongString(bytes.into()),
                Err(_) => AMQPValue::FieldTable(table(it, depth)?),
            },
            _ => AMQPValue::FieldTable(table(it, depth)?),
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use lapin::types::DecimalValue;
    use serde_json::json;

    use super::*;

    fn delivered(properties: BasicProperties) -> Message {
        let mut delivery = lapin::message::Delivery::mock(
            1,
            "longshore".into(),
            "user.get".into(),
            false,
            b"{}".to_vec(),
        );
        delivery.properties = properties;
        message(delivery)
    }

    fn header(value: AMQPValue) -> Value {
        let mut headers = FieldTable::default();
        headers.insert("h".into(), value);
        delivered(BasicProperties::default().with_headers(headers)).properties.headers["h"].clone()
    }

    #[test]
    fn properties_survive_the_way_there_and_back() {
        let properties = Properties {
            message_id: Some("m1".into()),
            kind: Some("user.get".into()),
            correlation_id: Some("c1".into()),
            reply_to: Some("answers".into()),
            app_id: Some("shop".into()),
            timestamp: Some(1_700_000_000),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: json!({"text": "a", "n": -5, "f": 1.5, "b": true, "none": null,
                "list": [1, {"deep": "x"}], "raw": {"base64": "/w=="}})
            .as_object()
            .unwrap()
            .clone(),
            exchange: "longshore".into(),
            routing_key: "user.get".into(),
        };
        let sent = super::properties(&properties).unwrap();
        assert_eq!(*sent.delivery_mode(), Some(2), "a request is persistent");
        assert_eq!(delivered(sent).properties, properties);
    }

    #[test]
    fn every_header_has_a_json_form() {
        for (value, expected) in [
            (AMQPValue::LongString(vec![0xff, 0x00].into()), json!({"base64": "/wA="})),
            (AMQPValue::ByteArray(vec![1, 2].into()), json!({"base64": "AQI="})),
            (AMQPValue::Double(f64::NAN), json!("NaN")),
            (AMQPValue::Float(f32::INFINITY), json!("inf")),
            (AMQPValue::Timestamp(7), json!(7)),
            (AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 42 }), json!("0.042")),
            (AMQPValue::ShortShortInt(-1), json!(-1)),
            (AMQPValue::Void, json!(null)),
        ] {
            assert_eq!(header(value), expected);
        }
    }

    #[test]
    fn nesting_ends_where_nobody_reads_on() {
        let mut deep = AMQPValue::Boolean(true);
        // Deep enough to overflow the stack of this very test when it is dropped carelessly.
        for _ in 0..40_000 {
            deep = AMQPValue::FieldArray(vec![deep].into());
        }
        let mut headers = FieldTable::default();
        headers.insert("h".into(), deep);
        let delivered = delivered(BasicProperties::default().with_headers(headers));
        let text = delivered.properties.headers["h"].to_string();
        assert!(text.contains(TOO_DEEP) && text.len() < 200, "{text}");

        let mut deep = json!(true);
        for _ in 0..1_000 {
            deep = json!([deep]);
        }
        let headers = Map::from_iter([("h".to_owned(), deep)]);
        assert!(super::properties(&Properties { headers, ..Properties::default() }).is_ok());
    }

    #[test]
    fn what_does_not_fit_into_amqp_is_refused_by_name() {
        let properties = Properties { reply_to: Some("x".repeat(256)), ..Properties::default() };
        assert_eq!(
            super::properties(&properties).unwrap_err(),
            "reply_to has 256 bytes, AMQP allows 255"
        );
    }
}
