//! The weights before the first step, under the names of the older hub layout.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use rand::Rng;

use crate::pocket::hub::Shape;
use crate::pocket::random::{Stream, stream};
use crate::pocket::{tokenizer, world};

/// How one tensor begins.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Begin {
    /// All zero (biases).
    Zero,
    /// All one (scales of normalisations).
    One,
    /// Normal with this deviation.
    Normal(f64),
}

/// Every tensor of a new model, f32. Matrices have deviation 1/√inputs, those that add to the residual stream another
/// 1/√(2·layers), embeddings 0.02.
///
/// # Errors
/// A failed tensor operation.
pub fn weights(shape: &Shape, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, dims, begin) in layout(shape) {
        // A stream of its own for each tensor: adding one does not change the others.
        let mut random = stream(seed, &name, 0);
        let count = dims.iter().product();
        let values: Vec<f32> = match begin {
            Begin::Zero => vec![0.0; count],
            Begin::One => vec![1.0; count],
            Begin::Normal(deviation) => (0..count).map(|_| (normal(&mut random) * deviation) as f32).collect(),
        };
        tensors.insert(name, Tensor::from_vec(values, dims, &Device::Cpu)?);
    }
    Ok(tensors)
}

/// A standard normal number (Box and Muller).
fn normal(random: &mut Stream) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

type Entry = (String, Vec<usize>, Begin);

fn layout(shape: &Shape) -> Vec<Entry> {
    let mut entries = vision(shape);
    entries.push(matrix(
        "model.connector.modality_projection.proj",
        shape.text_width,
        shape.vision_width * shape.merge * shape.merge,
        1.0,
    ));
    entries.extend(text(shape));
    entries
}

fn vision(shape: &Shape) -> Vec<Entry> {
    let (width, inner, root) = (shape.vision_width, shape.vision_inner, "model.vision_model");
    let inputs = 3 * shape.patch * shape.patch;
    let mut entries = vec![
        (
            format!("{root}.embeddings.patch_embedding.weight"),
            vec![width, 3, shape.patch, shape.patch],
            Begin::Normal(1.0 / (inputs as f64).sqrt()),
        ),
        (format!("{root}.embeddings.patch_embedding.bias"), vec![width], Begin::Zero),
        (format!("{root}.embeddings.position_embedding.weight"), vec![shape.patches(), width], Begin::Normal(0.02)),
    ];
    let residual = 1.0 / (2.0 * shape.vision_layers as f64).sqrt();
    for layer in 0..shape.vision_layers {
        let root = format!("{root}.encoder.layers.{layer}");
        for (name, outputs, inputs, scale) in [
            ("self_attn.q_proj", width, width, 1.0),
            ("self_attn.k_proj", width, width, 1.0),
            ("self_attn.v_proj", width, width, 1.0),
            ("self_attn.out_proj", width, width, residual),
            ("mlp.fc1", inner, width, 1.0),
            ("mlp.fc2", width, inner, residual),
        ] {
            entries.push(matrix(&format!("{root}.{name}"), outputs, inputs, scale));
            entries.push((format!("{root}.{name}.bias"), vec![outputs], Begin::Zero));
        }
        for name in ["layer_norm1", "layer_norm2"] {
            entries.extend(norm(&format!("{root}.{name}"), width));
        }
    }
    entries.extend(norm(&format!("{root}.post_layernorm"), width));
    entries
}

fn text(shape: &Shape) -> Vec<Entry> {
    let (width, root) = (shape.text_width, "model.text_model");
    let words = tokenizer::vocabulary().len();
    let key_width = width / shape.text_heads * shape.text_key_heads;
    let mut entries = vec![
        (format!("{root}.embed_tokens.weight"), vec![words, width], Begin::Normal(0.02)),
        (format!("{root}.norm.weight"), vec![width], Begin::One),
        ("lm_head.weight".to_owned(), vec![words, width], Begin::Normal(0.02)),
    ];
    let residual = 1.0 / (2.0 * shape.text_layers as f64).sqrt();
    for layer in 0..shape.text_layers {
        let root = format!("{root}.layers.{layer}");
        for (name, outputs, inputs, scale) in [
            ("self_attn.q_proj", width, width, 1.0),
            ("self_attn.k_proj", key_width, width, 1.0),
            ("self_attn.v_proj", key_width, width, 1.0),
            ("self_attn.o_proj", width, width, residual),
            ("mlp.gate_proj", shape.text_inner, width, 1.0),
            ("mlp.up_proj", shape.text_inner, width, 1.0),
            ("mlp.down_proj", width, shape.text_inner, residual),
        ] {
            entries.push(matrix(&format!("{root}.{name}"), outputs, inputs, scale));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            entries.push((format!("{root}.{name}.weight"), vec![width], Begin::One));
        }
    }
    entries
}

fn matrix(name: &str, outputs: usize, inputs: usize, scale: f64) -> Entry {
    (format!("{name}.weight"), vec![outputs, inputs], Begin::Normal(scale / (inputs as f64).sqrt()))
}

fn norm(name: &str, width: usize) -> [Entry; 2] {
    [(format!("{name}.weight"), vec![width], Begin::One), (format!("{name}.bias"), vec![width], Begin::Zero)]
}

/// Names of the heads of the sight stage, which are not part of the model.
pub const SIGHT_HEADS: [(&str, usize); 2] =
    [("sight.kind", world::Kind::ALL.len() + 1), ("sight.colour", world::Colour::ALL.len())];

/// The heads of the sight stage, a matrix each: kind (the last class is "nothing") and colour.
///
/// # Errors
/// A failed tensor operation.
pub fn sight_heads(shape: &Shape, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let width = shape.vision_width;
    SIGHT_HEADS
        .iter()
        .map(|&(name, classes)| {
            let mut random = stream(seed, name, 0);
            let deviation = 1.0 / (width as f64).sqrt();
            let values: Vec<f32> = (0..classes * width).map(|_| (normal(&mut random) * deviation) as f32).collect();
            Ok((name.to_owned(), Tensor::from_vec(values, (classes, width), &Device::Cpu)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_model_has_about_two_and_a_half_million_weights_and_repeats() {
        let first = weights(&Shape::default(), 7).unwrap();
        let count: usize = first.values().map(Tensor::elem_count).sum();
        assert!((2_300_000..2_700_000).contains(&count), "{count}");
        let name = "model.text_model.layers.0.mlp.up_proj.weight";
        let values = |seed| -> Vec<f32> {
            weights(&Shape::default(), seed).unwrap()[name].flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(values(7), values(7));
        assert_ne!(values(7), values(8));
        let deviation = (values(7).iter().map(|value| f64::from(value * value)).sum::<f64>() / 98_304.0).sqrt();
        assert!((deviation - 1.0 / 192f64.sqrt()).abs() < 1e-3, "{deviation}");
    }
}
