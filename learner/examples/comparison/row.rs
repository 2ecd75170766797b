//! The rows of the table: what is trained on which negatives with which loss.

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
}

impl Row {
    pub(crate) const ALL: [Self; 7] =
        [Self::Base, Self::Sft, Self::Anchored, Self::Conditional, Self::Paper, Self::Weakened, Self::Injected];

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
        }
    }

    /// Whether its pairs have image-weakened and injected negatives; neither: annotations alone.
    pub(crate) fn negatives(self) -> (bool, bool) {
        match self {
            Self::Base | Self::Sft => (false, false),
            Self::Weakened => (true, false),
            Self::Injected => (false, true),
            Self::Paper | Self::Anchored | Self::Conditional => (true, true),
        }
    }

    pub(crate) fn loss(self) -> LossSection {
        let preset = |preset| LossSection { preset, ..LossSection::default() };
        match self {
            Self::Base | Self::Sft => preset(Preset::Sft),
            Self::Paper => preset(Preset::Paper),
            Self::Weakened | Self::Injected | Self::Anchored => preset(Preset::Anchored),
            Self::Conditional => LossSection { conditional: Some(1.0), ..preset(Preset::Anchored) },
        }
    }

    /// Learning rates to choose from, as many for each row. Without a supervised term a small model breaks at rates at which
    /// the others learn.
    pub(crate) fn rates(self) -> &'static [f64] {
        match self {
            Self::Base => &[],
            Self::Paper => &[3e-5, 1e-4, 3e-4],
            _ => &[3e-4, 1e-3, 3e-3],
        }
    }
}
