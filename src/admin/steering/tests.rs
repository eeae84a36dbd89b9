#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Mutex;

use futures_util::FutureExt as _;
use serde_json::Value;

use super::*;
use crate::admin::{
    routes::tests::{Answer, ask},
    tests::consuming,
};

const TOKEN: &str = "a-token-of-some-length";

/// Knows one dependency, and remembers what it was told.
#[derive(Default)]
struct Told(Mutex<Vec<(Order, String)>>);

impl Steering for Told {
    fn standing(&self) -> Option<Standing> {
        None
    }

    fn steer(&self, order: Order, who: String) -> BoxFuture<'_, Result<Steered, Refused>> {
        let target = order.target.to_string();
        if target.contains("nobody") {
            return async { Err(Refused::Unknown("there is no such dependency".into())) }.boxed();
        }
        let after = order.wish.map(|wish| wish.to_string());
        self.0.lock().unwrap().push((order, who.clone()));
        async { Ok(Steered { target, before: None, after, who }) }.boxed()
    }
}

async fn send(told: &Arc<Told>, token: Option<&str>, request: &str) -> Answer {
    let token = token.map(SecretString::from);
    let router = crate::admin::routes::tests::routes_with(consuming(), told.clone(), token);
    ask(router, request).await
}

async fn post(told: &Arc<Told>, path: &str, headers: &str) -> Answer {
    send(told, Some(TOKEN), &format!("POST {path} HTTP/1.1{headers}")).await
}

fn bearer(token: &str) -> String {
    format!("\r\nAuthorization: Bearer {token}")
}

#[tokio::test]
async fn whoever_has_the_token_may_steer_and_is_named() {
    let told = Arc::new(Told::default());
    let path = "/api/dependencies/geocoder/breaker/open";
    let answer = post(&told, path, &bearer(TOKEN)).await;
    let expected =
        json!({"target": "breaker:geocoder", "before": null, "after": "open", "who": "admin"});
    assert_eq!((answer.status, answer.json()), (200, expected));
    let named = format!("{}\r\nX-Actor: ada", bearer(TOKEN));
    for (path, order) in [
        ("/api/dependencies/geo%20coder/breaker/auto", Order::breaker("geo coder", "auto")),
        ("/api/dependencies/mailer/limit/8", Order::limit("mailer", "8")),
        ("/api/kinds/user.welcome.send/pause", Ok(Order::pause(Some("user.welcome.send")))),
        ("/api/kinds/user.welcome.send/resume", Ok(Order::resume(Some("user.welcome.send")))),
        ("/api/pause", Ok(Order::pause(None))),
        ("/api/resume", Ok(Order::resume(None))),
    ] {
        assert_eq!(post(&told, path, &named).await.status, 200, "{path}");
        let last = told.0.lock().unwrap().pop().unwrap();
        assert_eq!(last, (order.unwrap(), "admin:ada".to_owned()));
    }
}

#[tokio::test]
async fn without_the_token_nothing_is_changed() {
    let told = Arc::new(Told::default());
    let wrong = [
        String::new(),
        bearer(""),
        bearer("a-token-of-some-lengtH"),
        bearer(&format!("{TOKEN}x")),
        format!("\r\nAuthorization: Basic {TOKEN}"),
        format!("\r\nX-Token: {TOKEN}"),
    ];
    for headers in wrong {
        let answer = post(&told, "/api/pause", &headers).await;
        assert_eq!(answer.status, 401, "{headers}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
    }
    let answer = send(&told, None, &format!("POST /api/pause HTTP/1.1{}", bearer(TOKEN))).await;
    assert_eq!(answer.status, 403);
    let said: Value = answer.json();
    assert!(said["error"].as_str().unwrap().contains("set admin.token"), "{said}");
    assert!(told.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_words() {
    let told = Arc::new(Told::default());
    let status = async |path: &str, more: &str| {
        post(&told, path, &format!("{}{more}", bearer(TOKEN))).await.status
    };
    assert_eq!(status("/api/dependencies/geocoder/breaker/ajar", "").await, 400);
    assert_eq!(status("/api/dependencies/geocoder/limit/0", "").await, 400);
    assert_eq!(status("/api/dependencies/nobody/breaker/open", "").await, 404);
    assert_eq!(status("/api/pause", "\r\nX-Actor: ").await, 400);
    assert_eq!(status("/api/pause", &format!("\r\nX-Actor: {}", "x".repeat(129))).await, 400);
    assert_eq!(status("/api/pause", "\r\nX-Actor: \u{e9}").await, 400);
    assert_eq!(status("/api/pause", "\r\nContent-Length: 2").await, 413);
    let got = send(&told, Some(TOKEN), "GET /api/pause HTTP/1.1").await;
    assert_eq!(got.status, 405, "reading changes nothing");
    let starting = send(&told, Some(TOKEN), "GET /api/dependencies HTTP/1.1").await;
    assert_eq!(starting.status, 503);
    assert!(told.0.lock().unwrap().is_empty());
}
