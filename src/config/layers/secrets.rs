//! Secrets that stand in files of their own.

use std::{fs, path::PathBuf};

use figment::value::{Dict, Value};

use super::{
    BUILT_IN, Layers,
    dict::{find, put},
    providers::VARIABLE,
};

impl Layers {
    /// Replaces every `<secret>_file` by the secret that the file holds.
    pub(in crate::config) fn read_secret_files(&mut self) {
        let mut places: Vec<(Vec<String>, bool)> = ["queue", "ledger"]
            .iter()
            .flat_map(|section| {
                ["url", "password"].map(|key| (vec![(*section).to_owned(), key.to_owned()], true))
            })
            .chain([(vec!["admin".to_owned(), "token".to_owned()], false)])
            .collect();
        for name in self.names("dependencies") {
            let headers = vec!["dependencies".to_owned(), name, "headers".to_owned()];
            for key in
                find(&self.all, &headers).and_then(Value::as_dict).into_iter().flat_map(Dict::keys)
            {
                if let Some(header) = key.strip_suffix("_file") {
                    let mut place = headers.clone();
                    place.push(header.to_owned());
                    places.push((place, false));
                }
            }
        }
        for (place, has_default) in places {
            let mut file_place = place.clone();
            if let Some(last) = file_place.last_mut() {
                last.push_str("_file");
            }
            let Some(value) = find(&self.all, &file_place).cloned() else { continue };
            let key = file_place.join(".");
            let Some(path) = value.as_str().map(PathBuf::from) else {
                self.add(&key, "must be the path of a file, as a string".to_owned());
                continue;
            };
            let (beside, ours) = (self.source_of(&place), self.source_of(&file_place));
            let by_variable = |source: &str| source.starts_with(VARIABLE);
            if find(&self.all, &place).is_some() && by_variable(&beside) && !by_variable(&ours) {
                // What the environment says goes over what a file says, as everywhere.
                put(&mut self.all, &file_place, None);
                continue;
            }
            let overridden = by_variable(&ours) && !by_variable(&beside);
            if find(&self.all, &place).is_some()
                && !(overridden || has_default && beside == BUILT_IN)
            {
                self.add(
                    &key,
                    format!("{} is set as well, leave one of them out", place.join(".")),
                );
            }
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let secret =
                        Value::String(value.tag(), text.trim_end_matches(['\r', '\n']).to_owned());
                    put(&mut self.all, &place, Some(secret));
                }
                Err(error) => self.add(&key, format!("{} cannot be read: {error}", path.display())),
            }
            put(&mut self.all, &file_place, None);
        }
    }
}
