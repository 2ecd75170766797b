//! The sections of `run.toml` that have no file of their own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bootstrap::distort::{Distortion, DistortionKind};
use crate::bpo::data::OnError;
use crate::bpo::loss::Loss;
use crate::model::Dtype;

/// Section `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// Directory of the base checkpoint (config.json, tokenizer.json, safetensors), relative to the run's directory, or
    /// `pocket` for the model that ships with the project. Default `pocket`.
    pub base: String,
    /// PEFT directory of the adapter to continue from, relative to the run's directory; empty starts a new one. Default
    /// empty.
    pub adapter: PathBuf,
    /// Number format of the base: `auto` (f32 on a CPU, bf16 on an accelerator), `f32` or `bf16`. Default `auto`.
    pub dtype: Dtype,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { base: "pocket".to_owned(), adapter: PathBuf::new(), dtype: Dtype::Auto }
    }
}

/// Section `[lora]`; ignored when `model.adapter` names one, which brings its own shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSection {
    /// r, rank, 1 to 1024. Default 64, the paper's.
    pub rank: usize,
    /// α; the update is scaled by α / r. Above 0. Default 256, the paper's.
    pub alpha: f64,
    /// Share of the adapter's inputs dropped while training, 0 ≤ p < 1. Default 0.05, the paper's.
    pub dropout: f64,
    /// Scale by α / √r instead (rsLoRA). Default false.
    pub rslora: bool,
    /// Names of the decoder's linear layers to adapt. Default all seven.
    pub targets: Vec<String>,
}

impl Default for LoraSection {
    fn default() -> Self {
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { rank: 64, alpha: 256.0, dropout: 0.05, rslora: false, targets: targets.map(str::to_owned).to_vec() }
    }
}

/// Where `[loss]` starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// [`Loss::paper`].
    Paper,
    /// [`Loss::anchored`] and length-matched negatives.
    #[default]
    Anchored,
    /// [`Loss::sft_only`].
    Sft,
}

/// Section `[loss]`: a preset, and what differs from it. The keys are those of [`Loss`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossSection {
    /// `paper`, `anchored` or `sft`. Default `anchored`.
    pub preset: Preset,
    /// β. Default 0.1.
    pub beta: Option<f64>,
    /// Weight of the BPO term.
    pub bpo: Option<f64>,
    /// Weight of the conditional term.
    pub conditional: Option<f64>,
    /// Weight of the anchor term.
    pub anchor: Option<f64>,
    /// δ of the anchor term.
    pub delta: Option<f64>,
    /// Weight of the supervised term.
    pub sft: Option<f64>,
    /// ε of robust DPO.
    pub label_smoothing: Option<f64>,
    /// Divide log-ratios by token counts.
    pub length_normalised: Option<bool>,
    /// Pairs whose answers' token counts differ by more than this factor are dropped; 0 keeps all, otherwise at least 1.
    /// Default 2 in `anchored`, 0 in `paper` and `sft`.
    pub max_length_ratio: Option<f64>,
}

impl LossSection {
    /// The preset with the differences applied.
    pub fn resolve(&self) -> Loss {
        let preset = match self.preset {
            Preset::Paper => Loss::paper(),
            Preset::Anchored => Loss::anchored(),
            Preset::Sft => Loss::sft_only(),
        };
        Loss {
            beta: self.beta.unwrap_or(preset.beta),
            bpo: self.bpo.unwrap_or(preset.bpo),
            conditional: self.conditional.unwrap_or(preset.conditional),
            anchor: self.anchor.unwrap_or(preset.anchor),
            delta: self.delta.unwrap_or(preset.delta),
            sft: self.sft.unwrap_or(preset.sft),
            label_smoothing: self.label_smoothing.unwrap_or(preset.label_smoothing),
            length_normalised: self.length_normalised.unwrap_or(preset.length_normalised),
        }
    }

    /// Largest factor between the answers' token counts; 0 for no limit.
    pub fn length_ratio(&self) -> f64 {
        self.max_length_ratio.unwrap_or(if self.preset == Preset::Anchored { 2.0 } else { 0.0 })
    }
}

/// Which policy is π_ref.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// The policy that the run starts from: the base, or base + the adapter being continued.
    #[default]
    Start,
    /// The base alone, also when an adapter is continued.
    Base,
}

/// Section `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Passes over the data, above 0; half a pass is 0.5. Default 2, the paper's.
    pub epochs: f64,
    /// Optimiser steps after which the run ends at the latest; 0 for no limit. Default 0.
    pub max_steps: u64,
    /// Pairs per optimiser step, at least 1. Default 32, the paper's.
    pub batch: usize,
    /// Most pairs in one forward pass, at least 1: the effective batch is accumulated from these. Default 8.
    pub micro_batch: usize,
    /// Most tokens (prompts and answers) in one forward pass, so that long pairs go through alone; 0 for no limit.
    /// Default 16384.
    pub micro_tokens: usize,
    /// Batches whose pairs are sorted by length together, so that one forward pass has answers of like length; 1 sorts
    /// inside each batch only. At least 1. Default 8.
    pub bucket_batches: usize,
    /// π_ref. Default `start`.
    pub reference: Reference,
    /// Threads for the CPU; 0 for all cores. Default 0. How work is shared among threads decides rounding and dropout masks:
    /// a run is repeated to the bit only with the same number.
    pub threads: usize,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: 2.0,
            max_steps: 0,
            batch: 32,
            micro_batch: 8,
            micro_tokens: 16384,
            bucket_batches: 8,
            reference: Reference::Start,
            threads: 0,
        }
    }
}

/// Section `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// Frozen pairs, relative to the run's directory. Default `dataset.jsonl`.
    pub dataset: PathBuf,
    /// BLAKE3 digest that the dataset was frozen with; empty is not checked. Default empty.
    pub digest: String,
    /// Directory of images by digest, relative to the run's directory. Default `../../blobs`.
    pub blobs: PathBuf,
    /// Share of the images whose pairs are held out for evaluation, 0 ≤ share < 1. Default 0.05.
    pub held_out: f64,
    /// Decides which images. A run that continues another's adapter must keep it: else what it holds out was trained on
    /// before. Default 0.
    pub held_out_seed: u64,
    /// Longest prompt, tokens, image tokens included; longer pairs are dropped. Default 8192.
    pub max_prompt_tokens: usize,
    /// Longest answer, tokens; pairs with a longer one are dropped. Default 1024.
    pub max_answer_tokens: usize,
    /// `skip` leaves out lines and pairs that cannot be used, `fail` ends the run at the first. Default `skip`.
    pub on_error: OnError,
    /// Longest side, pixels, to which an image is shrunk before it is distorted: about the model's input size, so that noise
    /// is not averaged away afterwards. At least 1. Default 512.
    pub distortion_edge: u32,
    /// Memory for image features, MiB; 0 computes them anew every time. Default 2048.
    pub feature_cache_mib: usize,
    /// ṽ for pairs that name none; the seed is made from the pair's id and the run's seed. Default diffusion noise, t = 900.
    pub distortion: Distortion,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            dataset: PathBuf::from("dataset.jsonl"),
            digest: String::new(),
            blobs: PathBuf::from("../../blobs"),
            held_out: 0.05,
            held_out_seed: 0,
            max_prompt_tokens: 8192,
            max_answer_tokens: 1024,
            on_error: OnError::Skip,
            distortion_edge: 512,
            feature_cache_mib: 2048,
            distortion: Distortion { kind: DistortionKind::Noise, strength: 900.0, seed: 0 },
        }
    }
}

/// Section `[evaluation]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSection {
    /// Optimiser steps between evaluations; 0 evaluates at the end only. Default 50.
    pub every: u64,
    /// Most held-out pairs to score; 0 for all. Default 256.
    pub max_pairs: usize,
    /// Score the distorted images too, for the image-conditional accuracy. Default true.
    pub conditional: bool,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        Self { every: 50, max_pairs: 256, conditional: true }
    }
}

/// Section `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Optimiser steps between checkpoints; 0 saves on pause and at the end only. Default 20.
    pub every: u64,
    /// Checkpoints kept, at least 2, so that a damaged newest one has a predecessor. Default 3.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 20, keep: 3 }
    }
}
