//! How it is told: tables that read alike on a terminal and as Markdown.

use super::{
    Measured, TRICKLE, load,
    run::Run,
    spread::{self, Spread},
    way::Way,
};

impl Measured {
    fn runs(&self, way: Way) -> Option<&[Run]> {
        self.runs.iter().find(|(known, _)| *known == way).map(|(_, runs)| runs.as_slice())
    }

    fn spread(&self, way: Way, of: fn(&Run) -> f64) -> Option<Spread> {
        Some(spread::of(self.runs(way)?.iter().map(of)))
    }

    /// How many times as fast one way is as another, round by round.
    fn ratio(&self, way: Way, as_way: Way, share: f64) -> Option<Spread> {
        let pairs = self.runs(way)?.iter().zip(self.runs(as_way)?);
        Some(spread::of(pairs.map(|(one, other)| one.rate * share / other.rate)))
    }
}

/// What is compared: what it says, the two ways, and which share of the first counts.
const RATIOS: [(&str, Way, Way, f64); 7] = [
    ("`update` : `usual`", Way::Update, Way::Usual, 1.0),
    ("`update` : `raw`", Way::Update, Way::Raw, 1.0),
    ("`update-lines` : `update`", Way::UpdateLines, Way::Update, 1.0),
    ("`refused1` : `update`", Way::Refused1, Way::Update, 1.0),
    ("`refused30`, the good ones : `usual`", Way::Refused30, Way::Usual, 0.7),
    ("`refused30` : `update`", Way::Refused30, Way::Update, 1.0),
    ("`call` : `client`", Way::Call, Way::Client, 1.0),
];

/// The numbers alone.
pub(super) fn tables(measured: &Measured) -> String {
    let mut speeds = vec![
        ["way", "requests/s", "CPU s per 1,000", "MiB", "rows a request", "WAL bytes a request"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (way, _) in &measured.runs {
        let show = |of: fn(&Run) -> f64, decimals| {
            measured.spread(*way, of).map_or_else(String::new, |spread| spread.show(decimals))
        };
        let stored = |text: String| {
            if matches!(way, Way::Raw | Way::Client) { "–".to_owned() } else { text }
        };
        speeds.push(vec![
            format!("`{}`", way.name()),
            show(|run| run.rate, 0),
            show(|run| run.cpu, 3),
            show(|run| run.resident / f64::from(1 << 20), 0),
            stored(show(|run| run.rows, 2)),
            stored(show(|run| run.wal, 0)),
        ]);
    }
    let mut ratios = vec![vec!["compared within a round".to_owned(), "times".to_owned()]];
    for (what, way, as_way, share) in RATIOS {
        if let Some(ratio) = measured.ratio(way, as_way, share) {
            ratios.push(vec![what.to_owned(), ratio.show(2)]);
        }
    }
    let mut ages = vec![
        ["way", "requests/s", "median age, ms", "99 of 100 below, ms"].map(str::to_owned).to_vec(),
    ];
    for (way, measured) in &measured.ages {
        let show = |of: fn(&super::Ages) -> f64| spread::of(measured.iter().map(of)).show(0);
        ages.push(vec![
            format!("`{}`", way.name()),
            show(|ages| ages.rate),
            show(|ages| ages.p50),
            show(|ages| ages.p99),
        ]);
    }
    [speeds, ratios, ages]
        .into_iter()
        .filter(|rows| rows.len() > 1)
        .map(|rows| table(&rows))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A table of Markdown whose columns also stand in line where nothing renders it. The first row is
/// its head.
fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| {
            let dashes = "-".repeat(width - 1);
            if column == 0 { format!("-{dashes}") } else { format!("{dashes}:") }
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text += &line(row);
        if number == 0 {
            text += &line(&rule);
        }
    }
    text
}

/// The whole page.
pub(super) fn page(measured: &Measured) -> String {
    let facts: String =
        measured.machine.facts().iter().map(|(name, fact)| format!("- {name}: {fact}\n")).collect();
    let ways: String = measured
        .runs
        .iter()
        .map(|(way, _)| format!("- `{}`: {}\n", way.name(), way.does()))
        .collect();
    let (size, trickle) = (measured.size, TRICKLE * 100.0);
    format!(
        "\
# Benchmarks

Written by `make bench`. The numbers are those of one run on one machine with the broker, the
database and the load on its cores as well; only what is compared within the run says something
about another machine.

{facts}
Command: `make bench ARGS=\"--rounds {rounds} --requests {requests}\"`

## What is measured

{ways}
Each of {rounds} rounds measures all of them in turn, each from an empty queue and a new database:
{requests} persistent requests of {body} bytes about {users} users are published to the quorum queue
and confirmed, and a new process is started on them. (`client` has no queue and makes as many calls.)
The clock runs from the first request that is done to the last, so a start does not count. Processor
time is that of the worker's process in the same span, memory its resident set at the end. Rows are
those inserted, updated and deleted, with those that were undone; WAL bytes are what Postgres wrote to
its log. After each run the ledger is checked: a run in which a request was lost or applied twice is
an error, not a number.

Ages are from publishing to knowing of the commit, in whole milliseconds, while requests come in by
the clock at {trickle:.0} % of the speed that was measured before, for {seconds} s in each round after a second
that does not count.

## Results

Medians of {rounds} rounds, and in brackets the least and the most.

{tables}",
        rounds = size.rounds,
        requests = size.requests,
        body = load::BODY,
        users = spread::grouped(f64::from(load::USERS), 0),
        seconds = size.trickle_secs,
        tables = tables(measured),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_line() {
        let cells = |row: [&str; 2]| row.map(str::to_owned).to_vec();
        let rows = [cells(["way", "requests/s"]), cells(["`raw`", "7 (5–9)"])];
        assert_eq!(
            table(&rows),
            "| way   | requests/s |\n| ----- | ---------: |\n| `raw` |    7 (5–9) |\n"
        );
    }
}
