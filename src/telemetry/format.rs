//! How an event becomes a line: one flat JSON object, or text for a terminal.
//!
//! Written by hand because the formatter of `tracing-subscriber` repeats a key when an event has a
//! field called `level`, and formats and parses the fields of spans again for each event. Spans
//! are left out altogether: the line of a request carries everything itself.

use std::{
    error::Error as StdError,
    fmt::{self, Write},
    io::Write as _,
};

use time::OffsetDateTime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::MakeWriter,
    layer::{Context, Layer},
};

use super::{
    Format,
    escape::{Capped, cut, escape},
};

/// Keys that every JSON line has; a field of the same name gets [`RENAMED`] before it.
const OWN_KEYS: [&str; 4] = ["timestamp", "level", "target", "message"];
const RENAMED: &str = "field_";

/// The layer that writes one line for each event.
pub(super) struct Lines<W> {
    format: Format,
    writer: W,
}

impl<W> Lines<W> {
    pub(super) fn new(format: Format, writer: W) -> Self {
        Self { format, writer }
    }
}

impl<S: Subscriber, W: for<'a> MakeWriter<'a> + 'static> Layer<S> for Lines<W> {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let line = line(self.format, event, OffsetDateTime::now_utc());
        // There is nowhere to report a log line that cannot be logged; the writer counts it.
        let _written = self.writer.make_writer().write_all(line.as_bytes()).is_ok();
    }
}

/// The whole line, with its line feed.
fn line(format: Format, event: &Event<'_>, now: OffsetDateTime) -> String {
    let mut fields =
        Fields { format, message: String::new(), target: None, rest: String::with_capacity(384) };
    event.record(&mut fields);
    let target = fields.target.as_deref().unwrap_or_else(|| event.metadata().target());
    let level = event.metadata().level();

    let mut line = String::with_capacity(128 + fields.message.len() + fields.rest.len());
    match format {
        Format::Json => {
            line.push_str("{\"timestamp\":\"");
            timestamp(&mut line, now);
            line.push_str("\",\"level\":\"");
            line.push_str(level.as_str());
            line.push_str("\",\"target\":\"");
            escape(&mut line, target, true);
            line.push_str("\",\"message\":\"");
            escape(&mut line, &fields.message, true);
            line.push('"');
            line.push_str(&fields.rest);
            line.push_str("}\n");
        }
        Format::Text => {
            timestamp(&mut line, now);
            let _written = write!(line, " {:>5} ", level.as_str()).is_ok();
            escape(&mut line, target, false);
            line.push_str(": ");
            escape(&mut line, &fields.message, false);
            line.push_str(&fields.rest);
            line.push('\n');
        }
    }
    line
}

/// RFC 3339 in UTC with microseconds, always of the same width, so that lines sort as text.
fn timestamp(out: &mut String, now: OffsetDateTime) {
    let (date, clock) = (now.date(), now.time());
    let _written = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.microsecond()
    )
    .is_ok();
}

/// Gathers an event's fields, already written out.
struct Fields {
    format: Format,
    message: String,
    target: Option<String>,
    rest: String,
}

impl Fields {
    fn key(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                self.rest.push_str(",\"");
                if OWN_KEYS.contains(&name) {
                    self.rest.push_str(RENAMED);
                }
                escape(&mut self.rest, name, true);
                self.rest.push_str("\":");
            }
            Format::Text => {
                self.rest.push(' ');
                escape(&mut self.rest, name, true);
                self.rest.push('=');
            }
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        match name {
            "message" => value.clone_into(&mut self.message),
            // Where an event came through the `log` crate: its real target, and its place, which
            // nobody asks for.
            "log.target" => self.target = Some(value.to_owned()),
            "log.module_path" | "log.file" => {}
            _ => {
                self.key(name);
                let bare = self.format == Format::Text
                    && !value.is_empty()
                    && !value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='));
                if bare {
                    escape(&mut self.rest, value, false);
                } else {
                    self.rest.push('"');
                    escape(&mut self.rest, value, true);
                    self.rest.push('"');
                }
            }
        }
    }

    fn bare(&mut self, name: &str, value: fmt::Arguments<'_>) {
        if name == "message" {
            self.message = value.to_string();
        } else if name != "log.line" {
            self.key(name);
            let _written = self.rest.write_fmt(value).is_ok();
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), cut(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &Capped::text(format_args!("{value:?}")));
    }

    /// An error with what caused it: each of ours says only its own part.
    fn record_error(&mut self, field: &Field, value: &(dyn StdError + 'static)) {
        let mut text = Capped::text(format_args!("{value}"));
        let mut source = value.source();
        while let Some(cause) = source {
            text = Capped::text(format_args!("{text}: {cause}"));
            source = cause.source();
        }
        self.text(field.name(), &text);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field.name(), format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field.name(), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field.name(), format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.bare(field.name(), format_args!("{value:?}"));
        } else {
            // JSON has no word for these as numbers.
            self.text(field.name(), &value.to_string());
        }
    }
}

#[cfg(test)]
mod tests;
