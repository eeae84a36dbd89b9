//! Tells the program which commit it was built from, as the compile-time variable
//! `LONGSHORE_COMMIT`: from the environment (a container build has no `.git`), else from git,
//! else `unknown`. A build never fails for want of it.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LONGSHORE_COMMIT");
    let given = env::var("LONGSHORE_COMMIT").ok().and_then(|text| word(&text));
    let commit = given.or_else(from_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=LONGSHORE_COMMIT={commit}");
}

fn from_git() -> Option<String> {
    // Sources unpacked inside somebody else's repository must not report that one's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::var("CARGO_MANIFEST_DIR").ok()?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    for name in ["HEAD", "packed-refs"] {
        watch(&git(&["rev-parse", "--git-path", name])?);
    }
    // HEAD itself stays the same when a commit is added to a branch; the branch's file changes.
    if let Some(branch) = git(&["symbolic-ref", "--quiet", "HEAD"]) {
        let file = git(&["rev-parse", "--git-path", &branch])?;
        if Path::new(&file).exists() {
            watch(&file);
        } else if let Some(folder) = Path::new(&file).parent() {
            // Packed, or nothing committed yet: the next commit makes the file in this folder.
            watch(&folder.to_string_lossy());
        }
    }
    word(&git(&["rev-parse", "--short=12", "HEAD"])?)
}

/// Only what exists: cargo takes a watched file that is missing for one that changed, each time.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo:rerun-if-changed={path}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

/// A commit is a metric's label and part of the version: one short word.
fn word(text: &str) -> Option<String> {
    let text = text.trim();
    let plain =
        text.len() <= 40 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (plain && !text.is_empty()).then(|| text.to_owned())
}
