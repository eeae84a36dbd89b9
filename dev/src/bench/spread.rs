//! A handful of measurements of the same thing.

use std::fmt;

/// Where they lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// The spread of some numbers; of none it is nothing but zeros.
pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    Spread {
        median: (quantile(&numbers, 0.5) + upper_half(&numbers)) / 2.0,
        least: numbers.first().copied().unwrap_or_default(),
        most: numbers.last().copied().unwrap_or_default(),
    }
}

/// The smallest of the sorted numbers below or at which lies this share of them.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The upper one of the two in the middle of an even number.
fn upper_half(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Spread {
    /// `median (least–most)`, with this many decimals; the bracket only where there is a spread.
    pub(super) fn show(&self, decimals: usize) -> String {
        let number = |value: f64| grouped(value, decimals);
        if self.least == self.most {
            return number(self.median);
        }
        format!("{} ({}–{})", number(self.median), number(self.least), number(self.most))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show(0))
    }
}

/// With a comma after each three digits.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(of([5.0, 1.0, 3.0]), Spread { median: 3.0, least: 1.0, most: 5.0 });
        assert_eq!(of([4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(of([]).median, 0.0);
    }

    #[test]
    fn a_quantile_is_one_of_the_numbers() {
        let numbers: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&numbers, 0.5), 50.0);
        assert_eq!(quantile(&numbers, 0.99), 99.0);
        assert_eq!(quantile(&numbers[..3], 0.99), 3.0);
    }

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        assert_eq!(of([1_234_567.0, 1_000.0, 2_000.4]).show(0), "2,000 (1,000–1,234,567)");
        assert_eq!(of([0.25]).show(2), "0.25");
        assert_eq!(grouped(-123_456.5, 1), "-123,456.5");
    }
}
