//! `train --run DIR` on a real model: loads the base and the starting adapter, runs, and writes the adapter as PEFT has it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use fs_err as fs;
use image::{DynamicImage, Rgb, RgbImage};

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
use crate::bootstrap::distort::Normalisation;
use crate::gate::{self, GateError};
use crate::model::{
    self, DeviceChoice, ImageInput, Lora, LoraPolicy, Model, ModelError, PolicyOptions, Source, Workers,
};

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
    let (config, Loaded { mut policy, encoder, digest, start }) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            run::announce_failure(dir, &error, progress);
            return Err(error);
        }
    };
    let write_adapter = |policy: &LoraPolicy, path: &Path| -> Result<(), ExampleError> {
        Ok(policy.lora().to_adapter()?.write(path, Naming::Checkpoint)?)
    };
    let parts = Parts {
        policy: &mut policy,
        encoder: &encoder,
        base_digest: &digest,
        start: &start,
        write_adapter: &write_adapter,
    };
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
    /// As [`start`] says it.
    start: String,
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
    let start =
        lora.to_adapter().and_then(|given| start(&device, dtype, &given)).map_err(|error| adapter(error.into()))?;
    let options = PolicyOptions::on(&device, config.train.threads);
    let policy = LoraPolicy::new(Arc::clone(&model), lora, options).map_err(|error| base(error.into()))?;
    let encoder = ModelEncoder::new(model, Arc::clone(policy.workers()));
    Ok(Loaded { policy, encoder, digest, start })
}

/// What decides a run's numbers besides its settings, its data and the base's files: the kind of device, the format
/// that `auto` became there, and the starting adapter, which brings its own scale and dropout when it is another run's.
fn start(device: &Device, dtype: DType, adapter: &PeftAdapter) -> candle_core::Result<String> {
    let kind = match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    let (digest, dropout) = (adapter.digest()?, adapter.config.lora_dropout);
    Ok(format!("{kind} {} adapter {digest} dropout {dropout}", dtype.as_str()))
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
    /// Found out when it is first asked for.
    normalisation: OnceLock<Normalisation>,
}

impl ModelEncoder {
    /// An encoder on a shared model and shared threads.
    pub fn new(model: Arc<Model>, workers: Arc<Workers>) -> Self {
        Self { model, workers, normalisation: OnceLock::new() }
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

/// How a model normalises pixels of 0 to 1: `(p − mean) / std`, found out from what it makes of a black and a white
/// tile, so that its factor for pixels is in it, too. The default where they are not arranged as Idefics3's, `[tiles, 3,
/// height, width]`.
fn normalisation(model: &Model) -> Result<Normalisation, ModelError> {
    let (width, height) = model.preprocess(&DynamicImage::new_rgb8(1, 1))?.tiles[0].dimensions();
    let tiles = [0, 255].map(|shade| RgbImage::from_pixel(width, height, Rgb([shade; 3])));
    let pixels = model.family().pixels(&tiles)?.to_dtype(DType::F32)?;
    let (_, 3, _, _) = pixels.dims4()? else { return Ok(Normalisation::default()) };
    let values = pixels.flatten_from(2)?.to_vec3::<f32>()?;
    let (black, white) = (&values[0], &values[1]);
    let deviation: [f32; 3] = std::array::from_fn(|channel| 1.0 / (white[channel][0] - black[channel][0]));
    let mean = std::array::from_fn(|channel| -black[channel][0] * deviation[channel]);
    Ok(Normalisation { mean, std: deviation })
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

    fn normalisation(&self) -> Normalisation {
        // A model that takes no image says so with the image that is to be distorted.
        *self.normalisation.get_or_init(|| normalisation(&self.model).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::*;
    use crate::adapter::LoraWeights;

    #[test]
    fn noise_is_scaled_as_the_model_normalises() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3/model");
        let of = |mean: [f64; 3], std: [f64; 3]| {
            let mut files = BTreeMap::<String, Cow<'static, [u8]>>::new();
            for entry in fs::read_dir(&golden).unwrap() {
                let entry = entry.unwrap();
                files.insert(entry.file_name().into_string().unwrap(), Cow::Owned(fs::read(entry.path()).unwrap()));
            }
            let mut settings: Value = serde_json::from_slice(&files["preprocessor_config.json"]).unwrap();
            (settings["image_mean"], settings["image_std"]) = (json!(mean), json!(std));
            files.insert("preprocessor_config.json".to_owned(), Cow::Owned(settings.to_string().into_bytes()));
            let source = Source::Memory(files);
            let model = Model::build(&source, &source.weights(DType::F32, &Device::Cpu).unwrap()).unwrap();
            ModelEncoder::new(Arc::new(model), Arc::new(Workers::new(1).unwrap())).normalisation()
        };
        assert_eq!(of([0.5; 3], [0.5; 3]), Normalisation::default());
        // CLIP's.
        let (mean, std) = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
        let found = of(mean, std);
        for channel in 0..3 {
            assert!((f64::from(found.mean[channel]) - mean[channel]).abs() < 1e-5, "{found:?}");
            assert!((f64::from(found.std[channel]) - std[channel]).abs() < 1e-5, "{found:?}");
        }
    }

    #[test]
    fn another_format_scale_or_dropout_is_another_start() {
        let of = |dtype: DType, alpha: f64, use_rslora: bool, lora_dropout: f64| {
            let config = AdapterConfig { use_rslora, lora_dropout, ..AdapterConfig::uniform(4, alpha) };
            let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let weights =
                LoraWeights { a: zeros((4, 3)), b: zeros((5, 4)), scale: config.scale(4, alpha), r: 4, alpha };
            let adapter = PeftAdapter::new(config, BTreeMap::from([("layers.0.q_proj".to_owned(), weights)]));
            start(&Device::Cpu, dtype, &adapter).unwrap()
        };
        let first = of(DType::F32, 8.0, false, 0.0);
        assert!(first.starts_with("cpu f32 adapter "), "{first}");
        assert_eq!(of(DType::F32, 8.0, false, 0.0), first);
        for other in [
            of(DType::BF16, 8.0, false, 0.0),
            of(DType::F32, 16.0, false, 0.0),
            of(DType::F32, 8.0, true, 0.0),
            of(DType::F32, 8.0, false, 0.1),
        ] {
            assert_ne!(other, first);
        }
    }
}
