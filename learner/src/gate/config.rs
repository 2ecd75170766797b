//! `DIR/gate.toml`.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::bpo::config::ConfigError;
use crate::eval::Bootstrap;

/// What the gate asks. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Items (pictures, or questions whose answers are to stay) below which a check says nothing and is skipped, at least 1.
    /// Default 20. The gate does not pass when all checks are skipped that look at the length and the form of answers.
    pub min_items: usize,
    /// Confidence of "not worse", above 0.5 and below 1. Default 0.95.
    pub confidence: f64,
    /// Bootstrap resamples, at least 100. Default 2000.
    pub resamples: usize,
    /// Decides the resamples and the pocket's pictures. Default 0.
    pub seed: u64,
    /// Most held-out pairs to score; 0 for all. Default 256.
    pub max_pairs: usize,
    /// Most held-out prompts to answer; 0 answers none, and then only captions of a set show a collapse. Default 64.
    pub max_answers: usize,
    /// Most tokens of an answer. Default 256.
    pub max_answer_tokens: usize,
    /// How far log π(y⁺) may fall below the start's, nats per token of y⁺, at least 0. Default 0.2.
    pub max_chosen_drop: f64,
    /// How far the share of pairs with log π(y⁺) > log π(y⁻) may fall. Default 0.1.
    pub preference_margin: f64,
    /// By which factor answers may become longer or shorter in the mean, at least 1. Default 1.5.
    pub max_length_ratio: f64,
    /// How far the share of empty or unfinished answers, or of garbled captions, may rise. Default 0.1.
    pub broken_margin: f64,
    /// How far the share of refusals may rise. Default 0.02.
    pub refusal_margin: f64,
    /// The share of answers to the sets of kind `unchanged` that may differ from the start's. Default 0.1.
    pub change_margin: f64,
    /// How far CHAIR_i may rise. Default 0.02.
    pub chair_margin: f64,
    /// How far Cover may fall. Default 0.05.
    pub cover_margin: f64,
    /// How far POPE's accuracy may fall. Default 0.05.
    pub pope_margin: f64,
    /// Pictures of each kind of statistics from the pocket's world; asked of the pocket model only. 0: none. Default 400.
    pub pocket_images: usize,
    /// Evaluation sets of the operator's.
    pub sets: Vec<EvaluationSet>,
}

/// An evaluation set in one of the forms of [`crate::eval::set`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    /// What the checks are called.
    pub name: String,
    /// Its form.
    pub kind: SetKind,
    /// The JSONL file, relative to the run's directory.
    pub file: PathBuf,
    /// The directory of its images, relative to the run's directory. `unchanged` can do without.
    #[serde(default)]
    pub images: PathBuf,
    /// For captions: CHAIR's `synonyms.txt`, relative to the run's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synonyms: Option<PathBuf>,
}

/// The form of an evaluation set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetKind {
    /// Captions held against annotated objects: CHAIR and Cover.
    Captions,
    /// Yes/no questions about objects.
    Pope,
    /// Questions whose answers are to stay what they are; nobody says what is right.
    Unchanged,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            min_items: 20,
            confidence: 0.95,
            resamples: 2000,
            seed: 0,
            max_pairs: 256,
            max_answers: 64,
            max_answer_tokens: 256,
            max_chosen_drop: 0.2,
            preference_margin: 0.1,
            max_length_ratio: 1.5,
            broken_margin: 0.1,
            refusal_margin: 0.02,
            change_margin: 0.1,
            chair_margin: 0.02,
            cover_margin: 0.05,
            pope_margin: 0.05,
            pocket_images: 400,
            sets: Vec::new(),
        }
    }
}

impl GateConfig {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let message = error.to_string().trim().to_owned();
            ConfigError::Parse { path: path.to_owned(), message }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every key.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let margins = "at least 0 and at most 1";
        let checks = [
            ("min_items", self.min_items as f64, self.min_items >= 1, "at least 1"),
            ("confidence", self.confidence, self.confidence > 0.5 && self.confidence < 1.0, "above 0.5 and below 1"),
            ("resamples", self.resamples as f64, (100..=1_000_000).contains(&self.resamples), "from 100 to 1000000"),
            ("max_answer_tokens", self.max_answer_tokens as f64, self.max_answer_tokens >= 1, "at least 1"),
            ("max_chosen_drop", self.max_chosen_drop, self.max_chosen_drop >= 0.0, "at least 0"),
            ("max_length_ratio", self.max_length_ratio, self.max_length_ratio >= 1.0, "at least 1"),
            ("preference_margin", self.preference_margin, share(self.preference_margin), margins),
            ("broken_margin", self.broken_margin, share(self.broken_margin), margins),
            ("refusal_margin", self.refusal_margin, share(self.refusal_margin), margins),
            ("change_margin", self.change_margin, share(self.change_margin), margins),
            ("chair_margin", self.chair_margin, share(self.chair_margin), margins),
            ("cover_margin", self.cover_margin, share(self.cover_margin), margins),
            ("pope_margin", self.pope_margin, share(self.pope_margin), margins),
        ];
        for (key, value, ok, allowed) in checks {
            if !ok {
                return Err(ConfigError::OutOfRange { key, value: value.to_string(), allowed });
            }
        }
        for set in &self.sets {
            let empty = |path: &Path| path.as_os_str().is_empty();
            let without_images = empty(&set.images) && set.kind != SetKind::Unchanged;
            if empty(&set.file) || without_images || set.synonyms.as_deref().is_some_and(empty) {
                let allowed = "sets with a `file`, `images` unless their kind is `unchanged`, and no empty `synonyms`";
                return Err(ConfigError::OutOfRange { key: "sets", value: set.name.clone(), allowed });
            }
        }
        Ok(())
    }

    /// How intervals are made.
    pub(super) fn bootstrap(&self) -> Bootstrap {
        Bootstrap { resamples: self.resamples, confidence: self.confidence, seed: self.seed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GateConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate.toml");
        fs::write(&path, text).unwrap();
        GateConfig::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_is_the_default_and_toml_goes_round() {
        assert_eq!(parse("").unwrap(), GateConfig::default());
        let text = "[[sets]]\nname = \"coco\"\nkind = \"pope\"\nfile = \"a.jsonl\"\nimages = \"images\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.sets[0].kind, SetKind::Pope);
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn the_handbook_shows_every_key_with_its_default() {
        let handbook = include_str!("../../../docs/training.md");
        let gate = handbook.split("## The gate").nth(1).unwrap();
        let block = gate.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(parse(block).unwrap(), GateConfig::default());
        let shown: toml::Table = block.parse().unwrap();
        let known = toml::Table::try_from(GateConfig::default()).unwrap();
        let missing: Vec<&String> = known.keys().filter(|key| *key != "sets" && !shown.contains_key(*key)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        for (text, message) in [
            ("sets = [{name = 'a', kind = 'pope', file = 'a.jsonl'}]", "sets is a"),
            ("sets = [{name = 'a', kind = 'unchanged', file = ''}]", "sets is a"),
            ("min_item = 1", "unknown field `min_item`"),
            ("min_items = 0", "min_items is 0"),
            ("confidence = 1.0", "confidence is 1"),
            ("resamples = 10", "resamples is 10"),
            ("max_chosen_drop = -0.1", "max_chosen_drop is -0.1"),
            ("max_chosen_drop = nan", "max_chosen_drop is NaN"),
            ("max_length_ratio = 0.5", "max_length_ratio is 0.5"),
            ("cover_margin = 2.0", "cover_margin is 2"),
            ("[[sets]]\nname = \"x\"\nkind = \"vqa\"", "unknown variant `vqa`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
