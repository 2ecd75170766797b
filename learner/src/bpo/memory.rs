//! How much memory a run will take, from sizes alone.
//!
//! ```text
//! peak = runtime
//!      + b · weights                                                  the frozen base
//!      + 4 · lora · (5 + threads)                                     parameters, both moments, gradient, update; one gradient a thread
//!      + max( forward and backward , vision )                         never at the same time
//!      + features of the images that are kept
//!
//! forward and backward = kept + inputs + threads · (2 · rows · layer + 3 · 4 · logits)
//!      layer  = b · (4·hidden + 2·q + 2·kv + 3·inner)                 activations of a row in a layer
//!      kept   = min(budget, all rows · layers · layer)                what the backward pass need not compute again
//!      inputs = b · hidden · all rows · (layers − kept layers)        inputs of the layers that it does
//!      rows   = rows that a thread has in a layer at once; once saved, once as gradients
//!      logits = min(4 Mi, answer rows · vocabulary)                   a chunk of them, its softmax and its gradient, f32
//! vision = threads · b · patches · (6·width + 2·inner)
//! ```
//! `b` is 4 for f32 and 2 for bf16. What an allocator keeps and a GPU's own context are not in it.

/// The sizes of a model that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSizes {
    /// Numbers in the checkpoint.
    pub weights: u64,
    /// Bytes of a number of the base: 4 or 2.
    pub bytes: u64,
    /// Layers of the language model.
    pub layers: u64,
    /// Its width.
    pub hidden: u64,
    /// Width of its feed-forward part.
    pub inner: u64,
    /// Query heads times their width.
    pub query: u64,
    /// Key heads times their width.
    pub key: u64,
    /// Its vocabulary.
    pub vocabulary: u64,
    /// Patches of an image, all its tiles together.
    pub patches: u64,
    /// Width of the vision tower.
    pub vision_width: u64,
    /// Width of its feed-forward part.
    pub vision_inner: u64,
}

/// What is trained on, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Rank on all seven linear layers.
    pub rank: u64,
    /// Rows of a prompt, image tokens included.
    pub prompt: u64,
    /// Rows of an answer; there are two to a prompt.
    pub answer: u64,
    /// Image tokens of a prompt, kept as features.
    pub image: u64,
    /// Pairs of a forward pass (`train.micro_batch`).
    pub pairs: u64,
    /// Images whose features are kept.
    pub images: u64,
    /// Threads; 1 on a GPU.
    pub threads: u64,
    /// Rows that go through the model at once for each thread.
    pub rows_at_once: u64,
    /// Bytes of activations that may be kept.
    pub budget: u64,
}

/// The parts of a prediction, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The frozen base.
    pub weights: u64,
    /// LoRA, optimiser and gradients.
    pub adapter: u64,
    /// A forward and a backward pass.
    pub passes: u64,
    /// The vision tower at work.
    pub vision: u64,
    /// Features that are kept.
    pub features: u64,
}

impl Memory {
    /// The largest sum at one time, without the runtime.
    pub fn peak(&self) -> u64 {
        self.weights + self.adapter + self.passes.max(self.vision) + self.features
    }
}

/// Numbers of a LoRA of this rank on all seven linear layers.
pub fn lora_numbers(model: &ModelSizes, rank: u64) -> u64 {
    let ModelSizes { hidden, inner, query, key, .. } = *model;
    let attention = 2 * (hidden + query) + 2 * (hidden + key);
    model.layers * rank * (attention + 3 * (hidden + inner))
}

/// What a run will take, by the formula above.
pub fn predict(model: &ModelSizes, work: &Workload) -> Memory {
    let ModelSizes { bytes, layers, hidden, .. } = *model;
    let pair = work.prompt + 2 * work.answer;
    let all_rows = work.pairs * pair;
    let share = work.pairs.div_ceil(work.threads.max(1));
    // Whole pairs, and one even if it has more rows than the limit.
    let together = (work.rows_at_once / pair.max(1)).clamp(1, share.max(1));
    let layer = bytes * (4 * hidden + 2 * model.query + 2 * model.key + 3 * model.inner);
    let kept_layers = (work.budget / (all_rows * layer).max(1)).min(layers);
    let kept = kept_layers * all_rows * layer;
    let inputs = bytes * hidden * all_rows * (layers - kept_layers);
    let logits = (4 << 20).min(2 * work.answer * together * model.vocabulary);
    Memory {
        weights: bytes * model.weights,
        adapter: 4 * lora_numbers(model, work.rank) * (5 + work.threads),
        passes: kept + inputs + work.threads * (2 * together * pair * layer + 12 * logits),
        vision: work.threads * bytes * model.patches * (6 * model.vision_width + 2 * model.vision_inner),
        features: bytes * hidden * work.image * work.images,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelSizes = ModelSizes {
        weights: 1000,
        bytes: 4,
        layers: 2,
        hidden: 8,
        inner: 16,
        query: 8,
        key: 4,
        vocabulary: 10,
        patches: 5,
        vision_width: 6,
        vision_inner: 12,
    };
    const WORK: Workload = Workload {
        rank: 2,
        prompt: 4,
        answer: 3,
        image: 2,
        pairs: 4,
        images: 7,
        threads: 2,
        rows_at_once: 25,
        budget: u64::MAX,
    };

    #[test]
    fn a_prediction_by_hand() {
        // LoRA: q and o 2·(8+8), k and v 2·(8+4), three of 8+16: 128 a layer and rank.
        assert_eq!(lora_numbers(&MODEL, 2), 512);
        // A layer's row: 4 · (32 + 16 + 8 + 48) = 416 bytes; 40 rows, of which a thread has 2 pairs = 20 at once.
        let memory = predict(&MODEL, &WORK);
        let passes = 2 * 40 * 416 + 2 * (2 * 20 * 416 + 12 * (6 * 2 * 10));
        let expected =
            Memory { weights: 4000, adapter: 4 * 512 * 7, passes, vision: 2 * 4 * 5 * 60, features: 4 * 8 * 2 * 7 };
        assert_eq!(memory, expected);
        assert_eq!(memory.peak(), 4000 + 14336 + passes + 448);
    }

    #[test]
    fn without_a_budget_the_inputs_remain() {
        let memory = predict(&MODEL, &Workload { budget: 0, ..WORK });
        assert_eq!(predict(&MODEL, &WORK).passes - memory.passes, 2 * 40 * 416 - 4 * 8 * 40 * 2);
    }
}
