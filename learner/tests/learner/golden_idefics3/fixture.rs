//! The golden files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use reground_learner::adapter::PeftAdapter;
use reground_learner::bpo::policy::Group;
use reground_learner::model::{ImageInput, Lora, Message, Model};
use serde_json::Value;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3").join(name)
}

pub(crate) struct Fixture {
    pub(crate) model: Model,
    pub(crate) expected: Value,
    pub(crate) tensors: HashMap<String, Tensor>,
}

/// In f32 the CPU's kernels compute; in f64, as on a GPU, what is composed of candle's operations.
pub(crate) const FORMATS: [DType; 2] = [DType::F32, DType::F64];

impl Fixture {
    pub(crate) fn load() -> Self {
        Self::with(DType::F32)
    }

    pub(crate) fn with(dtype: DType) -> Self {
        Self {
            model: Model::load(&golden("model"), dtype, &Device::Cpu).unwrap(),
            expected: serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap(),
            tensors: candle_core::safetensors::load(golden("expected.safetensors"), &Device::Cpu).unwrap(),
        }
    }

    pub(crate) fn pairs(&self) -> &[Value] {
        self.expected["pairs"].as_array().unwrap()
    }

    pub(crate) fn image(&self, pair: usize) -> ImageInput {
        let name = self.pairs()[pair]["image"].as_str().unwrap();
        self.model.preprocess(&image::open(golden(name)).unwrap()).unwrap()
    }

    pub(crate) fn pixels(&self, pair: usize) -> Tensor {
        self.model.pixels(&self.image(pair)).unwrap()
    }

    pub(crate) fn messages(&self, pair: usize) -> Vec<Message> {
        vec![Message::user(self.pairs()[pair]["question"].as_str().unwrap(), 1)]
    }

    /// The pair as a group of two answers: chosen, rejected.
    pub(crate) fn group(&self, pair: usize) -> Group {
        let text = |key: &str| self.pairs()[pair][key].as_str().unwrap().trim_start();
        self.model.group(&self.messages(pair), &[self.image(pair)], &[text("chosen"), text("rejected")]).unwrap()
    }

    pub(crate) fn groups(&self) -> Vec<Group> {
        (0..self.pairs().len()).map(|pair| self.group(pair)).collect()
    }

    pub(crate) fn lora(&self, directory: &str) -> Lora {
        let adapter = PeftAdapter::read(&golden(directory)).unwrap();
        Lora::load(self.model.decoder(), &adapter).unwrap()
    }
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u32).collect()
}

/// Largest absolute difference.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a.to_dtype(DType::F32).unwrap() - b)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn relative(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}
