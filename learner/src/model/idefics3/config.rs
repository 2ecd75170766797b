//! `config.json` of Idefics3 / SmolVLM, in the older hub layout and in transformers 5's.

use serde::Deserialize;
use serde_json::Value;

use crate::model::decoder::{DecoderConfig, RopeScaling};
use crate::model::error::ModelError;

/// What the model needs to know of its configuration.
#[derive(Clone, Debug)]
pub struct Idefics3Config {
    /// Id of the image placeholder.
    pub image_token_id: u32,
    /// Edge of the squares of patches that become one token, in patches.
    pub scale_factor: usize,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The language model.
    pub text: DecoderConfig,
    /// The output layer is the embedding.
    pub tied_head: bool,
}

/// The vision tower's shape. Defaults are transformers', which checkpoints rely on.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionConfig {
    /// Width.
    #[serde(default = "vision::hidden_size")]
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    #[serde(default = "vision::intermediate_size")]
    pub intermediate_size: usize,
    /// Layers.
    #[serde(default = "vision::num_hidden_layers")]
    pub num_hidden_layers: usize,
    /// Attention heads.
    #[serde(default = "vision::num_attention_heads")]
    pub num_attention_heads: usize,
    /// Colour channels.
    #[serde(default = "vision::num_channels")]
    pub num_channels: usize,
    /// Edge of the image that the position embeddings are for, pixels.
    #[serde(default = "vision::image_size")]
    pub image_size: usize,
    /// Edge of a patch, pixels.
    #[serde(default = "vision::patch_size")]
    pub patch_size: usize,
    /// Activation; only `gelu_pytorch_tanh` is known.
    #[serde(default = "vision::hidden_act")]
    pub hidden_act: String,
    /// ε of the layer normalisations.
    #[serde(default = "vision::layer_norm_eps")]
    pub layer_norm_eps: f64,
}

/// transformers' defaults of `Idefics3VisionConfig`.
mod vision {
    pub(super) fn hidden_size() -> usize {
        1152
    }
    pub(super) fn intermediate_size() -> usize {
        3072
    }
    pub(super) fn num_hidden_layers() -> usize {
        12
    }
    pub(super) fn num_attention_heads() -> usize {
        16
    }
    pub(super) fn num_channels() -> usize {
        3
    }
    pub(super) fn image_size() -> usize {
        224
    }
    pub(super) fn patch_size() -> usize {
        32
    }
    pub(super) fn hidden_act() -> String {
        "gelu_pytorch_tanh".to_owned()
    }
    pub(super) fn layer_norm_eps() -> f64 {
        1e-6
    }
}

#[derive(Deserialize)]
struct File {
    image_token_id: u32,
    #[serde(default = "scale_factor")]
    scale_factor: usize,
    vision_config: VisionConfig,
    text_config: TextFile,
}

fn scale_factor() -> usize {
    2
}

#[derive(Deserialize)]
struct TextFile {
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "hidden_act")]
    hidden_act: String,
    #[serde(default = "rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// transformers 5 has θ and scaling in one object.
    rope_parameters: Option<Value>,
    #[serde(default = "max_position_embeddings")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

fn hidden_act() -> String {
    "silu".to_owned()
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn max_position_embeddings() -> usize {
    2048
}

fn refuse(key: &'static str, value: impl ToString, why: impl Into<String>) -> ModelError {
    ModelError::Config {
        file: "config.json",
        key,
        value: value.to_string(),
        why: why.into(),
    }
}

impl Idefics3Config {
    /// Parses `config.json`.
    ///
    /// # Errors
    /// A missing field, or a setting that this implementation does not have.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let file: File = serde_json::from_slice(bytes).map_err(ModelError::json("config.json"))?;
        let (vision, text) = (file.vision_config, file.text_config);
        if vision.hidden_act != "gelu_pytorch_tanh" {
            return Err(refuse(
                "vision_config.hidden_act",
                vision.hidden_act,
                "only gelu_pytorch_tanh is known",
            ));
        }
        if text.hidden_act != "silu" {
            return Err(refuse(
                "text_config.hidden_act",
                text.hidden_act,
                "only silu is known",
            ));
        }
        if text.attention_bias || text.mlp_bias {
            return Err(refuse(
                "text_config.attention_bias / mlp_bias",
                true,
                "biases are not known",
            ));
        }
        let side = vision.image_size / vision.patch_size.max(1);
        if vision.patch_size == 0
            || side == 0
            || file.scale_factor == 0
            || side % file.scale_factor != 0
        {
            return Err(refuse(
                "scale_factor",
                file.scale_factor,
                format!("does not divide {side} patches a side"),
            ));
        }
        if vision.num_attention_heads == 0 || vision.hidden_size % vision.num_attention_heads != 0 {
            return Err(refuse(
                "vision_config.num_attention_heads",
                vision.num_attention_heads,
                "does not divide the width",
            ));
        }
        let (rope_theta, scaling) = rope(&text)?;
        let key_value_heads = text.num_key_value_heads.unwrap_or(text.num_attention_heads);
        let head_dim = text
            .head_dim
            .unwrap_or(text.hidden_size / text.num_attention_heads.max(1));
        if key_value_heads == 0
            || text.num_attention_heads % key_value_heads != 0
            || head_dim % 2 != 0
        {
            return Err(refuse(
                "text_config.num_key_value_heads",
                key_value_heads,
                "does not divide the query heads",
            ));
        }
        Ok(Self {
            image_token_id: file.image_token_id,
            scale_factor: file.scale_factor,
            tied_head: text.tie_word_embeddings,
            vision,
            text: DecoderConfig {
                hidden_size: text.hidden_size,
                intermediate_size: text.intermediate_size,
                vocab_size: text.vocab_size,
                layers: text.num_hidden_layers,
                heads: text.num_attention_heads,
                key_value_heads,
                head_dim,
                rms_norm_eps: text.rms_norm_eps,
                rope_theta,
                rope_scaling: scaling,
                max_positions: text.max_position_embeddings,
            },
        })
    }

    /// Tokens of one image tile: patches divided by the square of the scale factor.
    pub fn tokens_per_tile(&self) -> usize {
        let side = self.vision.image_size / self.vision.patch_size / self.scale_factor;
        side * side
    }
}

fn rope(text: &TextFile) -> Result<(f64, RopeScaling), ModelError> {
    let object = text
        .rope_parameters
        .as_ref()
        .or(text.rope_scaling.as_ref())
        .filter(|value| !value.is_null());
    let theta = text
        .rope_theta
        .or_else(|| {
            object
                .and_then(|object| object.get("rope_theta"))
                .and_then(Value::as_f64)
        })
        .unwrap_or(10_000.0);
    let Some(object) = object else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = object
        .get("rope_type")
        .or_else(|| object.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    let number = |key: &'static str| {
        object
            .get(key)
            .and_then(Value::as_f64)
            .ok_or_else(|| refuse("rope_scaling", object, format!("{key} is missing")))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_positions: number("original_max_position_embeddings")?,
        },
        other => {
            return Err(refuse(
                "rope_scaling.rope_type",
                other,
                "only default, linear and llama3 are known",
            ));
        }
    };
    Ok((theta, scaling))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(text: Value) -> Result<Idefics3Config, ModelError> {
        let mut base = json!({
            "hidden_size": 64, "intermediate_size": 128, "vocab_size": 342, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        for (key, value) in text.as_object().unwrap() {
            base[key] = value.clone();
        }
        let file = json!({"image_token_id": 4, "scale_factor": 2, "text_config": base,
            "vision_config": {"hidden_size": 48, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}});
        Idefics3Config::parse(file.to_string().as_bytes())
    }

    #[test]
    fn both_layouts_of_rotary_settings() {
        let old = config(
            json!({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        )
        .unwrap();
        let new = config(json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}})).unwrap();
        for config in [old, new] {
            assert_eq!(config.text.rope_theta, 5000.0);
            assert_eq!(
                config.text.rope_scaling,
                RopeScaling::Linear { factor: 2.0 }
            );
            assert_eq!(config.tokens_per_tile(), 4);
        }
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        assert!(matches!(
            config(json!({"rope_scaling": llama3}))
                .unwrap()
                .text
                .rope_scaling,
            RopeScaling::Llama3 { .. }
        ));
        assert_eq!(config(json!({})).unwrap().text.rope_theta, 10_000.0);
    }

    #[test]
    fn unknown_settings_are_refused() {
        for text in [
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
            json!({"hidden_act": "gelu"}),
            json!({"attention_bias": true}),
            json!({"num_key_value_heads": 3}),
        ] {
            assert!(
                matches!(config(text.clone()), Err(ModelError::Config { .. })),
                "{text}"
            );
        }
    }
}
