#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod mistakes;

use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use super::*;

/// Settings read from a file of their own and from variables.
struct Given {
    dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Given {
    fn file(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("longshore.toml"), toml).unwrap();
        Self { dir, variables: Vec::new() }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file beside the settings.
    fn beside(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn load(&self) -> Result<Config, Mistakes> {
        Config::load(Some(&self.dir.path().join("longshore.toml")), self.variables.clone())
    }

    fn mistakes(&self) -> Vec<Mistake> {
        self.load().unwrap_err().0
    }

    /// The only mistake, as the operator reads it.
    fn mistake(&self) -> String {
        let mistakes = self.mistakes();
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        mistakes[0].to_string()
    }
}

const SERVICE: &str = r#"
[dependencies.geocoder]
url = "http://geocoder.internal"
[kinds."user.address.verify"]
apply = "app.verify_address"
[kinds."user.address.verify".call]
dependency = "geocoder"
path = "/verify"
"#;

#[test]
fn the_built_in_defaults_are_good_settings_and_document_every_section() {
    let config = Config::load(None, []).unwrap();
    assert_eq!((config.worker.concurrency, config.ledger.pool.max_size), (4096, 25));
    assert_eq!(config.queue.prefetch, Some(6144), "half as many more");
    assert_eq!(config.default_kind.max_attempts, 10);
    assert!(config.kinds.is_empty() && config.dependencies.is_empty());
}

#[test]
fn the_example_service_has_good_settings() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/user-service/longshore.toml");
    let config = Config::load(Some(Path::new(path)), []).unwrap();
    assert_eq!((config.kinds.len(), config.dependencies.len()), (4, 2));
    let call = config.kinds["user.address.verify"].call.as_ref().unwrap();
    assert_eq!((call.dependency.as_str(), call.method.as_str()), ("geocoder", "POST"));
}

#[test]
fn a_key_that_no_section_knows_is_a_mistake_in_every_section() {
    let sections: Vec<&str> = DEFAULTS
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
        .filter(|section| !section.ends_with("headers"))
        .collect();
    assert!(sections.len() >= 12, "{sections:?}");
    for section in sections {
        let given = Given::file(&format!("[{section}]\ncolour = \"red\"\n"));
        let mistake = given.mistake();
        assert!(mistake.starts_with(&format!("{section}.colour: ")), "{mistake}");
        assert!(mistake.contains("longshore.toml]"), "{mistake}");
    }
    let unknown = Given::file("[wroker]\nconcurrency = 8").mistake();
    assert!(unknown.starts_with("wroker: there is no such section"), "{unknown}");
}

#[test]
fn all_mistakes_are_told_at_once_each_with_its_source() {
    let given = Given::file(
        r#"
        [worker]
        concurrency = 0
        grace = "soon"
        [queue]
        prefetch = -1
        colour = "red"
        [admin]
        bind = "nowhere"
        [kinds."user.x"]
        timeout = "5"
        "#,
    )
    .variable("LONGSHORE__LEDGER__LANES", "two")
    .variable("LONGSHORE__LOG__LEVEL", "inof")
    .variable("AMQP_URL", "http://broker");
    let mistakes = given.mistakes();
    for (key, source) in [
        ("worker.concurrency", "longshore.toml"),
        ("worker.grace", "longshore.toml"),
        ("queue.prefetch", "longshore.toml"),
        ("queue.colour", "longshore.toml"),
        ("admin.bind", "longshore.toml"),
        ("kinds.user.x.timeout", "longshore.toml"),
        ("kinds.user.x", "longshore.toml"),
        ("ledger.lanes", "environment variable LONGSHORE__LEDGER__LANES"),
        ("log.level", "environment variable LONGSHORE__LOG__LEVEL"),
        ("queue.url", "environment variable AMQP_URL"),
    ] {
        let found = mistakes.iter().find(|mistake| mistake.key == key);
        let found = found.unwrap_or_else(|| panic!("{key} is not among {mistakes:#?}"));
        assert!(found.source.ends_with(source), "{found}");
    }
    assert_eq!(mistakes.len(), 10, "{mistakes:#?}");
    assert!(Mistakes(mistakes).to_string().starts_with("10 mistake(s) in the settings\n  "));
}

#[test]
fn each_layer_goes_over_the_one_before() {
    let file = "[queue]\nurl = \"amqp://file\"\n[ledger]\nurl = \"postgresql://file/db\"\n[worker]\nconcurrency = 7\n";
    let config = Given::file(file).load().unwrap();
    assert_eq!(config.queue.url.expose_secret(), "amqp://file");
    assert_eq!((config.worker.concurrency, config.worker.max_message_bytes), (7, 1_048_576));

    let known = Given::file(file)
        .variable("AMQP_URL", "amqp://well-known")
        .variable("DATABASE_URL", "postgresql://well-known/db");
    let config = known.load().unwrap();
    assert_eq!(config.queue.url.expose_secret(), "amqp://well-known");
    assert_eq!(config.ledger.url.expose_secret(), "postgresql://well-known/db");

    let own = known
        .variable("LONGSHORE__QUEUE__URL", "amqp://own")
        .variable("LONGSHORE__WORKER__CONCURRENCY", "9")
        .variable("LONGSHORE__ADMIN__ENABLED", "false");
    let config = own.load().unwrap();
    assert_eq!(config.queue.url.expose_secret(), "amqp://own");
    assert_eq!((config.worker.concurrency, config.admin.enabled), (9, false));
}

#[test]
fn an_empty_well_known_variable_counts_as_not_set() {
    let config = Given::file("[queue]\nurl = \"amqp://file\"").variable("AMQP_URL", "").load();
    assert_eq!(config.unwrap().queue.url.expose_secret(), "amqp://file");
}

#[test]
fn a_dependency_is_pointed_elsewhere_by_a_variable() {
    let given = Given::file(SERVICE)
        .variable("LONGSHORE__DEPENDENCIES__GEOCODER__URL", "http://localhost:8080");
    assert_eq!(given.load().unwrap().dependencies["geocoder"].url, "http://localhost:8080");
}

#[test]
fn what_looks_like_a_number_stays_text_where_text_is_meant() {
    let config = Given::file("")
        .variable("LONGSHORE__QUEUE__PASSWORD", "0123")
        .variable("LONGSHORE__LEDGER__PASSWORD", "1e9")
        .variable("LONGSHORE__QUEUE__NAME", "true")
        .load()
        .unwrap();
    assert_eq!(config.queue.password.unwrap().expose_secret(), "0123");
    assert_eq!(config.ledger.password.unwrap().expose_secret(), "1e9");
    assert_eq!(config.queue.name, "true");
}

#[test]
fn a_secret_is_read_from_its_file_without_the_line_end() {
    let given = Given::file(SERVICE);
    let file = |name, text| given.beside(name, text).display().to_string();
    let variables = vec![
        ("LONGSHORE__QUEUE__PASSWORD_FILE".to_owned(), file("amqp", "s3cret \r\n")),
        ("LONGSHORE__LEDGER__URL_FILE".to_owned(), file("db", "postgresql://u:p@h/d\n")),
        (
            "LONGSHORE__DEPENDENCIES__GEOCODER__HEADERS__AUTHORIZATION_FILE".to_owned(),
            file("geocoder", "Bearer abc\n"),
        ),
        ("LONGSHORE__ADMIN__TOKEN_FILE".to_owned(), file("token", "0123456789abcdef\n")),
    ];
    let config = Config::load(Some(&given.dir.path().join("longshore.toml")), variables).unwrap();
    assert_eq!(config.queue.password.unwrap().expose_secret(), "s3cret ");
    assert_eq!(config.ledger.url.expose_secret(), "postgresql://u:p@h/d");
    assert_eq!(config.admin.token.unwrap().expose_secret(), "0123456789abcdef");
    let headers = &config.dependencies["geocoder"].headers;
    assert_eq!(headers["authorization"].expose_secret(), "Bearer abc");
    assert_eq!(headers.len(), 1);
}

#[test]
fn a_secret_given_twice_or_in_a_file_that_is_not_there_is_a_mistake() {
    let both = Given::file("[queue]\nurl = \"amqp://here\"\nurl_file = \"/nowhere/amqp\"");
    let mistakes = both.mistakes();
    let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.contains("queue.url is set as well")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("/nowhere/amqp cannot be read")), "{texts:?}");
}

#[test]
fn a_mistake_shows_no_secret() {
    let secret = "hunter2";
    let given = Given::file(&format!(
        "[queue]\npassword = [\"{secret}\"]\n[dependencies.geocoder]\nurl = [\"{secret}\"]\n[dependencies.mailer]\nurl = \"http://u:{secret}@h\"\n"
    ))
    .variable("AMQP_URL", &format!("http://u:{secret}@broker"))
    .variable("DATABASE_URL", &format!("mysql://u:{secret}@base/db"))
    .variable("LONGSHORE__DEPENDENCIES__MAILER__HEADERS__AUTHORIZATION", &format!("{secret}\u{7}"));
    let mistakes = given.load().unwrap_err();
    for key in
        ["queue.password", "dependencies.geocoder.url", "dependencies.mailer.url", "queue.url"]
    {
        assert!(mistakes.0.iter().any(|mistake| mistake.key == key), "{key}: {mistakes}");
    }
    assert!(!format!("{mistakes} {mistakes:?}").contains(secret), "{mistakes}");
    let config = Given::file("").variable("LONGSHORE__QUEUE__PASSWORD", secret).load().unwrap();
    assert!(!format!("{config:?}").contains(secret));
}
