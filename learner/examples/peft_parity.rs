//! This crate's half of `learner/scripts/peft_parity/check.py`, which says what is compared.
//!
//! ```text
//! peft_parity write MODEL IMAGE OUT    a new adapter in OUT/adapter, inputs and logits in OUT/case.safetensors
//! peft_parity check MODEL CASE         loads CASE/adapter and compares its logits with CASE/case.safetensors
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use reground_learner::adapter::{AdapterConfig, Naming, PeftAdapter, TargetModules};
use reground_learner::bpo::policy::Group;
use reground_learner::model::{ALL_LINEAR, Adapters, Lora, Message, Model, Packed};

/// Logits of every row, `[rows, vocabulary]`.
fn logits(model: &Model, lora: &Lora, ids: &[u32], pixels: &Tensor) -> Result<Tensor> {
    let group = Group { prompt: ids.into(), features: Some(model.family().encode(pixels)?), answers: Vec::new() };
    let packed = Packed::new([&group])?;
    let hidden = model.hidden(&packed, &Adapters::all(Some(lora), packed.len()))?;
    Ok(model.decoder().logits(&hidden)?)
}

/// An adapter with a rank and an α of its own for some modules, none of its matrices zero.
fn adapter(model: &Model) -> Result<Lora> {
    let config = AdapterConfig {
        target_modules: TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec()),
        rank_pattern: vec![(r"layers\.0\..*\.q_proj".to_owned(), 2)],
        alpha_pattern: vec![("down_proj".to_owned(), 3.0)],
        use_rslora: true,
        ..AdapterConfig::uniform(4, 8.0)
    };
    let mut lora = Lora::init(model.decoder(), config, 7)?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let mut parameters = lora.parameters();
    for tensor in parameters.values_mut() {
        let values: Vec<f32> = (0..tensor.elem_count()).map(|_| rng.random_range(-0.2..0.2)).collect();
        *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?;
    }
    lora.set_parameters(&parameters)?;
    Ok(lora)
}

fn write(model: &Model, image: &Path, out: &Path) -> Result<()> {
    let image = model.preprocess(&image::open(image)?)?;
    let mut ids = model.prompt(&[Message::user("describe the image", 1)], std::slice::from_ref(&image))?;
    ids.extend(model.answer("a red circle is left of a green square.")?);
    let pixels = model.pixels(&image)?;
    let lora = adapter(model)?;
    lora.to_adapter()?.write(&out.join("adapter"), Naming::Transformers5)?;
    let case = HashMap::from([
        ("input_ids", Tensor::new(ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), &Device::Cpu)?),
        ("logits", logits(model, &lora, &ids, &pixels)?),
        ("pixel_values", pixels),
    ]);
    candle_core::safetensors::save(&case, out.join("case.safetensors"))?;
    Ok(())
}

fn check(model: &Model, case: &Path) -> Result<()> {
    let mut tensors: BTreeMap<_, _> =
        candle_core::safetensors::load(case.join("case.safetensors"), &Device::Cpu)?.into_iter().collect();
    let mut take = |name: &str| tensors.remove(name).with_context(|| format!("no {name} in the case"));
    let ids: Vec<u32> = take("input_ids")?.to_vec1::<i64>()?.into_iter().map(|id| id as u32).collect();
    let (pixels, expected) = (take("pixel_values")?, take("logits")?);
    let adapter = PeftAdapter::read(&case.join("adapter"))?;
    let lora = Lora::load(model.decoder(), &adapter)?;
    let logits = logits(model, &lora, &ids, &pixels)?;
    let difference = (logits - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("largest difference of logits, an adapter saved by PEFT and loaded here: {difference:.2e}");
    ensure!(difference < 1e-4, "more than 1e-4");
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let load = |directory: &str| Model::load(Path::new(directory), DType::F32, &Device::Cpu);
    match arguments[..] {
        ["write", model, image, out] => write(&load(model)?, Path::new(image), Path::new(out)),
        ["check", model, case] => check(&load(model)?, Path::new(case)),
        _ => bail!("peft_parity write MODEL IMAGE OUT | peft_parity check MODEL CASE"),
    }
}
