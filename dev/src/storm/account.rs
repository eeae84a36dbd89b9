//! What became of a phase, and whether that is right.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{
    Options, Trouble,
    field::Field,
    load::{NEEDS, Sent, number_in},
    trouble::Moments,
};
use crate::bench::spread::quantile;

/// `max_in_flight` and `probes` of the settings.
pub(super) const LIMIT: u64 = 64;
const PROBES: u64 = 2;
/// Ages within this part of the calm do not count: connections are made, statements prepared.
const WARM_UP: f64 = 0.2;

/// The findings, in order.
#[derive(Debug, Default)]
pub(super) struct Account {
    told: Vec<String>,
    checked: Vec<(bool, String)>,
}

impl Account {
    pub(super) fn tell(&mut self, what: String) {
        self.told.push(what);
    }

    pub(super) fn check(&mut self, right: bool, what: String) {
        self.checked.push((right, what));
    }

    pub(super) fn is_right(&self) -> bool {
        self.checked.iter().all(|(right, _)| *right)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.told.iter().map(|what| format!("     {what}"));
        let checked = self.checked.iter().map(|(right, what)| {
            let word = if *right { "PASS" } else { "FAIL" };
            format!("{word} {what}")
        });
        let lines: Vec<String> = told.chain(checked).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A request that was done.
#[derive(Debug)]
struct Done {
    id: String,
    needs: bool,
    received: f64,
    finished: f64,
}

pub(super) async fn draw_up(
    field: &Field,
    sent: &Sent,
    moments: Moments,
    options: &Options,
    trouble: Trouble,
) -> anyhow::Result<Account> {
    let mut account = Account::default();
    let rows = field
        .stage
        .query(
            "select request_id, kind, extract(epoch from received_at)::float8,
                    extract(epoch from finished_at)::float8
               from longshore.requests where state = 'done'",
            &[],
        )
        .await?;
    let done: Vec<Done> = rows
        .iter()
        .map(|row| Done {
            id: row.get(0),
            needs: row.get::<_, &str>(1) == NEEDS,
            received: row.get(2),
            finished: row.get(3),
        })
        .collect();
    others(&mut account, &done, sent, moments, options.later);
    let parked = field.parked().await?;
    order(&mut account, field, &done, &parked, moments).await?;

    let crowd = if trouble == Trouble::Crowd { options.crowd } else { 0 };
    let dead =
        field.stage.number("select count(*) from longshore.requests where state = 'dead'").await?;
    let all = sent.len() + crowd;
    account.check(
        dead == 0 && done.len() == all,
        format!("{} of {all} requests are done, {dead} are dead", done.len()),
    );
    let busiest = field.busiest().await?;
    let limit = LIMIT * field.workers() as u64;
    account
        .check(busiest <= limit, format!("the geocoder had {busiest} calls at once, of {limit}"));
    charged(&mut account, field, trouble).await?;
    Ok(account)
}

/// The ages of those who do not need the dependency, before and during its trouble.
fn others(account: &mut Account, done: &[Done], sent: &Sent, moments: Moments, later: f64) {
    let Some(first) = sent.first() else { return };
    let ages = |from: f64, to: f64| {
        let mut ages: Vec<f64> = done
            .iter()
            .filter(|done| !done.needs)
            .filter_map(|done| Some((done.finished, *sent.get(number_in(&done.id)?)?)))
            .filter(|(_, sent)| (from..to).contains(sent))
            .map(|(finished, sent)| (finished - sent) * 1_000.0)
            .collect();
        ages.sort_by(f64::total_cmp);
        (quantile(&ages, 0.5), quantile(&ages, 0.99), ages.len())
    };
    let begin = first + (moments.calm_over - first) * WARM_UP;
    let middle = f64::midpoint(begin, moments.calm_over);
    let halves = [ages(begin, middle), ages(middle, moments.calm_over)];
    let (p50, p99, count) = ages(begin, moments.calm_over);
    let (during_p50, during_p99, during) = ages(moments.begun, moments.over);
    account.tell(format!(
        "others before: p50 {p50:.1} ms, p99 {p99:.1} ms of {count} (its halves: p99 {:.1} and {:.1} ms)",
        halves[0].1, halves[1].1
    ));
    // What the same machine does in one calm half and not in the other is no fault of the trouble.
    let most = halves[0].1.max(halves[1].1).max(p99) * (1.0 + later / 100.0);
    account.check(
        during_p99 <= most,
        format!(
            "others during: p50 {during_p50:.1} ms, p99 {during_p99:.1} ms of {during}, at most {most:.1} ms"
        ),
    );
    if let Some(worst) = worst(done, sent, moments, most) {
        account.tell(worst);
    }
}

/// The second with the most of those who were later than `most`, in milliseconds, and how long the
/// longest were on their way to a worker and in its hands: what stands still once is told from what is
/// slow throughout.
fn worst(done: &[Done], sent: &Sent, moments: Moments, most: f64) -> Option<String> {
    let mut seconds: HashMap<u64, (usize, f64, f64)> = HashMap::new();
    for done in done.iter().filter(|done| !done.needs) {
        let Some(at) = number_in(&done.id).and_then(|number| sent.get(number)) else { continue };
        let age = (done.finished - at) * 1_000.0;
        if (moments.begun..moments.over).contains(at) && age > most {
            let (count, waited, worked) = seconds.entry((at - moments.begun) as u64).or_default();
            *count += 1;
            *waited = waited.max((done.received - at) * 1_000.0);
            *worked = worked.max((done.finished - done.received) * 1_000.0);
        }
    }
    let late: usize = seconds.values().map(|(count, ..)| count).sum();
    let (second, (count, waited, worked)) =
        seconds.iter().max_by_key(|(second, (count, ..))| (*count, **second))?;
    Some(format!(
        "{late} during it were later than {most:.1} ms, {count} of them in second {second}: up to \
         {waited:.0} ms until a worker had them, and up to {worked:.0} ms from then on"
    ))
}

/// In which order those went on that were parked and never charged.
async fn order(
    account: &mut Account,
    field: &Field,
    done: &[Done],
    parked: &HashSet<String>,
    moments: Moments,
) -> anyhow::Result<()> {
    let failed =
        field.stage.query("select distinct request_id from longshore.attempts", &[]).await?;
    let failed: HashSet<String> = failed.iter().map(|row| row.get(0)).collect();
    let mut waited: Vec<&Done> = done
        .iter()
        .filter(|done| parked.contains(&done.id) && !failed.contains(&done.id))
        .collect();
    if waited.is_empty() {
        account.tell("nobody was parked".to_owned());
        return Ok(());
    }
    waited.sort_by(|one, other| one.received.total_cmp(&other.received));
    let place: HashMap<&str, usize> =
        waited.iter().enumerate().map(|(place, done)| (done.id.as_str(), place)).collect();
    let last = waited.iter().map(|done| done.finished).fold(0.0, f64::max);
    waited.sort_by(|one, other| one.finished.total_cmp(&other.finished));
    let mut apart: Vec<f64> = waited
        .iter()
        .enumerate()
        .map(|(at, done)| at.abs_diff(place[done.id.as_str()]) as f64)
        .collect();
    apart.sort_by(f64::total_cmp);
    let (p50, p99) = (quantile(&apart, 0.5), quantile(&apart, 0.99));
    account.tell(format!(
        "{} were parked and not charged, the last was done {:.1} s after the trouble",
        waited.len(),
        (last - moments.over).max(0.0)
    ));
    // As many as are under way at once end in any order, and so do those who had just come.
    let most = (4 * LIMIT * field.workers() as u64) as f64;
    account.check(
        p99 <= most,
        format!("oldest first: done {p50:.0} places from its own at p50, {p99:.0} at p99, at most {most:.0}"),
    );
    Ok(())
}

/// What the trouble has cost in attempts.
async fn charged(account: &mut Account, field: &Field, trouble: Trouble) -> anyhow::Result<()> {
    let charged = field
        .stage
        .number("select count(*) from longshore.attempts where outcome = 'retry'")
        .await?;
    let (mut opened, mut tried, mut most) = (0, 0, 0);
    for line in field.events("breaker.transition").await? {
        match (line["from"].as_str(), line["to"].as_str()) {
            (Some("closed"), Some("open")) => {
                opened += 1;
                // Those that tripped it, and those that were under way then.
                most += line["failed"].as_u64().unwrap_or_default() + LIMIT;
            }
            (_, Some("half_open")) => {
                tried += 1;
                most += PROBES;
            }
            _ => {}
        }
    }
    let text = format!(
        "{charged} attempts were charged; it opened {opened} times and was tried {tried} times"
    );
    if trouble.trips() {
        account.check(charged as u64 <= most, format!("{text}: at most {most}"));
    } else {
        account.tell(text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(number: usize, sent: f64, age: f64) -> Done {
        let id = super::super::load::id(number);
        Done { id, needs: false, received: sent, finished: sent + age }
    }

    #[test]
    fn the_others_are_compared_before_and_during() {
        let moments = Moments { calm_over: 20.0, begun: 20.0, over: 40.0 };
        let sent: Sent = (0..400).map(|number| f64::from(number) / 10.0).collect();
        let ages = |during: f64| {
            let mut account = Account::default();
            let done: Vec<Done> = sent
                .iter()
                .enumerate()
                .map(|(number, sent)| done(number, *sent, if *sent < 20.0 { 0.01 } else { during }))
                .collect();
            others(&mut account, &done, &sent, moments, 20.0);
            (account.is_right(), account.to_string())
        };
        let (right, text) = ages(0.0119);
        assert!(right && text.contains("p99 10.0 ms of 160"), "{text}");
        let (right, text) = ages(0.0121);
        assert!(!right && text.contains("FAIL others during: p50 12.1 ms"), "{text}");
        assert!(
            text.contains("200 during it were later than 12.0 ms, 10 of them in second 19"),
            "{text}"
        );
    }
}
