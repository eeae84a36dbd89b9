//! How it is told.

use std::path::Path;

use super::{
    super::{
        asked::{self, Asked, Bound},
        field,
        page::write_file,
        plot::{Lines, Series},
        spread::{self, Spread, grouped},
        table::{row, table},
    },
    BODY, Day, USERS,
};

/// Requests are told by the million where there are ten, and memory by the tenth of the time.
const PARTS: usize = 10;

impl Day {
    fn rates(&self) -> Vec<f64> {
        self.samples.rates(self.options.requests, PARTS)
    }

    fn asked(&self) -> Vec<Asked> {
        let one = |number: Option<f64>| number.map(|number| spread::of([number]));
        let rates = self.rates();
        let ends = rates.first().zip(rates.last()).map(|(first, last)| last / first);
        let memory = self.samples.memory(PARTS);
        let most = memory.iter().map(|(own, _)| own.most).fold(0.0, f64::max);
        // In the first tenth buffers are still filled for the first time.
        let flat = memory.get(1).zip(memory.last()).map(|(then, now)| now.0.median / then.0.median);
        let whole = (self.options.requests >= super::DAY).then_some(self.drained / 60.0);
        vec![
            Asked::new("ten million drained", Bound::Below(15.0), one(whole)).shown(1, " min"),
            Asked::new("resident memory, the most", Bound::Below(128.0), one(Some(most)))
                .shown(0, " MiB"),
            Asked::new("memory, last tenth of the time : second", Bound::Below(1.1), one(flat)),
            Asked::new(
                "speed, last tenth of the requests : first",
                Bound::AtLeast(0.85),
                one(ends),
            ),
            Asked::new(
                "effects for each request",
                Bound::AtLeast(1.0),
                one(Some(self.account.versions as f64 / self.options.requests as f64)),
            )
            .shown(6, ""),
        ]
    }
}

/// The numbers alone.
pub(super) fn tables(day: &Day) -> String {
    let requests = day.options.requests;
    let verdict = if day.account.check(requests).is_ok() { "it adds up" } else { "WRONG" };
    let account = [
        row(["account", ""]),
        vec!["published and confirmed".to_owned(), grouped(requests as f64, 0)],
        vec!["rows in the ledger".to_owned(), grouped(day.account.rows as f64, 0)],
        vec!["of them done".to_owned(), grouped(day.account.done as f64, 0)],
        vec!["sum of versions".to_owned(), grouped(day.account.versions as f64, 0)],
        vec![
            "attempts that went wrong, unreadable messages".to_owned(),
            grouped(day.account.troubles as f64, 0),
        ],
        vec!["so".to_owned(), verdict.to_owned()],
    ];
    let size = requests as f64 / PARTS as f64;
    let mut rates = vec![row(["requests", "requests/s"])];
    for (part, rate) in day.rates().into_iter().enumerate() {
        let upto = grouped(size * (part + 1) as f64, 0);
        rates.push(vec![format!("up to {upto}"), grouped(rate, 0)]);
    }
    let mut memory = vec![row(["tenth of the time", "worker, MiB", "RabbitMQ, MiB"])];
    for (part, (own, rabbit)) in day.samples.memory(PARTS).into_iter().enumerate() {
        memory.push(vec![(part + 1).to_string(), own.show(0), rabbit.show(0)]);
    }
    let times = [
        row(["", "seconds"]),
        vec!["until the queue was filled to its bound".to_owned(), grouped(day.filling, 0)],
        vec!["from the worker's start to the last publish".to_owned(), grouped(day.published, 0)],
        vec!["from the worker's start to the last request".to_owned(), grouped(day.drained, 0)],
    ];
    [asked::show(&day.asked()), table(&times), table(&account), table(&rates), table(&memory)]
        .join("\n")
}

const SPEED: &str = "throughput.svg";
const MEMORY: &str = "memory.svg";

/// Writes the page, and its plots into the folder of its name.
pub(super) async fn write(day: &Day, path: &Path) -> anyhow::Result<()> {
    let folder = path.with_extension("");
    let points = |numbers: Vec<Spread>| {
        let points = numbers.into_iter().enumerate();
        points.map(|(part, number)| ((part + 1) as f64, number)).collect::<Vec<_>>()
    };
    let marks: Vec<(f64, String)> =
        (1..=PARTS).map(|part| (part as f64, part.to_string())).collect();
    let rates = day.rates().into_iter().map(|rate| spread::of([rate])).collect();
    let speed = Lines {
        title: "Requests a second",
        across: "tenth of the requests",
        up: "requests/s",
        marks: marks.clone(),
        series: vec![Series { name: day.way.name().to_owned(), points: points(rates) }],
        tenfold: false,
    };
    write_file(&folder.join(SPEED), &speed.draw()).await?;
    let own = day.samples.memory(PARTS).into_iter().map(|(own, _)| own).collect();
    let memory = Lines {
        title: "Resident memory of the worker",
        across: "tenth of the time",
        up: "MiB",
        marks,
        series: vec![Series { name: day.way.name().to_owned(), points: points(own) }],
        tenfold: false,
    };
    write_file(&folder.join(MEMORY), &memory.draw()).await?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    write_file(path, &page(day, &name)).await
}

fn page(day: &Day, folder: &str) -> String {
    let facts: String =
        day.machine.facts().iter().map(|(name, fact)| format!("- {name}: {fact}\n")).collect();
    format!(
        "\
# A day's requests in one go

Written by `make bench-day`: {requests} requests through one worker with default settings (`{way}`,
see [benchmarks.md](benchmarks.md)), with broker, database and publishers on the same cores.

{facts}
Command: `{command}`

{tables}
![Requests a second]({folder}/{SPEED})

![Resident memory of the worker]({folder}/{MEMORY})

## What was done

{publishers} connections publish persistent requests of {body} bytes about {users} users to the quorum
queue, each confirmed, until {ahead} wait in it. Then the worker is started, and the rest is published
while it works, never with more than that waiting: a quorum queue keeps something of every message in
memory. Publishing takes its part of the cores. The clock runs from the worker's start to its last
request, looked at twice a second; resident memory is what `/proc` says at each look.

At the end the ledger is counted: a row for each id that was published, all done, and as many raised
versions in `app.users` as requests. The database takes {gigabytes:.1} GB on disk then, {bytes:.0}
bytes a request. Postgres' settings: {postgres}; fsync, `synchronous_commit` and `full_page_writes`
are on.
",
        requests = grouped(day.options.requests as f64, 0),
        way = day.way.name(),
        command = day.command,
        tables = tables(day),
        publishers = day.options.publishers,
        body = BODY,
        users = grouped(f64::from(USERS), 0),
        ahead = grouped(day.options.bound() as f64, 0),
        gigabytes = day.account.bytes as f64 / 1e9,
        bytes = day.account.bytes as f64 / day.options.requests as f64,
        postgres = field::POSTGRES.map(|set| format!("`{set}`")).join(", "),
    )
}
