//! LoRA on the decoder's linear layers: `y = W·x + scale · B·(A·dropout(x))`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};

use super::decoder::Decoder;
use super::error::ModelError;
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
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

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
pub const ALL_LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

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
    pub fn init(decoder: &Decoder, config: AdapterConfig, seed: u64) -> std::result::Result<Self, ModelError> {
        if !(0.0..1.0).contains(&config.lora_dropout) {
            return Err(ModelError::OutOfRange {
                key: "lora_dropout",
                value: config.lora_dropout.to_string(),
                expected: "0 up to but not including 1",
            });
        }
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut modules = BTreeMap::new();
        let names = decoder.module_names();
        let targets = config.target_modules.named(names.iter().flatten().map(String::as_str)).unwrap_or_default();
        let ranks = config.ranks_and_alphas(targets)?;
        for (layer, names) in names.iter().enumerate() {
            for (slot, name) in Slot::ALL.into_iter().zip(names) {
                let Some(&(r, alpha)) = ranks.get(name.as_str()) else { continue };
                let (outputs, inputs) = decoder.shape(layer, slot)?;
                if r == 0 || r > MAX_RANK {
                    return Err(ModelError::OutOfRange { key: "r", value: r.to_string(), expected: "1 … 1024" });
                }
                let bound = 1.0 / (inputs as f32).sqrt();
                let a: Vec<f32> = (0..r * inputs).map(|_| rng.random_range(-bound..bound)).collect();
                let weights = LoraWeights {
                    a: Tensor::from_vec(a, (r, inputs), &Device::Cpu)?,
                    b: Tensor::zeros((outputs, r), DType::F32, &Device::Cpu)?,
                    scale: config.scale(r, alpha),
                    r,
                    alpha,
                };
                modules.insert(name.clone(), weights);
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
        Ok(Self { config: resolved.config, layers, names })
    }

    /// Matrices for one linear layer of the first block.
    #[cfg(test)]
    pub(super) fn of_one(slot: Slot, weights: LoraWeights) -> Self {
        let mut slots: [Option<LoraWeights>; 7] = Default::default();
        let config = AdapterConfig::uniform(weights.r, weights.alpha);
        slots[slot as usize] = Some(weights);
        Self { config, layers: vec![slots], names: vec![Slot::ALL.map(|slot| slot.name().to_owned())] }
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

    /// Whether every B is zero, as in a new adapter, so that it changes nothing.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn is_zero(&self) -> Result<bool> {
        for weights in self.layers.iter().flatten().flatten() {
            // NaN is not zero.
            if weights.b.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 || weights.b.sum_all()?.to_scalar::<f32>()? != 0.0
            {
                return Ok(false);
            }
        }
        Ok(true)
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
                candle_core::bail!("{name}: {:?} {:?} given for {:?} f32", new.dims(), new.dtype(), current.dims());
            }
        }
        for (names, slots) in self.names.iter().zip(&mut self.layers) {
            for (name, weights) in names.iter().zip(slots) {
                if let Some(weights) = weights {
                    weights.a =
                        parameters[&PeftAdapter::tensor_name(name, 0)].to_device(weights.a.device())?.contiguous()?;
                    weights.b =
                        parameters[&PeftAdapter::tensor_name(name, 1)].to_device(weights.b.device())?.contiguous()?;
                }
            }
        }
        Ok(())
    }
}
