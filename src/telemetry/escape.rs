//! How text that others wrote is put into a log line, so that it can neither end the line nor
//! steer a terminal.
//!
//! JSON itself asks only for the first 32 control characters. A line is also read with `less` and
//! `kubectl logs`, where C1 controls are escape sequences, some programs break lines at U+2028,
//! and direction marks show one text and mean another: all of these are written as `\u` and four hex
//! digits.
//! <https://owasp.org/www-community/attacks/Log_Injection>, <https://trojansource.codes>

use std::fmt::{self, Write};

/// Longer values are cut here, in bytes: it bounds a line, and with it the queue of lines.
pub(super) const MAX_TEXT: usize = 4096;

/// Appends `text`; `quotes` says whether `"` must be escaped as well.
pub(super) fn escape(out: &mut String, text: &str, quotes: bool) {
    let mut plain_from = 0;
    for (at, c) in text.char_indices() {
        if !(is_unsafe(c) || c == '\\' || (quotes && c == '"')) {
            continue;
        }
        out.push_str(&text[plain_from..at]);
        plain_from = at + c.len_utf8();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All unsafe characters are in the basic plane: one escape each.
            _ => {
                let _written = write!(out, "\\u{:04x}", u32::from(c)).is_ok();
            }
        }
    }
    out.push_str(&text[plain_from..]);
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Collects what a value's `Debug` or `Display` writes, up to [`MAX_TEXT`], and then stops it.
#[derive(Default)]
pub(super) struct Capped(String);

impl Capped {
    /// What `value` writes, cut.
    pub(super) fn text(value: fmt::Arguments<'_>) -> String {
        if let Some(text) = value.as_str() {
            return cut(text).to_owned();
        }
        let mut capped = Self::default();
        if capped.write_fmt(value).is_err() {
            capped.0.push('…');
        }
        capped.0
    }
}

impl Write for Capped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_TEXT - self.0.len();
        let fits = at_most(text, room);
        self.0.push_str(fits);
        if fits.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// At most [`MAX_TEXT`] bytes of `text`.
pub(super) fn cut(text: &str) -> &str {
    at_most(text, MAX_TEXT)
}

fn at_most(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::new();
        escape(&mut out, text, true);
        out
    }

    #[test]
    fn what_could_break_a_line_or_steer_a_terminal_is_written_as_an_escape() {
        for (text, expected) in [
            ("plain é", "plain é"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("say \"hi\" \\", "say \\\"hi\\\" \\\\"),
            ("\u{1b}[31m\u{9b}2J\u{7f}", "\\u001b[31m\\u009b2J\\u007f"),
            ("a\u{2028}b\u{202e}c", "a\\u2028b\\u202ec"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let long = "é".repeat(MAX_TEXT);
        assert_eq!(Capped::text(format_args!("x{long}")).len(), 1 + MAX_TEXT - 2 + '…'.len_utf8());
        assert_eq!(cut(&long).len(), MAX_TEXT);
        assert_eq!(Capped::text(format_args!("{:?}", "short")), "\"short\"");
    }

    proptest! {
        #[test]
        fn every_text_reads_back_as_it_was(text in any::<String>()) {
            let read: String = serde_json::from_str(&format!("\"{}\"", escaped(&text))).unwrap();
            prop_assert_eq!(read, text);
        }
    }
}
