//! `train --run DIR` on a real model: loads the base and the starting adapter, runs, and writes the adapter as PEFT has it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use fs_err as fs;
use image::DynamicImage;

use super::config::{LoraSection, RunConfig};
use super::error::TrainError;
use super::examples::ExampleError;
use super::pair::{Message, Part};
use super::prepare::Encoder;
use super::progress::{Event, Progress};
use super::run::{self, Parts};
use super::seed::{self, Purpose};
use super::trainer::{Control, Outcome};
use crate::adapter::{AdapterConfig, Naming, PeftAdapter, TargetModules, checkpoint_files};
use crate::gate::{self, GateError};
use crate::model::{self, DeviceChoice, ImageInput, Lora, LoraPolicy, Model, PolicyOptions, Source, Workers};

/// The value of `model.base` that means the model that ships with the project.
pub const POCKET: &str = "pocket";

/// Files of a checkpoint, besides its tensors, that decide what it answers.
const FILES: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Trains the run in `dir` on `device` as `DIR/run.toml` says. `pocket` gives the files of the model that ships with the project; it is
/// asked only when `model.base` is [`POCKET`]. With a `DIR/gate.toml`, the gate looks at the adapter ([`crate::gate`]); what
/// it finds does not change the outcome.
///
/// # Errors
/// The reason why there is no adapter, or no verdict on it; also sent to `progress`.
pub fn train(
    dir: &Path,
    device: DeviceChoice,
    pocket: &dyn Fn() -> Option<Source>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Outcome, TrainError> {
    let loaded = RunConfig::load(&dir.join("run.toml")).map_err(TrainError::from).and_then(|config| {
        let loaded = load(dir, &config, device, pocket)?;
        Ok((config, loaded))
    });
    let (config, Loaded { mut policy, encoder, digest }) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            run::announce_failure(dir, &error, progress);
            return Err(error);
        }
    };
    let write_adapter = |policy: &LoraPolicy, path: &Path| -> Result<(), ExampleError> {
        Ok(policy.lora().to_adapter()?.write(path, Naming::Checkpoint)?)
    };
    let parts = Parts { policy: &mut policy, encoder: &encoder, base_digest: &digest, write_adapter: &write_adapter };
    let outcome = run::train(dir, &config, parts, control, progress)?;
    if let Outcome::Finished { .. } = outcome {
        judge(dir, &config, &gate::run::Base { encoder: &encoder, digest: &digest }, progress)?;
    }
    Ok(outcome)
}

/// Asks the gate, if the run has one.
fn judge(
    dir: &Path,
    config: &RunConfig,
    base: &gate::run::Base<'_>,
    progress: &mut dyn Progress,
) -> Result<(), TrainError> {
    let path = dir.join(gate::run::CONFIG);
    if !path.exists() {
        return Ok(());
    }
    let verdict = gate::GateConfig::load(&path)
        .map_err(GateError::from)
        .and_then(|settings| gate::run::gate(dir, config, &settings, base));
    match verdict {
        Ok(report) => {
            progress.event(&Event::Gated { passed: report.passed, failed: report.reasons() });
            Ok(())
        }
        Err(error) => {
            let error = TrainError::Gate(Box::new(error));
            progress.event(&Event::Failed { reason: error.to_string() });
            Err(error)
        }
    }
}

struct Loaded {
    /// What the run starts from.
    policy: LoraPolicy,
    encoder: ModelEncoder,
    /// Of the base.
    digest: String,
}

fn load(
    dir: &Path,
    config: &RunConfig,
    device: DeviceChoice,
    pocket: &dyn Fn() -> Option<Source>,
) -> Result<Loaded, TrainError> {
    let base = |error: ExampleError| TrainError::Base { what: config.model.base.clone(), source: error };
    let source = if config.model.base == POCKET {
        pocket().ok_or_else(|| base("this program has no pocket model inside; name a checkpoint directory".into()))?
    } else {
        let path = dir.join(&config.model.base);
        if !path.is_dir() {
            return Err(base(format!("{} is no directory", path.display()).into()));
        }
        Source::directory(path)
    };
    let device = device.open()?;
    let dtype = config.model.dtype.on(&device).map_err(|error| base(error.into()))?;
    let digest = digest(&source).map_err(|error| base(error.into()))?;
    let weights = source.weights(dtype, &device).map_err(|error| base(error.into()))?;
    let model = Arc::new(Model::build(&source, &weights).map_err(|error| base(error.into()))?);

    let adapter = |error: ExampleError| TrainError::Base { what: "the starting adapter".to_owned(), source: error };
    let lora = if config.model.adapter.as_os_str().is_empty() {
        let seed = seed::derive(config.seed, Purpose::Adapter, &[], "");
        Lora::init(model.decoder(), adapter_config(&config.lora, &config.model.base), seed)
            .map_err(|error| adapter(error.into()))?
    } else {
        let path = dir.join(&config.model.adapter);
        let read = PeftAdapter::read(&path).map_err(|error| adapter(error.into()))?;
        Lora::load(model.decoder(), &read).map_err(|error| adapter(error.into()))?
    };
    let options = PolicyOptions::on(&device, config.train.threads);
    let policy = LoraPolicy::new(Arc::clone(&model), lora, options).map_err(|error| base(error.into()))?;
    let encoder = ModelEncoder::new(model, Arc::clone(policy.workers()));
    Ok(Loaded { policy, encoder, digest })
}

fn adapter_config(lora: &LoraSection, base: &str) -> AdapterConfig {
    AdapterConfig {
        lora_dropout: lora.dropout,
        use_rslora: lora.rslora,
        target_modules: TargetModules::List(lora.targets.clone()),
        base_model: Some(base.to_owned()),
        ..AdapterConfig::uniform(lora.rank, lora.alpha)
    }
}

/// BLAKE3 over the names and contents of a checkpoint's files: two bases with one digest answer alike.
///
/// # Errors
/// A file cannot be read.
pub fn digest(source: &Source) -> io::Result<String> {
    let mut files = BTreeMap::new();
    match source {
        Source::Memory(memory) => {
            for (name, bytes) in memory {
                files.insert(name.clone(), blake3::hash(bytes));
            }
        }
        Source::Directory(directory) => {
            let tensors = checkpoint_files(directory).map_err(io::Error::other)?;
            let others = FILES.iter().map(|name| directory.join(name)).filter(|path| path.is_file());
            for path in tensors.into_iter().chain(others) {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                files.insert(name, hash_file(&path)?);
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    for (name, digest) in files {
        hasher.update(name.as_bytes());
        hasher.update(&[0]);
        hasher.update(digest.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_file(path: &PathBuf) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize())
}

/// A model's frozen parts, with threads for several images at once.
pub struct ModelEncoder {
    model: Arc<Model>,
    workers: Arc<Workers>,
}

impl ModelEncoder {
    /// An encoder on a shared model and shared threads.
    pub fn new(model: Arc<Model>, workers: Arc<Workers>) -> Self {
        Self { model, workers }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Its threads.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }
}

impl Encoder for ModelEncoder {
    type Image = ImageInput;

    fn preprocess(&self, image: &DynamicImage) -> Result<ImageInput, ExampleError> {
        Ok(self.model.preprocess(image)?)
    }

    fn features(&self, image: &ImageInput) -> Result<Tensor, ExampleError> {
        Ok(self.model.encode_image(image)?)
    }

    fn all_features(&self, images: &[ImageInput]) -> Result<Vec<Tensor>, ExampleError> {
        let features = self.workers.map(images.iter().collect(), |image| self.model.encode_image(image));
        Ok(features.into_iter().collect::<Result<_, _>>()?)
    }

    fn at_once(&self) -> usize {
        2 * self.workers.count()
    }

    fn prompt(&self, conversation: &[Message], images: &[ImageInput]) -> Result<Vec<u32>, ExampleError> {
        let part = |part: &Part| match part {
            Part::Text { text } => model::Part::Text { text: text.clone() },
            Part::Image { .. } => model::Part::Image,
        };
        // As the engine that serves has it: text without an image is one part, its pieces on lines of their own.
        let message = |message: &Message| {
            let texts: Option<Vec<&str>> = message
                .content
                .iter()
                .map(|part| match part {
                    Part::Text { text } => Some(text.as_str()),
                    Part::Image { .. } => None,
                })
                .collect();
            let content = match texts {
                Some(texts) => vec![model::Part::Text { text: texts.join("\n") }],
                None => message.content.iter().map(part).collect(),
            };
            model::Message { role: message.role.as_str().to_owned(), content }
        };
        Ok(self.model.prompt(&conversation.iter().map(message).collect::<Vec<_>>(), images)?)
    }

    fn answer(&self, text: &str) -> Result<Vec<u32>, ExampleError> {
        Ok(self.model.answer(text)?)
    }

    fn max_positions(&self) -> usize {
        self.model.decoder().config().max_positions
    }
}
