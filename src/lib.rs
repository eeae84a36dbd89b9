//! Longshore.
pub mod ledger;
pub mod outcome;
pub mod pause;
pub mod request;
pub mod retry;
pub mod steps;
pub mod stop;
pub mod telemetry;
