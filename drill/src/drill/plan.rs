//! What is published, and in which order: the same for the same seed.

use serde_json::{Value, json};

/// The largest body that the drill's workers take, in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// The kinds, as the generated settings have them: written, written and answered, called and
/// written, the same to a service that fails now and then.
pub(super) const KINDS: [&str; 4] = ["drill.write", "drill.answer", "drill.call", "drill.flaky"];
/// Those of them that call.
pub(super) const CALLING: [&str; 2] = ["drill.call", "drill.flaky"];
/// What the account calls requests that are not to be done.
pub(super) const BAD: &str = "bad";
/// Different users.
const USERS: u64 = 2_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: String,
    /// Its kind in the account.
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
    /// Whether an answer is wanted.
    pub(super) asks: bool,
    /// Whether `message_id` says who it is.
    pub(super) named: bool,
    /// How often it is published again once it is confirmed.
    pub(super) again: u32,
}

/// The sequence.
#[derive(Debug)]
pub(super) struct Plan {
    next: u64,
    of: u64,
    chance: fastrand::Rng,
}

impl Plan {
    pub(super) fn new(of: u64, seed: u64) -> Self {
        Self { next: 0, of, chance: fastrand::Rng::with_seed(seed) }
    }
}

impl Iterator for Plan {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.next == self.of {
            return None;
        }
        self.next += 1;
        let number = self.next;
        let id = format!("drill-{number:07}");
        let user = self.chance.u64(0..USERS).to_string();
        let again = u32::from(self.chance.u32(0..20) == 0);
        let kind = match self.chance.u32(0..100) {
            0 => return Some(bad(id, self.chance.u32(0..5))),
            1..=70 => KINDS[0],
            71..=80 => KINDS[1],
            81..=94 => KINDS[2],
            _ => KINDS[3],
        };
        let body = body(&id, kind, &user, &json!({ "number": number }));
        Some(Item { id, kind, body, asks: kind == KINDS[1], named: true, again })
    }
}

fn body(id: &str, kind: &str, user: &str, payload: &Value) -> Vec<u8> {
    json!({"request_id": id, "kind": kind, "user_id": user, "payload": payload})
        .to_string()
        .into_bytes()
}

/// One of the sorts of bad request.
fn bad(id: String, sort: u32) -> Item {
    let body = match sort {
        0 => format!("{{\"request_id\":\"{id}\",\"kind\":").into_bytes(),
        1 => body(&id, "drill.unheard.of", "1", &json!({})),
        2 => json!({"request_id": id, "kind": KINDS[0], "user_id": 1.5}).to_string().into_bytes(),
        // Written, and then refused: the effect must go with the transaction.
        3 => body(&id, KINDS[0], "1", &json!({ "refuse": true })),
        _ => vec![b' '; MAX_BODY + 1],
    };
    // What cannot be read and does not say who it is has no row of its own.
    Item { id, kind: BAD, body, asks: false, named: sort != 0, again: 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_is_the_same_plan() {
        let all = |seed| Plan::new(500, seed).collect::<Vec<_>>();
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
    }

    #[test]
    fn a_plan_has_everything_in_it_and_no_id_twice() {
        let items: Vec<Item> = Plan::new(2_000, 1).collect();
        let ids: HashSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids.len(), 2_000);
        for kind in KINDS.iter().chain([&BAD]) {
            assert!(items.iter().any(|item| item.kind == *kind), "no {kind}");
        }
        assert!(items.iter().any(|item| item.again > 0) && items.iter().any(|item| item.asks));
        assert!(items.iter().any(|item| !item.named));
        assert!(items.iter().any(|item| item.body.len() > MAX_BODY));
    }
}
