//! A small storm: what is shown at full size by `make storm`, but for how late the others are, which
//! says nothing on a machine that runs tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

#[test]
fn a_small_crowd_goes_on_in_order_and_nothing_is_held_past_its_deadline() {
    let arguments =
        "storm --rate 30 --calm 3 --trouble 3 --crowd 300 --gather 14 --only crowd,deadlines";
    let run = Command::new(env!("CARGO_BIN_EXE_longshore-dev"))
        .args(arguments.split(' '))
        .args(["--later", "1000000"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let failed = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !said.contains("FAIL"), "{said}{failed}");
    assert!(said.contains("PASS 900 of 900 requests are done, 0 are dead"), "{said}");
    assert!(said.contains("PASS oldest first"), "{said}");
    assert!(said.contains("PASS no slot was held longer than"), "{said}");
}
