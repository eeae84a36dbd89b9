//! What the stub remembers of each key, within bounds.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How many keys are remembered; the oldest are forgotten first.
const MAX_KEYS: usize = 1_000_000;
/// How many bytes of answers are remembered.
const MAX_BYTES: usize = 512 << 20;
/// The longest key, in bytes.
pub(super) const MAX_KEY: usize = 512;

/// What is known of one `Idempotency-Key`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// How often it was called, whatever was answered.
    pub calls: u64,
    /// How often a call took effect: at most once, but for the empty key, under which every call
    /// that is answered well takes effect.
    pub effects: u64,
    /// Whether two calls asked for different things (method, path or body) under this key.
    pub bodies_differ: bool,
}

#[derive(Debug, Default)]
struct Seen {
    calls: Calls,
    asked: u64,
    answer: Option<Value>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    seen: HashMap<String, Seen>,
    order: VecDeque<String>,
    bytes: usize,
}

/// A short form of what a call asks for.
pub(super) fn asked(method: &str, path: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (method, path, body).hash(&mut hasher);
    hasher.finish()
}

impl Memory {
    /// A call came in.
    pub(super) fn called(&mut self, key: &str, asked: u64) {
        if !self.seen.contains_key(key) {
            self.order.push_back(key.to_owned());
            self.seen.insert(key.to_owned(), Seen { asked, ..Seen::default() });
            self.forget();
        }
        if let Some(seen) = self.seen.get_mut(key) {
            seen.calls.calls += 1;
            seen.calls.bodies_differ |= !key.is_empty() && seen.asked != asked;
        }
    }

    /// The call takes effect, unless one with its key has: then it gets that one's answer.
    pub(super) fn effect(&mut self, key: &str, asked: u64, answer: Value) -> Value {
        if !self.seen.contains_key(key) {
            // Forgotten between its arrival and now.
            self.called(key, asked);
        }
        let Some(seen) = self.seen.get_mut(key) else { return answer };
        if key.is_empty() {
            seen.calls.effects += 1;
            return answer;
        }
        if let Some(first) = &seen.answer {
            return first.clone();
        }
        seen.calls.effects += 1;
        seen.bytes = answer.to_string().len();
        self.bytes += seen.bytes;
        seen.answer = Some(answer.clone());
        self.forget();
        answer
    }

    /// What is known, by key.
    pub(super) fn calls(&self) -> HashMap<String, Calls> {
        self.seen.iter().map(|(key, seen)| (key.clone(), seen.calls.clone())).collect()
    }

    fn forget(&mut self) {
        while (self.order.len() > MAX_KEYS || self.bytes > MAX_BYTES) && self.order.len() > 1 {
            if let Some(seen) = self.order.pop_front().and_then(|key| self.seen.remove(&key)) {
                self.bytes -= seen.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_second_call_with_a_key_gets_the_first_ones_answer_and_does_nothing() {
        let mut memory = Memory::default();
        for answer in [1, 2] {
            memory.called("k", 7);
            assert_eq!(memory.effect("k", 7, json!(answer)), json!(1));
        }
        memory.called("k", 8);
        assert_eq!(memory.calls()["k"], Calls { calls: 3, effects: 1, bodies_differ: true });
    }

    #[test]
    fn without_a_key_everything_takes_effect() {
        let mut memory = Memory::default();
        for call in 0..3 {
            memory.called("", call);
            memory.effect("", call, json!(call));
        }
        assert_eq!(memory.calls()[""], Calls { calls: 3, effects: 3, bodies_differ: false });
    }

    #[test]
    fn the_oldest_keys_are_forgotten_first() {
        let mut memory = Memory::default();
        for key in 0..=MAX_KEYS {
            memory.called(&key.to_string(), 0);
        }
        assert_eq!(memory.seen.len(), MAX_KEYS);
        assert!(!memory.seen.contains_key("0") && memory.seen.contains_key(&MAX_KEYS.to_string()));
    }
}
