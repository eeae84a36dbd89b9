//! The answer to `reply_to`: the outcome, and what the apply step returned.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Handler;
use crate::{kind::Kind, ledger::Keeper, outcome::Failure, queue::Reply, request::Request};

#[derive(Serialize)]
struct Body<'a> {
    request_id: &'a str,
    kind: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// The queue that an answer is to go to, if the kind answers and the producer asked for it.
pub(super) fn wanted<'a>(kind: &Kind, request: &'a Request) -> Option<&'a str> {
    let to = request.message.properties.reply_to.as_deref()?;
    (kind.reply && !to.is_empty()).then_some(to)
}

impl<K: Keeper> Handler<K> {
    /// Answers, if the kind does that and the producer asked for it. At most once, after the commit:
    /// who needs to be certain asks the ledger. Nothing that happens to the answer changes what
    /// became of the request.
    pub(super) fn reply(
        &self,
        kind: &Kind,
        request: &Request,
        became: Result<Option<String>, &Failure>,
    ) {
        let properties = &request.message.properties;
        let Some(to) = wanted(kind, request) else { return };
        let result = match &became {
            Ok(Some(text)) => serde_json::from_str::<&RawValue>(text).ok(),
            Ok(None) | Err(_) => None,
        };
        let body = Body {
            request_id: &request.id,
            kind: &request.kind,
            outcome: if became.is_ok() { "done" } else { "dead" },
            result,
            error_code: became.as_ref().err().map(|failure| failure.code.name()),
            error: became.as_ref().err().map(|failure| failure.error.as_str()),
        };
        self.replies.send(Reply {
            to: to.to_owned(),
            correlation_id: properties.correlation_id.clone(),
            message_id: Some(request.id.clone()),
            traceparent: properties.traceparent().map(str::to_owned),
            body: Bytes::from(serde_json::to_vec(&body).unwrap_or_default()),
        });
    }
}
