//! Many requests, and the account of them: what was published against what is found in the end.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use longshore_dev::proxy::Proxy;
use serde_json::json;

use super::{Place, until_within};

/// How long a load may take to be worked to its end, outages included.
const ALL_OF_IT: Duration = Duration::from_secs(90);
/// Over how many users the updates are spread.
const USERS: usize = 40;

/// What a test has published.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// All requests, in the order of publishing.
    pub(crate) ids: Vec<String>,
    /// Those that call the geocoder.
    pub(crate) calls: Vec<String>,
    /// How many updates each user was sent.
    updates: BTreeMap<String, i64>,
}

impl Load {
    /// Counts a request that was published some other way: an update of this user's profile, or,
    /// without a user, one that changes nothing.
    pub(crate) fn add(&mut self, id: &str, updates: Option<&str>) {
        self.ids.push(id.to_owned());
        if let Some(user) = updates {
            *self.updates.entry(user.to_owned()).or_default() += 1;
        }
    }
}

impl Place {
    /// Publishes this many requests more, updates of profiles, every `call_every`th of them an
    /// address to be verified instead.
    pub(crate) async fn publish_load(&self, load: &mut Load, count: usize, call_every: usize) {
        let mut bodies = Vec::with_capacity(count);
        for number in load.ids.len()..load.ids.len() + count {
            let (id, user) = (format!("r-{number}"), format!("u-{}", number % USERS));
            let (kind, payload) = if number % call_every == 0 {
                load.calls.push(id.clone());
                ("user.address.verify", json!({"address": format!("{number} Main Street")}))
            } else {
                *load.updates.entry(user.clone()).or_default() += 1;
                ("user.profile.update", json!({"name": "Ada"}))
            };
            let body = json!({"request_id": id, "kind": kind, "user_id": user, "payload": payload});
            bodies.push(serde_json::to_vec(&body).unwrap());
            load.ids.push(id);
        }
        self.broker.publish_all(&bodies).await;
    }

    /// Waits until all of it is done, and holds it against the account: each request has one row,
    /// each update counted once, each call took effect once, and nothing is left anywhere.
    pub(crate) async fn until_accounted(&self, load: &Load) {
        let wanted = i64::try_from(load.ids.len()).unwrap();
        until_within(ALL_OF_IT, &format!("all {wanted} requests are done"), async || {
            let now = self.database.count("done").await;
            (now == wanted).then_some(())
        })
        .await;
        let rows = self.database.number("select count(*) from longshore.requests").await;
        assert_eq!(rows, wanted, "one row each");
        assert_eq!(self.database.unreadable().await, [], "nothing was unreadable");
        assert_eq!(self.versions().await, load.updates, "updates applied, by user");
        let stub = self.stub.calls();
        for id in &load.calls {
            let calls = stub.get(id).unwrap_or_else(|| panic!("{id} was never called"));
            assert!(calls.effects == 1 && !calls.bodies_differ, "{id}: {calls:?}");
        }
        self.broker.until_empty().await;
        assert_eq!(self.broker.ready(&self.broker.dead).await, 0, "nothing was given up");
    }

    /// No request was charged more than the one attempt that did it, and none has a history.
    pub(crate) async fn assert_no_attempt_was_burnt(&self) {
        let burnt = "select request_id || ' at attempt ' || attempt
                       from longshore.requests where attempt <> 1";
        let history = "select a::text from longshore.attempts a";
        for (what, sql) in [("attempts that went wrong", history), ("charged otherwise", burnt)] {
            assert_eq!(self.database.texts(sql).await, Vec::<String>::new(), "{what}");
        }
    }

    async fn versions(&self) -> BTreeMap<String, i64> {
        let rows = self.database.query("select user_id, version from app.users", &[]).await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// The same URL by way of a proxy.
pub(crate) fn through(url: &str, proxy: &Proxy) -> String {
    by_way_of(url, proxy.addr)
}

/// The same URL at another address.
pub(crate) fn by_way_of(url: &str, address: SocketAddr) -> String {
    let (user, place) = url.rsplit_once('@').unwrap();
    let (_, path) = place.split_once('/').unwrap();
    format!("{user}@{address}/{path}")
}

/// Where a URL leads, for a proxy before it.
pub(crate) fn address(url: &str) -> SocketAddr {
    let (_, place) = url.rsplit_once('@').unwrap();
    place.split_once('/').unwrap().0.parse().unwrap()
}
