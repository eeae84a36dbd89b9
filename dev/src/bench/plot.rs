//! Plots as SVG: a handful of numbers as bars, or as lines. They are read on white and on black
//! alike, for they bring their own ground.

use std::fmt::Write as _;

use super::spread::{Spread, grouped};

const WIDTH: f64 = 760.0;
const FONT: &str = "font-family=\"Helvetica, Arial, sans-serif\"";
/// Told apart by people who do not see red and green as well: <https://jfly.uni-koeln.de/color/>.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#555555"];

/// Lying bars, each with its name, its number, and a line from the least to the most.
pub(super) fn bars(title: &str, decimals: usize, bars: &[(String, Spread)]) -> String {
    let (left, right, top, step) = (150.0, 110.0, 56.0, 30.0);
    let height = top + step * bars.len() as f64 + 14.0;
    let most =
        bars.iter().map(|(_, spread)| spread.most).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let x = |value: f64| left + value / most * (WIDTH - left - right);
    let mut svg = Svg::new(title, height);
    for (number, (name, spread)) in bars.iter().enumerate() {
        let y = top + step * number as f64;
        let (middle, end) = (y + step / 2.0, x(spread.median));
        svg.text(left - 8.0, middle + 4.0, "end", name);
        svg.rect(left, y + 5.0, end - left, step - 10.0, COLOURS[0]);
        svg.line((x(spread.least), middle), (x(spread.most), middle), "#222222", 1.5);
        let value = grouped(spread.median, decimals);
        svg.text(x(spread.most) + 8.0, middle + 4.0, "start", &value);
    }
    svg.end()
}

/// One line of a plot.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// Where each point lies.
    pub(super) points: Vec<(f64, Spread)>,
}

/// Points that are joined, with a line from the least to the most at each.
#[derive(Debug, Clone)]
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    pub(super) across: &'a str,
    pub(super) up: &'a str,
    /// What stands below the axis, and where.
    pub(super) marks: Vec<(f64, String)>,
    pub(super) series: Vec<Series>,
    /// Whether each step up is ten times the last.
    pub(super) tenfold: bool,
}

impl Lines<'_> {
    pub(super) fn draw(&self) -> String {
        let (left, right, top, bottom, height) = (76.0, 190.0, 64.0, 52.0, 380.0);
        let all = || self.series.iter().flat_map(|series| &series.points);
        let most = all().map(|(_, spread)| spread.most).fold(0.0, f64::max);
        let least = all().map(|(_, spread)| spread.least).fold(f64::INFINITY, f64::min);
        let ticks = if self.tenfold { tenfold(least, most) } else { even(most) };
        let (low, high) = ends(&ticks);
        let share = |value: f64| {
            if self.tenfold {
                (value.max(low).log10() - low.log10()) / (high.log10() - low.log10())
            } else {
                value / high
            }
        };
        let y = |value: f64| height - bottom - share(value) * (height - top - bottom);
        let at = self.marks.iter().map(|(at, _)| *at).chain(all().map(|(at, _)| *at));
        let (from, to) = at
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), at| (from.min(at), to.max(at)));
        let wide = (to - from).max(f64::MIN_POSITIVE);
        let x = |value: f64| left + 16.0 + (value - from) / wide * (WIDTH - left - right - 32.0);

        let mut svg = Svg::new(self.title, height);
        svg.text(left - 60.0, top - 14.0, "start", self.up);
        for tick in &ticks {
            svg.line((left, y(*tick)), (WIDTH - right, y(*tick)), "#dddddd", 1.0);
            svg.text(left - 8.0, y(*tick) + 4.0, "end", &grouped(*tick, decimals(*tick)));
        }
        for (at, mark) in &self.marks {
            svg.text(x(*at), height - bottom + 20.0, "middle", mark);
        }
        svg.text((left + WIDTH - right) / 2.0, height - 10.0, "middle", self.across);
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points: Vec<(f64, f64)> =
                series.points.iter().map(|(at, spread)| (x(*at), y(spread.median))).collect();
            svg.path(&points, colour);
            for ((at, spread), point) in series.points.iter().zip(&points) {
                if spread.least < spread.most {
                    svg.line((x(*at), y(spread.least)), (x(*at), y(spread.most)), colour, 1.5);
                }
                if series.points.len() < 30 {
                    svg.dot(*point, colour);
                }
            }
            let line = top + 20.0 * number as f64;
            svg.rect(WIDTH - right + 16.0, line, 12.0, 12.0, colour);
            svg.text(WIDTH - right + 34.0, line + 11.0, "start", &series.name);
        }
        svg.end()
    }
}

/// About five steps from nothing to more than the most.
fn even(most: f64) -> Vec<f64> {
    let rough = (most / 5.0).max(f64::MIN_POSITIVE);
    let size = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * size);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
    (0..=(most / step).ceil() as usize).map(|number| step * number as f64).collect()
}

/// Powers of ten around all that there is.
fn tenfold(least: f64, most: f64) -> Vec<f64> {
    let from = least.max(1e-3).log10().floor() as i32;
    let to = (most.max(1e-3).log10().ceil() as i32).max(from + 1);
    (from..=to).map(|power| 10_f64.powi(power)).collect()
}

fn ends(ticks: &[f64]) -> (f64, f64) {
    let end = |tick: Option<&f64>| tick.copied().unwrap_or(1.0);
    (end(ticks.first()), end(ticks.last()).max(f64::MIN_POSITIVE))
}

fn decimals(tick: f64) -> usize {
    if tick == 0.0 || tick >= 1.0 { 0 } else { (-tick.log10().floor()) as usize }
}

/// A drawing that has been begun.
struct Svg(String);

impl Svg {
    fn new(title: &str, height: f64) -> Self {
        let mut svg = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" font-size=\"13\" {FONT}>\n\
             <title>{}</title>\n",
            escaped(title)
        ));
        svg.rect(0.0, 0.0, WIDTH, height, "#ffffff");
        svg.push(format_args!(
            "<text x=\"16\" y=\"28\" font-size=\"16\" font-weight=\"bold\" fill=\"#222222\">{}</text>",
            escaped(title)
        ));
        svg
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _written = writeln!(self.0, "{element}").is_ok();
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.push(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{}</text>",
            escaped(text)
        ));
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        self.push(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        ));
    }

    fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        ));
    }

    fn dot(&mut self, (x, y): (f64, f64), colour: &str) {
        self.push(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"));
    }

    fn end(self) -> String {
        self.0 + "</svg>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{super::spread, *};

    #[test]
    fn steps_are_round_and_reach_the_most() {
        assert_eq!(even(94_000.0), [0.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0, 100_000.0]);
        assert_eq!(even(5.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(tenfold(0.7, 30.0), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(tenfold(1.0, 1.0), [1.0, 10.0]);
    }

    #[test]
    fn the_longest_bar_ends_before_its_number() {
        let two = [("a<b".to_owned(), spread::of([1.0])), ("c".to_owned(), spread::of([2.0]))];
        let svg = bars("speed", 0, &two);
        assert!(svg.contains("a&lt;b") && svg.contains("width=\"500.0\""), "{svg}");
        assert!(svg.contains("width=\"250.0\""), "{svg}");
    }

    #[test]
    fn the_most_lies_at_the_top_and_nothing_at_the_bottom() {
        let points = vec![(1.0, spread::of([0.0])), (8.0, spread::of([10.0]))];
        let plot = Lines {
            title: "t",
            across: "x",
            up: "y",
            marks: vec![(1.0, "1".into()), (8.0, "8".into())],
            series: vec![Series { name: "s".into(), points }],
            tenfold: false,
        };
        assert!(plot.draw().contains("points=\"92.0,328.0 554.0,64.0\""), "{}", plot.draw());
    }
}
