//! Longshore takes user requests off RabbitMQ and puts their effects safely into Postgres and the
//! services behind it: once each, in bounded number, with every request accounted for.
//!
//! # The rooms
//!
//! ```text
//! main         front door: arguments, signals, exit code       cli      one subcommand a file
//! house        opens the rooms in order and closes them        config   the settings of all rooms
//! worker       the corridor: slot → delivery → settlement      handler  one request to its outcome
//! kind         what is to be done for a request                steps    the same, written in Rust
//! ── rooms with a window, each the only one that knows its outside
//! queue        RabbitMQ        ledger  Postgres        downstream  HTTP        admin  probes, metrics
//! telemetry    logs and metrics
//! ── words
//! request      the contract    outcome  what became of it    retry  pause  stop  steer  limit  clock
//! fail         where tests end the process; not compiled otherwise
//! laws         what must hold whatever comes in: for tests and fuzz targets, not compiled otherwise
//! ```
//!
//! Knowledge points downwards only; `tests/rooms.rs` keeps it so.
//!
//! # The way of a request
//!
//! ```text
//! slot → delivery → decode → [claim] → [call] → finish (apply + row) → settle
//! ```
//!
//! A request is acknowledged only after the ledger has committed what became of it. Until then the
//! broker holds it, and will deliver it again; the ledger knows it by its id, so it is not done again.
//!
//! # Stopping
//!
//! A stop begins nothing new, gives back what was prefetched, finishes what is begun until the grace
//! is over, puts down and gives back the rest, and closes the rooms in the order of the way.
//!
//! # As a library
//!
//! The binary does what a configuration file says. A program of your own gives kinds an
//! implementation of [`Steps`](steps::Steps); see `examples/`.

pub mod admin;
pub mod cli;
mod clock;
pub mod config;
pub mod downstream;
mod fail;
mod handler;
mod house;
pub mod kind;
#[cfg(any(test, fuzzing))]
mod laws;
pub mod ledger;
pub mod limit;
pub mod outcome;
pub mod pause;
pub mod queue;
pub mod request;
pub mod retry;
#[cfg(test)]
mod simulation;
pub mod stack;
pub mod steer;
pub mod steps;
pub mod stop;
pub mod telemetry;
pub mod worker;

pub use config::Config;
pub use house::{Longshore, RunError};
pub use stop::Stop;
pub use worker::Drained;
