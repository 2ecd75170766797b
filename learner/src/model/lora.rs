//! LoRA on the decoder's linear layers: `y = W·x + scale · B·(A·dropout(x))`.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};

use super::decoder::Decoder;
use super::error::ModelError;
use super::ops::cpu::{self, Floats};
use crate::adapter::{AdapterConfig, LoraWeights, MAX_RANK, PeftAdapter};

/// The linear layers of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of the attention.
    O,
    /// Gate of the feed-forward layer.
    Gate,
    /// Its other half.
    Up,
    /// Its output.
    Down,
}

impl Slot {
    /// All of them, in the order in which a block uses them.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Name inside the block.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// The names of all linear layers of a block, the usual `target_modules`.
pub const ALL_LINEAR: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// An adapter laid out for a decoder: its matrices on the decoder's device, f32.
#[derive(Clone, Debug)]
pub struct Lora {
    config: AdapterConfig,
    layers: Vec<[Option<LoraWeights>; 7]>,
    names: Vec<[String; 7]>,
}

impl Lora {
    /// A new adapter as PEFT initialises one: A uniform in ±1/√in (Kaiming with a = √5), B zero, so that it changes
    /// nothing before the first step. The same seed gives the same matrices.
    ///
    /// # Errors
    /// A rank, α or dropout out of range; targets that name no layer of the decoder.
    pub fn init(
        decoder: &Decoder,
        config: AdapterConfig,
        seed: u64,
    ) -> std::result::Result<Self, ModelError> {
        if !(0.0..1.0).contains(&config.lora_dropout) {
            return Err(ModelError::OutOfRange {
                key: "lora_dropout",
                value: config.lora_dropout.to_string(),
                expected: "0 up to but not including 1",
            });
        }
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut modules = BTreeMap::new();
        for (layer, names) in decoder.module_names().into_iter().enumerate() {
            for (slot, name) in Slot::ALL.into_iter().zip(names) {
                if config.target_modules.names(&name) != Some(true) {
                    continue;
                }
                let (outputs, inputs) = decoder.shape(layer, slot)?;
                let (r, alpha) = config.rank_and_alpha(&name)?;
                if r == 0 || r > MAX_RANK {
                    return Err(ModelError::OutOfRange {
                        key: "r",
                        value: r.to_string(),
                        expected: "1 … 1024",
                    });
                }
                let bound = 1.0 / (inputs as f32).sqrt();
                let a: Vec<f32> = (0..r * inputs)
                    .map(|_| rng.random_range(-bound..bound))
                    .collect();
                let weights = LoraWeights {
                    a: Tensor::from_vec(a, (r, inputs), &Device::Cpu)?,
                    b: Tensor::zeros((outputs, r), DType::F32, &Device::Cpu)?,
                    scale: config.scale(r, alpha),
                    r,
                    alpha,
                };
                modules.insert(name, weights);
            }
        }
        if modules.is_empty() {
            return Err(ModelError::OutOfRange {
                key: "target_modules",
                value: format!("{:?}", config.target_modules),
                expected: "names of linear layers of the language model",
            });
        }
        Self::load(decoder, &PeftAdapter::new(config, modules))
    }

    /// Lays out an adapter for a decoder. Its modules must be named as in the checkpoint
    /// ([`PeftAdapter::resolved`]).
    ///
    /// # Errors
    /// A module that is no linear layer of this decoder, shapes that do not fit.
    pub fn load(decoder: &Decoder, adapter: &PeftAdapter) -> std::result::Result<Self, ModelError> {
        adapter.check_against(&decoder.module_shapes()?)?;
        let resolved = adapter.clone().resolved(&decoder.module_shapes()?)?;
        let mut modules = resolved.modules;
        let names = decoder.module_names();
        let device = decoder.device();
        let mut layers = Vec::with_capacity(names.len());
        for names in &names {
            let mut slots: [Option<LoraWeights>; 7] = Default::default();
            for (slot, name) in slots.iter_mut().zip(names) {
                if let Some(mut weights) = modules.remove(name) {
                    weights.a = weights.a.to_device(device)?;
                    weights.b = weights.b.to_device(device)?;
                    *slot = Some(weights);
                }
            }
            layers.push(slots);
        }
        Ok(Self {
            config: resolved.config,
            layers,
            names,
        })
    }

    /// The adapter as PEFT's files have it, on the CPU.
    ///
    /// # Errors
    /// A failed copy from the device.
    pub fn to_adapter(&self) -> Result<PeftAdapter> {
        let mut modules = BTreeMap::new();
        for (names, slots) in self.names.iter().zip(&self.layers) {
            for (name, weights) in names.iter().zip(slots) {
                if let Some(weights) = weights {
                    let mut weights = weights.clone();
                    weights.a = weights.a.to_device(&Device::Cpu)?;
                    weights.b = weights.b.to_device(&Device::Cpu)?;
                    modules.insert(name.clone(), weights);
                }
            }
        }
        Ok(PeftAdapter::new(self.config.clone(), modules))
    }

    /// The settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The matrices of one linear layer, if the adapter has any for it.
    pub(crate) fn weights(&self, layer: usize, slot: Slot) -> Option<&LoraWeights> {
        self.layers.get(layer)?[slot as usize].as_ref()
    }

    /// Name of a trainable tensor, as in PEFT's files. `half` is 0 for A, 1 for B.
    pub(crate) fn tensor_name(&self, layer: usize, slot: Slot, half: usize) -> String {
        PeftAdapter::tensor_name(&self.names[layer][slot as usize], half)
    }

    /// The trainable tensors by name.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        let mut parameters = BTreeMap::new();
        for (names, slots) in self.names.iter().zip(&self.layers) {
            for (name, weights) in names.iter().zip(slots) {
                if let Some(weights) = weights {
                    parameters.insert(PeftAdapter::tensor_name(name, 0), weights.a.clone());
                    parameters.insert(PeftAdapter::tensor_name(name, 1), weights.b.clone());
                }
            }
        }
        parameters
    }

    /// Replaces the trainable tensors.
    ///
    /// # Errors
    /// A name that is missing or too many, another shape or type.
    pub fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        let expected = self.parameters();
        if !expected.keys().eq(parameters.keys()) {
            candle_core::bail!(
                "{} parameters given, other names or another number than the {} of the adapter",
                parameters.len(),
                expected.len()
            );
        }
        for (name, current) in &expected {
            let new = &parameters[name];
            if new.dims() != current.dims() || new.dtype() != DType::F32 {
                candle_core::bail!(
                    "{name}: {:?} {:?} given for {:?} f32",
                    new.dims(),
                    new.dtype(),
                    current.dims()
                );
            }
        }
        for (names, slots) in self.names.iter().zip(&mut self.layers) {
            for (name, weights) in names.iter().zip(slots) {
                if let Some(weights) = weights {
                    weights.a = parameters[&PeftAdapter::tensor_name(name, 0)]
                        .to_device(weights.a.device())?
                        .contiguous()?;
                    weights.b = parameters[&PeftAdapter::tensor_name(name, 1)]
                        .to_device(weights.b.device())?
                        .contiguous()?;
                }
            }
        }
        Ok(())
    }
}

/// Which adapter answers for which rows. Sequences of several adapters share one batch: the base's products are done once
/// for all rows, each adapter's for its own.
#[derive(Clone, Debug, Default)]
pub struct Adapters<'a> {
    spans: Vec<(Range<usize>, &'a Lora)>,
}

impl<'a> Adapters<'a> {
    /// The base alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// One adapter for all of `rows` rows, or none.
    pub fn all(adapter: Option<&'a Lora>, rows: usize) -> Self {
        Self {
            spans: adapter
                .map(|adapter| (0..rows, adapter))
                .into_iter()
                .collect(),
        }
    }

    /// Adapters by rows, in ascending order without overlap. Rows that are not named get the base alone.
    pub fn by_rows(spans: Vec<(Range<usize>, &'a Lora)>) -> Self {
        Self { spans }
    }

    /// Adds the adapters' part to `y = W·x`.
    pub(crate) fn add(&self, layer: usize, slot: Slot, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let mut y = y;
        for (span, adapter) in &self.spans {
            let Some(weights) = adapter.weights(layer, slot).filter(|_| !span.is_empty()) else {
                continue;
            };
            let part = if span.len() == rows {
                x.clone()
            } else {
                x.narrow(0, span.start, span.len())?
            };
            let delta = delta(&middle(&part, weights)?, weights)?.to_dtype(y.dtype())?;
            y = if span.len() == rows {
                (y + delta)?
            } else {
                let mut pieces = Vec::with_capacity(3);
                if span.start > 0 {
                    pieces.push(y.narrow(0, 0, span.start)?);
                }
                pieces.push((y.narrow(0, span.start, span.len())? + delta)?);
                if span.end < rows {
                    pieces.push(y.narrow(0, span.end, rows - span.end)?);
                }
                Tensor::cat(&pieces, 0)?
            };
        }
        Ok(y)
    }
}

/// `scale · A·x` for each row, `[rows, r]`, f32. The scale goes here because this is the small matrix.
pub(crate) fn middle(x: &Tensor, weights: &LoraWeights) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.matmul(&weights.a.t()?)? * weights.scale
}

/// `B · middle` for each row, `[rows, out]`, f32.
pub(crate) fn delta(middle: &Tensor, weights: &LoraWeights) -> Result<Tensor> {
    middle.matmul(&weights.b.t()?)
}

/// Sets elements to zero with probability `p` and divides the rest by 1 − p. Which ones depends on `key` and the place in
/// the tensor alone, so that the backward pass applies the same mask without keeping it.
pub(crate) fn dropout(x: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if cpu::takes(&[&x]) {
        let mut y = vec![0.0_f32; x.elem_count()];
        {
            let x = Floats::of(&x)?;
            let x: &[f32] = &x;
            drop_into(x, p, key, &mut y);
        }
        return cpu::tensor(y, x.dims());
    }
    let ones = vec![1.0_f32; x.elem_count()];
    let mut mask = vec![0.0_f32; x.elem_count()];
    drop_into(&ones, p, key, &mut mask);
    let mask = Tensor::from_vec(mask, x.dims(), x.device())?.to_dtype(x.dtype())?;
    x * mask
}

cpu::kernel! {
    fn drop_into(x: &'a [f32], p: f64, key: u64, y: &'a mut [f32]) {
        let threshold = (p * 4_294_967_296.0) as u32;
        let factor = (1.0 / (1.0 - p)) as f32;
        let (low, high) = (key as u32, (key >> 32) as u32);
        for (index, (y, x)) in y.iter_mut().zip(x).enumerate() {
            // Murmur3's finaliser: every bit of the index reaches every bit of the result, in operations that vectorise.
            let mut h = (index as u32).wrapping_mul(0x9E37_79B9) ^ low;
            h ^= h >> 16;
            h = h.wrapping_mul(0x85EB_CA6B) ^ high;
            h ^= h >> 13;
            h = h.wrapping_mul(0xC2B2_AE35);
            h ^= h >> 16;
            *y = if h >= threshold { x * factor } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_the_key() {
        let x = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let dropped = dropout(&x, 0.05, 7).unwrap();
        let values = dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        assert!((400..600).contains(&zeros), "{zeros} of 10000 at p = 0.05");
        assert!(
            values
                .iter()
                .all(|value| *value == 0.0 || (value - 1.0 / 0.95).abs() < 1e-6)
        );
        let again = dropout(&x, 0.05, 7)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(values, again);
        let other = dropout(&x, 0.05, 8)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_ne!(values, other);
    }
}
