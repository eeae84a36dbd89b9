#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;
use crate::stub::Calls;

const UPDATE: &str = "user.profile.update";
const VERIFY: &str = "user.address.verify";

fn row(id: &str, kind: &str, state: &str) -> Row {
    Row {
        id: id.to_owned(),
        kind: kind.to_owned(),
        user_id: "42".to_owned(),
        state: state.to_owned(),
        attempt: 1,
        error_code: None,
        received_ms: Some(now()),
        finished_ms: None,
    }
}

fn effect(id: &str) -> Effect {
    Effect { id: id.to_owned(), at_ms: Some(now()) }
}

fn unreadable(id: &str, error_code: &str) -> Unreadable {
    Unreadable { number: 1, id: Some(id.to_owned()), error_code: error_code.to_owned() }
}

fn calls(calls: u64, effects: u64) -> Calls {
    Calls { calls, effects, bodies_differ: false }
}

/// A day on which everything went well, though not smoothly.
fn well() -> (Account, Observed) {
    let mut account = Account::on(Terms {
        applying: vec![UPDATE.to_owned(), VERIFY.to_owned()],
        all_done: true,
        ..Terms::of_the_example()
    });
    account.published("update", UPDATE, Verdict::Unknown);
    account.published("update", UPDATE, Verdict::Confirmed);
    account.published("verify", VERIFY, Verdict::Confirmed);
    account.published("refused", UPDATE, Verdict::Refused);
    account.published("unknown", UPDATE, Verdict::Unknown);
    account.published("dead", "bad", Verdict::Confirmed);
    account.published("garbage", "garbage", Verdict::Confirmed);
    account.published("huge", "bad", Verdict::Confirmed);
    account.replied("verify");
    let observed = Observed {
        rows: vec![
            row("update", UPDATE, "done"),
            row("verify", VERIFY, "done"),
            row("dead", "bad", "dead"),
        ],
        attempts: vec![AttemptRow {
            id: "dead".to_owned(),
            number: 1,
            ended_ms: Some(now()),
            worker: Some("w-1".to_owned()),
            outcome: "retry".to_owned(),
            error_code: Some("call_failed".to_owned()),
        }],
        effects: Some(vec![effect("update"), effect("verify")]),
        unreadable: vec![
            unreadable("garbage", "malformed_json"),
            unreadable("update", "id_reused"),
        ],
        dead: vec![Some("huge".to_owned())],
        queues: BTreeMap::from([("longshore.requests".to_owned(), 0)]),
        calls: Some(HashMap::from([("verify".to_owned(), calls(3, 1))])),
        versions: Some(1),
        dead_unread: 0,
    };
    (account, observed)
}

/// Spoils the good day and expects that this one rule is broken, with this in the report.
#[track_caller]
fn breaks(rule: &str, story: &str, spoil: impl FnOnce(&mut Account, &mut Observed)) {
    let (mut account, mut observed) = well();
    spoil(&mut account, &mut observed);
    let report = account.check(&observed);
    assert_eq!(report.broken(), [rule], "{report}");
    assert!(!report.passed());
    let text = report.to_string();
    assert!(text.contains("FAIL (1)") && text.contains(story), "{text}");
}

#[test]
fn a_good_day_passes_every_rule() {
    let (account, observed) = well();
    let report = account.check(&observed);
    assert!(report.passed(), "{report}");
    assert_eq!(report.findings.len(), 13);
    let text = report.to_string();
    let columns: BTreeSet<_> = text.lines().filter_map(|line| line.find("PASS")).collect();
    assert_eq!(columns.len(), 1, "aligned:\n{text}");
}

#[test]
fn a_lost_request_is_found() {
    breaks(
        "every confirmed request is found",
        r#""dead": +0.000s published as "bad": confirmed; +0"#,
        |_, observed| {
            observed.rows.retain(|row| row.id != "dead");
        },
    );
}

#[test]
fn a_request_in_two_places_is_found() {
    breaks(
        "every request is found in one place only",
        "1 in the broker's dead queue",
        |_, observed| {
            observed.dead.push(Some("dead".to_owned()));
        },
    );
}

#[test]
fn a_request_left_open_is_found() {
    for state in ["running", "waiting", "parked"] {
        breaks("no request is left running, waiting or parked", state, |account, observed| {
            account.published("open", UPDATE, Verdict::Confirmed);
            observed.rows.push(row("open", UPDATE, state));
        });
    }
}

#[test]
fn what_nobody_published_is_found() {
    breaks(
        "nothing is found that was not published",
        "row: dead at attempt 1; never published",
        |_, observed| {
            observed.rows.push(Row { finished_ms: Some(now()), ..row("ghost", UPDATE, "dead") });
        },
    );
    breaks(
        "nothing is found that was not published",
        r#""ghost": never published; 1 calls"#,
        |_, observed| {
            observed.calls.get_or_insert_default().insert("ghost".to_owned(), calls(1, 1));
        },
    );
    breaks("nothing is found that was not published", "effect; never published", |_, observed| {
        observed.effects.get_or_insert_default().push(effect("ghost"));
    });
    breaks(
        "nothing is found that was not published",
        "reply arrived; never published",
        |account, _| {
            account.replied("ghost");
        },
    );
}

#[test]
fn a_doubled_effect_is_found() {
    breaks("a call takes effect once at most", "3 calls, 2 effects", |_, observed| {
        observed.calls.get_or_insert_default().insert("verify".to_owned(), calls(3, 2));
    });
    for versions in [0, 2] {
        breaks(
            "every profile update was applied exactly once",
            "but 1 updates are done",
            |_, observed| {
                observed.versions = Some(versions);
            },
        );
    }
}

#[test]
fn a_second_effect_under_an_id_is_found_with_the_whole_story() {
    let (mut account, mut observed) = well();
    account.replied("update");
    observed.effects.get_or_insert_default().push(effect("update"));
    let report = account.check(&observed);
    assert_eq!(report.broken(), ["an effect happens once at most"], "{report}");
    let story = &report.findings.iter().find(|finding| finding.broken > 0).unwrap().histories[0];
    for part in [
        r#"published as "user.profile.update": unknown"#,
        r#"published as "user.profile.update": confirmed"#,
        "reply arrived",
        "row: user.profile.update of user 42 received",
        "row: done at attempt 1",
        "unreadable 1: id_reused",
    ] {
        assert!(story.contains(part), "{part} is not in {story}");
    }
    assert_eq!(story.matches("s effect").count(), 2, "{story}");
}

#[test]
fn an_effect_that_is_missing_or_belongs_to_nothing_done_is_found() {
    let rule = "what is done has its effect, and nothing else has one";
    breaks(rule, "row: done", |_, observed| {
        observed.effects.get_or_insert_default().retain(|effect| effect.id != "update");
    });
    breaks(rule, "attempt 1 of w-1 ended as retry, call_failed", |_, observed| {
        observed.effects.get_or_insert_default().push(effect("dead"));
    });
    breaks(rule, r#""unknown""#, |_, observed| {
        observed.effects.get_or_insert_default().push(effect("unknown"));
    });
}

#[test]
fn a_good_request_that_died_is_found_where_none_may() {
    breaks("no fault has cost a request its life", "row: dead", |account, observed| {
        account.published("good", UPDATE, Verdict::Confirmed);
        observed.rows.push(row("good", UPDATE, "dead"));
    });
    breaks("no fault has cost a request its life", "dead queue", |account, observed| {
        account.published("good", UPDATE, Verdict::Confirmed);
        observed.dead.push(Some("good".to_owned()));
    });
}

#[test]
fn a_call_without_its_key_is_found() {
    breaks("all calls of a request share one key and one body", "1 calls", |_, observed| {
        observed.calls.get_or_insert_default().insert("update".to_owned(), calls(1, 1));
    });
    breaks("all calls of a request share one key and one body", "1 calls", |_, observed| {
        observed.calls.get_or_insert_default().insert(String::new(), calls(1, 1));
    });
    breaks("all calls of a request share one key and one body", "bodies differ", |_, observed| {
        let careless = Calls { bodies_differ: true, ..calls(3, 1) };
        observed.calls.get_or_insert_default().insert("verify".to_owned(), careless);
    });
}

#[test]
fn a_call_that_is_done_without_effect_is_found() {
    breaks("a call that was done took effect", "2 calls, 0 effects", |_, observed| {
        observed.calls.get_or_insert_default().insert("verify".to_owned(), calls(2, 0));
    });
}

#[test]
fn a_second_reply_is_found() {
    breaks("a request is answered once at most", "reply arrived; +", |account, _| {
        account.replied("verify");
    });
}

#[test]
fn a_queue_that_is_not_empty_is_found() {
    breaks("every queue is empty", "longshore.requests holds 1", |_, observed| {
        observed.queues.insert("longshore.requests".to_owned(), 1);
    });
}

#[test]
fn a_long_list_is_cut_and_says_so() {
    let (mut account, observed) = well();
    for number in 0..25 {
        account.published(&number.to_string(), UPDATE, Verdict::Confirmed);
    }
    let text = account.check(&observed).to_string();
    assert!(text.contains("FAIL (25)") && text.contains("and 15 more"), "{text}");
}
