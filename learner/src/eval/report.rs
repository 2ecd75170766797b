//! Results as JSON and as a table to read.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::measure::{Bootstrap, Estimate, Measure};

/// Everything measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was measured, e.g. a generation's id.
    pub subject: String,
    /// The confidence of the intervals, e.g. 0.95.
    pub confidence: f64,
    /// One section an evaluation set.
    pub sections: Vec<Section>,
}

/// The measures of one evaluation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// The set's name, e.g. "captions, balanced".
    pub name: String,
    /// What was measured on it.
    pub estimates: Vec<Estimate>,
}

impl Report {
    /// An empty report on `subject`.
    pub fn new(subject: impl Into<String>, bootstrap: Bootstrap) -> Self {
        Self { subject: subject.into(), confidence: bootstrap.confidence, sections: Vec::new() }
    }

    /// Adds the measures of one set.
    pub fn add(&mut self, name: impl Into<String>, measures: &[Measure], bootstrap: Bootstrap) {
        let estimates = measures.iter().map(|measure| measure.estimate(bootstrap)).collect();
        self.sections.push(Section { name: name.into(), estimates });
    }

    /// The estimate of `measure` in `section`, if both are there.
    pub fn estimate(&self, section: &str, measure: &str) -> Option<&Estimate> {
        let section = self.sections.iter().find(|candidate| candidate.name == section)?;
        section.estimates.iter().find(|estimate| estimate.name == measure)
    }
}

impl fmt::Display for Report {
    /// A Markdown table, columns aligned so that it also reads in a terminal.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["set", "measure", "value", "interval", "items"].map(str::to_owned);
        let mut rows = vec![header];
        for section in &self.sections {
            for estimate in &section.estimates {
                rows.push([
                    section.name.clone(),
                    estimate.name.clone(),
                    number(estimate.value),
                    format!("{} … {}", number(estimate.low), number(estimate.high)),
                    estimate.items.to_string(),
                ]);
            }
        }
        let widths: Vec<usize> =
            (0..5).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        writeln!(formatter, "{} ({:.0} % intervals)\n", self.subject, self.confidence * 100.0)?;
        for (index, row) in rows.iter().enumerate() {
            for (cell, &width) in row.iter().zip(&widths) {
                write!(formatter, "| {cell:<width$} ")?;
            }
            writeln!(formatter, "|")?;
            if index == 0 {
                for &width in &widths {
                    write!(formatter, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(formatter, "|")?;
            }
        }
        Ok(())
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_table_and_survives_json() {
        let bootstrap = Bootstrap { resamples: 100, ..Bootstrap::default() };
        let mut report = Report::new("base", bootstrap);
        report.add(
            "captions",
            &[Measure::share("CHAIR_s", [true, false]), Measure::new("place error", [(0.0, 0.0)])],
            bootstrap,
        );
        let table = report.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "base (95 % intervals)");
        assert!(lines[2].starts_with("| set      | measure     | value |"), "{table}");
        assert!(lines[4].starts_with("| captions | CHAIR_s     | 0.500 |"), "{table}");
        assert!(lines[5].contains("| –     | – … –"), "{table}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert_eq!(report.estimate("captions", "CHAIR_s").and_then(|estimate| estimate.value), Some(0.5));
        assert_eq!(report.estimate("captions", "Cover"), None);
    }
}
