//! The parts of the table: what the rows of one part have in common.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

use super::row::Row;

/// What is annotated, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Balanced pictures, of which every object is named.
    Balanced,
    /// Balanced pictures, of which one object is named, whatever else is there: right, but less than what the model says by
    /// itself.
    OneObject,
    /// Balanced pictures that nobody annotated: what the model says of them by itself, where the grounding filter lets it pass.
    Own,
    /// Pictures of the world that the model was pretrained on, habits included, of which every object is named.
    Typical,
}

impl Kind {
    /// In options and files; nothing for the first.
    fn suffix(self) -> &'static str {
        match self {
            Self::Balanced => "",
            Self::OneObject => ":one",
            Self::Own => ":self",
            Self::Typical => ":typical",
        }
    }
}

/// A part of the table; as text `1600`, `1600:one`, `1600:self` or `1600:typical`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) annotations: usize,
    pub(crate) kind: Kind,
}

impl Block {
    /// In the table.
    pub(crate) fn title(self) -> String {
        let kind = match self.kind {
            Kind::Own => return format!("{} answers of its own, and no annotation", self.annotations),
            Kind::Balanced => "",
            Kind::OneObject => " that name one object",
            Kind::Typical => " of typical pictures",
        };
        format!("{} annotations{kind}", self.annotations)
    }

    /// In files.
    pub(crate) fn key(self) -> String {
        self.to_string().replace(':', "-")
    }

    /// Its rows.
    pub(crate) fn rows(self) -> &'static [Row] {
        match self.kind {
            Kind::Balanced => {
                &[Row::Base, Row::Sft, Row::Weakened, Row::Injected, Row::Anchored, Row::Conditional, Row::Paper]
            }
            Kind::Typical => &[Row::Base, Row::Sft, Row::Anchored, Row::Paper],
            Kind::OneObject | Kind::Own => {
                &[Row::Base, Row::Sft, Row::Anchored, Row::StrictPaper, Row::StrictWeakened, Row::StrictInjected]
            }
        }
    }

    /// Optimiser steps of its runs, where a run on many annotations takes `steps`.
    pub(crate) fn steps(self, steps: u64) -> u64 {
        if self.few() { steps.div_ceil(2) } else { steps }
    }

    /// Learning rates to choose from, as many for each row, around what a coarser search found: answers that are seen again and
    /// again want smaller ones, and without a supervised term a small model breaks at rates at which the others learn.
    pub(crate) fn rates(self, row: Row) -> &'static [f64] {
        match row {
            Row::Base => &[],
            Row::Paper => &[1e-4, 3e-4],
            Row::StrictPaper | Row::StrictWeakened | Row::StrictInjected => &[3e-4, 1e-3],
            _ if self.few() => &[3e-4, 1e-3],
            _ => &[1e-3, 3e-3],
        }
    }

    /// Whether a run sees an annotation many times.
    fn few(self) -> bool {
        self.annotations < 1000
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.annotations, self.kind.suffix())
    }
}

impl FromStr for Block {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (count, kind) = match text.split_once(':') {
            None => (text, Kind::Balanced),
            Some((count, "one")) => (count, Kind::OneObject),
            Some((count, "self")) => (count, Kind::Own),
            Some((count, "typical")) => (count, Kind::Typical),
            Some((_, other)) => {
                bail!("a number of annotations is followed by `:one`, `:self`, `:typical` or nothing, not {other:?}")
            }
        };
        let annotations = count.parse().with_context(|| format!("{count:?} is no number of annotations"))?;
        if annotations == 0 {
            bail!("0 annotations teach nothing");
        }
        Ok(Self { annotations, kind })
    }
}
