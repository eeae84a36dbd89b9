//! The layers of settings, merged, with the source of each value remembered.

mod dict;
mod providers;
mod secrets;

use std::{collections::BTreeMap, fs, path::Path};

use figment::{
    Error as FigmentError, Figment, Metadata,
    error::Kind,
    providers::{Format as _, Serialized, Toml},
    value::{Dict, Value},
};
use serde::de::DeserializeOwned;

use self::{
    dict::{deepest_tag, find, merge, put, section},
    providers::{Named, Variable},
};
use super::{DEFAULTS, Mistake, Mistakes};

/// Which environment variable sets which key, besides `LONGSHORE__…`.
const WELL_KNOWN: [(&str, &str); 2] = [("AMQP_URL", "queue.url"), ("DATABASE_URL", "ledger.url")];

const PREFIX: &str = "LONGSHORE__";

const BUILT_IN: &str = "the built-in defaults";

/// The keys whose values are never shown.
const SECRET: [&str; 4] = ["url", "password", "headers", "token"];

/// A file of settings.
pub(super) struct File {
    /// How mistakes name it.
    pub(super) name: String,
    pub(super) text: String,
}

impl File {
    /// Reads it.
    ///
    /// # Errors
    /// The one mistake that it cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self, Vec<Mistake>> {
        let name = format!("file {}", path.display());
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => Err(vec![Mistake {
                key: "--config".to_owned(),
                source: name,
                text: format!("cannot be read: {error}"),
            }]),
        }
    }
}

/// The merged settings and the mistakes found so far.
pub(super) struct Layers {
    figment: Figment,
    all: Dict,
    defaults: Dict,
    mistakes: Vec<Mistake>,
}

impl Layers {
    /// Reads all layers.
    ///
    /// # Errors
    /// What cannot be read at all; then there is nothing to check.
    pub(super) fn read(
        file: Option<&File>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Mistake>> {
        let built_in = Named { name: BUILT_IN.to_owned(), inner: Toml::string(DEFAULTS) };
        let defaults = Figment::from(built_in);
        let mut figment = defaults.clone();
        if let Some(file) = file {
            let inner = Toml::string(&file.text);
            figment = figment.merge(Named { name: file.name.clone(), inner });
        }
        let mut environment: Vec<(String, String)> = environment.into_iter().collect();
        environment.sort();
        for (variable, key) in WELL_KNOWN {
            if let Some((_, value)) =
                environment.iter().find(|(name, value)| name == variable && !value.is_empty())
            {
                figment = figment.merge(Variable {
                    name: variable.to_owned(),
                    key: key.to_owned(),
                    value: value.clone(),
                });
            }
        }
        for (name, value) in &environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let key = key.to_lowercase().replace("__", ".");
                figment = figment.merge(Variable { name: name.clone(), key, value: value.clone() });
            }
        }
        let dict = |figment: &Figment| {
            figment.extract::<Dict>().map_err(|errors| {
                errors
                    .into_iter()
                    .map(|error| Mistake {
                        key: error.path.join("."),
                        source: error
                            .metadata
                            .as_ref()
                            .map_or_else(|| "settings".to_owned(), source),
                        text: error.kind.to_string(),
                    })
                    .collect::<Vec<_>>()
            })
        };
        Ok(Self { all: dict(&figment)?, defaults: dict(&defaults)?, figment, mistakes: Vec::new() })
    }

    /// Reads one section as `T`, gathering every mistake in it: what is wrong is noted, replaced by
    /// its default, and the rest is read again.
    pub(super) fn section<T: DeserializeOwned>(&mut self, path: &str) -> Option<T> {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        let (mut value, defaults) = (section(&self.all, &path), section(&self.defaults, &path));
        self.read_as(&path, &mut value, &defaults)
    }

    /// Reads `[defaults.<name>]`, which lacks what only a section with a name of its own can say;
    /// `instead` stands for that. Mistakes in it are told here, and mended for those who share it.
    pub(super) fn shared<T: DeserializeOwned>(
        &mut self,
        name: &str,
        instead: &[(&str, &str)],
    ) -> Option<T> {
        let path = ["defaults".to_owned(), name.to_owned()];
        if find(&self.all, &path).is_none_or(|value| value.as_dict().is_none()) {
            self.add(&path.join("."), "must be a section".to_owned());
            put(&mut self.all, &path, Some(Value::from(section(&self.defaults, &path))));
        }
        let (mut value, defaults) = (section(&self.all, &path), section(&self.defaults, &path));
        for (key, text) in instead {
            value.insert((*key).to_owned(), Value::from(*text));
        }
        let read = self.read_as(&path, &mut value, &defaults);
        for (key, _) in instead {
            value.remove(*key);
        }
        put(&mut self.all, &path, Some(Value::from(value)));
        read
    }

    /// Reads the sections `[<group>.<name>]`, each over `[defaults.<default>]`, which has been read
    /// before ([`Self::shared`]).
    pub(super) fn named_sections<T: DeserializeOwned>(
        &mut self,
        group: &str,
        default: &str,
    ) -> BTreeMap<String, T> {
        let default = ["defaults".to_owned(), default.to_owned()];
        let (set, built_in) = (section(&self.all, &default), section(&self.defaults, &default));
        let mut sections = BTreeMap::new();
        for name in self.names(group) {
            let path = vec![group.to_owned(), name.clone()];
            let Some(own) = find(&self.all, &path).and_then(|value| value.as_dict().cloned())
            else {
                self.add(&path.join("."), "must be a section of its own".to_owned());
                continue;
            };
            let mut merged = merge(set.clone(), own);
            if let Some(Value::Dict(tag, call)) = merged.remove("call") {
                merged
                    .insert("call".to_owned(), Value::Dict(tag, merge(self.call_defaults(), call)));
            }
            if let Some(read) = self.read_as(&path, &mut merged, &built_in) {
                sections.insert(name, read);
            }
        }
        sections
    }

    /// Notes sections that nobody reads.
    pub(super) fn refuse_unknown_sections(&mut self, known: &[&str]) {
        let unknown: Vec<String> =
            self.all.keys().filter(|key| !known.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            self.add(
                &key,
                format!("there is no such section; the sections are {}", known.join(", ")),
            );
        }
        let defaults: Vec<String> = self
            .names("defaults")
            .into_iter()
            .filter(|key| !["kind", "dependency", "call"].contains(&key.as_str()))
            .collect();
        for key in defaults {
            self.add(
                &format!("defaults.{key}"),
                "there are defaults for `dependency`, `kind` and `call` only".to_owned(),
            );
        }
    }

    pub(super) fn add(&mut self, key: &str, text: String) {
        let path = self.split(key);
        let mistake = Mistake { key: key.to_owned(), source: self.source_of(&path), text };
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    pub(super) fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    pub(super) fn into_mistakes(self) -> Mistakes {
        Mistakes(self.mistakes)
    }

    fn names(&self, section: &str) -> Vec<String> {
        self.all
            .get(section)
            .and_then(Value::as_dict)
            .into_iter()
            .flat_map(Dict::keys)
            .cloned()
            .collect()
    }

    /// `[defaults.call]`: a kind need not have a call, but if it has, this is beneath it.
    fn call_defaults(&self) -> Dict {
        let path = ["defaults".to_owned(), "call".to_owned()];
        section(&self.all, &path)
    }

    /// A key's path. The names of kinds have dots of their own.
    fn split(&self, key: &str) -> Vec<String> {
        if let Some(rest) = key.strip_prefix("kinds.") {
            let name = self
                .names("kinds")
                .into_iter()
                .filter(|name| rest.starts_with(name.as_str()))
                .max_by_key(String::len);
            if let Some(name) = name {
                let tail = rest[name.len()..]
                    .split('.')
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned);
                return ["kinds".to_owned(), name.clone()].into_iter().chain(tail).collect();
            }
        }
        key.split('.').map(str::to_owned).collect()
    }

    /// Where the value at this path comes from; of a value that is not there, its nearest section's.
    fn source_of(&self, path: &[String]) -> String {
        (1..=path.len())
            .rev()
            .find_map(|length| find(&self.all, &path[..length]))
            .and_then(|value| self.figment.get_metadata(deepest_tag(value)))
            .map_or_else(|| "settings".to_owned(), source)
    }

    fn read_as<T: DeserializeOwned>(
        &mut self,
        path: &[String],
        value: &mut Dict,
        defaults: &Dict,
    ) -> Option<T> {
        // Each round mends at least one key, so there are at most as many as keys.
        for _ in 0..1_000 {
            let errors = match Figment::from(Serialized::globals(&*value)).extract_lossy::<T>() {
                Ok(read) => return Some(read),
                Err(errors) => errors,
            };
            let mut mended = false;
            for error in errors {
                mended |= self.mend(path, value, defaults, &error);
            }
            if !mended {
                return None;
            }
        }
        None
    }

    /// Notes an error and puts the default in its place, or takes out what has none; false when
    /// there is nothing to take out.
    fn mend(
        &mut self,
        path: &[String],
        value: &mut Dict,
        defaults: &Dict,
        error: &FigmentError,
    ) -> bool {
        let mut local = error.path.clone();
        let (text, unknown) = match &error.kind {
            Kind::UnknownField(field, known) => {
                if local.last() != Some(field) {
                    local.push(field.clone());
                }
                (format!("there is no such setting; known here are {}", known.join(", ")), true)
            }
            Kind::MissingField(field) => {
                local.push(field.to_string());
                ("is missing".to_owned(), false)
            }
            kind => (describe(kind, &local), false),
        };
        let key: Vec<String> = path.iter().chain(&local).cloned().collect();
        let key = key.join(".");
        // What is missing may have been taken out for a mistake of its own.
        if matches!(error.kind, Kind::MissingField(_))
            && self.mistakes.iter().any(|mistake| mistake.key == key)
        {
            return false;
        }
        self.add(&key, text);
        let default = if unknown { None } else { find(defaults, &local).cloned() };
        put(value, &local, default)
    }
}

/// An error in words that name the remedy and show no secret.
fn describe(kind: &Kind, local: &[String]) -> String {
    if local.iter().any(|part| SECRET.contains(&part.as_str())) {
        return "must be a string".to_owned();
    }
    let text = kind.to_string();
    if text.contains("duration") || text.contains("time unit") {
        return format!("{text}; write a number with a unit: 250ms, 5s, 10m, 2h, 7d");
    }
    text
}

fn source(metadata: &Metadata) -> String {
    metadata.name.to_string()
}
