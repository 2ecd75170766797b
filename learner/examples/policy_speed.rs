//! Speed of a training step on a random model of a given shape.
//!
//! ```text
//! cargo run --release -p reground-learner --example policy_speed -- pocket
//! cargo run --release -p reground-learner --example policy_speed -- smolvlm-256m --pairs 2
//! ```
//! A step is forward and backward of a batch of pairs with cached features and reference log-probabilities: what the
//! trainer repeats. CPU seconds are printed beside wall seconds, so that a busy machine shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use reground_learner::adapter::{AdapterConfig, TargetModules};
use reground_learner::bpo::policy::{Gradients, Group, Policy};
use reground_learner::model::{
    ALL_LINEAR, Lora, LoraPolicy, Model, PolicyOptions, Request, Sampling, Source, Weights, Workers,
};
use serde_json::{Value, json};

struct Shape {
    text: Value,
    vision: Value,
    scale: usize,
    prompt: usize,
    answer: usize,
}

fn shape(name: &str) -> Result<Shape> {
    Ok(match name {
        "pocket" => Shape {
            text: json!({"hidden_size": 192, "intermediate_size": 512, "vocab_size": 342, "num_hidden_layers": 4,
                "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 1024}),
            vision: json!({"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
                "num_attention_heads": 4, "image_size": 64, "patch_size": 8}),
            scale: 2,
            prompt: 20,
            answer: 24,
        },
        "smolvlm-256m" => Shape {
            text: json!({"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49280, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}),
            vision: json!({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "image_size": 512, "patch_size": 16}),
            scale: 4,
            prompt: 24,
            answer: 100,
        },
        other => bail!("no shape {other:?}: pocket, smolvlm-256m"),
    })
}

/// Random tensors by the checkpoint's names.
fn weights(shape: &Shape) -> Result<Weights> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, dims: &[usize], norm: bool| -> Result<()> {
        let count = dims.iter().product();
        let values = (0..count)
            .map(|_| {
                if norm {
                    1.0
                } else {
                    rng.random_range(-0.05_f32..0.05)
                }
            })
            .collect();
        tensors.insert(
            name,
            Tensor::from_vec::<_, f32>(values, dims, &Device::Cpu)?,
        );
        Ok(())
    };
    let number =
        |value: &Value, key: &str| value[key].as_u64().map(|n| n as usize).context("a number");
    let (h, i, v) = (
        number(&shape.text, "hidden_size")?,
        number(&shape.text, "intermediate_size")?,
        number(&shape.text, "vocab_size")?,
    );
    let heads = number(&shape.text, "num_attention_heads")?;
    let kv = h / heads * number(&shape.text, "num_key_value_heads")?;
    add(
        "model.text_model.embed_tokens.weight".into(),
        &[v, h],
        false,
    )?;
    add("lm_head.weight".into(), &[v, h], false)?;
    add("model.text_model.norm.weight".into(), &[h], true)?;
    for layer in 0..number(&shape.text, "num_hidden_layers")? {
        let root = format!("model.text_model.layers.{layer}");
        add(format!("{root}.input_layernorm.weight"), &[h], true)?;
        add(
            format!("{root}.post_attention_layernorm.weight"),
            &[h],
            true,
        )?;
        for (name, rows, columns) in [("q", h, h), ("k", kv, h), ("v", kv, h), ("o", h, h)] {
            add(
                format!("{root}.self_attn.{name}_proj.weight"),
                &[rows, columns],
                false,
            )?;
        }
        for (name, rows, columns) in [("gate", i, h), ("up", i, h), ("down", h, i)] {
            add(
                format!("{root}.mlp.{name}_proj.weight"),
                &[rows, columns],
                false,
            )?;
        }
    }
    let (w, inner, edge) = (
        number(&shape.vision, "hidden_size")?,
        number(&shape.vision, "intermediate_size")?,
        number(&shape.vision, "patch_size")?,
    );
    let side = number(&shape.vision, "image_size")? / edge;
    add(
        "model.connector.modality_projection.proj.weight".into(),
        &[h, w * shape.scale * shape.scale],
        false,
    )?;
    let root = "model.vision_model";
    add(
        format!("{root}.embeddings.patch_embedding.weight"),
        &[w, 3, edge, edge],
        false,
    )?;
    add(
        format!("{root}.embeddings.patch_embedding.bias"),
        &[w],
        false,
    )?;
    add(
        format!("{root}.embeddings.position_embedding.weight"),
        &[side * side, w],
        false,
    )?;
    let mut affine = |name: String, rows: usize, columns: usize| -> Result<()> {
        if columns == 0 {
            add(format!("{name}.weight"), &[rows], true)?
        } else {
            add(format!("{name}.weight"), &[rows, columns], false)?
        }
        add(format!("{name}.bias"), &[rows], false)
    };
    affine(format!("{root}.post_layernorm"), w, 0)?;
    for layer in 0..number(&shape.vision, "num_hidden_layers")? {
        let root = format!("{root}.encoder.layers.{layer}");
        affine(format!("{root}.layer_norm1"), w, 0)?;
        affine(format!("{root}.layer_norm2"), w, 0)?;
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            affine(format!("{root}.self_attn.{name}"), w, w)?;
        }
        affine(format!("{root}.mlp.fc1"), inner, w)?;
        affine(format!("{root}.mlp.fc2"), w, inner)?;
    }
    Ok(Weights::new(tensors))
}

/// User and system CPU seconds and peak resident bytes of this process; zeros where there is no /proc.
fn usage() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks: f64 = fields
        .iter()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    (ticks / 100.0, peak.unwrap_or(0) * 1024)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments
        .first()
        .map_or("pocket", String::as_str)
        .to_owned();
    let option = |key: &str, default: usize| -> Result<usize> {
        match arguments.iter().position(|argument| argument == key) {
            Some(at) => Ok(arguments
                .get(at + 1)
                .context("a value after the option")?
                .parse()?),
            None => Ok(default),
        }
    };
    let shape = shape(&name)?;
    let (pairs, steps, rank) = (
        option("--pairs", 16)?,
        option("--steps", 20)?,
        option("--rank", 16)?,
    );
    let options = PolicyOptions {
        threads: option("--threads", 0)?,
        rows_at_once: option("--rows", PolicyOptions::default().rows_at_once)?,
        activation_bytes: option(
            "--keep-mib",
            PolicyOptions::default().activation_bytes >> 20,
        )? << 20,
    };
    let golden =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3/model");
    let edge = shape.vision["image_size"].clone();
    let mut files: BTreeMap<String, std::borrow::Cow<'static, [u8]>> = BTreeMap::new();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        files.insert(file.into(), std::fs::read(golden.join(file))?.into());
    }
    let config = json!({"model_type": "idefics3", "image_token_id": 4, "scale_factor": shape.scale,
        "text_config": shape.text, "vision_config": shape.vision});
    files.insert("config.json".into(), config.to_string().into_bytes().into());
    let preprocessor = json!({"do_image_splitting": false, "do_resize": true, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "size": {"longest_edge": edge}, "max_image_size": {"longest_edge": edge}});
    files.insert(
        "preprocessor_config.json".into(),
        preprocessor.to_string().into_bytes().into(),
    );
    let model = Arc::new(Model::build(&Source::Memory(files), &weights(&shape)?)?);
    let loaded = usage().1;

    let image = model.preprocess(&image::DynamicImage::new_rgb8(100, 80))?;
    let started = Instant::now();
    let features = model.encode_image(&image)?;
    println!(
        "vision: {} tokens in {:.3} s",
        features.dim(0)?,
        started.elapsed().as_secs_f64()
    );
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let mut random =
        |count: usize| -> Vec<u32> { (0..count).map(|_| rng.random_range(20..340)).collect() };
    let groups: Vec<Group> = (0..pairs)
        .map(|_| {
            let mut prompt = vec![4; features.dims()[0]];
            prompt.extend(random(shape.prompt));
            Group {
                prompt: prompt.into(),
                features: Some(features.clone()),
                answers: vec![random(shape.answer).into(), random(shape.answer).into()],
            }
        })
        .collect();
    let settings = AdapterConfig {
        target_modules: TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec()),
        lora_dropout: option("--dropout-percent", 0)? as f64 / 100.0,
        ..AdapterConfig::uniform(rank, 2.0 * rank as f64)
    };
    let lora = Lora::init(model.decoder(), settings, 3)?;
    let (start, before) = (Instant::now(), usage().0);
    let requests: Vec<Request<'_>> = groups
        .iter()
        .map(|group| Request {
            prompt: group.prompt.clone(),
            features: group.features.clone(),
            adapter: Some(&lora),
            sampling: Sampling {
                temperature: 1.0,
                top_p: 1.0,
                seed: 1,
            },
            max_tokens: shape.answer,
        })
        .collect();
    let completions = model.generate(&requests, &Workers::new(options.threads)?)?;
    let tokens: usize = completions
        .iter()
        .map(|completion| completion.ids.len())
        .sum();
    println!(
        "generation: {pairs} prompts with an adapter, {tokens} tokens: {:.0} tokens/s wall, {:.0} per CPU second",
        tokens as f64 / start.elapsed().as_secs_f64(),
        tokens as f64 / (usage().0 - before),
    );
    let policy = LoraPolicy::new(model.clone(), lora, options)?;
    let coefficients = vec![vec![0.01, -0.01]; pairs];
    let (mut forward, mut backward) = (0.0, 0.0);
    let (mut wall, mut cpu) = (Instant::now(), usage().0);
    for step in 0..=steps {
        if step == 1 {
            // The first step warms caches and the allocator.
            (forward, backward, wall, cpu) = (0.0, 0.0, Instant::now(), usage().0);
        }
        let start = Instant::now();
        let (_, tape) = policy.forward(&groups, Some(step as u64))?;
        forward += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut gradients = Gradients::new();
        policy.backward(tape, &coefficients, &mut gradients)?;
        backward += start.elapsed().as_secs_f64();
    }
    let (wall, (end, peak)) = (wall.elapsed().as_secs_f64(), usage());
    let cpu = end - cpu;
    let done = (pairs * steps) as f64;
    let rows = features.dim(0)? + shape.prompt + 2 * shape.answer;
    println!(
        "{name}: {pairs} pairs of {rows} rows, r {rank}: {:.1} pairs/s wall, {:.1} pairs per CPU second; \
         forward {:.1} ms, backward {:.1} ms a step; peak {} MiB, model {} MiB",
        done / wall,
        done / cpu,
        forward * 1e3 / steps as f64,
        backward * 1e3 / steps as f64,
        peak >> 20,
        loaded >> 20,
    );
    Ok(())
}
