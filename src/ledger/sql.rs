//! Building SQL text: the schema's name, and the one expression that depends on the configuration.

use std::{collections::BTreeMap, fmt::Write as _};

/// The SQL function that a kind applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name, with or without a schema.
    pub name: String,
    /// Whether it takes the call's response as a second argument.
    pub takes_response: bool,
    /// The name of a function that does the same for many requests at once.
    pub batch: Option<String>,
}

impl Function {
    /// The name and argument types, as `to_regprocedure` reads them.
    pub(super) fn signature(&self) -> String {
        let arguments = if self.takes_response { "jsonb, jsonb" } else { "jsonb" };
        format!("{}({arguments})", self.name)
    }
}

/// Whether a name is a plain identifier that needs no quotes in SQL.
pub(super) fn is_identifier(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Whether a name is a function's name: an identifier, or two with a dot between.
pub fn is_function_name(name: &str) -> bool {
    let mut parts = name.split('.');
    parts.by_ref().take(2).all(is_identifier) && parts.next().is_none()
}

/// The statements are written for the schema `longshore`; this puts the configured one in. Done before
/// names of the configuration are put in, for those may hold the word.
pub(super) fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("longshore.", &format!("{schema}."))
}

/// What a function gets to see of its request. Built inside the branch that needs it, so that the
/// payload of a request that is not applied is never parsed.
const REQUEST: &str = "jsonb_build_object('request_id', i.id, 'kind', i.kind, 'user_id', i.user_id, \
                       'payload', i.payload::jsonb)";

/// The expression that applies the function of the row's kind, over columns of the alias `i`.
/// Null for a kind without a function.
///
/// One expression for all kinds keeps a batch one statement, so that the requests of one user are
/// applied in their order whatever their kinds are.
pub(super) fn apply_expression(functions: &BTreeMap<String, Function>) -> String {
    applying(functions, "i.kind", REQUEST, "i.response::jsonb")
}

/// The same over any columns: the kind, what the worker has built for a function to see, and the
/// response.
pub(super) fn applying(
    functions: &BTreeMap<String, Function>,
    kind: &str,
    request: &str,
    response: &str,
) -> String {
    if functions.is_empty() {
        return "null::jsonb".to_owned();
    }
    let mut sql = format!("case {kind}");
    for (kind, function) in functions {
        let name = &function.name;
        let second = if function.takes_response { format!(", {response}") } else { String::new() };
        write!(sql, " when {} then {name}({request}{second})", literal(kind))
            .expect("writing to a string does not fail");
    }
    sql.push_str(" end");
    sql
}

/// The expression that applies the function of the row's kind and tells what it refuses instead of
/// failing: the columns of `try_apply`.
pub(super) fn try_apply_expression(schema: &str, functions: &BTreeMap<String, Function>) -> String {
    let mut sql = "case i.kind".to_owned();
    for (kind, function) in functions {
        let (kind, name) = (literal(kind), literal(&function.name));
        let response = function.takes_response;
        write!(
            sql,
            " when {kind} then {schema}.try_apply({name}, {response}, i.id, i.kind, i.user_id, \
             i.payload, i.response)"
        )
        .expect("writing to a string does not fail");
    }
    sql.push_str(" end");
    sql
}

/// A string literal.
fn literal(text: &str) -> String {
    // The E form reads backslashes the same way whatever `standard_conforming_strings` says.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_identifiers_with_at_most_one_dot() {
        for good in ["f", "app.apply_profile", "_x.y2"] {
            assert!(is_function_name(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a.b.c", "A", "a-b", "f()", "a b", "1a", "f;drop"] {
            assert!(!is_function_name(bad), "{bad}");
        }
    }

    #[test]
    fn each_kind_applies_its_own_function() {
        let functions = BTreeMap::from([
            (
                "a'b\\".to_owned(),
                Function { name: "app.f".into(), takes_response: false, batch: None },
            ),
            ("c".to_owned(), Function { name: "g".into(), takes_response: true, batch: None }),
        ]);
        assert_eq!(
            apply_expression(&functions),
            format!(
                r"case i.kind when E'a\'b\\' then app.f({REQUEST}) when E'c' then g({REQUEST}, i.response::jsonb) end"
            )
        );
        assert_eq!(apply_expression(&BTreeMap::new()), "null::jsonb");
    }
}
