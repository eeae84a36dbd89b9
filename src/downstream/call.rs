//! One call as a kind describes it: method, path and headers, filled in for a request.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;

use crate::request::{Properties, Request};

/// Everything but RFC 3986's unreserved characters, so that a value stays within its segment.
/// <https://www.rfc-editor.org/rfc/rfc3986#section-2.3>
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Set by the call itself or by the connection, hence not by settings.
const OWN_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
];

/// A longer `tracestate` is not carried along; 512 characters is what the standard asks to keep.
/// <https://www.w3.org/TR/trace-context/#tracestate-limits>
const LONGEST_TRACESTATE: usize = 512;

/// `[kinds."<kind>".call]`: the HTTP request that a kind makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallSettings {
    /// Which dependency is called: a name from `[dependencies]`.
    pub dependency: String,
    /// `POST`, `PUT` and `PATCH` send the payload as JSON; `GET`, `HEAD` and `DELETE` send no body.
    pub method: String,
    /// Appended to the dependency's `url`, e.g. `/verify/{user_id}`. `{user_id}` and
    /// `{request_id}` are filled in, percent-encoded.
    pub path: String,
    /// Headers of this call, over those of the dependency. For secrets use the dependency's.
    pub headers: BTreeMap<String, String>,
}

impl CallSettings {
    /// Every mistake, as (setting, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut add = |setting: &str, wrong: String| problems.push((setting.to_owned(), wrong));
        if self.dependency.is_empty() {
            add("dependency", "is empty, must name one of [dependencies]".to_owned());
        }
        if !METHODS.contains(&self.method.as_str()) {
            add("method", format!("is `{}`, must be one of {}", self.method, METHODS.join(", ")));
        }
        if let Err(wrong) = self.sample_path() {
            add("path", wrong);
        }
        for (name, value) in &self.headers {
            if let Some(wrong) = header_problem(name, value) {
                add(&format!("headers.{name}"), wrong.to_owned());
            }
        }
        problems
    }

    /// Tries the path out, with values that need no encoding.
    fn sample_path(&self) -> Result<(), String> {
        if !self.path.starts_with('/') {
            return Err(format!("is `{}`, must start with `/`", self.path));
        }
        let path = fill_in(&self.path, "x", "x")?;
        let base = Url::parse("http://localhost").map_err(|error| error.to_string())?;
        join(&base, &path).map(drop).ok_or_else(|| {
            format!(
                "is `{}`, which a url cannot hold as it is: percent-encode what is special, and leave out `.`, `..` and `#`",
                self.path
            )
        })
    }
}

/// A call that is ready to be sent.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<String>,
}

/// Fills in a call for one request. `headers` are the dependency's.
///
/// # Errors
/// What of the request (or of settings that were not checked) cannot be sent, in words without
/// the values.
pub(super) fn prepare(
    call: &CallSettings,
    base: &Url,
    headers: &HeaderMap,
    request: &Request,
) -> Result<Prepared, String> {
    let method = Method::from_bytes(call.method.as_bytes())
        .map_err(|_| "the method is not valid".to_owned())?;
    // `..` cannot be hidden by encoding it: `%2e%2e` goes up a level as well.
    let url = join(base, &fill_in(&call.path, &request.user_id, &request.id)?)
        .ok_or("the user_id or request_id would change the path, as `..` does")?;

    let mut headers = headers.clone();
    for (name, value) in &call.headers {
        let name: HeaderName =
            name.parse().map_err(|_| "the name of a header is not valid".to_owned())?;
        headers.insert(
            name,
            value.parse().map_err(|_| "the value of a header is not valid".to_owned())?,
        );
    }
    let body =
        matches!(call.method.as_str(), "POST" | "PUT" | "PATCH").then(|| request.payload.clone());
    if body.is_some() {
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    }
    // A string of the structured fields, hence the quotes.
    // <https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header#section-2.1>
    let key = HeaderValue::from_str(&format!("\"{}\"", request.id))
        .map_err(|_| "the request_id cannot be an Idempotency-Key".to_owned())?;
    headers.insert("idempotency-key", key);
    add_trace(&mut headers, &request.message.properties);
    Ok(Prepared { method, url, headers, body })
}

/// The trace of the producer goes on under a new span; without one, a trace begins here.
/// <https://www.w3.org/TR/trace-context/>
fn add_trace(headers: &mut HeaderMap, properties: &Properties) {
    let span = fastrand::u64(1..);
    let traceparent = match (properties.traceparent(), properties.trace_id()) {
        (Some(theirs), Some(trace)) => {
            let flags = theirs
                .get(53..55)
                .and_then(|flags| u8::from_str_radix(flags, 16).ok())
                .unwrap_or(0);
            let state =
                properties.header("tracestate").filter(|state| state.len() <= LONGEST_TRACESTATE);
            if let Some(state) = state.and_then(|state| HeaderValue::from_str(state).ok()) {
                headers.insert("tracestate", state);
            }
            // We speak version 00, which has two flags: sampled, and random trace id.
            format!("00-{trace}-{span:016x}-{:02x}", flags & 0b11)
        }
        // Not sampled, as nobody has decided to.
        _ => format!("00-{:032x}-{span:016x}-00", fastrand::u128(1..)),
    };
    if let Ok(value) = HeaderValue::from_str(&traceparent) {
        headers.insert("traceparent", value);
    }
}

/// Why a header cannot be set, in words without its value, or `None` when it can.
pub(super) fn header_problem(name: &str, value: &str) -> Option<&'static str> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        Some("is not the name of an HTTP header, use letters, digits and `-`")
    } else if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        Some("is set by longshore itself, remove it")
    } else if HeaderValue::from_str(value).is_err() {
        Some("has a value with line breaks, control or non-ASCII characters, remove them")
    } else {
        None
    }
}

fn fill_in(template: &str, user_id: &str, request_id: &str) -> Result<String, String> {
    let mut path = String::with_capacity(template.len() + user_id.len() + request_id.len());
    let mut rest = template;
    while let Some((before, from)) = rest.split_once('{') {
        path.push_str(before);
        let (name, after) = from.split_once('}').ok_or("has a `{` without its `}`")?;
        let value = match name {
            "user_id" => user_id,
            "request_id" => request_id,
            _ => {
                return Err(format!(
                    "has `{{{name}}}`, only {{user_id}} and {{request_id}} can be filled in"
                ));
            }
        };
        path.extend(utf8_percent_encode(value, ENCODED));
        rest = after;
    }
    path.push_str(rest);
    Ok(path)
}

/// `base` with this path and query appended, provided that a URL can hold them just as written:
/// otherwise another resource would be asked than was meant.
fn join(base: &Url, written: &str) -> Option<Url> {
    let (path, query) = match written.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (written, None),
    };
    let path = format!("{}{path}", base.path().trim_end_matches('/'));
    let mut url = base.clone();
    url.set_path(&path);
    url.set_query(query);
    (url.path() == path && url.query() == query).then_some(url)
}

#[cfg(test)]
mod tests;
