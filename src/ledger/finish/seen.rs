//! The request as its function gets it, written by the worker: one value less to build for Postgres,
//! request by request.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::request::Request;

/// The version of `jsonb` on the line: the text follows it (`jsonb_recv` in Postgres).
const VERSION: u8 = 1;

/// A `jsonb` value.
#[derive(Debug)]
pub(super) struct Seen(String);

impl Seen {
    /// `{"request_id": …, "kind": …, "user_id": …, "payload": …}`.
    pub(super) fn of(request: &Request) -> Self {
        let names = request.id.len() + request.kind.len() + request.user_id.len();
        let mut seen = String::with_capacity(64 + names + request.payload.len());
        let fields = [
            (r#"{"request_id":"#, &request.id),
            (r#","kind":"#, &request.kind),
            (r#","user_id":"#, &request.user_id),
        ];
        for (name, value) in fields {
            seen.push_str(name);
            // A string is its own JSON between quotes, unless something in it must be escaped.
            if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
                seen.extend(["\"", value, "\""]);
            } else {
                seen.push_str(&serde_json::Value::from(value.as_str()).to_string());
            }
        }
        seen.extend([r#","payload":"#, &request.payload, "}"]);
        Self(seen)
    }
}

impl ToSql for Seen {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_u8(VERSION);
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    accepts!(JSONB);
    to_sql_checked!();
}
