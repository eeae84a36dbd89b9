//! The runtime that the client library's threads fall back to, opened while there is room for it.

use std::thread;

/// Opens it. Its threads have no runtime of ours, and take this one when a connection ends. Where
/// the process has no file descriptors left at that time, opening it fails once and for ever, and
/// every later end of a connection is a panic in the library before it has told of it.
pub(super) fn open() {
    // Dropped outside of any runtime: that is what opens it. A failure shows when it is needed.
    let opened = thread::spawn(|| drop(async_compat::Compat::new(()))).join();
    if opened.is_err() {
        tracing::warn!(
            event = "queue.reactor_failed",
            "the client library's runtime could not be opened, are there file descriptors left?"
        );
    }
}
