//! A line chart as inline SVG; colours come from the page's style, so that it follows light and dark.

use std::fmt::Write as _;

use super::report::escape;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    /// (step, value); only finite values are drawn.
    pub(super) points: Vec<(f64, f64)>,
}

/// A titled chart of one or two lines over optimiser steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) series: Vec<Series>,
}

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 22.0;
/// More points than this are averaged in groups: a page of 100,000 steps should still open.
const POINTS: usize = 500;

impl Chart {
    pub(super) fn svg(&self) -> String {
        let series = self.series.iter().map(|series| thin(&series.points)).collect::<Vec<_>>();
        let all = || series.iter().flatten();
        let (x0, x1) = bounds(all().map(|point| point.0));
        let ticks = ticks(bounds(all().map(|point| point.1)));
        let (y0, y1) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

        let mut out = String::new();
        let title = escape(&self.title);
        let _ = write!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
        let _ = write!(out, "<text x=\"0\" y=\"12\" font-weight=\"600\">{title}</text>");
        for tick in &ticks {
            let at = y(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            );
            let (label, at) = (number(*tick), at + 4.0);
            let _ = write!(
                out,
                "<text class=\"faint\" x=\"{}\" y=\"{at:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0
            );
        }
        for (value, anchor) in [(x0, "start"), (x1, "end")] {
            let at = x(value);
            let _ = write!(
                out,
                "<text class=\"faint\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                HEIGHT - 6.0,
                number(value)
            );
        }
        let mut label = LEFT;
        for (at, (points, named)) in series.iter().zip(&self.series).enumerate() {
            let colour = at % 2;
            let mut path = String::new();
            for (nth, point) in points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if nth == 0 { "M" } else { "L" }, x(point.0), y(point.1));
            }
            let _ = write!(out, "<path class=\"c{colour}\" d=\"{path}\"/>");
            if let [only] = points.as_slice() {
                let _ = write!(
                    out,
                    "<circle class=\"k{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>",
                    x(only.0),
                    y(only.1)
                );
            }
            let last = points.last().map_or(String::new(), |point| format!(" {}", number(point.1)));
            let text = format!("{}{last}", escape(&named.name));
            let _ = write!(out, "<text class=\"k{colour}\" x=\"{label:.1}\" y=\"26\">{text}</text>");
            label += 7.0 * text.chars().count() as f64 + 14.0;
        }
        out.push_str("</svg>");
        out
    }
}

fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite = points.iter().filter(|point| point.1.is_finite()).copied().collect::<Vec<_>>();
    let size = finite.len().div_ceil(POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let (x, y) = group.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (x / group.len() as f64, y / group.len() as f64)
    };
    if size == 1 { finite } else { finite.chunks(size).map(mean).collect() }
}

/// Smallest and largest value, never equal, so that nothing is divided by zero.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match (low.is_finite() && high.is_finite(), high > low) {
        (true, true) => (low, high),
        (true, false) => (low - low.abs().max(1e-9) * 0.5, high + high.abs().max(1e-9) * 0.5),
        (false, _) => (0.0, 1.0),
    }
}

/// Round numbers that enclose the range: steps of 1, 2 or 5 times a power of ten.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(power);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|nth| nth as f64 * step).collect()
}

fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.3}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(
            ticks((0.0, 0.69)).iter().map(|tick| number(*tick)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8"]
        );
        assert_eq!(ticks((-1.0, 3.0)).iter().map(|tick| number(*tick)).collect::<Vec<_>>(), ["-1", "0", "1", "2", "3"]);
        assert_eq!(number(2e-6), "2.0e-6");
    }

    #[test]
    fn long_runs_are_thinned_and_lonely_points_are_seen() {
        let points = (0..10_000).map(|at| (f64::from(at), 1.0)).collect::<Vec<_>>();
        assert_eq!(thin(&points).len(), 500);
        let lonely =
            Chart { title: "one".to_owned(), series: vec![Series { name: "a".to_owned(), points: vec![(1.0, 0.5)] }] };
        assert!(lonely.svg().contains("<circle"));
    }

    proptest! {
        #[test]
        fn any_values_give_finite_coordinates(values in prop::collection::vec(any::<f64>(), 0..30)) {
            let values = values.into_iter().map(|value| value.clamp(-1e12, 1e12));
            let points = values.enumerate().map(|(at, value)| (at as f64, value)).collect();
            let svg = Chart { title: "t".to_owned(), series: vec![Series { name: "s".to_owned(), points }] }.svg();
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
