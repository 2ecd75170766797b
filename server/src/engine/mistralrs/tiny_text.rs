//! A text model for tests: the language model of the golden checkpoint, as a Llama checkpoint and as a GGUF file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value as Metadata};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::engine::source::{golden, read_json};

/// Writes the checkpoint into a directory.
pub(crate) fn checkpoint(directory: &Path) {
    let tensors: HashMap<String, Tensor> = tensors().into_iter().collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    beside(directory);
}

/// Writes a GGUF file and what must lie beside it into a directory.
pub(crate) fn gguf(directory: &Path) -> PathBuf {
    let config = config();
    let number = |key: &str| Metadata::U32(u32::try_from(config[key].as_u64().unwrap()).unwrap());
    let head = number("hidden_size").to_u32().unwrap() / number("num_attention_heads").to_u32().unwrap();
    let metadata = [
        ("general.architecture", Metadata::String("llama".into())),
        ("llama.attention.head_count", number("num_attention_heads")),
        ("llama.attention.head_count_kv", number("num_key_value_heads")),
        ("llama.block_count", number("num_hidden_layers")),
        ("llama.context_length", number("max_position_embeddings")),
        ("llama.embedding_length", number("hidden_size")),
        ("llama.rope.dimension_count", Metadata::U32(head)),
        ("llama.rope.freq_base", Metadata::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Metadata::F32(1e-6)),
        ("llama.vocab_size", number("vocab_size")),
    ];
    let tensors: Vec<(String, QTensor)> = tensors()
        .into_iter()
        .map(|(name, tensor)| (gguf_name(&name), interleaved(&name, tensor, &config)))
        .map(|(name, tensor)| (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()))
        .collect();
    let path = directory.join("tiny.gguf");
    let mut file = std::fs::File::create(&path).unwrap();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    beside(directory);
    path
}

/// GGUF has the rotated dimensions of queries and keys in pairs, hub checkpoints in halves.
fn interleaved(name: &str, tensor: Tensor, config: &Value) -> Tensor {
    let heads = match name {
        name if name.contains("q_proj") => "num_attention_heads",
        name if name.contains("k_proj") => "num_key_value_heads",
        _ => return tensor,
    };
    let heads = usize::try_from(config[heads].as_u64().unwrap()).unwrap();
    let (rows, columns) = tensor.dims2().unwrap();
    let halves = tensor.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

fn config() -> Value {
    read_json(&golden("model").join("config.json")).unwrap()["text_config"].clone()
}

fn tensors() -> Vec<(String, Tensor)> {
    let all = candle_core::safetensors::load(golden("model").join("model.safetensors"), &Device::Cpu).unwrap();
    let mut text: Vec<_> = all
        .into_iter()
        .filter_map(|(name, tensor)| match name.strip_prefix("model.text_model.") {
            Some(rest) => Some((format!("model.{rest}"), tensor)),
            None => (name == "lm_head.weight").then_some((name, tensor)),
        })
        .collect();
    text.sort_by(|(a, _), (b, _)| a.cmp(b));
    text
}

fn beside(directory: &Path) {
    let mut config = config();
    config["architectures"] = serde_json::json!(["LlamaForCausalLM"]);
    config["model_type"] = "llama".into();
    fs_err::write(directory.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(golden("model").join(file), directory.join(file)).unwrap();
    }
}

fn gguf_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (hub, gguf)| name.replace(hub, gguf))
}
