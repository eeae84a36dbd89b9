//! Longshore against a real RabbitMQ, a real Postgres and a stub downstream: the binary is started
//! as an operator would start it, and looked at from outside.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod bad_delivery;
mod bad_downstream;
mod bad_envelope;
mod bad_function;
mod bad_ledger;
mod bad_message;
mod budget;
mod cli;
mod cli_publish;
mod clients;
mod clock;
mod crash;
mod documents;
mod drill;
mod holding;
mod library;
mod limits;
mod line;
mod machine;
mod manual;
mod memory;
mod node;
mod order;
mod outage;
mod parking;
mod pipeline;
mod server;
mod session;
mod set_wise;
mod steer;
#[cfg(feature = "fail-points")]
mod steps;
mod stop;
mod support;
mod versions;
