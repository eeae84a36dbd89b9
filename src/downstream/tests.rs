#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod faults;
mod guard;
mod server;
mod tls;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::{
    limit::WhenFull,
    request::{Message, Properties, decode},
    steer::Mode,
};
use server::{Server, closed_port};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any test may take, for calls that are not meant to run out of time.
const AMPLE: Duration = Duration::from_secs(60);

pub(super) fn request(id: &str) -> Request {
    let body = format!(
        r#"{{"request_id":"{id}","kind":"k","user_id":"ada 42","payload":{{"street":"Elm"}}}}"#
    );
    decode(Message { body: Bytes::from(body), properties: Properties::default() }).unwrap()
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.into(),
        timeout: 30 * SECOND,
        connect_timeout: 10 * SECOND,
        max_response_bytes: 1024,
        max_in_flight: 8,
        adaptive: false,
        min_in_flight: 1,
        rate: None,
        burst: None,
        when_full: WhenFull::Wait,
        max_parked: 100,
        release: release::Settings { rate: 10.0, growth: 2.0, most: 500.0 },
        budget_header: "x-request-timeout-ms".into(),
        headers: BTreeMap::from([("authorization".into(), "Bearer hush".into())]),
        ca_file: None,
        breaker: breaker::Settings {
            mode: Mode::Automatic,
            retry_after_max: Duration::from_secs(600),
            failure_rate: 0.5,
            window: 10 * SECOND,
            minimum_calls: 100,
            consecutive_failures: 3,
            slow_call: AMPLE,
            slow_call_rate: 1.0,
            open_for: 10 * SECOND,
            open_max: 60 * SECOND,
            probes: 1,
            successes: 1,
            probe_timeout: AMPLE,
        },
    }
}

fn downstream(settings: Settings) -> Downstream {
    Downstream::new(&BTreeMap::from([("geocoder".to_owned(), settings)])).unwrap()
}

fn post() -> CallSettings {
    CallSettings {
        dependency: "geocoder".into(),
        method: "POST".into(),
        path: "/verify/{user_id}".into(),
        headers: BTreeMap::from([("x-kind".into(), "k".into())]),
    }
}

async fn call(downstream: &Downstream) -> Result<Option<String>, StepError> {
    can_be_spawned(downstream.call(&post(), &request("r-1"), false, AMPLE)).await
}

fn can_be_spawned<T: Send>(call: T) -> T {
    call
}

fn transient(error: StepError) -> (String, Option<Duration>) {
    match error {
        StepError::Transient { failure, retry_in } => {
            assert_eq!(failure.code, ErrorCode::CallFailed);
            (failure.error, retry_in)
        }
        other => panic!("not transient: {other:?}"),
    }
}

#[tokio::test]
async fn the_service_sees_the_payload_the_key_and_the_credentials_each_time() {
    let mut server =
        Server::answering(&["HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"ok\":true}"]).await;
    let downstream = downstream(settings(&format!("{}/v1/", server.url)));
    let mut spans = Vec::new();
    for _ in 0..2 {
        assert_eq!(call(&downstream).await, Ok(Some("{\"ok\":true}".into())));
        let seen = server.seen().await;
        assert_eq!(seen.line, "POST /v1/verify/ada%2042 HTTP/1.1");
        assert_eq!(seen.body, "{\"street\":\"Elm\"}");
        for (name, value) in [
            ("idempotency-key", "\"r-1\""),
            ("content-type", "application/json"),
            ("accept", "application/json"),
            ("authorization", "Bearer hush"),
            ("x-kind", "k"),
            ("user-agent", concat!("longshore/", env!("CARGO_PKG_VERSION"))),
        ] {
            assert_eq!(seen.header(name), Some(value), "{name}");
        }
        spans.push(seen.header("traceparent").unwrap().to_owned());
    }
    assert_ne!(spans[0], spans[1]);
    assert!(
        !format!("{downstream:?}").contains("hush"),
        "credentials do not show when it is printed"
    );
}

#[tokio::test]
async fn an_empty_answer_is_none_and_plain_text_a_string() {
    let server = Server::answering(&[
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK",
    ])
    .await;
    let downstream = downstream(settings(&server.url));
    assert_eq!(call(&downstream).await, Ok(None));
    assert_eq!(call(&downstream).await, Ok(Some("\"OK\"".into())));
}

#[tokio::test]
async fn a_refusal_names_the_status_and_never_what_was_said() {
    let server =
        Server::answering(&["HTTP/1.1 422 X\r\ncontent-length: 20\r\n\r\nada@example.com 42!!"])
            .await;
    let downstream = downstream(settings(&server.url));
    for _ in 0..10 {
        let error = call(&downstream).await.unwrap_err();
        let expected = "POST to geocoder answered 422 Unprocessable Entity";
        assert_eq!(error, StepError::Refused(Failure::new(ErrorCode::CallRefused, expected)));
    }
    let state = downstream.get("geocoder").unwrap().state();
    assert_eq!(state, "closed", "a service that refuses is well");
}

#[tokio::test]
async fn a_call_that_no_url_can_hold_is_refused_unsent() {
    let downstream = downstream(settings(&closed_port().await));
    let mut request = request("r-1");
    request.user_id = "..".into();
    let error = downstream.call(&post(), &request, false, AMPLE).await.unwrap_err();
    assert!(matches!(error, StepError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn an_unknown_dependency_is_refused_by_name() {
    let none = Downstream::new(&BTreeMap::new()).unwrap();
    let StepError::Refused(failure) = call(&none).await.unwrap_err() else { panic!("not refused") };
    assert_eq!(failure.error, "no dependency `geocoder` is configured");
    assert!(none.get("geocoder").is_none());
    assert!(none.reach("geocoder").await.unwrap_err().contains("[dependencies.geocoder]"));
}

#[tokio::test]
async fn any_answer_in_http_counts_as_reached() {
    let mut server = Server::answering(&["HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"]).await;
    let reachable = downstream(settings(&server.url));
    assert_eq!(reachable.reach("geocoder").await, Ok(()));
    assert_eq!(server.seen().await.line, "HEAD / HTTP/1.1");
    assert_eq!(reachable.get("geocoder").unwrap().state(), "closed");
}

#[tokio::test]
async fn what_cannot_be_reached_says_why_and_what_to_look_at() {
    let nobody = closed_port().await;
    let error = downstream(settings(&nobody)).reach("geocoder").await.unwrap_err();
    assert!(
        error.starts_with(&format!("could not connect to {nobody} (Connection refused")),
        "{error}"
    );
    assert!(error.contains("check that the service runs"), "{error}");

    let other = Server::answering(&["220 mail.example ESMTP\r\n\r\n"]).await;
    let error = downstream(settings(&other.url)).reach("geocoder").await.unwrap_err();
    assert!(
        error.contains("did not answer in HTTP") && error.contains("check scheme and port"),
        "{error}"
    );
}

#[test]
fn calls_and_the_state_of_the_breaker_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let server = Server::answering(&[
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                "HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n",
                "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n",
            ])
            .await;
            let downstream = downstream(settings(&server.url));
            for _ in 0..6 {
                let _result = call(&downstream).await;
            }
        });
    });
    let page = recorder.handle().render();
    for line in [
        "longshore_calls_total{dependency=\"geocoder\",result=\"ok\"} 1",
        "longshore_calls_total{dependency=\"geocoder\",result=\"refused\"} 1",
        "longshore_calls_total{dependency=\"geocoder\",result=\"transient\"} 3",
        "longshore_calls_total{dependency=\"geocoder\",result=\"not_admitted\"} 1",
        "longshore_call_duration_seconds_count{dependency=\"geocoder\"} 5",
        "longshore_breaker_state{dependency=\"geocoder\",state=\"open\"} 1",
        "longshore_breaker_state{dependency=\"geocoder\",state=\"closed\"} 0",
        "longshore_breaker_transitions_total{dependency=\"geocoder\",to=\"open\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn every_mistake_in_the_settings_is_named_and_no_secret_is() {
    let mut wrong = settings("ftp://ada:hunter2@geo.example/?key=hunter2");
    wrong.timeout = Duration::ZERO;
    wrong.connect_timeout = SECOND;
    wrong.max_response_bytes = 0;
    wrong.max_in_flight = 0;
    wrong.max_parked = 0;
    wrong.headers =
        BTreeMap::from([("host".into(), "hunter2".into()), ("x-key".into(), "hunter2\n".into())]);
    wrong.breaker.probes = 0;
    let problems = wrong.problems();
    let named: Vec<&str> = problems.iter().map(|(setting, _)| setting.as_str()).collect();
    let all = "url url url timeout connect_timeout max_response_bytes max_in_flight max_parked headers.host \
               headers.x-key breaker.probes";
    assert_eq!(named.join(" "), all);
    let error =
        Downstream::new(&BTreeMap::from([("geocoder".to_owned(), wrong)])).unwrap_err().to_string();
    assert!(error.starts_with("dependencies.geocoder: url must begin with"), "{error}");
    assert!(!error.contains("hunter2") && !format!("{problems:?}").contains("hunter2"));
    assert_eq!(settings("nonsense").problems().len(), 1);
}
