//! The rows of the table: what is trained on which negatives with which loss.

use std::str::FromStr;

use anyhow::{Context, Error, Result};
use reground_learner::bpo::config::{LossSection, Preset};

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    /// The pocket as it is.
    Base,
    /// The chosen answers alone.
    Sft,
    /// Image weakening alone, `anchored`.
    Weakened,
    /// Error injection alone, `anchored`.
    Injected,
    /// Both negatives, the paper's loss.
    Paper,
    /// Both negatives, `anchored`.
    Anchored,
    /// Both negatives, `anchored` and the conditional term.
    Conditional,
    /// Both negatives, the paper's loss with β = 1.
    StrictPaper,
    /// Image weakening alone, the paper's loss with β = 1.
    StrictWeakened,
    /// Error injection alone, the paper's loss with β = 1.
    StrictInjected,
}

/// Which negatives a row's pairs have; neither: annotations alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Negatives {
    pub(crate) weakened: bool,
    pub(crate) injected: bool,
}

impl Row {
    pub(crate) const ALL: [Self; 10] = [
        Self::Base,
        Self::Sft,
        Self::Weakened,
        Self::Injected,
        Self::Anchored,
        Self::Conditional,
        Self::Paper,
        Self::StrictPaper,
        Self::StrictWeakened,
        Self::StrictInjected,
    ];

    /// In files.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Sft => "sft",
            Self::Weakened => "weakened",
            Self::Injected => "injected",
            Self::Paper => "paper",
            Self::Anchored => "anchored",
            Self::Conditional => "conditional",
            Self::StrictPaper => "strict-paper",
            Self::StrictWeakened => "strict-weakened",
            Self::StrictInjected => "strict-injected",
        }
    }

    /// In the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Sft => "SFT",
            Self::Weakened => "BPO, image-weakened only",
            Self::Injected => "BPO, injected only",
            Self::Paper => "BPO, both, `paper`",
            Self::Anchored => "BPO, both, `anchored`",
            Self::Conditional => "BPO, both, `anchored` + conditional",
            Self::StrictPaper => "BPO, both, `paper`, β = 1",
            Self::StrictWeakened => "BPO, image-weakened only, `paper`, β = 1",
            Self::StrictInjected => "BPO, injected only, `paper`, β = 1",
        }
    }

    pub(crate) fn negatives(self) -> Negatives {
        let (weakened, injected) = match self {
            Self::Base | Self::Sft => (false, false),
            Self::Weakened | Self::StrictWeakened => (true, false),
            Self::Injected | Self::StrictInjected => (false, true),
            _ => (true, true),
        };
        Negatives { weakened, injected }
    }

    pub(crate) fn loss(self) -> LossSection {
        // Negatives are matched in length when they are made; dropping pairs here would take chosen answers from a row.
        let preset = |preset| LossSection { preset, max_length_ratio: Some(0.0), ..LossSection::default() };
        match self {
            Self::Base | Self::Sft => preset(Preset::Sft),
            Self::Paper => preset(Preset::Paper),
            Self::StrictPaper | Self::StrictWeakened | Self::StrictInjected => {
                LossSection { beta: Some(1.0), ..preset(Preset::Paper) }
            }
            Self::Weakened | Self::Injected | Self::Anchored => preset(Preset::Anchored),
            Self::Conditional => LossSection { conditional: Some(1.0), ..preset(Preset::Anchored) },
        }
    }
}

impl FromStr for Row {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let keys = Self::ALL.map(Self::key).join(", ");
        Self::ALL
            .into_iter()
            .find(|row| row.key() == text)
            .with_context(|| format!("no row {text:?}; there are {keys}"))
    }
}
