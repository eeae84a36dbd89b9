//! The AMQP properties of a message, free of any client library.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

/// What travels beside the body (AMQP 0-9-1 §4.2.6.1, `basic` properties), and where it was sent.
///
/// Stored with the request, so that a retry an hour later still knows whom to answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    /// `message-id`: may carry the `request_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `type`: may carry the kind.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `correlation-id`: carried into the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// `reply-to`: the queue that an answer goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// `app-id`: which producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// `timestamp`: when the producer published, in seconds since 1970 (its only resolution).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// `content-type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `content-encoding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// All headers, as JSON. What has no JSON form is kept as `{"base64": …}`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub headers: Map<String, Value>,
    /// The exchange it was published to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub exchange: String,
    /// The routing key it was published with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub routing_key: String,
}

impl Properties {
    /// When the producer published: the header `published_at_ms` (milliseconds since 1970) where
    /// it is set, otherwise the property `timestamp`, which has whole seconds only.
    pub fn published_at(&self) -> Option<OffsetDateTime> {
        let millis = match self.headers.get("published_at_ms").and_then(Value::as_i64) {
            Some(millis) => i128::from(millis),
            None => i128::from(self.timestamp?) * 1_000,
        };
        // Nobody published before 1970, and Postgres could not store every date of that side.
        let nanos = millis.checked_mul(1_000_000).filter(|nanos| *nanos >= 0)?;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
    }

    /// A header's text, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(Value::as_str)
    }

    /// The W3C trace context of the producer: `traceparent`, when it is well formed.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    pub fn traceparent(&self) -> Option<&str> {
        self.header("traceparent").filter(|text| {
            let parts: Vec<&str> = text.split('-').collect();
            let hex = |part: &str, length| {
                part.len() == length
                    && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            };
            matches!(parts.as_slice(), [version, trace, span, flags]
                if hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2)
                    && trace.bytes().any(|b| b != b'0') && span.bytes().any(|b| b != b'0'))
        })
    }

    /// The 32 hex digits of the producer's trace.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent().and_then(|text| text.get(3..35))
    }
}
