#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use proptest::prelude::*;

use super::*;
use crate::downstream::tests::request;

const THEIRS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn call(method: &str, path: &str) -> CallSettings {
    CallSettings {
        dependency: "geocoder".into(),
        method: method.into(),
        path: path.into(),
        headers: BTreeMap::new(),
    }
}

fn prepared(
    call: &CallSettings,
    user_id: &str,
    properties: Properties,
) -> Result<Prepared, String> {
    let mut request = request("r-1");
    request.user_id = user_id.into();
    request.message.properties = properties;
    prepare(call, &Url::parse("https://geo.example/api/").unwrap(), &HeaderMap::new(), &request)
}

fn url(path: &str, user_id: &str) -> Result<String, String> {
    prepared(&call("POST", path), user_id, Properties::default()).map(|call| call.url.to_string())
}

fn header<'a>(call: &'a Prepared, name: &str) -> Option<&'a str> {
    call.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn ids_are_filled_in_and_stay_within_their_segment() {
    let path = "/verify/{user_id}?key={request_id}";
    assert_eq!(url(path, "42").unwrap(), "https://geo.example/api/verify/42?key=r-1");
    let hostile = url(path, "../a b?c#d%2e/ü\\@").unwrap();
    assert_eq!(
        hostile,
        "https://geo.example/api/verify/..%2Fa%20b%3Fc%23d%252e%2F%C3%BC%5C%40?key=r-1"
    );
}

#[test]
fn an_id_that_would_climb_out_of_the_path_is_refused() {
    for id in [".", ".."] {
        let error = url("/users/{user_id}", id).unwrap_err();
        assert!(error.contains("would change the path"), "{error}");
        assert!(url("/users?id={user_id}", id).is_ok(), "in the query it is a plain value");
    }
}

proptest! {
    #[test]
    fn no_user_id_asks_for_another_resource(user_id in "\\PC{1,20}|[./%2e\\\\]{1,6}") {
        if let Ok(url) = url("/a/{user_id}/b", &user_id) {
            let url = Url::parse(&url).unwrap();
            let segments: Vec<&str> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 4);
            let decoded = percent_encoding::percent_decode_str(segments[2]).decode_utf8().unwrap();
            prop_assert_eq!(decoded, user_id);
            prop_assert_eq!((url.host_str(), url.query(), url.fragment()), (Some("geo.example"), None, None));
        }
    }
}

#[test]
fn only_methods_with_a_body_send_the_payload() {
    for (method, body) in
        [("POST", true), ("PUT", true), ("PATCH", true), ("GET", false), ("DELETE", false)]
    {
        let call = prepared(&call(method, "/"), "42", Properties::default()).unwrap();
        assert_eq!(call.body.is_some(), body, "{method}");
        assert_eq!(header(&call, "content-type"), body.then_some("application/json"), "{method}");
        assert_eq!(header(&call, "idempotency-key"), Some("\"r-1\""));
    }
}

#[test]
fn the_headers_of_the_call_stand_over_those_of_the_dependency() {
    let mut settings = call("POST", "/");
    settings.headers = BTreeMap::from([
        ("Accept".into(), "text/plain".into()),
        ("content-type".into(), "a/b".into()),
    ]);
    let theirs = HeaderMap::from_iter([
        (HeaderName::from_static("accept"), HeaderValue::from_static("application/json")),
        (HeaderName::from_static("authorization"), HeaderValue::from_static("Bearer x")),
    ]);
    let base = Url::parse("http://geo.example").unwrap();
    let call = prepare(&settings, &base, &theirs, &request("r-1")).unwrap();
    assert_eq!(header(&call, "accept"), Some("text/plain"));
    assert_eq!(header(&call, "content-type"), Some("a/b"));
    assert_eq!(header(&call, "authorization"), Some("Bearer x"));
}

#[test]
fn the_trace_of_the_producer_goes_on_under_a_new_span() {
    let headers = [("traceparent", THEIRS), ("tracestate", "vendor=1")];
    let headers =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let call =
        prepared(&call("GET", "/"), "42", Properties { headers, ..Properties::default() }).unwrap();
    let ours = header(&call, "traceparent").unwrap();
    assert_eq!((&ours[..36], &ours[52..]), (&THEIRS[..36], "-01"));
    assert_ne!(&ours[36..52], &THEIRS[36..52]);
    assert_eq!(header(&call, "tracestate"), Some("vendor=1"));
}

#[test]
fn without_a_usable_trace_one_begins_and_no_state_is_carried() {
    for theirs in ["nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
        let headers = [("traceparent", theirs), ("tracestate", "vendor=1")];
        let headers =
            headers.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let ours =
            prepared(&call("GET", "/"), "42", Properties { headers, ..Properties::default() })
                .unwrap();
        let again = Properties {
            headers: [("traceparent".to_owned(), header(&ours, "traceparent").unwrap().into())]
                .into_iter()
                .collect(),
            ..Properties::default()
        };
        assert!(again.traceparent().is_some(), "what we begin is well formed");
        assert_eq!(header(&ours, "tracestate"), None);
    }
}

#[test]
fn every_mistake_in_the_settings_is_named() {
    let named = |settings: CallSettings| -> Vec<String> {
        settings.problems().into_iter().map(|(setting, _)| setting).collect()
    };
    assert_eq!(named(call("POST", "/verify/{user_id}?a=b")), [""; 0]);
    for path in [
        "",
        "verify",
        "/{payload}",
        "/{user_id",
        "/a b",
        "/a#b",
        "/../x",
        "/%2e%2e/x",
        "/a\\b",
        "/ü",
        "/./x",
    ] {
        assert_eq!(named(call("POST", path)), ["path"], "{path}");
    }
    let mut wrong = call("post", "x");
    wrong.dependency = String::new();
    for (name, value) in
        [("Idempotency-Key", "x"), ("host", "x"), ("a b", "x"), ("x-ok", "y"), ("x-bad", "a\nb")]
    {
        wrong.headers.insert(name.into(), value.into());
    }
    let all = [
        "dependency",
        "method",
        "path",
        "headers.Idempotency-Key",
        "headers.a b",
        "headers.host",
        "headers.x-bad",
    ];
    assert_eq!(named(wrong), all);
}
