//! What was seen while it went on.

use super::super::spread::{self, Spread, grouped};

/// One look.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// Seconds after the worker's start.
    pub(super) at: f64,
    pub(super) done: usize,
    /// Resident memory, in bytes: of the worker, and of RabbitMQ.
    pub(super) resident: u64,
    pub(super) rabbit: u64,
}

/// All of them, in their order.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Sample>);

const MIB: f64 = (1 << 20) as f64;

impl Samples {
    pub(super) fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    pub(super) fn last(&self) -> Sample {
        self.0.last().copied().unwrap_or_default()
    }

    /// How far it is, in a line.
    pub(super) fn progress(&self, published: usize) -> String {
        let last = self.last();
        format!(
            "{:>6.0} s  {:>10} done, {:>10} published, {:.0} MiB, RabbitMQ {:.0} MiB",
            last.at,
            grouped(last.done as f64, 0),
            grouped(published as f64, 0),
            last.resident as f64 / MIB,
            last.rabbit as f64 / MIB,
        )
    }

    /// When so many were done, between two looks in proportion.
    fn when(&self, done: usize) -> Option<f64> {
        let after = self.0.iter().position(|sample| sample.done >= done)?;
        let (later, earlier) = (self.0[after], after.checked_sub(1).map(|index| self.0[index]));
        let earlier = earlier.unwrap_or(later);
        let between = later.done - earlier.done;
        if between == 0 {
            return Some(later.at);
        }
        let share = (done - earlier.done.min(done)) as f64 / between as f64;
        Some(earlier.at + share * (later.at - earlier.at))
    }

    /// Requests a second in each of so many equal parts of all requests. The first part begins with
    /// the first request.
    pub(super) fn rates(&self, requests: usize, parts: usize) -> Vec<f64> {
        let ends: Vec<f64> =
            (0..=parts).filter_map(|part| self.when((requests * part / parts).max(1))).collect();
        let size = requests as f64 / parts as f64;
        ends.windows(2).map(|pair| size / (pair[1] - pair[0])).collect()
    }

    /// The worker's memory, in MiB, and that of RabbitMQ, in each of so many equal parts of the time.
    pub(super) fn memory(&self, parts: usize) -> Vec<(Spread, Spread)> {
        let all = self.last().at.max(f64::MIN_POSITIVE);
        let of = |sample: &Sample| ((sample.at / all * parts as f64) as usize).min(parts - 1);
        (0..parts)
            .map(|part| {
                let here = || self.0.iter().filter(|sample| of(sample) == part);
                let own = spread::of(here().map(|sample| sample.resident as f64 / MIB));
                let rabbit = spread::of(here().map(|sample| sample.rabbit as f64 / MIB));
                (own, rabbit)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let look =
            |at: f64, done: usize, mib: u64| Sample { at, done, resident: mib << 20, rabbit: 0 };
        Samples(vec![look(0.0, 0, 20), look(10.0, 100, 30), look(30.0, 200, 40)])
    }

    #[test]
    fn the_speed_of_each_part_is_taken_between_the_looks() {
        let rates = samples().rates(200, 2);
        assert!((rates[0] - 100.0 / 9.9).abs() < 0.01, "{rates:?}");
        assert_eq!(rates[1], 5.0);
        assert_eq!(samples().when(150), Some(20.0));
        assert_eq!(samples().when(201), None);
    }

    #[test]
    fn memory_is_told_by_time() {
        let memory: Vec<f64> = samples().memory(3).iter().map(|(own, _)| own.median).collect();
        assert_eq!(memory, [20.0, 30.0, 40.0]);
    }
}
