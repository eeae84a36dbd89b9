//! The queue room alone against a real RabbitMQ. Each test has queues of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod order;
mod proxy;
mod raw;
mod room;
mod settling;
mod versions;
