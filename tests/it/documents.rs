//! What the documents say, held against the code.

use std::{fs, path::Path};

use bytes::Bytes;
use longshore::{
    outcome::ErrorCode,
    request::{self, MAX_REQUEST_ID, MAX_USER_ID, Message, Properties},
};
use serde_json::{Value, json};

use crate::support::document::{blocks, document};

#[test]
fn the_table_of_error_codes_is_the_list_in_the_code() {
    let wanted: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| format!("| `{}` | {} |", code.name(), code.meaning().trim()))
        .collect();
    let readme = document("README.md");
    let table: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != "### Error codes")
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(table, wanted);
}

/// `tests/it/clients.rs` runs the files.
#[test]
fn the_producers_of_the_readme_are_those_that_are_run() {
    let readme = blocks(&document("README.md"));
    for (language, file) in [("python", "publish.py"), ("js", "publish.js"), ("go", "publish.go")] {
        let block = readme.iter().find(|(info, _)| info == language);
        let program = document(&format!("tests/clients/{file}"));
        assert_eq!(block.map(|(_, block)| block), Some(&program), "{file}");
    }
}

#[test]
fn the_examples_of_the_contract_are_read_as_it_says() {
    let (mut accepted, mut refused) = (0, 0);
    for (info, body) in blocks(&document("docs/contract.md")) {
        let mut properties = Properties::default();
        if info.ends_with(" with properties") {
            properties.message_id = Some("from-property".to_owned());
            properties.kind = Some("from.property".to_owned());
        }
        let read = request::decode(Message { body: Bytes::from(body.clone()), properties });
        let words: Vec<&str> = info.split(' ').collect();
        match words.as_slice() {
            ["json", "accepted", ..] => {
                assert!(read.is_ok(), "{body} is refused: {}", read.unwrap_err());
                accepted += 1;
            }
            ["json", "refused", code, ..] => {
                assert_eq!(read.expect_err(&body).code.name(), *code, "{body}");
                refused += 1;
            }
            // An answer, and no request.
            ["json"] => {
                assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["outcome"], "done");
            }
            _ => panic!("what is a block `{info}`?"),
        }
    }
    assert!(accepted >= 3 && refused >= 8, "{accepted} and {refused}");
}

#[test]
fn the_schema_has_the_bounds_of_the_code() {
    let schema: Value = serde_json::from_str(&document("docs/request.schema.json")).unwrap();
    let fields = &schema["properties"];
    assert_eq!(fields["request_id"]["maxLength"], MAX_REQUEST_ID);
    assert_eq!(fields["user_id"]["oneOf"][0]["maxLength"], MAX_USER_ID);
    assert_eq!(fields["kind"]["maxLength"], request::MAX_KIND);
    assert_eq!(fields["user_id"]["oneOf"][1]["minimum"], i64::MIN);
    assert_eq!(fields["user_id"]["oneOf"][1]["maximum"], u64::MAX);
    let mut body = json!({"request_id": "r", "kind": "k", "user_id": "u", "payload": {},
        "deadline": "2036-01-01T00:00:00Z", "not_before": "2026-01-01T00:00:00Z"});
    let known: Vec<&String> = body.as_object().unwrap().keys().collect();
    let mut described: Vec<&String> = fields.as_object().unwrap().keys().collect();
    described.sort();
    let mut sorted = known.clone();
    sorted.sort();
    assert_eq!(described, sorted);
    let unknown = |body: &Value| {
        let body = Bytes::from(body.to_string());
        let message = Message { body, properties: Properties::default() };
        request::decode(message).unwrap().unknown_fields
    };
    assert_eq!(unknown(&body), 0, "the code knows them all");
    body["colour"] = json!("red");
    assert_eq!(unknown(&body), 1);
}

#[test]
fn every_file_that_a_document_points_to_is_there() {
    for path in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/breaker.md",
        "docs/contract.md",
        "docs/faults.md",
        "docs/operations.md",
        "docs/drill.md",
        "docs/verification.md",
    ] {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        for (at, _) in document(path).match_indices("](") {
            let text = document(path);
            let target = text[at + 2..].split(')').next().unwrap();
            let target = target.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(here.with_file_name("").join(target).exists(), "{path}: {target}");
            }
        }
    }
}

/// Every file of tests below a folder: its name and its text.
fn tests_below(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tests_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

#[test]
fn each_fault_names_a_test_that_exists_and_what_was_seen() {
    let tests = tests_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    let text = document("docs/faults.md");
    let mut rows: Vec<Vec<&str>> = Vec::new();
    let mut of_faults = false;
    for line in text.lines() {
        of_faults = line.starts_with("| fault |") || of_faults && line.starts_with('|');
        if of_faults && line.starts_with("| ") && !line.starts_with("| fault |") {
            rows.push(line.trim_matches('|').split(" | ").map(str::trim).collect());
        }
    }
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        assert!(row.len() == 4 && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        let named: Vec<(&str, &str)> =
            row[2].split('`').filter_map(|word| word.split_once("::")).collect();
        assert!(!named.is_empty() || row[2] == "cannot be tested here", "{row:?}");
        for (file, function) in named {
            let wanted = format!("fn {function}(");
            let exists = |(name, text): &(String, String)| name == file && text.contains(&wanted);
            assert!(tests.iter().any(exists), "there is no {file}::{function}");
        }
    }
}

/// The words between backticks that look like `room.name`.
fn names_in(text: &str) -> Vec<&str> {
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let rooms = [
        "worker.", "queue.", "ledger.", "admin.", "log.", "reply.", "drain.", "breaker.",
        "request.", "steer.",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| rooms.iter().any(|room| word.starts_with(room)))
        .filter(|word| word.split('.').all(is_part))
        .collect()
}

#[test]
fn settings_and_events_that_a_document_names_are_there() {
    let mut known: Vec<String> = Vec::new();
    let mut section = String::new();
    for line in longshore::config::DEFAULTS.lines() {
        let line = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ") {
            known.push(format!("{section}.{key}"));
        }
    }
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                known.extend(
                    text.split("event = \"")
                        .skip(1)
                        .map(|rest| rest.split('"').next().unwrap().to_owned()),
                );
            }
        }
    }
    let files = ["worker.rs", "queue.rs", "ledger.rs", "admin.rs", "request.rs", "steer.rs"]
        .map(str::to_owned);
    known.extend(files);
    let documents = [
        "README.md",
        "docs/architecture.md",
        "docs/breaker.md",
        "docs/contract.md",
        "docs/faults.md",
        "docs/operations.md",
    ];
    let mut seen = 0;
    for path in documents {
        for name in names_in(&document(path)) {
            assert!(known.iter().any(|known| known == name), "{path}: what is `{name}`?");
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn the_alerts_use_metrics_that_exist() {
    let text = document("docs/operations.md");
    let names: Vec<&str> = text
        .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .filter(|word| word.starts_with("longshore_") && *word != "longshore_worker")
        .map(|word| word.trim_end_matches("_bucket"))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let known = longshore::telemetry::metrics::ALL.iter().any(|metric| metric.name == name);
        assert!(known, "there is no {name}");
    }
}
