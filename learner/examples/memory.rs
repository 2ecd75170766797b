//! What training will take, by the formula of `bpo::memory`, for models of several sizes.
//!
//! ```text
//! cargo run --release -p reground-learner --example memory
//! ```

use reground_learner::bpo::memory::{ModelSizes, Workload, predict};
use reground_learner::model::PolicyOptions;
use reground_learner::pocket::hub::Shape;
use reground_learner::pocket::tokenizer;

const MIB: f64 = (1 << 20) as f64;

fn pocket() -> ModelSizes {
    let shape = Shape::default();
    let head = shape.text_width / shape.text_heads;
    let number = |value: usize| value as u64;
    let (width, inner, words) = (shape.text_width, shape.text_inner, tokenizer::vocabulary().len());
    let key = head * shape.text_key_heads;
    let text = shape.text_layers * (2 * width * width + 2 * width * key + 3 * width * inner) + 2 * words * width;
    let (v, vi) = (shape.vision_width, shape.vision_inner);
    let vision = shape.vision_layers * (4 * v * v + 2 * v * vi) + v * (3 * shape.patch * shape.patch + shape.patches());
    ModelSizes {
        weights: number(text + vision + width * v * shape.merge * shape.merge),
        bytes: 4,
        layers: number(shape.text_layers),
        hidden: number(width),
        inner: number(inner),
        query: number(width),
        key: number(key),
        vocabulary: number(words),
        patches: number(shape.patches()),
        vision_width: number(v),
        vision_inner: number(vi),
    }
}

/// SmolVLM-256M with a head of its own, as transformers saves a random one.
const SMOLVLM_256M: ModelSizes = ModelSizes {
    weights: 256_500_000,
    bytes: 4,
    layers: 30,
    hidden: 576,
    inner: 1536,
    query: 576,
    key: 192,
    vocabulary: 49280,
    patches: 1024,
    vision_width: 768,
    vision_inner: 3072,
};

/// SmolVLM-Instruct: a SigLIP of 384-pixel tiles, here all 17 of a split image, and SmolLM2-1.7B.
const SMOLVLM_2B: ModelSizes = ModelSizes {
    weights: 2_246_000_000,
    bytes: 2,
    layers: 24,
    hidden: 2048,
    inner: 8192,
    query: 2048,
    key: 2048,
    vocabulary: 49155,
    patches: 17 * 729,
    vision_width: 1152,
    vision_inner: 4304,
};

/// LLaVA-1.5-7B: CLIP ViT-L of 336 pixels, and Vicuna-7B.
const LLAVA_7B: ModelSizes = ModelSizes {
    weights: 7_063_000_000,
    bytes: 2,
    layers: 32,
    hidden: 4096,
    inner: 11008,
    query: 4096,
    key: 4096,
    vocabulary: 32064,
    patches: 577,
    vision_width: 1024,
    vision_inner: 4096,
};

fn main() {
    let options = PolicyOptions::default();
    let cpu = Workload {
        rank: 16,
        prompt: 42,
        answer: 24,
        image: 16,
        pairs: 8,
        images: 256,
        threads: 2,
        rows_at_once: options.rows_at_once as u64,
        budget: options.activation_bytes as u64,
    };
    let smolvlm = Workload { prompt: 90, answer: 100, image: 64, pairs: 2, images: 16, ..cpu };
    // The paper's rank, answers of 512 tokens.
    let gpu = Workload { rank: 64, answer: 512, pairs: 1, images: 0, threads: 1, ..cpu };
    let rows = [
        ("pocket, f32, 8 pairs a pass, 2 threads", pocket(), cpu),
        ("SmolVLM-256M, f32, 2 pairs a pass, 2 threads", SMOLVLM_256M, smolvlm),
        (
            "SmolVLM 2.2B, bf16, batch 1, split image",
            SMOLVLM_2B,
            Workload { prompt: 17 * 81 + 128, image: 17 * 81, ..gpu },
        ),
        ("LLaVA-1.5 7B, bf16, batch 1", LLAVA_7B, Workload { prompt: 576 + 64, image: 576, ..gpu }),
    ];
    println!("| MiB | weights | LoRA and AdamW | passes | vision | features | peak |");
    println!("|---|---|---|---|---|---|---|");
    for (name, model, work) in rows {
        let memory = predict(&model, &work);
        let parts = [memory.weights, memory.adapter, memory.passes, memory.vision, memory.features, memory.peak()];
        let cells: Vec<String> = parts.iter().map(|bytes| format!("{:.0}", *bytes as f64 / MIB)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}
