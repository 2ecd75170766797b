//! One cell of the table: a row, a number of annotations, a seed and a learning rate, trained and measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use reground_learner::adapter::PeftAdapter;
use reground_learner::bpo::adamw::AdamWConfig;
use reground_learner::bpo::config::{
    CheckpointSection, DataSection, EvaluationSection, LoraSection, ModelSection, RunConfig, TrainSection,
};
use reground_learner::bpo::guard::GuardConfig;
use reground_learner::bpo::progress::Silent;
use reground_learner::bpo::trainer::{Control, Outcome};
use reground_learner::bpo::{dataset, launch};
use reground_learner::eval::measure::Measure;
use reground_learner::eval::pope_sampling::Absent;
use reground_learner::eval::run::{self, Asker};
use reground_learner::eval::{ImageSource, ModelAnswerer};
use reground_learner::model::{DeviceChoice, Lora, Model, Source, Workers};
use reground_learner::pocket::held_out::{self, PocketReader, Size};
use reground_learner::pocket::world::Statistics;
use serde::{Deserialize, Serialize};

use super::annotations::Annotations;
use super::block::Block;
use super::row::Row;

/// Pairs of an optimiser step.
const BATCH: usize = 16;
/// Longer than any answer of the pocket.
const MAX_TOKENS: usize = 64;
/// Questions asked at once.
const ASKED: usize = 64;

/// What a finished cell's JSON file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) row: String,
    /// [`Block`] as text; empty for the base.
    pub(crate) annotations: String,
    pub(crate) seed: u64,
    /// Peak learning rate; 0 for the base.
    pub(crate) rate: f64,
    pub(crate) steps: u64,
    /// `validation` or `test`.
    pub(crate) split: String,
    pub(crate) images: usize,
    /// By name; a measure without a value (nothing to divide by) is left out.
    pub(crate) measures: BTreeMap<String, f64>,
    pub(crate) seconds: f64,
}

impl Cell {
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.measures.get(name).copied()
    }

    /// What a learning rate is chosen by: the harmonic mean of Cover and 1 − CHAIR_i, times the share of captions that are
    /// well formed. Neither silence nor guessing nor garbling scores.
    pub(crate) fn score(&self) -> f64 {
        let right = 1.0 - self.value("CHAIR_i").unwrap_or(1.0);
        let cover = self.value("Cover").unwrap_or(0.0);
        let mean = if right + cover > 0.0 { 2.0 * right * cover / (right + cover) } else { 0.0 };
        mean * (1.0 - self.value("malformed").unwrap_or(1.0))
    }
}

/// What every cell shares.
pub(crate) struct Bench<'a> {
    pub(crate) source: &'a Source,
    pub(crate) model: &'a Model,
    pub(crate) workers: &'a Workers,
    pub(crate) out: &'a Path,
    /// For many annotations; see [`Block::steps`].
    pub(crate) steps: u64,
    pub(crate) images: usize,
}

/// Which pictures are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// For choosing learning rates; a quarter as many pictures, captions only.
    Validation,
    /// For the table.
    Test,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl Bench<'_> {
    /// The cell from its file, or trained and measured now.
    pub(crate) fn cell(
        &self,
        row: Row,
        (annotations, block, seed): (&dyn Fn() -> Result<Rc<Annotations>>, Block, u64),
        rate: f64,
        split: Split,
    ) -> Result<Cell> {
        let name =
            if row == Row::Base { "base".to_owned() } else { format!("{}-{}-{seed}-{rate:e}", row.key(), block.key()) };
        let file = self.out.join(format!("{name}-{}.json", split.name()));
        let steps = if row == Row::Base { 0 } else { block.steps(self.steps) };
        if let Ok(text) = fs_err::read_to_string(&file) {
            let cell: Cell = serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
            if cell.steps != steps || (split == Split::Test && cell.images != self.images) {
                bail!("{} has other steps or images; use another directory", file.display());
            }
            return Ok(cell);
        }
        let started = Instant::now();
        let adapter = match row {
            Row::Base => None,
            _ => Some(self.trained(row, annotations, (seed, steps), rate, &name)?),
        };
        let images = if split == Split::Validation { self.images.div_ceil(4) } else { self.images };
        let measures = self.measure(adapter.as_ref(), split, images)?;
        let cell = Cell {
            row: row.key().to_owned(),
            annotations: if row == Row::Base { String::new() } else { block.to_string() },
            seed: if row == Row::Base { 0 } else { seed },
            rate,
            steps,
            split: split.name().to_owned(),
            images,
            measures,
            seconds: started.elapsed().as_secs_f64(),
        };
        // Whole or not at all: beside it first, then renamed.
        let beside = file.with_extension("part");
        fs_err::write(&beside, serde_json::to_string_pretty(&cell)?)?;
        fs_err::rename(&beside, &file)?;
        eprintln!("{name} {}: score {:.3} after {:.0} s", split.name(), cell.score(), cell.seconds);
        Ok(cell)
    }

    /// The adapter of a run, which goes on where it was interrupted.
    fn trained(
        &self,
        row: Row,
        annotations: &dyn Fn() -> Result<Rc<Annotations>>,
        (seed, steps): (u64, u64),
        rate: f64,
        name: &str,
    ) -> Result<Lora> {
        let run = self.out.join("runs").join(name);
        let adapter = run.join("adapter");
        if !adapter.exists() {
            fs_err::create_dir_all(&run)?;
            let config = self.config(row, seed, rate);
            fs_err::write(run.join("run.toml"), toml::to_string(&config)?)?;
            if !run.join("dataset.jsonl").exists() {
                dataset::freeze(&run.join("dataset.jsonl"), &annotations()?.pairs(row, steps as usize * BATCH))?;
            }
            let pocket = || Some(self.source.clone());
            match launch::train(&run, DeviceChoice::Cpu, &pocket, &Control::default(), &mut Silent)? {
                Outcome::Finished { .. } => {}
                Outcome::Paused { step } => bail!("{name} paused at step {step}, which nobody asked for"),
            }
        }
        Ok(Lora::load(self.model.decoder(), &PeftAdapter::read(&adapter)?)?)
    }

    fn config(&self, row: Row, seed: u64, rate: f64) -> RunConfig {
        RunConfig {
            seed,
            model: ModelSection { base: launch::POCKET.to_owned(), ..ModelSection::default() },
            lora: LoraSection { rank: 16, alpha: 32.0, ..LoraSection::default() },
            loss: row.loss(),
            optimizer: AdamWConfig { learning_rate: rate, ..AdamWConfig::default() },
            train: TrainSection {
                epochs: 1.0,
                batch: BATCH,
                micro_batch: BATCH,
                // Pairs of like length in one batch would make the order depend on the negatives.
                bucket_batches: 1,
                threads: self.workers.count(),
                ..TrainSection::default()
            },
            data: DataSection { held_out: 0.0, blobs: PathBuf::from("../../blobs"), ..DataSection::default() },
            evaluation: EvaluationSection { every: 0, ..EvaluationSection::default() },
            // The table is to show what breaks a model, so nothing ends a run early.
            guard: GuardConfig { loss_ratio: 0.0, chosen_drop: 0.0, ..GuardConfig::default() },
            checkpoint: CheckpointSection { every: 50, ..CheckpointSection::default() },
            ..RunConfig::default()
        }
    }

    fn measure(&self, adapter: Option<&Lora>, split: Split, images: usize) -> Result<BTreeMap<String, f64>> {
        // Two seeds of held-out pictures; annotations come from streams of another purpose.
        let seed = if split == Split::Validation { 1 } else { 0 };
        let size = Size { images, pope_per_image: 1, seed };
        let mut answerer = ModelAnswerer::new(self.model, adapter, self.workers, MAX_TOKENS);
        let mut asker = Asker { answerer: &mut answerer, batch: ASKED, progress: &mut |_| () };
        let mut measures = BTreeMap::new();
        let mut add = |prefix: &str, found: Vec<Measure>| {
            for measure in found {
                if let Some(value) = measure.value() {
                    measures.insert(format!("{prefix}{}", measure.name()), value);
                }
            }
        };
        let examples = held_out::examples(Statistics::Balanced, images, size.seed);
        let by_name: BTreeMap<_, _> = examples.iter().map(|one| (one.name.clone(), one.image.clone())).collect();
        let image = |name: &str| {
            let found = by_name.get(name).cloned().map(ImageSource::Memory);
            found.ok_or_else(|| reground_learner::eval::EvalError::Empty(name.to_owned()))
        };
        let items = held_out::caption_items(&examples);
        add("", run::captions(&mut asker, &items, &PocketReader, &image)?);
        if split == Split::Test {
            let items = held_out::pope_items(&examples, Absent::Adversarial, size);
            add("POPE ", run::pope(&mut asker, &items, &image)?);
        }
        Ok(measures)
    }
}
