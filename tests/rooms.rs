//! Knowledge points downwards only, and each outside thing is known by one room.
//!
//! Reads the sources as text. What it sees: every path that begins with `crate::` (with `longshore::`
//! in `main.rs`), and every path that begins with the name of an outside crate.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The floors of the house, the lowest first. A room knows rooms of lower floors only, and none of
/// its own.
const FLOORS: [&[&str]; 12] = [
    &["clock", "fail", "laws", "limit", "retry", "pause", "stop", "stack", "steer", "telemetry"],
    &["outcome"],
    &["request"],
    &["steps"],
    &["admin", "queue", "ledger", "downstream"],
    &["kind"],
    &["handler"],
    &["worker"],
    &["config"],
    &["house"],
    // Only in tests: drives the corridor without its surroundings.
    &["simulation"],
    &["cli"],
];

/// Outside crates, and who may name them. `steps` hands a `Transaction` to library users.
const OUTSIDE: [(&str, &[&str]); 21] = [
    ("async_rs", &["queue"]),
    ("async_compat", &["queue"]),
    ("lapin", &["queue"]),
    ("tokio_postgres", &["ledger", "steps"]),
    ("deadpool_postgres", &["ledger"]),
    ("tokio_postgres_rustls", &["ledger"]),
    ("reqwest", &["downstream"]),
    ("axum", &["admin"]),
    ("hyper", &["admin"]),
    ("hyper_util", &["admin"]),
    ("tokio_io_timeout", &["admin"]),
    ("subtle", &["admin"]),
    ("backoff", &["retry"]),
    ("metrics_exporter_prometheus", &["telemetry"]),
    ("metrics_process", &["telemetry"]),
    ("tracing_subscriber", &["telemetry"]),
    ("tracing_appender", &["telemetry"]),
    ("figment", &["config"]),
    ("clap", &["cli"]),
    ("longshore_drill", &["cli"]),
    ("gethostname", &["house"]),
];

/// Macros of the crate `metrics`, which the rooms know as verbs of `telemetry::metrics`.
const METRIC_MACROS: [&str; 6] = [
    "counter!",
    "gauge!",
    "histogram!",
    "describe_counter!",
    "describe_gauge!",
    "describe_histogram!",
];

struct Source {
    path: PathBuf,
    room: String,
    code: String,
}

#[test]
fn every_room_is_on_a_floor() {
    let rooms: BTreeSet<String> = sources().into_iter().map(|source| source.room).collect();
    let floors: BTreeSet<String> =
        FLOORS.iter().flat_map(|floor| floor.iter()).map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, floors, "src/ and the floors of this test differ");
}

#[test]
fn knowledge_points_downwards_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        for known in heads_after(&source.code, "crate::") {
            if known == source.room || !is_room(&known) {
                continue;
            }
            if floor(&known) >= floor(&source.room) {
                wrong.push(format!(
                    "{}: `{}` (floor {}) knows `{known}` (floor {})",
                    source.path.display(),
                    source.room,
                    floor(&source.room),
                    floor(&known)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_outside_crate_is_known_by_its_room_only() {
    let mut wrong = Vec::new();
    // A room's own tests may look at it with any tool.
    for source in sources().into_iter().filter(|source| !is_test(&source.path)) {
        for (outside, rooms) in OUTSIDE {
            let knows = !heads_before(&source.code, outside).is_empty();
            if knows && !rooms.contains(&source.room.as_str()) {
                wrong.push(format!("{} knows {outside}", source.path.display()));
            }
        }
        for name in METRIC_MACROS {
            if source.room != "telemetry" && source.code.contains(name) {
                wrong.push(format!("{} names a metric with {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (outside, rooms) in OUTSIDE {
        for room in rooms {
            let knows = |source: &Source| {
                source.room == *room && !heads_before(&source.code, outside).is_empty()
            };
            assert!(sources().iter().any(knows), "`{room}` no longer knows {outside}");
        }
    }
}

#[test]
fn what_this_test_reads_is_what_rust_reads() {
    let code = "use crate::{outcome::{ErrorCode, Failure}, request, steps::{self}};\nlet x = crate::pause::Reason::Drain; xcrate::no";
    assert_eq!(heads_after(code, "crate::"), ["outcome", "request", "steps", "pause"]);
    assert_eq!(
        heads_before("use lapin::{Channel}; &::lapin::X, notlapin::y, longshore::lapin", "lapin")
            .len(),
        2
    );
    assert_eq!(
        without_comments("a // crate::cli\n\"http://x\"; // b\n/// c"),
        "a \n\"http://x\"; \n"
    );
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

fn is_room(name: &str) -> bool {
    FLOORS.iter().any(|floor| floor.contains(&name))
}

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&room)).unwrap()
}

/// All sources but the doors: `lib.rs` lists the rooms, `main.rs` calls the command line.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).unwrap();
                let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let room = first.trim_end_matches(".rs").to_owned();
                if room != "lib" && room != "main" {
                    let code = without_comments(&fs::read_to_string(&path).unwrap());
                    let path = inside.to_owned();
                    found.push(Source { path, room, code });
                }
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// Comments may name any room; `//` within a string follows a colon, as in a URL.
fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let end = line
            .match_indices("//")
            .map(|(at, _)| at)
            .find(|at| !line[..*at].ends_with(':'))
            .unwrap_or(line.len());
        &line[..end]
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segments of the paths that follow `prefix`, those in braces each.
fn heads_after(code: &str, prefix: &str) -> Vec<String> {
    let mut heads = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => heads.extend(heads_of_list(list)),
            None => heads.push(word(rest)),
        }
    }
    heads
}

/// The heads of a list up to its closing brace; what is nested belongs to its own head.
fn heads_of_list(list: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut at_head) = (0_usize, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            _ if depth == 0 && at_head && is_word(c) => {
                heads.push(word(&list[at..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

/// Where a path begins with `name::`, or `name` is imported.
fn heads_before(code: &str, name: &str) -> Vec<usize> {
    let path = format!("{name}::");
    let begins = |at: usize| {
        let before = &code[..at];
        let before = before.strip_suffix("::").filter(|b| !b.ends_with(is_word)).unwrap_or(before);
        !before.ends_with(is_word) && !before.ends_with("::") && !before.ends_with('"')
    };
    let in_string = |at: usize| {
        let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
        code[line..at].matches('"').count() % 2 == 1
    };
    code.match_indices(&path)
        .map(|(at, _)| at)
        .filter(|at| begins(*at) && !in_string(*at))
        .collect()
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
