//! A worker of your own, with one kind written in Rust.
//!
//! `coupon.redeem` asks a service whether the coupon is good (the call), and notes it in Postgres
//! (the apply). Everything around these two steps is Longshore's: claiming, retries, the ledger,
//! settling, stopping. Run it like the binary, after `longshore migrate`:
//!
//! ```text
//! export AMQP_URL=amqp://guest:guest@localhost DATABASE_URL=postgresql://localhost/shop
//! cargo run --example handler
//! longshore publish --any-kind --kind coupon.redeem --user 42 --payload '{"code":"SPRING"}'
//! ```

use std::{collections::HashMap, process::ExitCode, time::Duration};

use longshore::{
    Config, Longshore, RunError, Stop,
    ledger::step_error,
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    stack,
    steps::{StepFuture, Steps},
    telemetry,
};
use tokio_postgres::Transaction;

/// Redeems coupons. Any state that the steps need lives here.
struct Redeem {
    /// Stands for a client of the service that knows the coupons.
    worth: HashMap<&'static str, u32>,
}

impl Redeem {
    /// What the request says, or why it can never succeed.
    fn code(request: &Request) -> Result<String, StepError> {
        let payload: serde_json::Value = serde_json::from_str(&request.payload).unwrap_or_default();
        let code = payload["code"].as_str();
        code.map(str::to_owned).ok_or_else(|| refused(ErrorCode::CallRefused, "no code was given"))
    }
}

impl Steps for Redeem {
    /// Something leaves the house: so a crash in the middle of it is seen and counted.
    fn has_call(&self) -> bool {
        true
    }

    /// May happen more than once, always with the same `request.id`, which is therefore what a real
    /// service would be given as the idempotency key.
    fn call<'a>(&'a self, request: &'a Request, _time_left: Duration) -> StepFuture<'a> {
        Box::pin(async move {
            let code = Self::code(request)?;
            match self.worth.get(code.as_str()) {
                Some(worth) => Ok(Some(worth.to_string())),
                None => Err(refused(ErrorCode::CallRefused, "there is no such coupon")),
            }
        })
    }

    /// Happens exactly once: it commits together with the ledger's row, or neither does.
    fn apply<'a>(
        &'a self,
        request: &'a Request,
        response: Option<&'a str>,
        transaction: &'a Transaction<'_>,
    ) -> StepFuture<'a> {
        Box::pin(async move {
            let worth: i32 = response.and_then(|text| text.parse().ok()).unwrap_or_default();
            let insert = "insert into redeemed (request_id, user_id, worth) values ($1, $2, $3)";
            transaction
                .execute(insert, &[&request.id, &request.user_id, &worth])
                .await
                // Knows which errors of a database may pass and which will not.
                .map_err(|error| step_error(&error))?;
            Ok(Some(format!(r#"{{"worth":{worth}}}"#)))
        })
    }
}

fn refused(code: ErrorCode, error: &str) -> StepError {
    StepError::Refused(Failure::new(code, error))
}

fn main() -> ExitCode {
    // First of all, while there is no other thread: hostile headers need a deep stack to be read.
    let _enough = stack::ensure().is_ok();
    let config = match Config::load_with_steps(None, std::env::vars(), &["coupon.redeem"]) {
        Ok(config) => config,
        Err(mistakes) => return told(&mistakes, 78),
    };
    let _log = match telemetry::start(&config.log) {
        Ok(log) => log,
        Err(error) => return told(&error, 1),
    };
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => match runtime.block_on(work(config)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => told(&error, 1),
        },
        Err(error) => told(&error, 1),
    }
}

async fn work(config: Config) -> Result<(), RunError> {
    let stop = Stop::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        // The first Ctrl-C asks, the second insists.
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.ask();
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.force();
        }
    });
    let redeem = Redeem { worth: HashMap::from([("SPRING", 5), ("SUMMER", 10)]) };
    Longshore::new(config).kind("coupon.redeem", redeem).run(stop).await.map(|_drained| ())
}

#[expect(clippy::print_stderr, reason = "the log may not be there yet")]
fn told(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("handler: {error}");
    ExitCode::from(code)
}
