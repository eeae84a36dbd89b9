//! The patches of `make broken`, without applying them: a change that moves what one of them breaks is
//! told at once, and not when somebody next asks for the broken copies.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{fs, path::Path, process::Command};

#[test]
fn every_broken_copy_can_still_be_made_and_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = fs::read_to_string(root.join("docs/simulation.md")).unwrap();
    let mut patches = 0;
    for entry in fs::read_dir(root.join("dev/broken")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let applied =
            Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
        let applied = applied.unwrap();
        let why = String::from_utf8_lossy(&applied.stderr);
        assert!(applied.status.success(), "dev/broken/{name}.patch no longer applies: {why}");
        assert!(listed.contains(&format!("| `{name}` |")), "{name} is not in docs/simulation.md");
        patches += 1;
    }
    assert_eq!(listed.matches("\n| `").count(), patches, "docs/simulation.md lists others");
}
