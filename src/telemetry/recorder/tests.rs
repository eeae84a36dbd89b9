#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use crate::telemetry::metrics::{ALL, Described, PROCESS};

use super::*;

/// Calls every verb once.
fn record_everything() {
    let took = Duration::from_millis(3);
    metrics::request_finished("k", "dead", Some("call_refused"), took);
    metrics::Meters::of("k").done(took, took);
    metrics::slots(1, 2);
    metrics::unknown_fields("k");
    metrics::entered("k", "queue");
    metrics::order_broken();
    metrics::reply("sent");
    metrics::consumer_up(true);
    metrics::delivered(1, 1);
    metrics::settled("ack", 3);
    metrics::reconnecting("lost");
    metrics::queue_depth("q", 1);
    metrics::paused("postgres", true);
    metrics::ledger_rows("dead", 1);
    metrics::parked("geocoder", 1);
    metrics::kind_paused("k", true);
    metrics::taken_over();
    metrics::fenced();
    metrics::batch("finish", 7);
    metrics::pruned(1);
    metrics::pool(4, 2, 1, 0);
    metrics::pool_wait(took);
    metrics::pool_error("wait");
    metrics::call("geocoder", "ok", Some(took));
    metrics::breaker_transition("geocoder", "open");
    metrics::breaker_mode("geocoder", "automatic");
    metrics::breaker_unenforced("geocoder");
    metrics::let_go("geocoder", 2);
    metrics::limited("limit:kind:k", "waited");
    metrics::limit("limit:kind:k", 3, 1);
    metrics::calls_in_flight("geocoder", 1, 64);
}

/// The type of each family in a text, and the labels that its samples bear.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    /// The bounds of its buckets.
    bounds: BTreeSet<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else {
            let name_end = line.find(['{', ' ']).unwrap();
            let sample = &line[..name_end];
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| sample.strip_suffix(suffix))
                .find(|name| families.get(*name).is_some_and(|family| family.kind == "histogram"))
                .unwrap_or(sample);
            let family = families.entry(name.to_owned()).or_default();
            let labels = line[name_end..].rsplit_once(' ').unwrap().0;
            for label in
                labels.trim_matches(['{', '}']).split(',').filter(|label| !label.is_empty())
            {
                let (key, value) = label.split_once('=').unwrap();
                if key == "le" {
                    family.bounds.insert(value.trim_matches('"').to_owned());
                } else {
                    family.labels.insert(key.to_owned());
                }
            }
        }
    }
    families
}

#[tokio::test]
async fn what_is_rendered_is_what_the_page_of_names_says() {
    let recorder = Recorder::install().unwrap();
    record_everything();
    let families = families(&recorder.render().await.unwrap());
    let described: BTreeMap<&str, &Described> =
        ALL.iter().chain(PROCESS).map(|d| (d.name, d)).collect();
    for (name, family) in &families {
        let described = described
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is not on the page of names"));
        assert_eq!(family.kind, described.kind, "{name}");
        assert_eq!(family.help, described.help, "{name}");
        let labels: BTreeSet<String> = described.labels.iter().map(ToString::to_string).collect();
        assert_eq!(family.labels, labels, "{name}");
    }
    for described in ALL {
        assert!(families.contains_key(described.name), "no verb records {}", described.name);
    }
    let bounds = |name: &str| families[name].bounds.len();
    // `+Inf` is one more.
    assert_eq!(bounds("longshore_request_duration_seconds"), metrics::SECONDS_BUCKETS.len() + 1);
    assert_eq!(bounds("longshore_ledger_batch_rows"), metrics::ROWS_BUCKETS.len() + 1);
}

#[tokio::test]
async fn a_second_install_gives_the_same_recorder_and_many_may_render() {
    let first = Recorder::install().unwrap();
    let second = Recorder::install().unwrap();
    // No other test uses this label.
    metrics::queue_depth("seen by both", 5);
    let (mine, other) =
        tokio::join!(first.render(), tokio::spawn(async move { second.render().await }));
    for text in [mine.unwrap(), other.unwrap().unwrap()] {
        assert!(text.contains("longshore_queue_depth{queue=\"seen by both\"} 5"), "{text}");
        let labels = format!("version=\"{}\",commit=\"{}\"", version::NUMBER, version::COMMIT);
        assert!(text.contains(&format!("longshore_build_info{{{labels}}} 1")), "{text}");
    }
}

#[test]
fn the_documentation_lists_every_metric() {
    let row = |d: &Described| {
        let labels: Vec<String> = d.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        format!("| `{}` | {} | {labels} | {} |", d.name, d.kind, d.help)
    };
    let expected: Vec<String> = ALL.iter().chain(PROCESS).map(row).collect();
    let docs = include_str!("../../../docs/metrics.md");
    let found: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(
        found == expected,
        "docs/metrics.md does not agree with src/telemetry/metrics.rs; the rows should be:\n{}\n",
        expected.join("\n")
    );
    for (name, bounds) in [("seconds", metrics::SECONDS_BUCKETS), ("rows", metrics::ROWS_BUCKETS)] {
        let bounds: Vec<String> = bounds.iter().map(ToString::to_string).collect();
        assert!(
            docs.contains(&bounds.join(", ")),
            "docs/metrics.md lacks the {name} buckets {bounds:?}"
        );
    }
}
