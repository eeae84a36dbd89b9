//! The front door: arguments, and the exit code.

use std::process::ExitCode;

use longshore::{cli, stack};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // First of all, while there is no other thread. Failing is no reason not to work; `run` warns.
    let _enough = stack::ensure().is_ok();
    cli::main()
}
