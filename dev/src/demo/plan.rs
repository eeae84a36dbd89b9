//! What the demo publishes, and in which order.

use serde_json::{Value, json};

/// One publish.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its id in the account.
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
    /// Whether the producer wants an answer.
    pub(super) asks: bool,
    /// Whether the id is given as `message_id`.
    pub(super) names_itself: bool,
    /// How often it is published again.
    pub(super) again: u32,
}

/// The sequence, the same at every run.
pub(super) struct Plan {
    next: usize,
    of: usize,
    chance: fastrand::Rng,
}

impl Plan {
    pub(super) fn new(of: usize) -> Self {
        Self { next: 0, of, chance: fastrand::Rng::with_seed(42) }
    }
}

impl Iterator for Plan {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.next == self.of {
            return None;
        }
        self.next += 1;
        let id = format!("demo-{:05}", self.next);
        let user = self.chance.u32(0..500);
        let again = u32::from(self.chance.u32(0..20) == 0);
        Some(match self.chance.u32(0..100) {
            0 => bad(id, self.next),
            1..=70 => good(
                id,
                "user.profile.update",
                user,
                json!({"name": format!("Name {}", self.next)}),
                again,
            ),
            71..=80 => Item { asks: true, ..good(id, "user.profile.get", user, json!({}), again) },
            81..=90 => good(
                id,
                "user.address.verify",
                user,
                json!({"address": format!("{user} Harbour Road")}),
                again,
            ),
            _ => good(id, "user.welcome.send", user, json!({"template": "welcome"}), again),
        })
    }
}

fn good(id: String, kind: &'static str, user: u32, payload: Value, again: u32) -> Item {
    let body = json!({"request_id": id, "kind": kind, "user_id": user, "payload": payload});
    Item { id, kind, body: body.to_string().into_bytes(), asks: false, names_itself: true, again }
}

/// One of each sort of bad request, in turn.
fn bad(id: String, turn: usize) -> Item {
    let body = match turn % 5 {
        0 => format!("{{\"request_id\":\"{id}\",\"kind\":").into_bytes(),
        1 => json!({"request_id": id, "kind": "user.unheard.of", "user_id": 1})
            .to_string()
            .into_bytes(),
        2 => json!({"request_id": id, "kind": "user.profile.update", "user_id": 1.5})
            .to_string()
            .into_bytes(),
        3 => {
            let payload = json!({"email": "not an address"});
            json!({"request_id": id, "kind": "user.profile.update", "user_id": 1, "payload": payload}).to_string().into_bytes()
        }
        // One byte more than any worker takes.
        _ => vec![b' '; 1_048_577],
    };
    // Half of what cannot be read does not even say who it is.
    Item { id, kind: "bad", body, asks: false, names_itself: !turn.is_multiple_of(10), again: 0 }
}
