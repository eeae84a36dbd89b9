//! Large enough stacks for threads that are not ours.
//!
//! lapin reads header tables by recursion on a thread of its own, which has the standard library's
//! default size: a message of 10 kB with nested headers overflows 2 MiB and aborts the process, and
//! the broker delivers it again to the next one. The most that fits into a header frame needs less
//! than 64 MiB. It is address space; only what is used becomes memory.

use std::{env, io, process::Command};

/// The variable that the standard library reads before it starts its first thread.
const VARIABLE: &str = "RUST_MIN_STACK";

/// Enough for 26,000 levels, the most that fit into a frame of 128 KiB.
pub(crate) const NEEDED: usize = 64 * 1024 * 1024;

/// Whether threads get enough stack.
pub fn is_large_enough() -> bool {
    env::var(VARIABLE)
        .ok()
        .and_then(|value| value.parse::<usize>().ok())
        .is_some_and(|size| size >= NEEDED)
}

/// Makes sure that threads get enough stack, by starting this program anew in the same process with
/// the variable set. To be called first in `main`, before there is any thread.
///
/// # Errors
/// The program could not be started anew; it is best to go on and say so in the log.
#[cfg(unix)]
pub fn ensure() -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;

    if is_large_enough() {
        return Ok(());
    }
    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Only an error returns.
    Err(command.args(arguments).env(VARIABLE, NEEDED.to_string()).exec())
}
