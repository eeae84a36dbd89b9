//! Mistakes in settings: each is told, with what would be right.

use super::*;

#[test]
fn a_duration_without_its_unit_says_how_to_write_one() {
    for wrong in ["grace = 25", "grace = \"25\"", "grace = \"25 parsecs\""] {
        let mistake = Given::file(&format!("[worker]\n{wrong}")).mistake();
        assert!(mistake.starts_with("worker.grace: "), "{mistake}");
        assert!(mistake.contains("250ms, 5s, 10m, 2h, 7d"), "{wrong}: {mistake}");
    }
}

#[test]
fn no_zero_means_something_else() {
    for (section, key, value) in [
        ("worker", "concurrency", "0"),
        ("worker", "grace", "\"0s\""),
        ("queue", "delivery_limit", "0"),
        ("queue", "gap_timeout", "\"0s\""),
        ("ledger", "lanes", "0"),
        ("ledger", "keep_done", "\"0s\""),
        ("ledger.pool", "max_size", "0"),
        ("admin", "max_connections", "0"),
        ("admin", "read_timeout", "\"0s\""),
        ("defaults.kind", "max_attempts", "0"),
        ("defaults.kind", "max_parked", "0"),
        ("worker", "steering_interval", "\"0s\""),
    ] {
        let given = Given::file(&format!("[{section}]\n{key} = {value}"));
        let wanted = format!("{section}.{key}");
        let mistakes = given.mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.key == wanted), "{wanted}: {mistakes:#?}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_told_with_the_remedy() {
    for (toml, key, words) in [
        (
            "[worker]\nconcurrency = 129\n[queue]\nprefetch = 128",
            "queue.prefetch",
            "less than worker.concurrency = 129",
        ),
        (
            "[worker]\nconcurrency = 1\ngrace = \"1h\"\n[queue]\nprefetch = 128\n[kinds.x]\napply = \"f\"\ntimeout = \"20s\"",
            "queue.prefetch",
            "consumer_timeout of 30 minutes",
        ),
        ("[queue]\noperation_timeout = \"26s\"", "queue.operation_timeout", "worker.grace = 25s"),
        ("[ledger]\nstatement_timeout = \"26s\"", "ledger.statement_timeout", "worker.grace = 25s"),
        ("[kinds.x]\napply = \"f\"\ntimeout = \"26s\"", "kinds.x.timeout", "raise the grace"),
        ("[kinds.x]\ntimeout = \"5s\"", "kinds.x", "give it `apply`, a [call], or both"),
        (
            "[kinds.x]\napply = \"f\"\napply_batch = \"F\"",
            "kinds.x.apply_batch",
            "not a function's name",
        ),
        ("[kinds.x]\napply_batch = \"f\"", "kinds.x.apply_batch", "needs `apply` beside it"),
        (
            "[kinds.x.call]\ndependency = \"nobody\"\npath = \"/\"",
            "kinds.x.call.dependency",
            "there is no [dependencies.nobody]; known are: none",
        ),
        (
            "[dependencies.d]\nurl = \"http://d\"\n[kinds.x]\ntimeout = \"4s\"\n[kinds.x.call]\ndependency = \"d\"\npath = \"/\"",
            "kinds.x.timeout",
            "shorter than dependencies.d.timeout = 5s",
        ),
        ("[ledger]\nbatch_bytes = 1000", "ledger.batch_bytes", "worker.max_message_bytes"),
        ("[ledger.pool]\nmax_size = 5\nmax_idle = 4", "ledger.pool.max_size", "6 connections"),
        ("[ledger.pool]\nmax_idle = 26", "ledger.pool.max_idle", "pool.max_size = 25"),
        ("[queue]\nreconnect_max = \"1ms\"", "queue.reconnect_max", "reconnect_initial"),
        ("[queue]\nstall_timeout = \"6s\"", "queue.stall_timeout", "two poll_interval"),
        ("[queue]\ndead_queue = \"longshore.requests\"", "queue.dead_queue", "another name"),
        (
            "[queue]\nordered_exchange = \"longshore\"",
            "queue.ordered_exchange",
            "another purpose already",
        ),
        ("[queue]\nordered_name = \"longshore.dead\"", "queue.ordered_name", "use another name"),
        ("[worker]\nmax_in_line = 0", "worker.max_in_line", "at least 1"),
        (
            "[kinds.k]\napply = \"f\"\napply_batch = \"g\"\nordered_by = \"user_id\"",
            "kinds.k.apply_batch",
            "leave it out",
        ),
        ("[kinds.k]\napply = \"f\"\nordered_by = \"kind\"", "kinds.k.ordered_by", "user_id"),
        ("[dependencies.order]\nurl = \"http://d\"", "dependencies.order", "use another name"),
        ("[defaults.kind]\nmax_delay = \"1ms\"", "defaults.kind.max_delay", "initial_delay"),
        (
            "[dependencies.d]\nurl = \"http://d\"\ntimeout = \"1s\"",
            "dependencies.d.connect_timeout",
            "must not be longer than timeout",
        ),
        (
            "[dependencies.d]\nurl = \"http://d\"\n[dependencies.d.breaker]\nprobe_timeout = \"1s\"",
            "dependencies.d.breaker.probe_timeout",
            "at least as long as the dependency's timeout",
        ),
    ] {
        let mistakes = Given::file(toml).mistakes();
        let found = mistakes.iter().find(|mistake| mistake.key == key);
        let found = found.unwrap_or_else(|| panic!("{key} is not among {mistakes:#?}"));
        assert!(found.text.contains(words), "{words} is not in {found}");
    }
}

#[test]
fn a_kind_written_in_rust_may_say_how_patiently_it_is_worked_and_nothing_else() {
    let load = |toml: &str| {
        let given = Given::file(toml);
        Config::load_with_steps(Some(&given.dir.path().join("longshore.toml")), [], &["x"])
    };
    let config = load("[kinds.x]\nmax_attempts = 2").unwrap();
    assert_eq!(config.kinds["x"].max_attempts, 2);
    let mistakes = load("[kinds.x]\napply = \"f\"").unwrap_err().to_string();
    assert!(mistakes.contains("leave `apply` and [call] out"), "{mistakes}");
}

#[test]
fn a_mistake_in_the_shared_defaults_is_told_once() {
    let wrong = format!(
        "[defaults.dependency]\ntimeout = \"soon\"\n{SERVICE}\n[dependencies.mailer]\nurl = \"http://m\""
    );
    let mistake = Given::file(&wrong).mistake();
    assert!(mistake.starts_with("defaults.dependency.timeout: "), "{mistake}");
}

#[test]
fn a_file_that_cannot_be_read_or_parsed_is_named() {
    let missing = Config::load(Some(Path::new("/nowhere/longshore.toml")), []).unwrap_err();
    assert!(missing.to_string().contains("file /nowhere/longshore.toml"), "{missing}");
    let broken = Given::file("[worker\nconcurrency = 8").load().unwrap_err().to_string();
    assert!(broken.contains("longshore.toml"), "{broken}");
    // Whatever a file is called, it is not taken for the defaults.
    let given = Given::file("");
    let path = given.beside("LONGSHORE.TOML", "[queue]\ncolour = 1");
    let told = Config::load(Some(&path), []).unwrap_err().to_string();
    assert!(told.contains("LONGSHORE.TOML"), "{told}");
}
