//! What is asked of the numbers, and whether they are so.

use super::{
    spread::Spread,
    table::{row, table},
};

/// One thing that is asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    what: &'static str,
    bound: Bound,
    decimals: usize,
    unit: &'static str,
    /// Nothing where it was not measured.
    seen: Option<Spread>,
}

/// On which side of a number the median has to lie.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    Below(f64),
}

impl Asked {
    pub(super) fn new(what: &'static str, bound: Bound, seen: Option<Spread>) -> Self {
        Self { what, bound, decimals: 2, unit: "", seen }
    }

    /// How its numbers are shown.
    pub(super) fn shown(self, decimals: usize, unit: &'static str) -> Self {
        Self { decimals, unit, ..self }
    }

    fn verdict(&self) -> &'static str {
        let Some(seen) = self.seen else { return "not measured" };
        let holds = match self.bound {
            Bound::AtLeast(bound) => seen.median >= bound,
            Bound::Below(bound) => seen.median < bound,
        };
        if holds { "PASS" } else { "short of it" }
    }

    fn row(&self) -> Vec<String> {
        let number = |value| super::spread::grouped(value, self.decimals);
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {}", number(bound)),
            Bound::Below(bound) => format!("< {}", number(bound)),
        };
        let show = |seen: Spread| seen.show(self.decimals) + self.unit;
        let seen = self.seen.map_or_else(|| "–".to_owned(), show);
        vec![self.what.to_owned(), bound + self.unit, seen, self.verdict().to_owned()]
    }
}

/// All of it, with what was seen.
pub(super) fn show(asked: &[Asked]) -> String {
    let mut rows = vec![row(["what is asked", "target", "seen", ""])];
    rows.extend(asked.iter().map(Asked::row));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::{super::spread, *};

    #[test]
    fn the_median_decides() {
        let seen = |numbers: [f64; 3]| Some(spread::of(numbers));
        let five = |seen| Asked::new("five times", Bound::AtLeast(5.0), seen);
        assert_eq!(five(seen([4.0, 5.0, 9.0])).verdict(), "PASS");
        assert_eq!(five(seen([4.0, 4.9, 9.0])).verdict(), "short of it");
        assert_eq!(five(None).verdict(), "not measured");
        let age = Asked::new("age", Bound::Below(6.0), seen([6.0, 6.0, 6.0])).shown(1, " ms");
        assert_eq!(age.verdict(), "short of it");
        assert_eq!(age.row(), row(["age", "< 6.0 ms", "6.0 ms", "short of it"]));
    }
}
