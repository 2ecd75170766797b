//! The cells as a Markdown table: mean over the seeds, and their standard deviation where there are several.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

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

/// Mean and sample standard deviation; the latter needs two values.
pub(crate) fn mean_and_spread(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let count = values.len() as f64;
    let mean = (count > 0.0).then(|| values.iter().sum::<f64>() / count)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt())))
}

/// The values of `measure` in the cells of `row`, one a seed.
pub(crate) fn values(cells: &[Cell], row: Row, annotations: usize, measure: &str) -> Vec<f64> {
    of(cells, row, annotations).filter_map(|cell| cell.value(measure)).collect()
}

fn of(cells: &[Cell], row: Row, annotations: usize) -> impl Iterator<Item = &Cell> {
    // The base needs no annotations; it is measured once and stands above each part of the table.
    let wanted = move |cell: &&Cell| cell.row == row.key() && (row == Row::Base || cell.annotations == annotations);
    let most = if row == Row::Base { 1 } else { usize::MAX };
    cells.iter().filter(wanted).take(most)
}

pub(crate) fn markdown(cells: &[Cell], annotations: &[usize]) -> String {
    let mut text = String::new();
    for &count in annotations {
        let headings: Vec<&str> = COLUMNS.iter().map(|(_, heading, _)| *heading).collect();
        let _ = writeln!(text, "{count} annotations\n\n| row | rate | seeds | {} |", headings.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(COLUMNS.len() + 3));
        for row in Row::ALL {
            let found: Vec<&Cell> = of(cells, row, count).collect();
            let Some(first) = found.first() else { continue };
            let rate = if row == Row::Base { "–".to_owned() } else { format!("{:e}", first.rate) };
            let _ = write!(text, "| {} | {rate} | {} |", row.title(), found.len());
            for (name, _, per_cent) in COLUMNS {
                let scale = if per_cent { 100.0 } else { 1.0 };
                let cell = match mean_and_spread(&values(cells, row, count, name)) {
                    None => "–".to_owned(),
                    Some((mean, None)) => format!("{:.1}", mean * scale),
                    Some((mean, Some(spread))) => format!("{:.1} ± {:.1}", mean * scale, spread * scale),
                };
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// `table.md` and `plot.svg` in `out`.
pub(crate) fn write(out: &Path, cells: &[Cell], annotations: &[usize]) -> Result<()> {
    fs_err::write(out.join("table.md"), markdown(cells, annotations))?;
    fs_err::write(out.join("plot.svg"), plot::svg(cells, annotations))?;
    Ok(())
}
