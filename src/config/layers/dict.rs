//! Walking nested settings by path.

use figment::value::{Dict, Tag, Value};

pub(super) fn find<'a>(dict: &'a Dict, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = dict.get(first)?;
    if rest.is_empty() { Some(value) } else { find(value.as_dict()?, rest) }
}

/// The section at this path; empty where there is none.
pub(super) fn section(dict: &Dict, path: &[String]) -> Dict {
    find(dict, path).and_then(Value::as_dict).cloned().unwrap_or_default()
}

/// Sets or removes a value; true when that changed anything.
pub(super) fn put(dict: &mut Dict, path: &[String], new: Option<Value>) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return match new {
            Some(value) => {
                dict.insert(first.clone(), value).is_none_or(|old| Some(&old) != dict.get(first))
            }
            None => dict.remove(first).is_some(),
        };
    }
    match dict.get_mut(first) {
        Some(Value::Dict(_, inner)) => put(inner, rest, new),
        _ => false,
    }
}

pub(super) fn merge(mut under: Dict, over: Dict) -> Dict {
    for (key, value) in over {
        let value = match (under.remove(&key), value) {
            (Some(Value::Dict(_, under)), Value::Dict(tag, over)) => {
                Value::Dict(tag, merge(under, over))
            }
            (_, value) => value,
        };
        under.insert(key, value);
    }
    under
}

/// A section has no source of its own: it has that of what is in it.
pub(super) fn deepest_tag(value: &Value) -> Tag {
    match value.as_dict().and_then(|dict| dict.values().next()) {
        Some(inner) => deepest_tag(inner),
        None => value.tag(),
    }
}
