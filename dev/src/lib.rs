//! What Longshore is tested against: real servers of its own, faults on demand, and an account
//! of every request.
//!
//! | room | what it knows |
//! |---|---|
//! | [`services`] | the pair of servers that a checkout's tests share, found again or started |
//! | [`rabbit`], [`postgres`] | one private server each: start, stop, kill, start again |
//! | [`demo`] | the worker at work, with trouble on the way |
//! | [`recovery`] | how long it takes to go on after a server has come back |
//! | [`order`] | that the order of a user's requests is kept, under kills |
//! | [`storm`] | what a dependency in trouble costs those who do not need it |
//! | [`limits`] | what limits and shares promise: a limit that learns, a user who floods |
//! | [`mod@drill`] | `longshore drill` at full size, on servers that are restarted meanwhile |
//! | [`mod@bench`] | how fast it is, beside what it could be and what is usual |
//! | [`broken`] | that the tests notice when a rule is broken: patches, applied to a copy |
//! | [`place`], [`programs`] | folders and installed programs |
//! | [`chroot`] | servers of another system, in a folder: other versions for the same tests |
//! | [`compat`] | the tests on each of these versions, and a table of how they did |
//!
//! Faults on demand and the account come from `longshore-drill`, and are found under their names
//! here as well: [`account`], [`hold`], [`process`], [`proxy`], [`stub`].
//!
//! Servers listen on 127.0.0.1 only, on free ports, with their data under `target/dev`, and are
//! stopped by their own pids: two checkouts and a system-wide broker never meet. Linux only, for
//! `/proc` is how a pid is known to be still the same process.

#![allow(
    clippy::print_stdout,
    reason = "the demo and the benchmark speak to the person who started them"
)]

mod apart;
pub use longshore_drill::{account, hold, process, proxy, stub};

pub mod bench;
pub mod broken;
pub mod chroot;
pub mod compat;
pub mod demo;
pub mod drill;
pub mod limits;
pub mod order;
pub mod place;
pub mod postgres;
pub mod programs;
pub mod rabbit;
pub mod recovery;
mod server;
pub mod services;
mod stage;
pub mod storm;
mod worker;
