//! What an answer means: for the request (done, refused, try again) and for the breaker.
//!
//! Statuses as in RFC 9110 §15 <https://www.rfc-editor.org/rfc/rfc9110#section-15>.

use std::time::Duration;

use reqwest::StatusCode;
use serde::de::IgnoredAny;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::Verdict;
use crate::{
    outcome::{ErrorCode, Failure, StepError},
    request::{MAX_DEPTH, depth},
};

/// No `Retry-After` is believed to be longer: a day.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What a status means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The body is the response.
    Answered,
    /// It would be answered the same way again.
    Refused,
    /// It may well be answered otherwise later.
    Transient,
}

/// What a status means for the request and for the breaker.
pub(super) fn status(status: StatusCode, retry_after: Option<Duration>) -> (Meaning, Verdict) {
    match status.as_u16() {
        200..=299 => (Meaning::Answered, Verdict::Success),
        429 => (Meaning::Transient, Verdict::Throttled { retry_after }),
        // 408: it did not get the whole request in its time, which is a timeout seen from there.
        408 | 500..=599 => (Meaning::Transient, Verdict::Failure { retry_after }),
        // 409: the first call with this Idempotency-Key is still being worked.
        // <https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header>
        // 425: it does not want to risk a replay of early data (RFC 8470).
        409 | 425 => (Meaning::Transient, Verdict::Success),
        // Redirects and all other 4xx: the service is well, the request or the settings are not.
        _ => (Meaning::Refused, Verdict::Success),
    }
}

/// The error that a status other than 2xx stands for. `what` is the method and the dependency.
pub(super) fn status_error(
    what: &str,
    status: StatusCode,
    meaning: Meaning,
    retry_after: Option<Duration>,
) -> StepError {
    let number = status.as_u16();
    let name = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
    let advice = match number {
        300..=399 => ": redirects are not followed, set the final url",
        401 | 403 => ": check the credentials in the dependency's headers",
        _ => "",
    };
    let error = format!("{what} answered {number}{name}{advice}");
    match meaning {
        Meaning::Refused => StepError::Refused(Failure::new(ErrorCode::CallRefused, error)),
        Meaning::Answered | Meaning::Transient => transient(error, retry_after),
    }
}

/// A failure of the call that may pass.
pub(super) fn transient(error: String, retry_in: Option<Duration>) -> StepError {
    StepError::Transient { failure: Failure::new(ErrorCode::CallFailed, error), retry_in }
}

/// How long a `Retry-After` asks to wait: seconds, or a date (RFC 9110 §10.2.3). A date that has
/// passed asks for nothing; the two obsolete date formats are not read.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3>
pub(super) fn retry_after(value: &str, now: OffsetDateTime) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time as well.
        value.parse().map_or(LONGEST_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = OffsetDateTime::parse(value, &Rfc2822).ok()?;
        Duration::try_from(date - now).ok()?
    };
    (!wait.is_zero()).then_some(wait.min(LONGEST_RETRY_AFTER))
}

/// The body of a 2xx answer as JSON text; `None` when it is empty. JSON is passed as it is, other
/// text becomes a JSON string.
///
/// # Errors
/// What is wrong with the body, as the end of a sentence that begins with who answered.
pub(super) fn json_text(body: Vec<u8>) -> Result<Option<String>, String> {
    let text =
        String::from_utf8(body).map_err(|_| "answered bytes that are not text".to_owned())?;
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    if serde_json::from_str::<IgnoredAny>(&text).is_err() {
        return Ok(Some(serde_json::Value::String(text).to_string()));
    }
    // serde_json skips what it ignores without counting its depth.
    match depth(text.as_bytes()) {
        depth if depth > MAX_DEPTH => {
            Err(format!("answered JSON nested {depth} deep, at most {MAX_DEPTH} are allowed"))
        }
        _ => Ok(Some(text)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    const ASKED: Option<Duration> = Some(Duration::from_secs(7));

    #[test]
    fn each_status_has_its_meaning_for_the_request_and_for_the_breaker() {
        use Meaning::{Answered, Refused, Transient};
        let failure = Verdict::Failure { retry_after: ASKED };
        let throttled = Verdict::Throttled { retry_after: ASKED };
        for (codes, meaning, verdict) in [
            (&[200, 201, 202, 204, 206, 299][..], Answered, Verdict::Success),
            (&[101, 300, 301, 302, 303, 304, 307, 308], Refused, Verdict::Success),
            (
                &[400, 401, 402, 403, 404, 405, 410, 413, 415, 418, 422, 451, 499],
                Refused,
                Verdict::Success,
            ),
            (&[409, 425], Transient, Verdict::Success),
            (&[429], Transient, throttled),
            (&[408, 500, 501, 502, 503, 504, 507, 599], Transient, failure),
            (&[600, 999], Refused, Verdict::Success),
        ] {
            for code in codes {
                let found = status(StatusCode::from_u16(*code).unwrap(), ASKED);
                assert_eq!(found, (meaning, verdict), "{code}");
            }
        }
    }

    #[test]
    fn errors_name_the_call_and_the_status_and_say_what_to_do() {
        let text = |code: u16| {
            let status = StatusCode::from_u16(code).unwrap();
            match status_error("POST to geocoder", status, super::status(status, None).0, None) {
                StepError::Refused(failure) | StepError::Transient { failure, .. } => {
                    failure.to_string()
                }
                StepError::NotAdmitted { .. } => unreachable!("it was answered"),
            }
        };
        let redirected = "call_refused: POST to geocoder answered 302 Found: redirects are not followed, set the final url";
        assert_eq!(text(302), redirected);
        assert_eq!(text(503), "call_failed: POST to geocoder answered 503 Service Unavailable");
        assert_eq!(text(599), "call_failed: POST to geocoder answered 599");
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = OffsetDateTime::parse("Sun, 06 Nov 1994 08:49:30 GMT", &Rfc2822).unwrap();
        let read = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(" 1 "), Some(1));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:07 GMT"), None, "it has passed");
        assert_eq!(read("Fri, 31 Dec 2999 23:59:59 GMT"), Some(86_400));
        assert_eq!(read("99999999999999999999999999"), Some(86_400));
        for nonsense in ["", "0", "-1", "1.5", "soon", "Sunday, 06-Nov-94 08:49:37 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn json_is_passed_as_it_is_and_other_text_as_a_string() {
        let read = |body: &[u8]| json_text(body.to_vec());
        assert_eq!(read(b""), Ok(None));
        assert_eq!(read(b" \r\n"), Ok(None));
        assert_eq!(read(b"{\"a\": 1.50}"), Ok(Some("{\"a\": 1.50}".into())));
        assert_eq!(read(b"null"), Ok(Some("null".into())));
        assert_eq!(read(b"<p>\"hi\"</p>"), Ok(Some("\"<p>\\\"hi\\\"</p>\"".into())));
        assert_eq!(read(b"{\"a\":1} trailing").unwrap().unwrap(), "\"{\\\"a\\\":1} trailing\"");
        assert!(read(&[0xff, 0xfe]).unwrap_err().contains("not text"));
    }

    #[test]
    fn json_nested_deeper_than_postgres_should_see_is_not_passed_on() {
        let nested = |depth: usize| json_text([vec![b'['; depth], vec![b']'; depth]].concat());
        assert!(nested(MAX_DEPTH).is_ok());
        assert!(nested(MAX_DEPTH + 1).unwrap_err().contains("nested 129 deep"));
        assert!(nested(1_000_000).is_err(), "without overflowing the stack");
    }
}
