//! Linear layers in fewer bits: what is claimed of the engine, on rounded weights.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use reground_learner::model::{Model, Source, Weights};

use super::tests::{engine_with, kept_is_read, together_is_alone};
use crate::config::{Isq, ModelConfig};
use crate::engine::conformance::every_size_is_served_as;
use crate::engine::source::golden;

/// The golden checkpoint's rows are no whole blocks of Q4_K.
const FORMATS: [(Isq, GgmlDType); 2] = [(Isq::Q8, GgmlDType::Q8_0), (Isq::Q4, GgmlDType::Q4_0)];

fn config(isq: Isq) -> ModelConfig {
    ModelConfig { isq, ..ModelConfig::default() }
}

/// The golden checkpoint in f32, each linear layer of its decoder rounded to blocks and back by candle.
fn rounded(blocks: GgmlDType) -> Model {
    let source = Source::directory(golden("model"));
    let weights = source.weights(DType::F32, &Device::Cpu).unwrap();
    let round = |(name, tensor): (&String, &Tensor)| {
        let linear = name.starts_with("model.text_model.layers.") && name.contains("_proj.");
        let tensor = if linear {
            QTensor::quantize(tensor, blocks).unwrap().dequantize(&Device::Cpu).unwrap()
        } else {
            tensor.clone()
        };
        (name.clone(), tensor)
    };
    let weights: BTreeMap<_, _> = weights.tensors().iter().map(round).collect();
    Model::build(&source, &Weights::new(weights)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn base_and_adapter_are_served_as_the_rounded_model_has_them() {
    for (isq, blocks) in FORMATS {
        every_size_is_served_as(&rounded(blocks), &engine_with(config(isq)).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_company_an_answer_is_what_it_is_alone() {
    for (isq, _) in FORMATS {
        together_is_alone(config(isq), 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_prefix_gives_the_same_answer() {
    for (isq, _) in FORMATS {
        kept_is_read(config(isq)).await;
    }
}
