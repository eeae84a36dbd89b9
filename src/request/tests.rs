#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use super::*;

fn message(body: &str) -> Message {
    Message { body: Bytes::copy_from_slice(body.as_bytes()), properties: Properties::default() }
}

const GOOD: &str = r#"{"request_id":"r-1","kind":"k","user_id":"42","payload":{"a":1}}"#;

/// The code and the reason with which a body is refused.
fn refused(body: &str) -> (ErrorCode, String) {
    let malformed = decode(message(body)).unwrap_err();
    (malformed.code, malformed.reason)
}

#[test]
fn a_request_is_read_as_it_stands() {
    let request = decode(message(GOOD)).unwrap();
    assert_eq!(
        (request.id.as_str(), request.kind.as_str(), request.user_id.as_str()),
        ("r-1", "k", "42")
    );
    assert_eq!((request.payload.as_str(), request.unknown_fields), (r#"{"a":1}"#, 0));
    assert_eq!((request.deadline, request.not_before), (None, None));
}

#[test]
fn what_may_be_left_out_may_be_left_out() {
    let mut message = message(r#"{"user_id":42, "colour":"red", "deadline":null}"#);
    message.properties.message_id = Some("from-property".into());
    message.properties.kind = Some("user.x".into());
    let request = decode(message).unwrap();
    assert_eq!(
        (request.id.as_str(), request.kind.as_str(), request.user_id.as_str()),
        ("from-property", "user.x", "42")
    );
    assert_eq!((request.payload.as_str(), request.unknown_fields), ("{}", 1));
}

#[test]
fn a_payload_is_kept_to_the_letter() {
    for payload in [r#""\u0000""#, "1e999999", "[1, 2 ,3]", r#"{"a":1,"a":2}"#, "null"] {
        let body = format!(r#"{{"request_id":"r","kind":"k","user_id":"u","payload":{payload}}}"#);
        assert_eq!(decode(message(&body)).unwrap().payload, payload);
    }
}

#[test]
fn what_is_no_json_is_told_from_json_of_another_shape() {
    for (body, code) in [
        ("", ErrorCode::MalformedJson),
        ("hello", ErrorCode::MalformedJson),
        (r#"{"request_id":"r""#, ErrorCode::MalformedJson),
        (&format!("{GOOD} tail"), ErrorCode::MalformedJson),
        ("[]", ErrorCode::InvalidEnvelope),
        ("[1", ErrorCode::MalformedJson),
        ("\"text\"", ErrorCode::InvalidEnvelope),
        ("null", ErrorCode::InvalidEnvelope),
        ("{}", ErrorCode::InvalidEnvelope),
    ] {
        assert_eq!(refused(body).0, code, "{body}");
    }
    let not_utf8 = Message {
        body: Bytes::from_static(b"{\"a\":\"\xff\"}"),
        properties: Properties::default(),
    };
    let malformed = decode(not_utf8).unwrap_err();
    assert_eq!(
        (malformed.code, malformed.reason.as_str()),
        (ErrorCode::MalformedJson, "body is not UTF-8 from byte 6 on")
    );
}

#[test]
fn a_refusal_does_not_repeat_what_was_sent() {
    let (_, reason) = refused(&format!("\"{}\"", "secret".repeat(100_000)));
    assert_eq!(reason, "body must be a JSON object, not a string");
    assert_eq!(refused("[\"secret\"]").1, "body must be a JSON object, not an array");

    let twice = r#""user_id":"1","#.repeat(10_000);
    let (_, reason) = refused(&format!(r#"{{{twice}"request_id":"r","kind":"k"}}"#));
    assert_eq!(reason, "user_id is given twice");
}

#[test]
fn nesting_is_bounded_and_brackets_in_strings_do_not_nest() {
    let nested = |levels: usize| {
        let payload = "[".repeat(levels) + &"]".repeat(levels);
        format!(r#"{{"request_id":"r","kind":"k","user_id":"u","payload":{payload}}}"#)
    };
    assert!(decode(message(&nested(MAX_DEPTH - 1))).is_ok());
    assert_eq!(
        refused(&nested(MAX_DEPTH)),
        (ErrorCode::MalformedJson, "body is nested 129 deep, at most 128 are allowed".into())
    );
    assert_eq!(refused(&nested(10_000)).0, ErrorCode::MalformedJson);
    let in_string = format!(
        r#"{{"request_id":"r","kind":"k","user_id":"u","payload":"\"{}"}}"#,
        "[".repeat(500)
    );
    assert!(decode(message(&in_string)).is_ok());
}

#[test]
fn every_fault_is_named_at_once() {
    let (code, reason) =
        refused(r#"{"request_id":"a b","user_id":1.5,"deadline":"tomorrow","not_before":7}"#);
    assert_eq!(code, ErrorCode::InvalidEnvelope);
    for fault in [
        "request_id has the character ' '",
        "kind is missing, in the body and as the property type",
        "user_id must be a string or a 64-bit integer, not the number 1.5",
        "deadline `tomorrow` is not an RFC 3339 time",
        "not_before must be a string, not the number 7",
    ] {
        assert!(reason.contains(fault), "{fault} is not in {reason}");
    }
}

#[test]
fn a_time_is_one_in_utc_as_well() {
    let until = |deadline: &str| {
        format!(r#"{{"request_id":"r","kind":"k","user_id":"u","deadline":"{deadline}"}}"#)
    };
    assert!(decode(message(&until("9999-12-31T23:59:59Z"))).is_ok());
    // To write this one down once brought down the lane that tried.
    let reason = refused(&until("9999-12-31T23:59:59-01:00")).1;
    assert_eq!(reason, "deadline `9999-12-31T23:59:59-01:00` lies beyond the year 9999 in UTC");
}

#[test]
fn ids_and_users_have_bounds() {
    let with =
        |id: &str, user: &str| format!(r#"{{"request_id":{id},"kind":"k","user_id":{user}}}"#);
    let long = format!("\"{}\"", "x".repeat(10_000));
    let just = format!("\"{}\"", "x".repeat(128));
    assert!(decode(message(&with(&just, &just))).is_ok());
    for (id, user, fault) in [
        ("\"\"", "1", "request_id is empty"),
        (long.as_str(), "1", "request_id has 10000 characters, at most 128 are allowed"),
        ("7", "1", "request_id must be a string, not the number 7"),
        ("\"r\"", "null", "user_id must be a string or a 64-bit integer, not null"),
        ("\"r\"", "{}", "user_id must be a string or a 64-bit integer, not an object"),
        ("\"r\"", "\"\"", "user_id is empty"),
        ("\"r\"", "\"a\\u0000\"", "user_id has the character '\\0'"),
        ("\"r\"", "123456789012345678901234567890", "user_id must be a string or a 64-bit integer"),
        ("\"r\"", long.as_str(), "user_id has 10000 characters"),
    ] {
        let (code, reason) = refused(&with(id, user));
        assert_eq!(code, ErrorCode::InvalidEnvelope);
        assert!(reason.contains(fault), "{fault} is not in {reason}");
    }
}

#[test]
fn a_field_given_twice_is_refused() {
    let (code, reason) = refused(r#"{"request_id":"a","request_id":"b","kind":"k","user_id":"u"}"#);
    assert_eq!((code, reason.as_str()), (ErrorCode::InvalidEnvelope, "request_id is given twice"));
}

#[test]
fn body_and_properties_must_agree() {
    let mut message = message(GOOD);
    message.properties.message_id = Some("r-2".into());
    message.properties.kind = Some("other".into());
    let malformed = decode(message).unwrap_err();
    assert_eq!(malformed.code, ErrorCode::InvalidEnvelope);
    assert!(
        malformed.reason.contains("request_id `r-1` differs from the property message_id `r-2`")
    );
    assert!(malformed.reason.contains("kind `k` differs from the property type `other`"));
    assert_eq!(malformed.id, None, "it cannot be filed under either");
}

#[test]
fn a_refusal_keeps_the_identity_that_could_be_read() {
    let mut broken = message("{");
    broken.properties.message_id = Some("r-9".into());
    assert_eq!(decode(broken).unwrap_err().id.as_deref(), Some("r-9"));
    let mut hopeless = message("{");
    hopeless.properties.message_id = Some("no good".into());
    assert_eq!(decode(hopeless).unwrap_err().id, None);
    let malformed = decode(message(r#"{"request_id":"r","kind":"k"}"#)).unwrap_err();
    assert_eq!(
        (malformed.id.as_deref(), malformed.kind.as_deref(), malformed.user_id),
        (Some("r"), Some("k"), None)
    );
}

#[test]
fn compressed_bodies_are_refused_by_name() {
    let mut message = message(GOOD);
    message.properties.content_encoding = Some("gzip".into());
    assert!(
        decode(message).unwrap_err().reason.contains("content_encoding `gzip` is not supported")
    );
}

#[test]
fn the_time_of_publishing_is_read_in_milliseconds_where_it_is_given() {
    let mut properties = Properties { timestamp: Some(1_700_000_000), ..Properties::default() };
    assert_eq!(properties.published_at().unwrap().unix_timestamp(), 1_700_000_000);
    properties.headers.insert("published_at_ms".into(), 1_700_000_000_123_i64.into());
    assert_eq!(properties.published_at().unwrap().millisecond(), 123);
    properties.headers.insert("published_at_ms".into(), i64::MAX.into());
    assert_eq!(properties.published_at(), None);
}

#[test]
fn a_trace_is_taken_over_only_when_it_is_well_formed() {
    let trace = |text: &str| {
        let mut properties = Properties::default();
        properties.headers.insert("traceparent".into(), text.into());
        properties.trace_id().map(str::to_owned)
    };
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(trace(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    for bad in [
        "",
        "00-4bf9-00f0-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        &good.to_uppercase(),
    ] {
        assert_eq!(trace(bad), None, "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(body: Vec<u8>, id: Option<String>) {
        let properties = Properties { message_id: id, ..Properties::default() };
        let decoded = decode(Message { body: Bytes::from(body), properties });
        if let Ok(request) = decoded {
            proptest::prop_assert!(id_fault(&request.id).is_none());
        }
    }

    #[test]
    fn any_request_that_meets_the_contract_is_read(id in "[A-Za-z0-9._:-]{1,128}", user in "[^\u{0}]{1,128}", payload: i64) {
        let body = serde_json::json!({"request_id": id, "kind": "k", "user_id": user, "payload": payload});
        let request = decode(message(&body.to_string())).unwrap();
        proptest::prop_assert_eq!((request.id, request.user_id), (id, user));
    }
}
