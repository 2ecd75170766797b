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
/// Colours that stay apart for colour-blind eyes (Okabe and Ito).
const COLOURS: [&str; 12] = [
    "#000000", "#e69f00", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#8b4513", "#f0e442",
    "#004d40", "#7b1fa2",
];

pub(crate) fn svg(cells: &[Cell], blocks: &[Block]) -> String {
    let width = WIDTH * blocks.len() as f64;
    let height = HEIGHT + 16.0 * Row::ALL.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (panel, &block) in blocks.iter().enumerate() {
        draw(&mut text, cells, block, WIDTH * panel as f64 + LEFT);
    }
    for (nth, row) in Row::ALL.iter().enumerate() {
        let y = HEIGHT + 16.0 * nth as f64;
        let (at, colour, title) = (LEFT + 10.0, COLOURS[nth], row.title().replace('`', ""));
        let _ = writeln!(text, "<circle cx=\"{LEFT}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>", y - 4.0);
        let _ = writeln!(text, "<text x=\"{at}\" y=\"{y}\">{title}</text>");
    }
    text.push_str("</svg>\n");
    text
}

/// One panel, its left axis at `left`.
fn draw(text: &mut String, cells: &[Cell], block: Block, left: f64) {
    let x = |cover: f64| left + cover * SIDE;
    let y = |chair: f64| TOP + SIDE - chair * SIDE;
    let _ = writeln!(text, "<text x=\"{left}\" y=\"18\" font-weight=\"600\">{}</text>", block.title());
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        let (tx, ty, low, label) = (x(value), y(value), TOP + SIDE, tick * 20);
        let right = left + SIDE;
        let _ = writeln!(text, "<path d=\"M{tx} {TOP}V{low}M{left} {ty}H{right}\" stroke=\"#dddddd\"/>");
        let _ = writeln!(text, "<text x=\"{tx}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", low + 15.0);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", left - 5.0, ty + 4.0);
    }
    let _ =
        writeln!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">Cover %</text>", left + SIDE, TOP + SIDE + 30.0);
    let _ = writeln!(text, "<text x=\"{}\" y=\"{}\">CHAIR_i %</text>", left + 4.0, TOP + 12.0);
    for (nth, &row) in Row::ALL.iter().enumerate() {
        let mean = |measure| mean_and_spread(&values(cells, row, block, measure));
        let (Some((cover, cover_spread)), Some((chair, chair_spread))) = (mean("Cover"), mean("CHAIR_i")) else {
            continue;
        };
        let (cx, cy, colour) = (x(cover), y(chair), COLOURS[nth]);
        let (dx, dy) = (cover_spread.unwrap_or(0.0) * SIDE, chair_spread.unwrap_or(0.0) * SIDE);
        let _ = writeln!(
            text,
            "<path d=\"M{} {cy}H{}M{cx} {}V{}\" stroke=\"{colour}\"/>",
            cx - dx,
            cx + dx,
            cy - dy,
            cy + dy
        );
        let _ = writeln!(text, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"/>");
    }
}
