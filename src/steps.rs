//! The two steps of a kind, for handlers written in Rust.
//!
//! A kind of the configuration file calls one HTTP endpoint and applies one SQL function. A program
//! that uses Longshore as a library gives a kind an implementation of [`Steps`] instead; everything
//! around the steps (claim, retry, breaker, ledger, settling) stays the same.

use std::{future::Future, pin::Pin, time::Duration};

use tokio_postgres::Transaction;

use crate::{outcome::StepError, request::Request};

/// What a step answers: JSON text, or nothing.
pub type StepResult = Result<Option<String>, StepError>;

/// A step under way.
pub type StepFuture<'a> = Pin<Box<dyn Future<Output = StepResult> + Send + 'a>>;

/// What to do for one kind of request.
pub trait Steps: Send + Sync + 'static {
    /// Whether [`call`](Self::call) does anything. A kind with a call is claimed in the ledger
    /// first, so that a crash in the middle is seen and counted.
    fn has_call(&self) -> bool {
        false
    }

    /// The step that leaves the house. It may happen more than once for the same request, always
    /// with the same `request.id`: whoever is called must take that as an idempotency key.
    ///
    /// `time_left` is what remains of the attempt; the future is dropped when it is over.
    fn call<'a>(&'a self, request: &'a Request, time_left: Duration) -> StepFuture<'a> {
        let _ = (request, time_left);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The step that stays: its effects commit together with the ledger's row, exactly once.
    /// `response` is what [`call`](Self::call) answered; the value returned is the request's result.
    ///
    /// A database error is best handed on with [`crate::ledger::step_error`], which knows what may
    /// pass and what will not.
    fn apply<'a>(
        &'a self,
        request: &'a Request,
        response: Option<&'a str>,
        transaction: &'a Transaction<'_>,
    ) -> StepFuture<'a> {
        let _ = (request, response, transaction);
        Box::pin(std::future::ready(Ok(None)))
    }
}
