//! The cells as Markdown: mean over the seeds, and their standard deviation where there are several; then every row against
//! SFT of the same seed, which has the same annotations and the same test pictures.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::block::Block;
use super::cell::Cell;
use super::plot;
use super::row::Row;

/// (name in a cell, heading, per cent)
const COLUMNS: [(&str, &str, bool); 9] = [
    ("CHAIR_i", "CHAIR_i %", true),
    ("CHAIR_s", "CHAIR_s %", true),
    ("Cover", "Cover %", true),
    ("malformed", "malformed %", true),
    ("mean length", "words", false),
    ("colour error", "colour error %", true),
    ("number error", "number error %", true),
    ("place error", "place error %", true),
    ("POPE accuracy", "POPE adversarial %", true),
];

/// What is held against SFT, in percentage points.
const AGAINST_SFT: [&str; 4] = ["CHAIR_i", "Cover", "malformed", "POPE accuracy"];

/// Mean and sample standard deviation; the latter needs two values.
pub(crate) fn mean_and_spread(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let count = values.len() as f64;
    let mean = (count > 0.0).then(|| values.iter().sum::<f64>() / count)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt())))
}

/// The values of `measure` in the cells of `row`, one a seed.
pub(crate) fn values(cells: &[Cell], row: Row, block: Block, measure: &str) -> Vec<f64> {
    of(cells, row, block).filter_map(|cell| cell.value(measure)).collect()
}

fn of(cells: &[Cell], row: Row, block: Block) -> impl Iterator<Item = &Cell> {
    // The base needs no annotations; it is measured once and stands above each part of the table.
    let name = block.to_string();
    let wanted = move |cell: &&Cell| cell.row == row.key() && (row == Row::Base || cell.annotations == name);
    let most = if row == Row::Base { 1 } else { usize::MAX };
    cells.iter().filter(wanted).take(most)
}

pub(crate) fn markdown(cells: &[Cell], blocks: &[Block]) -> String {
    let mut text = String::new();
    for &block in blocks {
        let _ = writeln!(text, "{}\n", block.title());
        measures(&mut text, cells, block);
        against_sft(&mut text, cells, block);
    }
    text
}

fn measures(text: &mut String, cells: &[Cell], block: Block) {
    let headings = COLUMNS.map(|(_, heading, _)| heading);
    let _ = writeln!(text, "| row | rate | seeds | {} |\n|{}", headings.join(" | "), "---|".repeat(COLUMNS.len() + 3));
    for row in Row::ALL {
        let found: Vec<&Cell> = of(cells, row, block).collect();
        let Some(first) = found.first() else { continue };
        let rate = if row == Row::Base { "–".to_owned() } else { format!("{:e}", first.rate) };
        let _ = write!(text, "| {} | {rate} | {} |", row.title(), found.len());
        for (name, _, per_cent) in COLUMNS {
            let _ = write!(text, " {} |", shown(&values(cells, row, block, name), if per_cent { 100.0 } else { 1.0 }));
        }
        text.push('\n');
    }
    text.push('\n');
}

fn against_sft(text: &mut String, cells: &[Cell], block: Block) {
    let _ = writeln!(
        text,
        "| against SFT, points | {} |\n|{}",
        AGAINST_SFT.join(" | "),
        "---|".repeat(AGAINST_SFT.len() + 1)
    );
    for row in Row::ALL.into_iter().filter(|row| ![Row::Base, Row::Sft].contains(row)) {
        let pairs: Vec<(&Cell, &Cell)> = of(cells, row, block)
            .filter_map(|cell| Some((cell, of(cells, Row::Sft, block).find(|sft| sft.seed == cell.seed)?)))
            .collect();
        if pairs.is_empty() {
            continue;
        }
        let _ = write!(text, "| {} |", row.title());
        for name in AGAINST_SFT {
            let differences: Vec<f64> =
                pairs.iter().filter_map(|(cell, sft)| Some(cell.value(name)? - sft.value(name)?)).collect();
            let _ = write!(text, " {} |", shown(&differences, 100.0));
        }
        text.push('\n');
    }
    text.push('\n');
}

/// Mean and spread of `values` times `scale`.
fn shown(values: &[f64], scale: f64) -> String {
    match mean_and_spread(values) {
        None => "–".to_owned(),
        Some((mean, None)) => format!("{:.1}", mean * scale),
        Some((mean, Some(spread))) => format!("{:.1} ± {:.1}", mean * scale, spread * scale),
    }
}

/// `table.md` and `plot.svg` in `out`.
pub(crate) fn write(out: &Path, cells: &[Cell], blocks: &[Block]) -> Result<()> {
    fs_err::write(out.join("table.md"), markdown(cells, blocks))?;
    fs_err::write(out.join("plot.svg"), plot::svg(cells, blocks))?;
    Ok(())
}
