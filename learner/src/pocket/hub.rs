//! The files of a hub checkpoint around the weights, in the older layout that every loader of Idefics3 reads.

use std::path::Path;

use serde_json::{Value, json};

use super::tokenizer;

/// The longest conversation in tokens.
pub const CONTEXT: usize = 2048;

/// The sizes of the pocket model. About 2.5 million parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the vision tower.
    pub vision_width: usize,
    /// Layers of the vision tower.
    pub vision_layers: usize,
    /// Attention heads of the vision tower.
    pub vision_heads: usize,
    /// Width of the vision tower's inner layer.
    pub vision_inner: usize,
    /// Width of the language model.
    pub text_width: usize,
    /// Layers of the language model.
    pub text_layers: usize,
    /// Query heads of the language model.
    pub text_heads: usize,
    /// Key and value heads of the language model.
    pub text_key_heads: usize,
    /// Width of the language model's inner layer.
    pub text_inner: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Side of the square of patches that one image token stands for.
    pub merge: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            vision_width: 128,
            vision_layers: 4,
            vision_heads: 4,
            vision_inner: 384,
            text_width: 192,
            text_layers: 4,
            text_heads: 6,
            text_key_heads: 2,
            text_inner: 512,
            patch: 8,
            merge: 2,
        }
    }
}

impl Shape {
    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (super::world::SIDE / self.patch).pow(2)
    }

    /// Image tokens of an image.
    pub fn image_tokens(&self) -> usize {
        self.patches() / self.merge.pow(2)
    }

    /// `config.json`.
    pub fn config_json(&self) -> Value {
        json!({
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": tokenizer::IMAGE,
            "model_type": "idefics3",
            "pad_token_id": tokenizer::PAD,
            "scale_factor": self.merge,
            "text_config": {
                "attention_bias": false,
                "attention_dropout": 0.0,
                "bos_token_id": tokenizer::BEGIN,
                "eos_token_id": tokenizer::END,
                "head_dim": self.text_width / self.text_heads,
                "hidden_act": "silu",
                "hidden_size": self.text_width,
                "initializer_range": 0.02,
                "intermediate_size": self.text_inner,
                "max_position_embeddings": CONTEXT,
                "mlp_bias": false,
                "model_type": "llama",
                "num_attention_heads": self.text_heads,
                "num_hidden_layers": self.text_layers,
                "num_key_value_heads": self.text_key_heads,
                "pad_token_id": tokenizer::PAD,
                "pretraining_tp": 1,
                "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0,
                "tie_word_embeddings": false,
                "use_cache": true,
                "vocab_size": tokenizer::vocabulary().len()
            },
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.46.0",
            "use_cache": true,
            "vision_config": {
                "attention_dropout": 0.0,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": self.vision_width,
                "image_size": super::world::SIDE,
                "initializer_range": 0.02,
                "intermediate_size": self.vision_inner,
                "layer_norm_eps": 1e-6,
                "model_type": "idefics3_vision",
                "num_attention_heads": self.vision_heads,
                "num_channels": 3,
                "num_hidden_layers": self.vision_layers,
                "patch_size": self.patch
            }
        })
    }

    /// Every file but the weights, by name.
    pub fn files(&self) -> Vec<(&'static str, Value)> {
        let side = super::world::SIDE;
        vec![
            ("config.json", self.config_json()),
            (
                "generation_config.json",
                json!({
                    "_from_model_config": true,
                    "bos_token_id": tokenizer::BEGIN,
                    "eos_token_id": tokenizer::END,
                    "pad_token_id": tokenizer::PAD,
                    "transformers_version": "4.46.0"
                }),
            ),
            (
                "preprocessor_config.json",
                json!({
                    "do_convert_rgb": true,
                    "do_image_splitting": false,
                    "do_normalize": true,
                    "do_pad": true,
                    "do_rescale": true,
                    "do_resize": true,
                    "image_mean": [0.5, 0.5, 0.5],
                    "image_processor_type": "Idefics3ImageProcessor",
                    "image_std": [0.5, 0.5, 0.5],
                    "max_image_size": { "longest_edge": side },
                    "processor_class": "Idefics3Processor",
                    "resample": 1,
                    "rescale_factor": 1.0 / 255.0,
                    "size": { "longest_edge": side }
                }),
            ),
            (
                "processor_config.json",
                json!({ "image_seq_len": self.image_tokens(), "processor_class": "Idefics3Processor" }),
            ),
            ("tokenizer.json", tokenizer::tokenizer_json()),
            ("tokenizer_config.json", tokenizer::tokenizer_config_json()),
        ]
    }

    /// Writes every file but the weights into `directory`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> std::io::Result<()> {
        fs_err::create_dir_all(directory)?;
        for (name, content) in self.files() {
            let mut text = serde_json::to_string_pretty(&content)?;
            text.push('\n');
            fs_err::write(directory.join(name), text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_image_tokens_stand_for_sixty_four_patches() {
        let shape = Shape::default();
        assert_eq!((shape.patches(), shape.image_tokens()), (64, 16));
        assert_eq!(shape.config_json()["text_config"]["head_dim"], 32);
    }

    #[test]
    fn files_are_written_as_json() {
        let directory = tempfile::tempdir().unwrap();
        Shape::default().write(directory.path()).unwrap();
        for (name, content) in Shape::default().files() {
            let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), content, "{name}");
        }
    }
}
