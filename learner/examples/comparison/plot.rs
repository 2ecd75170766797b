//! The cells as an SVG: CHAIR_i against Cover, one panel for each number of annotations. Better is to the lower right.

use std::fmt::Write as _;

use super::block::Block;
use super::cell::Cell;
use super::row::Row;
use super::table::{mean_and_spread, values};

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 34.0;
const SIDE: f64 = 300.0;
/// Between two lines of the grid, and what the axes end at a multiple of.
const GRID: f64 = 0.05;
/// Colours that stay apart for colour-blind eyes (Okabe and Ito).
const COLOURS: [&str; 10] =
    ["#000000", "#e69f00", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#8b4513", "#f0e442"];

pub(crate) fn svg(cells: &[Cell], blocks: &[Block]) -> String {
    let measured = |row: &Row| blocks.iter().any(|&block| mean(cells, *row, block, "CHAIR_i").is_some());
    let rows: Vec<Row> = Row::ALL.into_iter().filter(measured).collect();
    let width = WIDTH * blocks.len() as f64;
    let height = HEIGHT + 16.0 * rows.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let points = |measure| {
        Axis::over(blocks.iter().flat_map(move |&block| Row::ALL.map(|row| mean(cells, row, block, measure))))
    };
    let (cover, chair) = (points("Cover"), points("CHAIR_i"));
    for (panel, &block) in blocks.iter().enumerate() {
        draw(&mut text, cells, block, (cover, chair), WIDTH * panel as f64 + LEFT);
    }
    for (nth, row) in rows.into_iter().enumerate() {
        let y = HEIGHT + 16.0 * nth as f64;
        let (at, colour, title) = (LEFT + 10.0, colour(row), row.title().replace('`', ""));
        let _ = writeln!(text, "<circle cx=\"{LEFT}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>", y - 4.0);
        let _ = writeln!(text, "<text x=\"{at}\" y=\"{y}\">{title}</text>");
    }
    text.push_str("</svg>\n");
    text
}

fn colour(row: Row) -> &'static str {
    let nth = Row::ALL.iter().position(|one| *one == row);
    nth.map_or("#000000", |nth| COLOURS[nth % COLOURS.len()])
}

/// Mean and spread of a row, if it has been measured.
fn mean(cells: &[Cell], row: Row, block: Block, measure: &str) -> Option<(f64, f64)> {
    let (mean, spread) = mean_and_spread(&values(cells, row, block, measure))?;
    Some((mean, spread.unwrap_or(0.0)))
}

/// A range of shares that is drawn over `SIDE` pixels.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Holds all of `points` with their spread; at least one grid step long.
    fn over(points: impl Iterator<Item = Option<(f64, f64)>>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (mean, spread) in points.flatten() {
            low = low.min(mean - spread);
            high = high.max(mean + spread);
        }
        if low > high {
            return Self { low: 0.0, high: 1.0 };
        }
        let low = (low / GRID).floor() * GRID;
        Self { low, high: ((high / GRID).ceil() * GRID).max(low + GRID) }
    }

    /// Pixels from the low end.
    fn pixels(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low) * SIDE
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / GRID).round() as usize;
        (0..=count).map(move |tick| self.low + GRID * tick as f64)
    }
}

/// One panel, its left axis at `left`.
fn draw(text: &mut String, cells: &[Cell], block: Block, (cover, chair): (Axis, Axis), left: f64) {
    let (right, low) = (left + SIDE, TOP + SIDE);
    let x = |value: f64| left + cover.pixels(value);
    let y = |value: f64| low - chair.pixels(value);
    let _ = writeln!(text, "<text x=\"{left}\" y=\"18\" font-weight=\"600\">{}</text>", block.title());
    for value in cover.ticks() {
        let (at, label) = (x(value), value * 100.0);
        let _ = writeln!(text, "<path d=\"M{at:.1} {TOP}V{low}\" stroke=\"#dddddd\"/>");
        let _ = writeln!(text, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label:.0}</text>", low + 15.0);
    }
    for value in chair.ticks() {
        let (at, label) = (y(value), value * 100.0);
        let _ = writeln!(text, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#dddddd\"/>");
        let (end, base) = (left - 5.0, at + 4.0);
        let _ = writeln!(text, "<text x=\"{end}\" y=\"{base:.1}\" text-anchor=\"end\">{label:.0}</text>");
    }
    let _ = writeln!(text, "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">Cover %</text>", low + 30.0);
    let _ = writeln!(text, "<text x=\"{}\" y=\"{}\">CHAIR_i %</text>", left + 4.0, TOP + 12.0);
    for row in Row::ALL {
        let of = |measure| mean(cells, row, block, measure);
        let (Some((covered, dx)), Some((wrong, dy))) = (of("Cover"), of("CHAIR_i")) else {
            continue;
        };
        let (cx, cy, colour) = (x(covered), y(wrong), colour(row));
        let (from, to, top, bottom) = (x(covered - dx), x(covered + dx), y(wrong + dy), y(wrong - dy));
        let _ =
            writeln!(text, "<path d=\"M{from:.1} {cy:.1}H{to:.1}M{cx:.1} {bottom:.1}V{top:.1}\" stroke=\"{colour}\"/>");
        let _ = writeln!(text, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"/>");
    }
}
