//! A worker inside this process, with kinds written in Rust.

use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use longshore::{
    Config, Drained, Longshore, RunError, Stop,
    ledger::step_error,
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    steps::{StepFuture, Steps},
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::Transaction;

use crate::support::{PATIENCE, Place};

/// Writes into a guest book whatever its requests say, and misbehaves when they ask for that:
/// `{"call": …, "apply": …}`, each one of `panic`, `refuse`, `hang`, `break` (a SQL error after the
/// insert), `panic once`.
#[derive(Default)]
struct GuestBook {
    calls: bool,
    panics: AtomicU32,
}

impl GuestBook {
    fn asked(request: &Request, step: &str) -> String {
        let payload: Value = serde_json::from_str(&request.payload).unwrap();
        payload[step].as_str().unwrap_or_default().to_owned()
    }

    async fn behave(&self, how: &str) -> Result<(), StepError> {
        match how {
            "panic" => panic!("as it was told"),
            "panic once" if self.panics.fetch_add(1, SeqCst) == 0 => panic!("only once"),
            "refuse" => Err(StepError::Refused(Failure::new(ErrorCode::ApplyRefused, "no guest"))),
            "hang" => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

impl Steps for GuestBook {
    fn has_call(&self) -> bool {
        self.calls
    }

    fn call<'a>(&'a self, request: &'a Request, _time_left: Duration) -> StepFuture<'a> {
        Box::pin(async move {
            self.behave(&Self::asked(request, "call")).await?;
            Ok(Some(format!(r#"{{"called_for":"{}"}}"#, request.user_id)))
        })
    }

    fn apply<'a>(
        &'a self,
        request: &'a Request,
        response: Option<&'a str>,
        transaction: &'a Transaction<'_>,
    ) -> StepFuture<'a> {
        Box::pin(async move {
            let insert = "insert into guests (request_id, response) values ($1, $2)";
            transaction
                .execute(insert, &[&request.id, &response])
                .await
                .map_err(|error| step_error(&error))?;
            let how = Self::asked(request, "apply");
            if how == "break" {
                let broken = transaction.batch_execute("select 1 / 0").await;
                broken.map_err(|error| step_error(&error))?;
            }
            self.behave(&how).await?;
            Ok(Some(json!({"welcome": request.user_id}).to_string()))
        })
    }
}

/// A place with a guest book, and a worker of this process on it.
struct Hotel {
    place: Place,
    stop: Stop,
    worker: JoinHandle<Result<Drained, RunError>>,
}

const KINDS: [&str; 2] = ["guest.apply", "guest.call"];

impl Hotel {
    async fn open(test: &str) -> Self {
        let mut place = Place::new(test).await;
        place.set("[kinds.\"guest.apply\"]\nmax_attempts = 2");
        place.database.execute("create table guests (request_id text, response text)").await;
        let file = place.settings_file();
        let config = Config::load_with_steps(Some(&file), place.environment(), &KINDS).unwrap();
        let stop = Stop::new();
        let longshore = Longshore::new(config)
            .kind("guest.apply", GuestBook::default())
            .kind("guest.call", GuestBook { calls: true, ..GuestBook::default() });
        let worker = tokio::spawn(longshore.run(stop.clone()));
        place.broker.until_consumed().await;
        Self { place, stop, worker }
    }

    async fn guests(&self, id: &str) -> i64 {
        let count = format!("select count(*) from guests where request_id = '{id}'");
        self.place.database.number(&count).await
    }

    async fn close(self) -> Drained {
        self.stop.ask();
        timeout(PATIENCE, self.worker).await.expect("it drains in time").unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_steps_in_rust_are_done_and_the_result_is_kept() {
    let hotel = Hotel::open("rust_steps").await;
    hotel.place.publish("g-1", "guest.apply", "ada", json!({})).await;
    hotel.place.publish("g-2", "guest.call", "ada", json!({})).await;
    let row = hotel.place.until_state("g-1", "done").await;
    assert_eq!(row.result, Some(json!({"welcome": "ada"})));
    hotel.place.until_state("g-2", "done").await;
    let response = "select count(*) from guests
        where request_id = 'g-2' and response::jsonb = '{\"called_for\": \"ada\"}'";
    assert_eq!(hotel.place.database.number(response).await, 1);
    assert!(!hotel.close().await.forced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_apply_leaves_nothing_behind_and_the_lane_goes_on() {
    let hotel = Hotel::open("rust_panic").await;
    hotel.place.publish("p-1", "guest.apply", "eve", json!({"apply": "panic"})).await;
    hotel.place.publish("p-2", "guest.apply", "eve", json!({})).await;
    let dead = hotel.place.until_state("p-1", "dead").await;
    assert_eq!((dead.attempt, dead.error_code.as_deref()), (2, Some("attempts")));
    assert!(dead.error.unwrap().contains("panic: panicked: as it was told"));
    hotel.place.until_state("p-2", "done").await;
    assert_eq!((hotel.guests("p-1").await, hotel.guests("p-2").await), (0, 1));
    let tried = "select count(*) from longshore.attempts
        where request_id = 'p-1' and outcome = 'retry' and error_code = 'panic'";
    assert_eq!(hotel.place.database.number(tried).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_call_is_tried_again_and_then_done() {
    let hotel = Hotel::open("rust_call_panic").await;
    hotel.place.publish("c-1", "guest.call", "bob", json!({"call": "panic once"})).await;
    assert_eq!(hotel.place.until_state("c-1", "done").await.attempt, 2);
    assert_eq!(hotel.guests("c-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_apply_rolls_back_and_is_judged_like_one_of_sql() {
    let hotel = Hotel::open("rust_refusal").await;
    hotel.place.publish("r-1", "guest.apply", "kim", json!({"apply": "refuse"})).await;
    hotel.place.publish("r-2", "guest.apply", "kim", json!({"apply": "break"})).await;
    let refused = hotel.place.until_state("r-1", "dead").await;
    assert_eq!((refused.attempt, refused.error_code.as_deref()), (1, Some("apply_refused")));
    assert_eq!(refused.error.as_deref(), Some("no guest"));
    let broken = hotel.place.until_state("r-2", "dead").await;
    assert_eq!((broken.attempt, broken.error_code.as_deref()), (1, Some("apply_refused")));
    assert!(broken.error.unwrap().contains("22012"), "it names the SQLSTATE");
    assert_eq!((hotel.guests("r-1").await, hotel.guests("r-2").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_hangs_is_cut_off_and_does_not_pass_for_a_database_that_is_away() {
    let hotel = Hotel::open("rust_hang").await;
    // The kind's timeout is longer than ledger.statement_timeout, so this is cut off by the latter.
    hotel.place.publish("h-1", "guest.apply", "liz", json!({"apply": "hang"})).await;
    let dead = hotel.place.until_state("h-1", "dead").await;
    assert_eq!((dead.attempt, dead.error_code.as_deref()), (2, Some("attempts")));
    assert!(dead.error.unwrap().contains("timeout: apply took longer than 2"));
    hotel.place.publish("h-2", "guest.apply", "liz", json!({})).await;
    hotel.place.until_state("h-2", "done").await;
    assert_eq!((hotel.guests("h-1").await, hotel.guests("h-2").await), (0, 1));
    assert_eq!(hotel.close().await.interrupted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_nowhere_written_is_a_mistake_before_anything_is_consumed() {
    let mut place = Place::new("rust_missing").await;
    place.set("[kinds.\"guest.apply\"]\nmax_attempts = 2");
    let file = place.settings_file();
    let strict = Config::load(Some(&file), place.environment()).unwrap_err().to_string();
    assert!(strict.contains("kinds.guest.apply: does nothing"), "{strict}");
    let config = Config::load_with_steps(Some(&file), place.environment(), &KINDS).unwrap();
    let error = Longshore::new(config).run(Stop::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("kinds.guest.apply:"), "{error}");
}
