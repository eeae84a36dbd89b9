//! What Longshore is tried with: faults on demand, and an account of every request.
//!
//! | room | what it knows |
//! |---|---|
//! | [`mod@drill`] | the whole proof: requests, workers, faults, and the account at the end |
//! | [`account`] | what was published against what is found: nothing lost, nothing twice |
//! | [`proxy`] | a TCP line that can be cut, blocked, slowed and silenced |
//! | [`stub`] | a downstream service that behaves as badly as it is told to |
//! | [`broker`], [`database`] | a connection to RabbitMQ, a connection to Postgres |
//! | [`process`], [`hold`] | a process that is known by more than its number, and the end of orphans |
//!
//! The tests use it, and so does everybody who tries a worker on servers of their own: `longshore
//! drill`. Linux only, for `/proc` is how a pid is known to be still the same process.

pub mod account;
pub mod broker;
pub mod database;
pub mod drill;
pub mod hold;
pub mod process;
pub mod proxy;
pub mod stub;
