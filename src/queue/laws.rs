//! What holds for whatever properties and headers a message has. Input: lines such as
//! `message_id=a` or `name=` and a value in the form that [`Reader`] reads. An input that begins
//! with `#` is in hexadecimal the table of headers as it comes from the line.

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, ByteArray, DecimalValue, FieldTable, LongString, ShortString},
};
use serde_json::{Map, Value};

use super::convert;
use crate::{
    laws::named_and_rest,
    request::{Message, Properties},
};

/// How deep the JSON of headers may nest: as deep as they are followed, and what stands for bytes.
const DEEPEST: usize = 66;
/// Bytes of JSON for each byte of headers, at most: what says that something is nested too deep.
const SWELL: usize = 20;

/// Panics where a law is broken.
pub fn hold(input: &[u8]) {
    let properties = match input.strip_prefix(b"#") {
        Some(hex) => from_the_line(hex),
        None => Some(read(input)),
    };
    let Some(properties) = properties else { return };
    let received = received(properties);
    let text = serde_json::to_string(&received.properties).expect("properties have a JSON form");
    let size = if input.starts_with(b"#") { input.len() / 2 } else { input.len() };
    assert!(text.len() <= 1_024 + SWELL * size, "{} bytes of {size}", text.len());
    let deepest = received.properties.headers.values().map(depth).max();
    assert!(deepest.unwrap_or_default() <= DEEPEST, "nested {deepest:?} deep");
    // Stored in the ledger and read from it.
    let stored: Properties = serde_json::from_str(&text).expect("and can be read from it");
    let properties = received.properties;
    assert!(same(&Value::from(stored.headers), &Value::from(properties.headers.clone())), "{text}");
    let published_at = properties.published_at();
    assert!(published_at.is_none_or(|at| at >= time::OffsetDateTime::UNIX_EPOCH));

    // Published and received again it is the same message, once what only AMQP tells apart is gone.
    let first = sent_on(&properties);
    let second = sent_on(&first);
    assert_eq!(Properties { headers: Map::new(), ..first.clone() }, without_headers(&properties));
    assert!(same(&Value::from(first.headers), &Value::from(second.headers)), "{text}");
}

fn without_headers(properties: &Properties) -> Properties {
    Properties { headers: Map::new(), ..properties.clone() }
}

fn received(properties: BasicProperties) -> Message {
    let (exchange, key) = ("longshore".into(), "user.get".into());
    let mut delivery = Delivery::mock(1, exchange, key, false, b"{}".to_vec());
    delivery.properties = properties;
    convert::message(delivery)
}

fn sent_on(properties: &Properties) -> Properties {
    let sent = convert::properties(properties).expect("what was received fits into AMQP");
    assert_eq!(*sent.delivery_mode(), Some(2));
    if let Some(headers) = sent.headers() {
        headers.inner().values().for_each(no_short_string);
    }
    received(sent).properties
}

/// RabbitMQ closes the connection over one.
fn no_short_string(value: &AMQPValue) {
    match value {
        AMQPValue::ShortString(text) => panic!("`{text}` is a short string within a table"),
        AMQPValue::FieldArray(values) => values.as_slice().iter().for_each(no_short_string),
        AMQPValue::FieldTable(table) => table.inner().values().for_each(no_short_string),
        _ => {}
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or_default(),
        Value::Object(values) => 1 + values.values().map(depth).max().unwrap_or_default(),
        _ => 1,
    }
}

/// Equal but for the last digits of a float, which JSON's readers may round otherwise.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            (a - b).abs() <= a.abs() * 1e-15
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => one == other,
    }
}

/// A table of headers as lapin reads it; `None` where it refuses.
fn from_the_line(hex: &[u8]) -> Option<BasicProperties> {
    let digits = hex.iter().filter_map(|byte| char::from(*byte).to_digit(16));
    let digits: Vec<u8> = digits.filter_map(|digit| u8::try_from(digit).ok()).collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect();
    let length = u32::try_from(bytes.len()).ok()?.to_be_bytes();
    let table = [&length, bytes.as_slice()].concat();
    let (_, headers) = lapin::types::parsing::parse_field_table(table.as_slice()).ok()?;
    Some(BasicProperties::default().with_headers(headers))
}

fn read(input: &[u8]) -> BasicProperties {
    let mut properties = BasicProperties::default();
    let mut headers = FieldTable::default();
    for (name, value) in named_and_rest(input).0 {
        let text =
            || std::str::from_utf8(value).ok().and_then(|text| ShortString::try_new(text).ok());
        properties = match (name, text()) {
            (b"message_id", Some(text)) => properties.with_message_id(text),
            (b"type", Some(text)) => properties.with_type(text),
            (b"correlation_id", Some(text)) => properties.with_correlation_id(text),
            (b"reply_to", Some(text)) => properties.with_reply_to(text),
            (b"app_id", Some(text)) => properties.with_app_id(text),
            (b"content_type", Some(text)) => properties.with_content_type(text),
            (b"content_encoding", Some(text)) => properties.with_content_encoding(text),
            (b"timestamp", Some(text)) => {
                properties.with_timestamp(text.as_str().parse().unwrap_or_default())
            }
            _ => {
                let name = std::str::from_utf8(name).ok().map(ShortString::try_new);
                if let Some(Ok(name)) = name {
                    headers.insert(name, Reader { rest: value }.value(0));
                }
                properties
            }
        };
    }
    properties.with_headers(headers)
}

/// Reads a value: a letter for its type and what belongs to it, up to `;`. `[` … `]` is an array,
/// `{key;value…}` a table. Whatever is missing is void.
struct Reader<'a> {
    rest: &'a [u8],
}

/// Deeper than anything that is followed, and not too deep for the stack of a test.
const READ: usize = 1_000;

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> AMQPValue {
        let Some(kind) = self.next() else { return AMQPValue::Void };
        match kind {
            b'[' => {
                let mut values = Vec::new();
                while depth < READ && !self.ends(b']') {
                    values.push(self.value(depth + 1));
                }
                AMQPValue::FieldArray(values.into())
            }
            b'{' => {
                let mut table = FieldTable::default();
                while depth < READ && !self.ends(b'}') {
                    let key = ShortString::try_new(self.text()).unwrap_or_default();
                    table.insert(key, self.value(depth + 1));
                }
                AMQPValue::FieldTable(table)
            }
            b'y' => AMQPValue::Boolean(true),
            b'n' => AMQPValue::Boolean(false),
            b'b' => AMQPValue::ShortShortInt(self.number()),
            b'B' => AMQPValue::ShortShortUInt(self.number()),
            b'h' => AMQPValue::ShortInt(self.number()),
            b'H' => AMQPValue::ShortUInt(self.number()),
            b'i' => AMQPValue::LongInt(self.number()),
            b'I' => AMQPValue::LongUInt(self.number()),
            b'l' => AMQPValue::LongLongInt(self.number()),
            b't' => AMQPValue::Timestamp(self.number()),
            b'f' => AMQPValue::Float(self.number()),
            b'd' => AMQPValue::Double(self.number()),
            b'c' => {
                AMQPValue::DecimalValue(DecimalValue { scale: self.number(), value: self.number() })
            }
            b's' => AMQPValue::ShortString(ShortString::try_new(self.text()).unwrap_or_default()),
            b'S' => AMQPValue::LongString(LongString::from(self.bytes().to_vec())),
            b'x' => AMQPValue::ByteArray(ByteArray::from(self.bytes().to_vec())),
            _ => AMQPValue::Void,
        }
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn ends(&mut self, with: u8) -> bool {
        match self.rest.first() {
            None => true,
            Some(byte) if *byte == with => self.next().is_some(),
            Some(_) => false,
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| *byte == b';').unwrap_or(self.rest.len());
        let (bytes, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        bytes
    }

    fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    fn number<T: std::str::FromStr + Default>(&mut self) -> T {
        self.text().parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_laws_hold_for_every_input_that_is_kept() {
        crate::laws::replay("headers", super::hold);
    }
}
