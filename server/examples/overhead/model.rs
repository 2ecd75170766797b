//! The model of the benchmark.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, safetensors};
use serde_json::Value;

/// Ends a turn.
const END_OF_TURN: usize = 2;

/// A checkpoint of the golden one's kind with every width multiplied by `factor` and random weights. It
/// never ends its turn by itself, so that every answer has the length that was asked for.
pub(crate) fn grow(from: &Path, to: &Path, factor: usize) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    for (part, keys) in [
        ("text_config", ["hidden_size", "intermediate_size", "head_dim"].as_slice()),
        ("vision_config", ["hidden_size", "intermediate_size"].as_slice()),
    ] {
        for key in keys {
            let width = config[part][*key].as_u64().context("a width")?;
            config[part][*key] = (width * factor as u64).into();
        }
    }
    std::fs::write(to.join("config.json"), config.to_string())?;

    // Positions, patches, the vocabulary and the patches' own pixels keep their size.
    let fixed = [342, 3, 16];
    let tensors = safetensors::load(from.join("model.safetensors"), &Device::Cpu)?;
    let grown: Result<HashMap<String, Tensor>> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let is_positions = name.contains("position_embedding");
            let shape: Vec<usize> = tensor
                .dims()
                .iter()
                .enumerate()
                .map(
                    |(axis, &size)| {
                        if fixed.contains(&size) || (is_positions && axis == 0) { size } else { size * factor }
                    },
                )
                .collect();
            let is_norm = name.contains("norm") && name.ends_with("weight");
            let grown = if is_norm {
                Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?
            } else {
                Tensor::randn(0_f32, 0.02, shape, &Device::Cpu)?
            };
            // Its logit is 0, and some other's is above.
            let is_head = name == "lm_head.weight";
            Ok((name, if is_head { without_row(&grown, END_OF_TURN)? } else { grown }))
        })
        .collect();
    safetensors::save(&grown?, to.join("model.safetensors"))?;
    Ok(())
}

fn without_row(matrix: &Tensor, row: usize) -> Result<Tensor> {
    let rows = matrix.dim(0)?;
    let mut keep = vec![1_f32; rows];
    *keep.get_mut(row).context("a row")? = 0.0;
    Ok(matrix.broadcast_mul(&Tensor::from_vec(keep, (rows, 1), &Device::Cpu)?)?)
}
