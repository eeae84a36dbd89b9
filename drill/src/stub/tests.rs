#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

struct House {
    stub: Stub,
    client: reqwest::Client,
}

impl House {
    async fn new() -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
        let policy = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().no_proxy().redirect(policy).build().unwrap();
        Self { stub: Stub::start("127.0.0.1:0").await.unwrap(), client }
    }

    fn post(&self, path: &str, key: &str, body: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.stub.url);
        self.client.post(url).header("idempotency-key", format!("\"{key}\"")).body(body.to_owned())
    }

    async fn verify(&self, key: &str) -> reqwest::Response {
        self.post("/geocoder/verify", key, r#"{"address": " 1  main st "}"#).send().await.unwrap()
    }
}

#[tokio::test]
async fn the_services_do_their_work_once_a_key() {
    let house = House::new().await;
    for _ in 0..2 {
        let text = house.verify("a").await.text().await.unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"address": "1 MAIN ST", "verified": true})
        );
    }
    let mailed =
        house.post("/mailer/welcome", "b", "{}").send().await.unwrap().text().await.unwrap();
    assert_eq!(mailed, r#"{"queued":true}"#);
    assert_eq!(house.post("/geocoder/verify", "c", "{}").send().await.unwrap().status(), 422);
    let calls = house.stub.calls();
    assert_eq!(calls["a"], Calls { calls: 2, effects: 1, bodies_differ: false });
    assert_eq!(calls["c"], Calls { calls: 1, effects: 0, bodies_differ: false });
    assert_eq!(calls_at(&house.stub.url).await.unwrap(), calls, "the same from outside");
    assert_eq!(house.stub.arrivals("geocoder"), 3);
}

#[tokio::test]
async fn a_crowded_service_takes_the_longer_the_more_calls_are_under_way() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Crowded { alone_ms: 10, at_best: 1 });
    let begin = std::time::Instant::now();
    let (a, b, c) = tokio::join!(house.verify("a"), house.verify("b"), house.verify("c"));
    assert!(a.status() == 200 && b.status() == 200 && c.status() == 200);
    // The first to come takes so long; the others as long or longer, as they meet.
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert!(house.stub.inner.crowds().is_empty(), "nobody is left");
}

#[tokio::test]
async fn a_service_can_be_steered_from_outside_and_only_that_one() {
    let house = House::new().await;
    let control = format!("{}/_control/geocoder", house.stub.url);
    let put = |body: &'static str| {
        house.client.put(&control).header("content-type", "application/json").body(body).send()
    };
    let told = put(r#"{"behaviour": "status", "code": 503, "retry_after_secs": 2}"#).await.unwrap();
    assert_eq!(told.status(), 200);
    let answer = house.verify("a").await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()),
        (503, "2")
    );
    assert_eq!(house.post("/mailer/welcome", "b", "{}").send().await.unwrap().status(), 200);
    assert_eq!(house.stub.calls()["a"].effects, 0);
    assert_eq!(put(r#"{"behaviour": "sulk"}"#).await.unwrap().status(), 422);
    assert_eq!(put(r#"{"behaviour": "ok"}"#).await.unwrap().status(), 200);
    assert_eq!(house.verify("a").await.status(), 200);
}

#[tokio::test]
async fn it_redirects_refuses_and_sends_more_than_anybody_wants() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Redirect { to: "http://169.254.169.254/".to_owned() });
    let answer = house.verify("a").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (307, &HeaderValue::from_static("http://169.254.169.254/"))
    );
    house.stub.behave("geocoder", Behaviour::Refused);
    assert_eq!(house.verify("a").await.status(), 422);
    house.stub.behave("geocoder", Behaviour::Big { bytes: 200_000 });
    assert_eq!(house.verify("a").await.bytes().await.unwrap().len(), 200_000);
}

#[tokio::test]
async fn it_resets_instead_of_answering() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Reset);
    let error = house.post("/geocoder/verify", "a", "{}").send().await.unwrap_err();
    assert!(error.is_request() && error.status().is_none(), "{error:?}");
    assert_eq!(house.stub.arrivals("geocoder"), 1, "it was heard");
    house.stub.behave("geocoder", Behaviour::default());
    assert_eq!(house.verify("a").await.status(), 200);
}

#[tokio::test]
async fn it_hangs_and_is_known_to() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Hang);
    let hanging = house.post("/geocoder/verify", "a", "{}").send();
    tokio::select! {
        answer = hanging => panic!("{answer:?}"),
        () = house.stub.until_arrivals("geocoder", 1) => {}
    }
    assert_eq!(house.stub.calls()["a"], Calls { calls: 1, effects: 0, bodies_differ: false });
}

#[tokio::test]
async fn it_knows_the_most_that_it_had_at_once() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Hang);
    {
        let mut hanging: Vec<_> = ["a", "b", "c"]
            .map(|key| Box::pin(house.post("/geocoder/verify", key, "{}").send()))
            .into();
        let all = futures_util::future::select_all(hanging.iter_mut());
        tokio::select! {
            (answer, ..) = all => panic!("{answer:?}"),
            () = house.stub.until_arrivals("geocoder", 3) => {}
        }
    }
    assert_eq!(busiest_at(&house.stub.url, "geocoder").await.unwrap(), 3);
    // Whose caller has gone is soon no longer under way.
    while busiest_at(&house.stub.url, "geocoder").await.unwrap() > 0 {}
    assert_eq!(busiest_at(&house.stub.url, "mailer").await.unwrap(), 0);
}

#[tokio::test]
async fn it_trickles() {
    let house = House::new().await;
    house.stub.behave("geocoder", Behaviour::Trickle);
    let mut answer = house.verify("a").await;
    assert_eq!(answer.status(), 200, "the head comes at once");
    assert_eq!(answer.chunk().await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_seed_fails_the_same_calls_again() {
    let house = House::new().await;
    let mut runs = Vec::new();
    for run in 0..2 {
        house.stub.behave("geocoder", Behaviour::Fail { share: 0.5, seed: 42 });
        let mut codes = Vec::new();
        for call in 0..20 {
            codes.push(house.verify(&format!("{run}-{call}")).await.status().as_u16());
        }
        runs.push(codes);
    }
    assert_eq!(runs[0], runs[1]);
    assert!(runs[0].contains(&500) && runs[0].contains(&200));
}
