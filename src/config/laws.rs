//! What holds for whatever settings are. Input: lines such as `LONGSHORE__QUEUE__PREFETCH=8`, which
//! are environment variables, an empty line, and a file. In variables that hold a secret `*` stands
//! for it.

use super::*;
use crate::laws::named_and_rest;

/// The secret. Nothing says it by chance.
const SECRET: &str = "Qz7hushQz7";
/// Variables that may hold it.
const SECRET_VARIABLES: [&str; 8] = [
    "AMQP_URL",
    "DATABASE_URL",
    "LONGSHORE__QUEUE__URL",
    "LONGSHORE__QUEUE__PASSWORD",
    "LONGSHORE__LEDGER__URL",
    "LONGSHORE__LEDGER__PASSWORD",
    "LONGSHORE__DEPENDENCIES__GEOCODER__URL",
    "LONGSHORE__DEPENDENCIES__GEOCODER__HEADERS__AUTHORIZATION",
];
/// The longest line that tells of a mistake, in bytes, beside what was given.
const LONGEST: usize = 2_048;

/// Panics where a law is broken.
pub fn hold(input: &[u8]) {
    let Some((environment, file)) = read(input) else { return };
    let load = || Config::of(Some(&file), environment.clone(), &[]);
    match load() {
        Ok(config) => {
            assert_eq!(rules::problems(&config, &[]), Vec::new(), "good settings have no problem");
            let shown = format!("{config:?}");
            assert!(!shown.contains(SECRET), "a secret is shown: {shown}");
            let again = load().map(|again| format!("{again:?}"));
            assert_eq!(again, Ok(shown), "read twice they are the same");
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            for mistake in &mistakes.0 {
                a_mistake_names_its_place(mistake, &environment, &file, input.len());
            }
            let shown = format!("{mistakes}{mistakes:?}");
            assert!(!shown.contains(SECRET), "a secret is shown: {mistakes}");
            assert_eq!(load().err(), Some(mistakes), "told twice they are the same");
        }
    }
}

fn a_mistake_names_its_place(
    mistake: &Mistake,
    environment: &[(String, String)],
    file: &layers::File,
    given: usize,
) {
    let Mistake { source, text, .. } = mistake;
    let variable = source.strip_prefix("environment variable ");
    let known = variable.is_some_and(|name| environment.iter().any(|(given, _)| given == name))
        || [file.name.as_str(), "the built-in defaults", "settings"].contains(&source.as_str());
    assert!(known, "{mistake} is from nowhere");
    assert!(!text.is_empty(), "{mistake} says nothing");
    assert!(
        mistake.to_string().len() <= LONGEST + 8 * given,
        "{} bytes",
        mistake.to_string().len()
    );
}

fn read(input: &[u8]) -> Option<(Vec<(String, String)>, layers::File)> {
    let text = std::str::from_utf8(input).ok()?;
    // Files of secrets are read for real; not those that have no end.
    if ["/dev", "/proc", "/sys"].iter().any(|place| text.contains(place)) {
        return None;
    }
    let (named, rest) = named_and_rest(input);
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut environment: Vec<(String, String)> = named
        .into_iter()
        .map(|(name, value)| (utf8(name), utf8(value)))
        .map(|(name, value)| match SECRET_VARIABLES.contains(&name.as_str()) {
            true => (name, value.replace('*', SECRET)),
            false => (name, value),
        })
        .collect();
    // As in a real environment, each name is there once.
    environment.sort_by(|(one, _), (other, _)| one.cmp(other));
    environment.dedup_by(|(one, _), (other, _)| one == other);
    Some((environment, layers::File { name: "file given".to_owned(), text: utf8(rest) }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_laws_hold_for_every_input_that_is_kept() {
        crate::laws::replay("settings", super::hold);
    }
}
