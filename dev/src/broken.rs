//! Broken copies: that the tests would notice. Each patch in `dev/broken` breaks one rule in a copy of
//! the checkout, and names the tests that must fail for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, bail, ensure};

use crate::place;

/// One patch.
#[derive(Debug)]
struct Patch {
    name: String,
    path: PathBuf,
    rule: String,
    /// What follows `cargo test --lib`.
    tests: Vec<String>,
}

impl Patch {
    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let text = fs::read_to_string(&path)?;
        let said = |what: &str| -> Vec<String> {
            let lines = text.lines().take_while(|line| !line.starts_with("--- "));
            lines.filter_map(|line| Some(line.strip_prefix(what)?.trim().to_owned())).collect()
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let rule = said("Rule:").pop().with_context(|| format!("{name} has no line `Rule:`"))?;
        let tests = said("Test:");
        ensure!(!tests.is_empty(), "{name} has no line `Test:`");
        Ok(Self { name, path, rule, tests })
    }
}

/// Breaks each rule in turn; true when every breach was noticed. With names, only those.
///
/// # Errors
/// A patch does not apply or does not compile, or a test fails in the unbroken copy.
pub fn run(names: &[String]) -> anyhow::Result<bool> {
    let checkout = place::checkout();
    let mut patches = Vec::new();
    for entry in fs::read_dir(checkout.join("dev/broken"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            patches.push(Patch::read(path)?);
        }
    }
    patches.retain(|patch| names.is_empty() || names.contains(&patch.name));
    patches.sort_by(|one, other| one.name.cmp(&other.name));
    ensure!(!patches.is_empty(), "no such patch in dev/broken: {}", names.join(", "));
    let copy = checkout.join("target/broken/copy");
    refresh(&checkout, &copy)?;
    // Before anything takes minutes.
    for patch in &patches {
        apply(&copy, patch, &["--check"])?;
    }
    let mut tests: Vec<&String> = patches.iter().flat_map(|patch| &patch.tests).collect();
    tests.sort();
    tests.dedup();
    for test in tests {
        let output = cargo_test(&checkout, &copy, test)?;
        ensure!(output.status.success(), "{test} fails without a patch:\n{}", text(&output));
        println!("unbroken    {test}: passes");
    }
    let mut noticed = true;
    for patch in &patches {
        refresh(&checkout, &copy)?;
        apply(&copy, patch, &[])?;
        println!("{}: {}", patch.name, patch.rule);
        for test in &patch.tests {
            let output = cargo_test(&checkout, &copy, test)?;
            let text = text(&output);
            fs::write(copy.with_file_name(format!("{}.log", patch.name)), &text)?;
            if output.status.success() {
                noticed = false;
                println!("  NOT NOTICED by {test}");
            } else if text.contains("test result: FAILED") {
                println!("  noticed by {test}{}", words(&text));
            } else {
                bail!("{} does not compile:\n{text}", patch.name);
            }
        }
    }
    refresh(&checkout, &copy)?;
    Ok(noticed)
}

/// Makes the copy the same as the checkout, touching only what differs, for cargo goes by times.
fn refresh(checkout: &Path, copy: &Path) -> anyhow::Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(checkout)
        .output()
        .context("git is needed to know what belongs to the checkout")?;
    ensure!(listed.status.success(), "git ls-files: {}", text(&listed));
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        let (from, to) = (checkout.join(name), copy.join(name));
        let Ok(wanted) = fs::read(&from) else { continue };
        if fs::read(&to).ok().as_ref() != Some(&wanted) {
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::write(&to, wanted)?;
        }
    }
    Ok(())
}

fn apply(copy: &Path, patch: &Patch, further: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("git")
        .arg("apply")
        .args(further)
        .arg(&patch.path)
        // The copy lies in the checkout, and is not to be taken for it.
        .env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy))
        .current_dir(copy)
        .output()?;
    ensure!(output.status.success(), "{} no longer applies: {}", patch.name, text(&output));
    Ok(())
}

/// The same target folder, so that the crates from outside are not built again, and the same servers.
fn cargo_test(checkout: &Path, copy: &Path, test: &str) -> anyhow::Result<Output> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), PathBuf::from);
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--locked", "--lib", test])
        .env("CARGO_TARGET_DIR", checkout.join(target))
        .env("LONGSHORE_DEV_CHECKOUT", checkout)
        .env("RUST_BACKTRACE", "0")
        .current_dir(copy)
        .output()
        .context("cargo cannot be run")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Which seed it was, and the first rule that it broke.
fn words(text: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("seed "));
    let seed = lines.next().and_then(|line| line.split(" (").next()).map(str::to_owned);
    let rule = lines.next().map(|line| line.trim().trim_end_matches(',').to_owned());
    seed.zip(rule).map(|(seed, rule)| format!(": {seed}, {rule}")).unwrap_or_default()
}
