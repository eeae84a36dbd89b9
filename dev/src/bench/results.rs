//! The numbers as tables, and what is asked of them.

use super::{
    Measured,
    ages::{Ages, SHARES},
    asked::{self, Asked, Bound},
    run::Run,
    spread::{self, Spread, grouped},
    table::{row, table},
    way::Way,
};

const MIB: f64 = (1 << 20) as f64;

impl Measured {
    fn runs(&self, way: Way) -> Option<&[Run]> {
        self.runs.iter().find(|(known, _)| *known == way).map(|(_, runs)| runs.as_slice())
    }

    pub(super) fn spread(&self, way: Way, of: fn(&Run) -> f64) -> Option<Spread> {
        Some(spread::of(self.runs(way)?.iter().map(of)))
    }

    /// How many times as fast one way is as another, round by round, by what is done and not
    /// refused.
    fn ratio(&self, way: Way, as_way: Way) -> Option<Spread> {
        let pairs = self.runs(way)?.iter().zip(self.runs(as_way)?);
        let share = way.good() / as_way.good();
        Some(spread::of(pairs.map(|(one, other)| one.rate * share / other.rate)))
    }

    pub(super) fn ages(&self, way: Way, share: f64, of: fn(&Ages) -> f64) -> Option<Spread> {
        let (_, all) = self.ages.iter().find(|(known, _)| *known == way)?;
        Some(spread::of(all.iter().filter(|ages| ages.share == share).map(of)))
    }

    /// What the issue asks.
    fn asked(&self) -> Vec<Asked> {
        let ratio = |what, way, as_way, bound| {
            Asked::new(what, Bound::AtLeast(bound), self.ratio(way, as_way))
        };
        let calls = self.spread(Way::Call, |run| run.rate);
        let age = self.ages(Way::Update, SHARES[0], |ages| ages.p50);
        vec![
            ratio("`update` : `usual`", Way::Update, Way::Usual, 5.0),
            ratio("`update-batch` : `usual`", Way::UpdateBatch, Way::Usual, 8.0),
            ratio("`update-batch` : `raw`", Way::UpdateBatch, Way::Raw, 0.4),
            Asked::new("`call`, requests/s", Bound::AtLeast(6_000.0), calls).shown(0, ""),
            ratio("`call` : `client`", Way::Call, Way::Client, 0.8),
            Asked::new("`update` at 10 %, median age", Bound::Below(6.0), age).shown(2, " ms"),
            ratio("`refused30`, the good ones : `usual`", Way::Refused30, Way::Usual, 2.0),
        ]
    }
}

/// What else is compared within a round.
const RATIOS: [(&str, Way, Way); 7] = [
    ("`update` : `raw`", Way::Update, Way::Raw),
    ("`raw-single` : `raw`", Way::RawSingle, Way::Raw),
    ("`update-lines` : `update`", Way::UpdateLines, Way::Update),
    ("`update-batch` : `update`", Way::UpdateBatch, Way::Update),
    ("`refused1`, the good ones : `update`", Way::Refused1, Way::Update),
    ("`refused30`, the good ones : `update`", Way::Refused30, Way::Update),
    ("`call` : `usual`", Way::Call, Way::Usual),
];

/// All tables, one below the other.
pub(super) fn tables(measured: &Measured) -> String {
    let all = [verdicts, speeds, costs, ratios, waiting, processes, ledgers];
    let all = all.map(|tell| tell(measured));
    all.into_iter().filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A table, unless there is nothing below its head.
fn told(rows: &[Vec<String>]) -> String {
    if rows.len() > 1 { table(rows) } else { String::new() }
}

pub(super) fn verdicts(measured: &Measured) -> String {
    asked::show(&measured.asked())
}

pub(super) fn speeds(measured: &Measured) -> String {
    let mut rows = vec![row(["way", "requests/s", "good ones/s", "MiB"])];
    for (way, runs) in &measured.runs {
        let rate = spread::of(runs.iter().map(|run| run.rate));
        let good = spread::of(runs.iter().map(|run| run.rate * way.good()));
        let memory = spread::of(runs.iter().map(|run| run.resident / MIB));
        let good = if way.good() < 1.0 { good.show(0) } else { "–".to_owned() };
        rows.push(vec![format!("`{}`", way.name()), rate.show(0), good, memory.show(0)]);
    }
    told(&rows)
}

pub(super) fn costs(measured: &Measured) -> String {
    let mut rows = vec![row([
        "way",
        "CPU s per 1,000: worker",
        "RabbitMQ",
        "Postgres",
        "stub",
        "rows a request",
        "WAL bytes a request",
    ])];
    for (way, runs) in &measured.runs {
        let show = |of: fn(&Run) -> f64, decimals| spread::of(runs.iter().map(of)).show(decimals);
        let where_ = |holds: bool, text: String| if holds { text } else { "–".to_owned() };
        rows.push(vec![
            format!("`{}`", way.name()),
            show(|run| run.cpu, 3),
            where_(way.load().is_some(), show(|run| run.rabbit, 3)),
            where_(way.stores(), show(|run| run.postgres, 3)),
            where_(way.calls(), show(|run| run.stub, 3)),
            where_(way.stores(), show(|run| run.rows, 2)),
            where_(way.stores(), show(|run| run.wal, 0)),
        ]);
    }
    told(&rows)
}

pub(super) fn ratios(measured: &Measured) -> String {
    let mut rows = vec![row(["compared within a round", "times"])];
    for (what, way, as_way) in RATIOS {
        if let Some(ratio) = measured.ratio(way, as_way) {
            rows.push(vec![what.to_owned(), ratio.show(2)]);
        }
    }
    told(&rows)
}

pub(super) fn waiting(measured: &Measured) -> String {
    let mut rows =
        vec![row(["way", "load", "requests/s", "median age, ms", "99 of 100 below, ms"])];
    for (way, _) in &measured.ages {
        for share in SHARES {
            let show = |of, decimals| {
                measured.ages(*way, share, of).map_or_else(String::new, |it| it.show(decimals))
            };
            rows.push(vec![
                format!("`{}`", way.name()),
                format!("{:.0} %", share * 100.0),
                show(|ages: &Ages| ages.rate, 0),
                show(|ages: &Ages| ages.p50, 2),
                show(|ages: &Ages| ages.p99, 2),
            ]);
        }
    }
    told(&rows)
}

pub(super) fn processes(measured: &Measured) -> String {
    let mut rows = vec![row(["worker processes", "requests/s", "times one"])];
    let one = measured.processes.first().map(|(_, rates)| rates.as_slice()).unwrap_or_default();
    for (processes, rates) in &measured.processes {
        let times = spread::of(rates.iter().zip(one).map(|(rate, one)| rate / one));
        let rate = spread::of(rates.iter().copied());
        rows.push(vec![processes.to_string(), rate.show(0), times.show(2)]);
    }
    told(&rows)
}

pub(super) fn ledgers(measured: &Measured) -> String {
    let mut rows = vec![row([
        "rows in the ledger",
        "requests/s",
        "times the first",
        "WAL bytes a request",
        "bytes on disk a row",
    ])];
    let first = measured.ledgers.first().map(|(_, runs)| runs.as_slice()).unwrap_or_default();
    for (size, runs) in &measured.ledgers {
        let times = spread::of(runs.iter().zip(first).map(|(run, first)| run.rate / first.rate));
        let show = |of: fn(&Run) -> f64| spread::of(runs.iter().map(of)).show(0);
        let filled = measured.filled.iter().find(|filled| filled.rows == *size);
        rows.push(vec![
            grouped(*size as f64, 0),
            show(|run| run.rate),
            times.show(2),
            show(|run| run.wal),
            filled.map_or_else(|| "–".to_owned(), |filled| grouped(filled.bytes_a_row, 0)),
        ]);
    }
    told(&rows)
}
