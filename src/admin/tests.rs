#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use futures_util::future::BoxFuture;

use super::*;
use crate::steer::Order;

pub(super) struct Ready(pub(super) Readiness);

impl Health for Ready {
    fn ready(&self) -> Readiness {
        self.0.clone()
    }
}

/// A worker that is starting.
pub(super) struct Unsteered;

impl Steering for Unsteered {
    fn standing(&self) -> Option<Standing> {
        None
    }

    fn steer(&self, _: Order, _: String) -> BoxFuture<'_, Result<Steered, Refused>> {
        Box::pin(async { Err(Refused::NotNow("it is starting".to_owned())) })
    }
}

pub(super) fn consuming() -> Arc<dyn Health> {
    Arc::new(Ready(Readiness { ready: true, state: "consuming".to_owned(), detail: Vec::new() }))
}

fn settings() -> Settings {
    Settings {
        enabled: true,
        bind: "127.0.0.1:0".to_owned(),
        token: None,
        read_timeout: Duration::from_secs(15),
        write_timeout: Duration::from_secs(15),
        idle_timeout: Duration::from_secs(60),
        max_connections: 8,
    }
}

/// The whole answer to a `GET`, asked without any runtime.
fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn it_answers_while_the_main_runtime_runs_nothing() {
    let main = runtime();
    let admin = start(settings(), Recorder::install().unwrap(), consuming(), Arc::new(Unsteered));
    // Outside `block_on` a current-thread runtime runs no task: as if its worker were blocked.
    let admin = main.block_on(admin).unwrap();
    assert!(get(admin.addr(), "/health/live").starts_with("HTTP/1.1 200 "));
    assert!(get(admin.addr(), "/metrics").contains("longshore_build_info{"));
    assert!(get(admin.addr(), "/health/ready").contains(r#""state":"consuming""#));
}

#[test]
fn a_main_runtime_that_runs_nothing_for_long_is_not_live_until_it_runs_again() {
    let main = runtime();
    let stale_after = Duration::from_millis(300);
    let began = Instant::now();
    let recorder = Recorder::install().unwrap();
    let admin = main
        .block_on(start_watching(
            settings(),
            recorder,
            consuming(),
            Arc::new(Unsteered),
            stale_after,
        ))
        .unwrap();

    let answer = loop {
        let answer = get(admin.addr(), "/health/live");
        if answer.starts_with("HTTP/1.1 503 ") {
            break answer;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "still live: {answer}");
        std::thread::yield_now();
    };
    assert!(began.elapsed() > stale_after);
    assert!(answer.contains("restart the process"), "{answer}");
    assert!(get(admin.addr(), "/health/ready").contains(r#""state":"stalled""#));

    main.block_on(async {
        // The beat is a task like any other: once the runtime runs again, so does it.
        while admin_is_silent(admin.addr()).await {}
        admin.stop(Duration::from_secs(5)).await;
    });
}

async fn admin_is_silent(address: SocketAddr) -> bool {
    tokio::task::spawn_blocking(move || get(address, "/health/live").starts_with("HTTP/1.1 503 "))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_stopped_server_has_freed_its_address() {
    let recorder = Recorder::install().unwrap();
    let admin =
        start(settings(), recorder.clone(), consuming(), Arc::new(Unsteered)).await.unwrap();
    let address = admin.addr();
    admin.stop(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(address).is_err(), "nobody answers any more");
    let again = Settings { bind: address.to_string(), ..settings() };
    let admin = start(again, recorder, consuming(), Arc::new(Unsteered)).await.unwrap();
    assert_eq!(admin.addr(), address);
}

#[tokio::test]
async fn an_address_in_use_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let settings = Settings { bind: bind.clone(), ..settings() };
    let error = start(settings, Recorder::install().unwrap(), consuming(), Arc::new(Unsteered))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&bind) && text.contains("admin.bind"), "{text}");
    let Error::Bind { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn every_mistake_in_the_settings_is_named() {
    assert_eq!(settings().problems(), Vec::new());
    let wrong = Settings {
        bind: "9600".to_owned(),
        read_timeout: Duration::ZERO,
        idle_timeout: Duration::from_secs(7200),
        max_connections: 0,
        ..settings()
    };
    let keys: Vec<_> = wrong.problems().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["bind", "read_timeout", "idle_timeout", "max_connections"]);
    assert!(
        Settings { enabled: false, ..wrong }.problems().is_empty(),
        "what is off may be anything"
    );
    for bind in ["[::1]:9600", "localhost:0"] {
        assert!(Settings { bind: bind.to_owned(), ..settings() }.problems().is_empty(), "{bind}");
    }
    let read = serde_json::from_str::<Settings>(
        r#"{"enabled": true, "bind": "127.0.0.1:9600", "read_timeout": "15s", "write_timeout": "15s",
            "idle_timeout": "1m", "max_connections": 64}"#,
    );
    assert_eq!(read.unwrap().idle_timeout, Duration::from_secs(60));
}

#[test]
fn a_token_that_could_be_guessed_or_not_be_sent_is_a_mistake_that_does_not_show_it() {
    let problems = |token: &str| Settings { token: Some(token.into()), ..settings() }.problems();
    for token in ["hunter2hunter2", "hunter2 hunter2 hunter2", "hunter2hunter2hunter2\u{e9}"] {
        let found = problems(token);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "token");
        assert!(!found[0].1.contains("hunter2"), "{found:?}");
    }
    assert_eq!(problems("hunter2hunter2hunter2"), []);
}
