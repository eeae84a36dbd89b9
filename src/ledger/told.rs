//! What was said of an outage. Each reason is told once: a long outage stays short in the log, and
//! a password that was changed does not hide behind the session that ended first.

use std::sync::{Mutex, PoisonError};

/// So many reasons of one outage are told; a server that finds more of them is told of by these.
const MOST: usize = 8;

/// The reasons that were told of the present outage.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<String>>);

impl Told {
    /// Another outage begins.
    pub(super) fn begin(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether this was not told yet; from now on it was.
    pub(super) fn is_news(&self, error: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.len() < MOST && !told.iter().any(|known| known == error);
        if news {
            told.push(error.to_owned());
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_an_outage() {
        let told = Told::default();
        let news = |errors: &[&str]| -> Vec<bool> {
            errors.iter().map(|error| told.is_news(error)).collect()
        };
        assert_eq!(news(&["ended", "ended", "password", "ended"]), [true, false, true, false]);
        told.begin();
        assert_eq!(news(&["ended"]), [true]);
        let many = (0..20).filter(|number| told.is_news(&number.to_string())).count();
        assert_eq!(many, MOST - 1);
    }
}
