//! The model against the statements themselves, in a real Postgres: the same operations, by two
//! workers, with the same answers and the same tables after each.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod compare;
mod operations;

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use longshore_dev::services::Services;
use tokio_postgres::{Client, NoTls};

use super::*;
use crate::{
    ledger::{
        Entered, Entry, Function, Gate, Ledger, LedgerError, OfUsers, PoolSettings, Settings, Whose,
    },
    limit::USER,
    outcome::{ErrorCode, Failure},
    pause::Pauses,
    request::{Properties, decode},
};

/// How many sequences, of how many operations each.
const SEQUENCES: u64 = 12;
const OPERATIONS: usize = 40;

/// What is applied says itself what comes of it.
const SERVICE: &str = "\
create table effects (id text not null);
create function apply_it(request jsonb) returns jsonb language plpgsql as $$
begin
    case request->'payload'->>'do'
        when 'refuse' then raise exception 'no';
        when 'fail' then raise exception 'later' using errcode = '40001';
        else null;
    end case;
    insert into effects values (request->>'request_id');
    return request->'request_id';
end $$";

/// Both, side by side.
struct Pair {
    model: Model,
    ledgers: Vec<Arc<Ledger>>,
    client: Client,
    born: Instant,
    /// How far time was set forward.
    ahead: Duration,
    /// Every fence that was used for an id.
    fences: BTreeMap<String, Vec<i64>>,
    /// Times differ by more than a busy machine is late.
    number: u64,
    chance: fastrand::Rng,
}

const WORKERS: [&str; 2] = ["left", "right"];

impl Pair {
    fn now(&self) -> Duration {
        self.born.elapsed() + self.ahead
    }
}

fn settings(url: String) -> Settings {
    let time = Duration::from_secs(20);
    Settings {
        url: url.into(),
        password: None,
        ca_file: None,
        schema: "longshore".to_owned(),
        lanes: 1,
        batch_rows: 10,
        batch_bytes: 100_000,
        statement_timeout: time,
        due_poll: time,
        lease_margin: time,
        probe_interval: time,
        keep_done: time,
        prune_interval: time,
        prune_rows: 10,
        pool: PoolSettings {
            max_size: 4,
            max_idle: 4,
            max_lifetime: 100 * time,
            wait_timeout: time,
            create_timeout: time,
            recycle_timeout: time,
        },
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A database of its own for as long as `work` goes on.
async fn with_pair(work: impl AsyncFnOnce(&mut Pair)) {
    let services = Services::shared().await.unwrap();
    let admin_url = services.postgres.admin_url();
    let admin = connect(&admin_url).await;
    let name = format!("model_{:08x}", fastrand::u32(..));
    admin.batch_execute(&format!("create database {name}")).await.unwrap();
    let url = format!("{}/{name}", admin_url.rsplit_once('/').unwrap().0);
    let client = connect(&url).await;
    client.batch_execute(SERVICE).await.unwrap();
    let function =
        Function { name: "public.apply_it".to_owned(), takes_response: false, batch: None };
    let functions = BTreeMap::from([("k".to_owned(), function)]);
    let open = |worker: &&str| {
        Ledger::open(settings(url.clone()), &functions, worker, Pauses::default()).unwrap()
    };
    let ledgers: Vec<Arc<Ledger>> = WORKERS.iter().map(open).collect();
    ledgers[0].migrate().await.unwrap();
    let mut pair = Pair {
        model: Model::default(),
        ledgers,
        client,
        born: Instant::now(),
        ahead: Duration::ZERO,
        fences: BTreeMap::new(),
        number: 0,
        chance: fastrand::Rng::with_seed(0),
    };
    work(&mut pair).await;
    pair.ledgers.iter().for_each(|ledger| ledger.close());
    drop(pair);
    admin.batch_execute(&format!("drop database {name} with (force)")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_does_what_the_model_does() {
    with_pair(async |pair| {
        for seed in 0..SEQUENCES {
            pair.chance = fastrand::Rng::with_seed(seed);
            pair.model = Model::default();
            (pair.number, pair.fences) = (0, BTreeMap::new());
            let empty = "truncate longshore.requests, longshore.attempts, effects";
            pair.client.batch_execute(empty).await.unwrap();
            let mut story = Vec::new();
            for _ in 0..OPERATIONS {
                let what = pair.operate().await;
                story.push(what);
                pair.compare(&format!("seed {seed}: {story:#?}")).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_first_in_a_line_and_parked_on_something_else_is_not_let_go_by_the_line() {
    with_pair(async |pair| {
        let request = pair.request();
        let received_at = OffsetDateTime::now_utc();
        let entries = [Entry { request: Arc::clone(&request), fence: Fence::new(), received_at }];
        let advances = async |pair: &mut Pair, expected: u64| {
            for whose in [Whose::Theirs(vec![request.user_id.clone()]), Whose::Everybodys] {
                let expected = if whose == Whose::Everybodys { 0 } else { expected };
                assert_eq!(pair.ledgers[0].advance(&whose).await.unwrap(), expected, "{whose:?}");
                assert_eq!(pair.model.advance(&whose, pair.now()), expected, "{whose:?}");
            }
        };
        assert_eq!(pair.ledgers[0].enter(&entries).await.unwrap(), [Entered::Stands]);
        pair.model.enter(&entries);
        advances(pair, 1).await;
        let ask = Ask { limit: 1, gates: Vec::new(), lease: Duration::from_secs(60) };
        let due = pair.ledgers[0].due(&ask).await.unwrap();
        let fence = due[0].fence;
        pair.model.due(&ask, WORKERS[0], pair.now(), |_| fence);
        let parked = Finish {
            request: Arc::clone(&request),
            hold: Hold::Claimed(fence),
            verdict: Verdict::Parked { on: "bank".to_owned(), due_in: None },
            charged: false,
            response: None,
            wants_result: false,
            steps: None,
            ends: None,
            received_at,
        };
        let committed = Ok(Finished::Committed { result: None });
        assert_eq!(pair.ledgers[0].finish(parked.clone()).await, committed);
        assert_eq!(pair.finish(&parked, WORKERS[0], pair.now()), committed);
        advances(pair, 0).await;
        pair.compare("it was parked").await;
        // The bank lets it go.
        let bank = Gate { on: "bank".to_owned(), most: 1, probes: false };
        let due = pair.ledgers[0].due(&Ask { gates: vec![bank], ..ask }).await.unwrap();
        assert_eq!(due.len(), 1);
    })
    .await;
}
